"""What can be told of a pool of label-text embeddings, kept in data/embeddings.json as run cards are in data/runs."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from torch import Tensor
from tyro.conf import Positional

from nayer_lib import datasets, files
from nayer_lib.classifiers.teacher import load_teacher
from nayer_lib.cli.common import NO_FOREIGN, ForeignOptions, own_teacher
from nayer_lib.config import TABLE8, Config
from nayer_lib.errors import UserError
from nayer_lib.evaluate import features
from nayer_lib.text.corpora import words
from nayer_lib.text.labels import class_names, superclasses
from nayer_lib.text.lte_pool import LTEPool, classes_of, equal_rows, read_pool

from . import geometry

FIGURE6 = ("automobile", "cat", "dog", "truck")  # the classes of the paper's Fig. 6
MATRIX_UP_TO = 20  # classes: of more, the matrix of cosines is not kept


@dataclass(frozen=True)
class ImageFeatures:
    """A teacher's features of test images: features (N, d), labels (N,), and the teacher's name."""

    features: Tensor
    labels: Tensor
    teacher: str


def coverage(names: Sequence[str], known_words: set[str]) -> list[str]:
    """The names whose words are all known."""
    return [name for name in names if set(words(name)) <= known_words]


def describe(pool: LTEPool, names: Sequence[str], images: ImageFeatures | None = None) -> dict:
    """How a pool's rows lie, as plain numbers: see `geometry` for each.

    Raises:
        UserError: a pool of one class, which has nothing to be near to.
    """
    if len(pool.table) < 2:
        raise UserError("a pool of one class has no distances: there is nothing to tell.")
    table, matrix = pool.table, geometry.cosines(pool.table)
    nearest = geometry.neighbours(table).flatten().tolist()
    pairs = sorted({tuple(sorted(pair)) for pair in enumerate(nearest)}, key=lambda pair: -matrix[pair].item())
    facts = {
        "header": pool.header,
        "shape": list(table.shape),
        "norm": {"mean": table.norm(dim=1).mean().item(), "sd": table.norm(dim=1).std().item()},
        "spread": geometry.spread(table),
        "spread_after_batchnorm": geometry.spread(geometry.batch_normed(table)),
        "outlier_dimensions": {
            str(d): {"share": share, "mean": table[:, d].mean().item()}
            for d, share in geometry.outlier_dimensions(table).items()
        },
        "nearest": [[names[i], names[j], matrix[i, j].item()] for i, j in pairs[:10]],
        "equal_rows": [[names[i], names[j]] for i, j in equal_rows(table)],
    }
    if tuple(names) == class_names("cifar100"):
        share, chance = geometry.neighbour_in_group(table, superclasses())
        facts["superclass"] = {"neighbour_in_it": share, "chance": chance}
    if len(table) <= MATRIX_UP_TO:
        facts["cosines"] = [[round(value, 4) for value in row] for row in matrix.tolist()]
    if images:
        means = geometry.class_means(images.features, images.labels, len(table))
        rho, p = geometry.rank_correlation(1 - matrix, geometry.distances(means))
        facts["images"] = {"teacher": images.teacher, "images": len(images.labels), "rho": rho, "p": p}
    return facts


def figure6(images: ImageFeatures) -> dict:
    """Fig. 6's map of CIFAR-10's images, t-SNE of the teacher's features: xs and ys of a class's first hundred."""
    names = class_names("cifar10")
    rows = [(images.labels == names.index(name)).nonzero().flatten()[:100] for name in FIGURE6]
    points = geometry.tsne(images.features[torch.cat(rows)], perplexity=30).split([len(row) for row in rows])
    places = {name: of.T.round(decimals=1).tolist() for name, of in zip(FIGURE6, points, strict=True)}
    return {"teacher": images.teacher, "points": places}


def in_words(facts: dict) -> str:
    """A description as the command line prints it."""
    header, before, after = facts["header"], facts["spread"], facts["spread_after_batchnorm"]
    lines = [
        f"{facts['shape'][0]} classes, {facts['shape'][1]} numbers each; prompt {header['prompt']!r}",
        f"  made by       {header['encoder']}, {header['model']}",
        f"  length        {facts['norm']['mean']:.2f} (sd {facts['norm']['sd']:.2f})",
        f"  cosine        {before['cosine']:.3f}, after BatchNorm {after['cosine']:.3f} (means over pairs)",
        f"  L2 distance   {before['L2']:.3f}, after BatchNorm {after['L2']:.3f}",
        f"  nearest       {'; '.join(f'{a} - {b} {c:.3f}' for a, b, c in facts['nearest'][:4])}",
    ]
    if outliers := facts["outlier_dimensions"]:
        share = sum(one["share"] for one in outliers.values())
        shown = ", ".join(f"{d} ({one['mean']:.1f})" for d, one in list(outliers.items())[:6])
        lines.append(f"  outliers      {shown}: {100 * share:.0f} % of the squared length")
    if superclass := facts.get("superclass"):
        share, chance = superclass["neighbour_in_it"], superclass["chance"]
        lines.append(f"  superclass    holds the nearest class for {100 * share:.0f} % (chance {100 * chance:.0f} %)")
    lines += [f"  one embedding {a} - {b}: G cannot tell them apart" for a, b in facts["equal_rows"]]
    if images := facts.get("images"):
        rank = f"rank correlation {images['rho']:+.2f} (p = {images['p']:.4f})"
        lines.append(f"  and images    {rank} with {images['teacher']}'s features of {images['images']} test images")
    return "\n".join(lines)


def kept() -> dict[str, dict[str, dict]]:
    """What was kept: data set -> "encoder.prompt" -> description; CIFAR-10 has "figure6" beside them."""
    path = files.data_dir() / "embeddings.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def remember(dataset: str, name: str, facts: dict) -> None:
    """Put a description into data/embeddings.json, in place of an earlier one of the same pool; six digits a
    number."""
    everything = kept()
    rounded = json.loads(json.dumps(facts), parse_float=lambda digits: float(f"{float(digits):.6g}"))
    everything.setdefault(dataset or "other", {})[name] = {"torch": torch.__version__, **rounded}
    text = json.dumps(everything, indent=1, sort_keys=True)
    files.write_text(files.data_dir() / "embeddings.json", text + "\n")


def show(
    pools: Positional[tuple[Path, ...]],
    teacher: Path | None = None,
    foreign: ForeignOptions = NO_FOREIGN,
    images: bool = False,
    keep: bool = False,
) -> None:
    """Say where pools come from and how their embeddings lie; with --images, whether classes that look alike lie close.

    Args:
        pools: files of `lte build` or `lte convert`.
        teacher: a checkpoint whose features of the test images are compared with the text; default: the kit's teacher.
        images: compare with the class means of the teacher's features on the data set's test images.
        keep: put what is told into data/embeddings.json, from which the notebooks read.
    """
    if not pools:
        raise UserError("name one or more pools, as data/lte/cifar10.sbert.a.safetensors.")
    compared: dict[str, ImageFeatures] = {}  # by data set
    for path in pools:
        pool = read_pool(path)
        dataset, names = classes_of(pool)
        if (images or teacher or foreign.network) and dataset not in compared:
            if not dataset:
                raise UserError(f"{path.name} is for classes of your own: there are no test images to compare with.")
            judge = own_teacher(dataset, teacher, foreign)
            judge = judge or load_teacher(dataset, TABLE8[dataset].get("teacher", Config.teacher))
            if judge.class_names != names:
                raise UserError(f"the teacher's class names are not those of {dataset}: take a teacher of its classes.")
            test = datasets.load_split(dataset, "test")
            compared[dataset] = ImageFeatures(features(judge, test.images), test.labels, judge.name)
        facts = describe(pool, names, compared.get(dataset))
        print(f"{path.name}: {in_words(facts)}\n")
        if keep:
            name = path.name.removesuffix(".safetensors")  # under its data set without that one's name
            remember(dataset, name.split(".", 1)[-1] if dataset else name, facts)
            if dataset == "cifar10" and dataset in compared:
                remember(dataset, "figure6", figure6(compared[dataset]))


if __name__ == "__main__":
    try:
        tyro.cli(show, prog="nayer_notebooks.embeddings")
    except UserError as error:
        sys.exit(f"embeddings: {error}")
