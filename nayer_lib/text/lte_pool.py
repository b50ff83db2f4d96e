"""The LTE pool P of Section 3.2: encode once, keep the table with its provenance, look rows up by label.

P = {e_y = C(Y_y) : y = 1..K}        (Eq. 1; Algorithm 1, lines 1-2)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

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
