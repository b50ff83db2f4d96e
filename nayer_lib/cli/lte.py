"""Pools of label-text embeddings: build, convert, show, compare."""

import itertools
from pathlib import Path

from tyro.conf import Positional

from .. import datasets, embeddings
from ..classifiers.teacher import load_teacher
from ..config import TABLE8, Config
from ..errors import UserError
from ..evaluate import features
from ..text.labels import read_names
from ..text.lte_pool import agreement, build_pool, equal_rows, pool_path, read_pool, released_pool, save_pool
from .common import own_teacher


def build(
    dataset: tuple[str, ...],
    encoder: str = "sbert",
    prompt: tuple[str, ...] = ("a",),
    model: str | None = None,
    classes: Path | None = None,
    device: str = "cpu",
    out: Path | None = None,
) -> None:
    """Encode class names once and save a pool (Eq. 1) for each data set and prompt.

    Args:
        dataset: names of data sets; the class names stand in data/labels.
        encoder: "clip", "sbert", "doc2vec", or "random" for the control.
        prompt: ids of text/prompts.py, "a", "p2", "photo", ..., or templates with a {name} slot.
        model: CLIP: NAME:TAG or NAME:FILE of open_clip; SBERT: a model of the hub or a folder; Doc2Vec: its corpus,
            "wordnet", "text8" or a text file with one document a line.
        classes: your own class names, one a line, in place of the data set's.
        device: where CLIP and SBERT compute, "cpu" or "cuda".
        out: of one pool; default: data/lte/<data set>.<encoder>.<prompt>.safetensors.
    """
    if len(dataset) * len(prompt) > 1 and out:
        raise UserError("--out names one file: leave it out, or build one pool at a time.")
    for name, template in itertools.product(dataset, prompt):
        pool = build_pool(_names(name, classes), encoder, template, model, device, bar=True)
        _save(pool, out or pool_path(name, encoder, template))
        if unknown := pool.header.get("unknown_words"):
            print(f"words that {encoder} does not know: {', '.join(unknown)}")


def convert(
    dataset: str,
    released: Path,
    key: str | None = None,
    order: Path | None = None,
    classes: Path | None = None,
    out: Path | None = None,
) -> None:
    """Turn one of the authors' released tables into a pool; its bytes are read and nothing is unpickled.

    Args:
        dataset: its name; the class names stand in data/labels.
        released: the pickle, label_embedding/<data set>_le.pickle of the authors' repository; or an .npz file with
            such a table NAME and its class names NAME_labels.
        key: the NAME of the table in an .npz file; default: the data set's.
        order: the authors' list of class names beside a pickle, one a line; needed for tiny_imagenet, whose rows are
            in another order than its labels.
        classes: your own class names, one a line, in place of the data set's.
        out: default: data/lte/<data set>.clip.a.safetensors.
    """
    names = _names(dataset, classes)
    pool = released_pool(released, names, read_names(order) if order else None, key or dataset)
    _save(pool, out or pool_path(dataset, "clip", "a"))
    if moved := pool.header["moved_rows"]:
        print(f"{moved} of {len(names)} rows stood at another class's place; they were put right by name")
    for one, other in equal_rows(pool.table):
        print(f"{names[one]!r} ({one}) and {names[other]!r} ({other}) have one embedding: G cannot tell them apart")


def show(
    pools: Positional[tuple[Path, ...]],
    teacher: Path | None = None,
    network: str | None = None,
    mean: tuple[float, ...] = (),
    std: tuple[float, ...] = (),
    images: bool = False,
    keep: bool = False,
) -> None:
    """Say where pools come from and how their embeddings lie; with --images, whether classes that look alike lie close.

    Args:
        pools: files of `lte build` or `lte convert`.
        teacher: a checkpoint whose features of the test images are compared with the text; default: the kit's teacher.
        network: the architecture of somebody else's checkpoint, "resnet20", ...
        mean: its normalisation, a number a channel; default: the data set's.
        std: likewise.
        images: compare with the class means of the teacher's features on the data set's test images.
        keep: put what is told into data/embeddings.json, from which the notebooks read.
    """
    if not pools:
        raise UserError("name one or more pools, as data/lte/cifar10.sbert.a.safetensors.")
    compared: dict[str, embeddings.ImageFeatures] = {}  # by data set
    for path in pools:
        pool = read_pool(path)
        dataset, names = embeddings.classes_of(pool)
        if (images or teacher or network) and dataset not in compared:
            if not dataset:
                raise UserError(f"{path.name} is for classes of your own: there are no test images to compare with.")
            judge = own_teacher(dataset, teacher, network, None, mean, std)
            judge = judge or load_teacher(dataset, TABLE8[dataset].get("teacher", Config.teacher))
            if judge.class_names != names:
                raise UserError(f"the teacher's class names are not those of {dataset}: take a teacher of its classes.")
            test = datasets.load_split(dataset, "test")
            compared[dataset] = embeddings.ImageFeatures(features(judge, test.images), test.labels, judge.name)
        facts = embeddings.describe(pool, names, compared.get(dataset))
        print(f"{path.name}: {embeddings.in_words(facts)}\n")
        if keep:
            embeddings.keep(dataset, path.name.removesuffix(".safetensors").split(".", 1)[-1], facts)
            if dataset == "cifar10" and dataset in compared:
                embeddings.keep(dataset, "figure6", embeddings.figure6(compared[dataset]))


def compare(one: Positional[Path], other: Positional[Path]) -> None:
    """Compare two pools of one encoder, class by class: the cosine of a class's two embeddings.

    Args:
        one: a pool.
        other: a pool for the same classes.
    """
    first = read_pool(one)
    cosine = agreement(first, read_pool(other))
    names = embeddings.classes_of(first)[1]
    for k in cosine.argsort()[:5].tolist():
        print(f"{cosine[k]:.4f}  {names[k]}")
    print(f"{cosine.mean():.4f}  mean of {len(cosine)} classes; the lowest stand above")


COMMANDS = {f.__name__: f for f in (build, convert, show, compare)}


def _names(dataset: str, classes: Path | None) -> tuple[str, ...] | list[str]:
    return read_names(classes) if classes else datasets.dataset(dataset).class_names


def _save(pool, path: Path) -> None:
    save_pool(path, pool)
    print(f"{len(pool.table)} x {pool.table.shape[1]} embeddings\n{path}")
