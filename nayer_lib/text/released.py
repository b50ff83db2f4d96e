"""Pools from the authors' released tables of label-text embeddings: their pickles, or .npz files that hold several."""

import pickletools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .. import files
from ..errors import MissingFile, UserError
from .labels import check_names, class_names, labels_hash, readable
from .lte_pool import LTEPool
from .prompts import template


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
