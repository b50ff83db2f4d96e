"""Text encoders C of Eq. 1 behind one call: a list of texts in, one row a text out.

The encoder is asked once, when a pool is built (Section 3.2); no other part of the kit imports this file's libraries.
"""

import logging
import os
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from ..errors import UserError, unknown
from ..files import file_hash, text_hash

Encoded = tuple[Tensor, dict]  # (K, e) float32 and where it came from


def encode(texts: Sequence[str], encoder: str, model: str | None = None) -> Encoded:
    """Eq. 1, e_y = C(Y_y): K texts -> (K, e) float32 on the CPU, and the provenance that a pool's header keeps.

    Args:
        encoder: a key of ENCODERS.
        model: a model name or local folder of that encoder; None takes the encoder's default.

    Raises:
        UserError: unknown encoder, its package or weights missing, an empty text, or rows that are not finite.
    """
    if encoder not in ENCODERS:
        raise unknown("text encoder", encoder, ENCODERS)
    if not texts or any(not isinstance(text, str) or not text.strip() for text in texts):
        raise UserError("every text to encode must be a non-empty string, and there must be one.")
    rows, provenance = ENCODERS[encoder](list(texts), model)
    if not torch.isfinite(rows).all():
        raise UserError(f"the encoder {encoder!r} gave rows that are not finite: its weights are damaged.")
    return rows, {"encoder": encoder, **provenance}


def sbert(texts: list[str], model: str | None) -> Encoded:
    """Sentence-BERT (Table 4) through sentence-transformers: (K, 384) for the default all-MiniLM-L6-v2."""
    name = model or "sentence-transformers/all-MiniLM-L6-v2"
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise UserError("SBERT needs sentence-transformers: `pip install -e '.[text]'`.") from error
    logging.getLogger("sentence_transformers").setLevel(logging.WARNING)
    try:
        encoder = SentenceTransformer(name, device="cpu", local_files_only=os.environ.get("HF_HUB_OFFLINE") == "1")
    except (OSError, ValueError) as error:
        raise UserError(
            f"no weights for SBERT {name!r}: connect to the network once, pass a local folder as model, "
            "or use another encoder."
        ) from error
    rows = encoder.encode(texts, convert_to_tensor=True, show_progress_bar=False).float().cpu()
    weights = Path(name) / "model.safetensors"
    return rows, {
        "model": "/".join(Path(name).parts[-2:]),  # a hub id as it stands, a folder without its path
        "weights_sha256": file_hash(weights) if weights.is_file() else "",
        "library": f"sentence-transformers {version('sentence-transformers')}",
    }


def random(texts: list[str], model: str | None) -> Encoded:
    """The control that the paper does not have: 384 standard normal numbers a text, fixed by the text alone."""
    rows = [torch.randn(384, generator=torch.Generator().manual_seed(int(text_hash(t)[:15], 16))) for t in texts]
    return torch.stack(rows), {"model": "N(0, 1) seeded by the text's sha256"}


ENCODERS: dict[str, Callable[[list[str], str | None], Encoded]] = {"sbert": sbert, "random": random}
