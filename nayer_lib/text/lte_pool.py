"""The LTE pool P of Section 3.2: encode once, keep the table with its provenance, look rows up by label.

P = {e_y = C(Y_y) : y = 1..K}        (Eq. 1; Algorithm 1, lines 1-2)
"""

import pickletools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .. import files
from ..errors import MissingFile, UserError
from .encoders import encode
from .labels import check_names, labels_hash
from .prompts import fill, template


@dataclass(frozen=True)
class LTEPool:
    """The pool P: `table` is (K, e) float32, row k the embedding of class k; `header` says how it was made."""

    table: Tensor
    header: dict

    def __getitem__(self, labels: Tensor) -> Tensor:
        """(B,) class ids -> (B, e) embeddings: Algorithm 1, line 6."""
        return self.table[labels]


def pool_path(dataset: str, encoder: str, prompt: str) -> Path:
    """Where the kit keeps the pool of a data set, an encoder and a prompt id."""
    return files.data_dir() / "lte" / f"{dataset}.{encoder}.{prompt}.safetensors"


def build_pool(names: Sequence[str], encoder: str, prompt: str, model: str | None = None) -> LTEPool:
    """Ask the encoder once for all class names (Eq. 1); `prompt` as in `prompts.fill`, errors as in `encode`."""
    names = check_names(names)
    table, provenance = encode(fill(prompt, names), encoder, model)
    return LTEPool(table, {**provenance, "prompt": template(prompt), "labels_sha256": labels_hash(names)})


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


def released_pool(path: Path, names: Sequence[str]) -> LTEPool:
    """One of the authors' released tables as a pool for the classes `names`, in the table's own order.

    Raises:
        UserError: as `read_released_table`, or another number of classes.
    """
    names, table = check_names(names), read_released_table(path)
    if len(table) != len(names):
        raise UserError(f"{path} has {len(table)} rows, there are {len(names)} class names: it is another data set's.")
    header = {"encoder": "clip", "model": "ViT-B/32, as released by the authors", "file_sha256": files.file_hash(path)}
    return LTEPool(table, {**header, "prompt": template("a"), "labels_sha256": labels_hash(names)})


def load_pool(path: Path, names: Sequence[str]) -> LTEPool:
    """Read a pool for the classes `names`, in that order.

    Raises:
        MissingFile: no such pool.
        UserError: not a pool, rows that are not finite, another number of classes, or other names or another order.
    """
    if not Path(path).is_file():
        raise MissingFile(
            f"no label-text embeddings at {Path(path).name}: build them with "
            "`python -m nayer_lib lte --dataset NAME --encoder sbert --prompt a`."
        )
    tensors, header = files.load_tensors(path)
    if set(tensors) != {"lte"} or "labels_sha256" not in header:
        raise UserError(f"{path} is not a pool of label-text embeddings: build one with `python -m nayer_lib lte`.")
    table, file = tensors["lte"].float(), Path(path).name
    if len(table) != len(names):
        raise UserError(f"{file} has {len(table)} classes, the data set has {len(names)}: build its own pool.")
    if header["labels_sha256"] != labels_hash(names):
        raise UserError(f"{file} was built for other class names or another order: build it for these names.")
    if not torch.isfinite(table).all():
        raise UserError(f"{file} holds numbers that are not finite: build it again.")
    return LTEPool(table, header)
