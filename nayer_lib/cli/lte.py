"""Pools of label-text embeddings: build, convert, compare."""

import itertools
from pathlib import Path

from tyro.conf import Positional

from .. import datasets
from ..errors import UserError
from ..text.labels import read_names
from ..text.lte_pool import agreement, build_pool, classes_of, equal_rows, pool_path, read_pool, save_pool
from ..text.released import released_pool
from .common import new_file


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
            "wordnet" or a text file with one document a line.
        classes: your own class names, one a line, in place of the data set's.
        device: where CLIP and SBERT compute, "cpu" or "cuda".
        out: of one pool; default: data/lte/<data set>.<encoder>.<prompt>.safetensors.
    """
    if len(dataset) * len(prompt) > 1 and out:
        raise UserError("--out names one file: leave it out, or build one pool at a time.")
    wanted = list(itertools.product(dataset, prompt))
    paths = [new_file(out or pool_path(name, encoder, template)) for name, template in wanted]
    for (name, template), path in zip(wanted, paths, strict=True):
        pool = build_pool(_names(name, classes), encoder, template, model, device, bar=True)
        _save(pool, path)
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
    path = new_file(out or pool_path(dataset, "clip", "a"))
    names = _names(dataset, classes)
    pool = released_pool(released, names, read_names(order) if order else None, key or dataset)
    _save(pool, path)
    if moved := pool.header["moved_rows"]:
        print(f"{moved} of {len(names)} rows stood at another class's place; they were put right by name")
    for one, other in equal_rows(pool.table):
        print(f"{names[one]!r} ({one}) and {names[other]!r} ({other}) have one embedding: G cannot tell them apart")


def compare(one: Positional[Path], other: Positional[Path]) -> None:
    """Compare two pools of one encoder, class by class: the cosine of a class's two embeddings.

    Args:
        one: a pool.
        other: a pool for the same classes.
    """
    first = read_pool(one)
    cosine = agreement(first, read_pool(other))
    names = classes_of(first)[1]
    for k in cosine.argsort()[:5].tolist():
        print(f"{cosine[k]:.4f}  {names[k]}")
    print(f"{cosine.mean():.4f}  mean of {len(cosine)} classes; the lowest stand above")


COMMANDS = {f.__name__: f for f in (build, convert, compare)}


def _names(dataset: str, classes: Path | None) -> tuple[str, ...] | list[str]:
    return read_names(classes) if classes else datasets.dataset(dataset).class_names


def _save(pool, path: Path) -> None:
    save_pool(path, pool)
    print(f"{len(pool.table)} x {pool.table.shape[1]} embeddings\n{path}")
