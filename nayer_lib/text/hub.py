"""Weights of the Hugging Face hub: their file in the local cache, or an immediate error if they cannot be had."""

import sys
from pathlib import Path

from ..errors import MissingFile, UserError

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
CLIP_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")  # beside timm's WEIGHTS


def cached_weights(repository: str, *names: str) -> Path | None:
    """The weights file of a hub repository in the local cache; None if it must be downloaded and the hub answers.

    Called before the encoders' libraries, which take many seconds to import and retry for a minute without a network.

    Args:
        names: possible names of the weights file; none: WEIGHTS.

    Raises:
        MissingFile: the weights are not cached, and the hub does not answer.
    """
    try:
        from huggingface_hub import HfApi, try_to_load_from_cache
    except ImportError as error:
        raise UserError("weights of the hub need its library: `pip install -e '.[text]'`.") from error
    try:
        for name in names or WEIGHTS:
            if isinstance(path := try_to_load_from_cache(repository, name), str):
                return Path(path)
        HfApi().model_info(repository, timeout=5)
    except Exception as error:  # the hub's errors have no common base class, and its client may change
        raise no_weights(repository) from error
    print(f"downloading the weights of {repository}: once, they stay in the hub's cache", file=sys.stderr)
    return None


def no_weights(model: str) -> MissingFile:
    """The error for missing weights, with the three remedies."""
    return MissingFile(
        f"no weights of {model} on this machine, and they cannot be downloaded: connect to the network once, name a "
        "local file (CLIP: model ViT-B-32-quickgelu:FILE) or folder (SBERT: model FOLDER), or take another encoder."
    )
