"""The LTE pool P of Section 3.2: encode once, keep the table with its provenance, look rows up by label.

P = {e_y = C(Y_y) : y = 1..K}        (Eq. 1; Algorithm 1, lines 1-2)
"""

import pickletools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .. import files
from ..errors import MissingFile, UserError
from .encoders import encode
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


def read_released_table(path: Path) -> Tensor:
    """The embeddings in one of the authors' released pickles, (K, e) float32, without unpickling anything.

    Such a file is a pickle of one tensor whose storage is a block of bytes inside it. `pickletools` lists a pickle's
    opcodes and executes none: the tensor's type and shape stand among them, its values at the end of the block.

    Raises:
        MissingFile, UserError: no such file, or a pickle of anything but one float tensor with two dimensions.
    """
    if not Path(path).is_file():
        raise MissingFile(f"{path} does not exist: the released tables lie in the authors' label_embedding folder.")
    try:
        opcodes = [(op.name, argument) for op, argument, _ in pickletools.genops(Path(path).read_bytes())]
        [(at, block)] = [(i, x) for i, (name, x) in enumerate(opcodes) if "BINBYTES" in name and isinstance(x, bytes)]
        [dtype] = [d for name, d in ((b"HalfStorage", np.float16), (b"FloatStorage", np.float32)) if name in block]
        # After the storage come offset, shape and stride: 0, (K, e), (e, 1).
        offset, rows, width, *stride = [x for name, x in opcodes[at:] if name.startswith("BININT")][:5]
        size = rows * width * np.dtype(dtype).itemsize
        if offset or stride != [width, 1] or int.from_bytes(block[-size - 8 : -size], "little") != rows * width:
            raise ValueError("not one whole table")
    except (ValueError, IndexError) as error:  # genops raises ValueError on what is no pickle
        raise UserError(
            f"{path} is not a pickle of one table of embeddings, and nothing in it was executed."
        ) from error
    return torch.from_numpy(np.frombuffer(block[-size:], dtype).reshape(rows, width).astype(np.float32))


def read_npz_table(path: Path, key: str) -> tuple[Tensor, list[str]]:
    """The embeddings called `key` in an .npz file, (K, e) float32, and the K class names called `<key>_labels`.

    Raises:
        MissingFile, UserError: no such file, as `files.load_arrays`, no such table, or one without its names.
    """
    arrays = files.load_arrays(path)
    table, names = arrays.get(key), arrays.get(f"{key}_labels")
    if table is None:
        keys = ", ".join(name for name in arrays if f"{name}_labels" in arrays) or "none with class names"
        raise UserError(f"{path} has no table {key!r}: choose one of those it has with --key ({keys}).")
    if table.ndim != 2 or table.dtype.kind != "f":
        raise UserError(f"{key!r} in {path} is no table of embeddings: {table.dtype} of shape {table.shape}.")
    if names is None or names.shape != (len(table),) or names.dtype.kind != "U":
        raise UserError(
            f"{path} does not say whose rows {key!r} has: {key}_labels must hold {len(table)} names in order."
        )
    return torch.from_numpy(table.astype(np.float32)), names.tolist()


def released_pool(
    path: Path, names: Sequence[str], order: Sequence[str] | None = None, key: str | None = None
) -> LTEPool:
    """One of the authors' released tables as a pool for the classes `names`.

    Args:
        path: the authors' pickle, or an .npz file that holds such tables with their class names.
        order: the class list of the table, to match rows by name. None takes the names in an .npz file, and row k of a
            pickle for class k, as is right for CIFAR-10, CIFAR-100 and ImageNet. Tiny-ImageNet's released list is not
            in the order of its labels, which are sorted by WordNet id: 189 of its 200 rows have another class's place.
        key: the name of a table in an .npz file.

    Raises:
        UserError: as `read_released_table` and `read_npz_table`, another number of classes, no order for Tiny-ImageNet,
            or a class that the order does not name once.
    """
    names, table_names = check_names(names), None
    if Path(path).suffix == ".npz":
        table, table_names = read_npz_table(path, key)
    else:
        table = read_released_table(path)
    order = table_names if order is None else order
    if len(table) != len(names):
        raise UserError(f"{path} has {len(table)} rows, there are {len(names)} class names: it is another data set's.")
    if order is None and names == class_names("tiny_imagenet"):
        raise UserError("the released rows of Tiny-ImageNet are in another order than its labels: give the class list.")
    rows = _rows_of(names, order) if order is not None else list(range(len(names)))
    header = {
        "encoder": "clip",
        "model": "ViT-B/32, as released by the authors",
        "file_sha256": files.file_hash(path),
        "moved_rows": sum(row != k for k, row in enumerate(rows)),
        "prompt": template("a"),
        "labels_sha256": labels_hash(names),
    }
    return LTEPool(table[rows], header | ({"key": key} if table_names else {}))


def _rows_of(names: Sequence[str], order: Sequence[str]) -> list[int]:
    """The row of each class in a table whose rows `order` names; names are compared as `labels.readable` writes them.

    If `order` has other names for at most one class in a hundred (ImageNet's two cranes), and all others at their own
    places, its order is taken for that of the labels.
    """
    names_of_classes, names_of_rows = readable(names), readable(order)
    odd = [k for k, name in enumerate(names_of_classes) if names_of_rows.count(name) != 1]
    rows = [k if k in odd else names_of_rows.index(name) for k, name in enumerate(names_of_classes)]
    in_place = len(order) == len(names) and rows == list(range(len(names)))
    if odd and not (in_place and 100 * len(odd) <= len(names)):
        raise UserError(
            f"the class list does not name {names_of_classes[odd[0]]!r} once ({len(odd)} of {len(names)}): give a "
            "list that does, or no list for a pickle whose rows are in the order of the labels."
        )
    if len(order) != len(names):
        raise UserError(f"the class list has {len(order)} names, the table {len(names)} rows: it is another table's.")
    return rows


def equal_rows(table: Tensor) -> list[tuple[int, int]]:
    """Pairs of classes with one and the same embedding: a generator that reads it cannot tell them apart.

    Rows are the same that differ by less than a thousandth of the longest: equal texts may be rounded otherwise in
    another batch, and in float16. Such rows lie side by side when all are sorted along one direction.
    """
    rows = table.double()
    order = (rows @ torch.randn(rows.shape[1], generator=torch.Generator().manual_seed(0)).to(rows)).argsort()
    steps = rows[order].diff(dim=0).norm(dim=1) > 1e-3 * rows.norm(dim=1).max()
    place = torch.zeros_like(order)
    place[order[1:]] = steps.cumsum(0)
    pairs = torch.triu(place[:, None] == place[None, :], 1).nonzero()
    return [(i, j) for i, j in pairs.tolist()]


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
