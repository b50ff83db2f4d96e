"""Weights on the Hugging Face hub: found in the local cache, or told at once that they are not to be had."""

import sys
from pathlib import Path

from ..errors import MissingFile, UserError

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
CLIP_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")  # beside them may lie timm's, by WEIGHTS


def cached_weights(repository: str, *names: str) -> Path | None:
    """The weights file of a hub repository in the local cache; None if it has to be downloaded, and the hub answers.

    The libraries retry for a minute where there is no network, and take many seconds to import: ask this before.

    Args:
        names: of the weights file; none: the usual ones.

    Raises:
        MissingFile: neither cached nor to be had.
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
    except Exception as error:  # the hub's errors have no base of their own, the client's may change
        raise no_weights(repository) from error
    print(f"downloading the weights of {repository}: once, they stay in the hub's cache", file=sys.stderr)
    return None


def no_weights(what: str) -> MissingFile:
    """The error that names the three ways on."""
    return MissingFile(
        f"no weights of {what} on this machine, and they cannot be downloaded: connect to the network once, name a "
        "local file (CLIP: model ViT-B-32-quickgelu:FILE) or folder (SBERT: model FOLDER), or take another encoder."
    )
