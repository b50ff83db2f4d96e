"""The LTE pool P of Section 3.2: encode once, keep the table with its provenance, look rows up by label.

P = {e_y = C(Y_y) : y = 1..K}        (Eq. 1; Algorithm 1, lines 1-2)
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .. import files
from ..errors import MissingFile, UserError
from .labels import check_names, class_names, labels_hash, readable
from .prompts import PROMPTS, fill, template


@dataclass(frozen=True)
class LTEPool:
    """The pool P: `table` is (K, e) float32, row k the embedding of class k; `header` is its provenance."""

    table: Tensor
    header: dict

    def __getitem__(self, labels: Tensor) -> Tensor:
        """(B,) class ids -> (B, e) embeddings: Algorithm 1, line 6."""
        return self.table[labels]


def pool_path(dataset: str, encoder: str, prompt: str) -> Path:
    """The kit's file for the pool of a data set, an encoder and a prompt id (a hash for a template of your own)."""
    prompt = prompt if prompt in PROMPTS else files.text_hash(template(prompt))[:8]
    return files.data_dir() / "lte" / f"{dataset}.{encoder}.{prompt}.safetensors"


def build_pool(
    names: Sequence[str], encoder: str, prompt: str, model: str | None = None, device: str = "cpu", bar: bool = False
) -> LTEPool:
    """Encode all class names once (Eq. 1), as `labels.readable` writes them.

    `prompt` as in `prompts.fill`, the rest and its errors as in `encode`.

    Raises:
        UserError: also for two classes with one embedding, as names beyond the encoder's length get.
    """
    from .encoders import encode  # here: a run whose pool is kept asks no encoder

    names = check_names(names)
    table, provenance = encode(fill(prompt, readable(names)), encoder, model, device, bar)
    if pairs := equal_rows(table):
        one, other = (names[k][:60] for k in pairs[0])
        raise UserError(
            f"{one!r} and {other!r} get one and the same embedding ({len(pairs)} such pair(s)): {encoder} cuts long "
            "names off and reads some spellings alike, so tell them apart in their first words."
        )
    return LTEPool(table, {**provenance, "prompt": template(prompt), "labels_sha256": labels_hash(names)})


def find_pool(dataset: str, names: Sequence[str], encoder: str, prompt: str) -> LTEPool:
    """The pool of a data set's classes: the kit's, else the user's cached one, else one built now and cached.

    Raises:
        UserError: as `load_pool`, and as `build_pool` if the pool must be built.
    """
    kept = pool_path(dataset, encoder, prompt)
    if kept.is_file():
        return load_pool(kept, names)
    cached = files.datasets_dir() / "lte" / pool_path(labels_hash(names)[:12], encoder, prompt).name
    try:
        return load_pool(cached, names)
    except UserError:  # missing, or damaged: rebuilding loses nothing
        save_pool(cached, build_pool(names, encoder, prompt, bar=True))
    return load_pool(cached, names)


def save_pool(path: Path, pool: LTEPool) -> None:
    """Write a pool in float16: CLIP's own precision, and a rounding far below any distance between labels.

    Raises:
        UserError: an embedding that float16 cannot hold.
    """
    table = pool.table.half()
    if not torch.isfinite(table).all():
        raise UserError("these embeddings are too large for a pool (beyond 65504): scale them down first.")
    files.save_tensors(path, {"lte": table}, pool.header)


def equal_rows(table: Tensor) -> list[tuple[int, int]]:
    """Pairs of classes with one and the same embedding: a generator that reads it cannot tell them apart.

    Rows are the same that differ by at most a thousandth of the longest: equal texts may be rounded otherwise in
    another batch, and in float16.
    """
    rows = table.double()
    same = torch.cdist(rows, rows) <= 1e-3 * rows.norm(dim=1).max()
    return [(i, j) for i, j in same.triu(1).nonzero().tolist()]


def agreement(first: LTEPool, second: LTEPool) -> Tensor:
    """(K,) cosine of each class's embedding in two pools.

    Raises:
        UserError: pools of different classes, or of different width and so of different encoders.
    """
    if first.header["labels_sha256"] != second.header["labels_sha256"]:
        raise UserError("the two pools are for different class names or orders: there is nothing to compare.")
    if first.table.shape != second.table.shape:
        widths = f"{first.table.shape[1]} and {second.table.shape[1]}"
        raise UserError(f"the two pools have {widths} numbers a class: they come from different encoders.")
    return torch.nn.functional.cosine_similarity(first.table, second.table)


def read_pool(path: Path) -> LTEPool:
    """Read a pool of any classes.

    Raises:
        MissingFile: no such pool.
        UserError: the file is not a pool or cut short, or its rows are not finite.
    """
    if not Path(path).is_file():
        raise MissingFile(
            f"no label-text embeddings at {Path(path).name}: build them with "
            "`python -m nayer_lib lte build --dataset NAME --encoder sbert --prompt a`."
        )
    tensors, header = files.load_tensors(path)
    if set(tensors) != {"lte"} or tensors["lte"].dim() != 2 or "labels_sha256" not in header:
        raise UserError(
            f"{path} is not a pool of label-text embeddings: build one with `python -m nayer_lib lte build`."
        )
    table = tensors["lte"].float()
    if not torch.isfinite(table).all():
        raise UserError(f"{Path(path).name} holds numbers that are not finite: build it again.")
    return LTEPool(table, header)


def load_pool(path: Path, names: Sequence[str]) -> LTEPool:
    """Read the pool of the classes `names`, in that order.

    Raises:
        MissingFile, UserError: as `read_pool`; another number of classes, other names, or another order.
    """
    pool, file = read_pool(path), Path(path).name
    if len(pool.table) != len(names):
        raise UserError(f"{file} has {len(pool.table)} classes, the data set has {len(names)}: build its own pool.")
    if pool.header["labels_sha256"] != labels_hash(names):
        raise UserError(f"{file} was built for other class names or another order: build it for these names.")
    if pairs := equal_rows(pool.table):
        one, other = (names[k] for k in pairs[0])
        warnings.warn(
            f"{file} has one embedding for {one!r} and {other!r} ({len(pairs)} such pair(s)): a generator cannot tell "
            "them apart.",
            stacklevel=2,
        )
    return pool


def classes_of(pool: LTEPool) -> tuple[str, Sequence[str]]:
    """The data set whose class names a pool was built for, and the names; ("", numbers) if we know none."""
    for path in sorted((files.data_dir() / "labels").glob("*.txt")):
        names = class_names(path.stem)
        if labels_hash(names) == pool.header["labels_sha256"]:
            return path.stem, names
    return "", [f"class {k}" for k in range(len(pool.table))]
