"""The kit's folders, and how this library reads and writes files.

Weights and embeddings are safetensors with a JSON header of provenance. A file is written under a temporary name
and then renamed, so a killed run leaves the old file or the new one, always whole.
"""

import contextlib
import hashlib
import json
import os
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .errors import MissingFile, UserError

HEADER = "nayer"  # safetensors metadata maps strings to strings: our JSON stands under this one key


def data_dir() -> Path:
    """The kit's `data/` folder: `$NAYER_DATA`, else the one in the clone this package was installed from."""
    folder = Path(os.environ.get("NAYER_DATA") or Path(__file__).parents[1] / "data")
    if not (folder / "paper").is_dir():
        raise MissingFile(
            f"{folder} is not the kit's data folder: install from a clone with `pip install -e .`, "
            "or let NAYER_DATA point at the clone's data/."
        )
    return folder


def runs_dir() -> Path:
    """Where runs are written: `$NAYER_RUNS`, else `runs/` beside `data/` (git ignores it)."""
    return Path(os.environ.get("NAYER_RUNS") or data_dir().parent / "runs")


def datasets_dir() -> Path:
    """Where downloaded data sets are kept: `$NAYER_DATASETS`, else the user's cache."""
    return Path(os.environ.get("NAYER_DATASETS") or Path.home() / ".cache" / "nayer-kit")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it replaces `path` if the block raises no error, else it is removed."""
    path, untouched = Path(path), "What stood there before is untouched."
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}. Choose a folder you can write to.") from error
    temporary = Path(name)
    try:
        yield temporary
        with contextlib.suppress(OSError):  # some file systems have no modes
            temporary.chmod(0o644)
        temporary.replace(path)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}. {untouched}") from error
    finally:
        temporary.unlink(missing_ok=True)


def check_no_link(path: Path) -> None:
    """Raise a `UserError` if a file that is written to in place is a link: it would write to another file."""
    if Path(path).is_symlink():
        raise UserError(f"{path} is a link to another file, which would be written to: remove the link.")


def remove_leftovers(folder: Path, names: Iterable[str]) -> None:
    """Remove what `replacing` left of some files in a folder, in which nobody else writes, when it was killed."""
    for path in (path for name in names for path in Path(folder).glob(f".{name}.????????")):
        with contextlib.suppress(OSError):
            path.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def save_tensors(path: Path, tensors: dict[str, Tensor], header: dict, half: bool = False) -> None:
    """Write named tensors and their provenance as one safetensors file; `half` rounds numbers to float16."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    if half:
        tensors = {name: x.half() if x.is_floating_point() else x for name, x in tensors.items()}
    with replacing(path) as temporary:
        try:
            save_file(tensors, temporary, metadata={HEADER: json.dumps(header, sort_keys=True)})
        except SafetensorError as error:  # safetensors reports a full disk with an error of its own
            raise UserError(f"cannot write {path}: {error}. What stood there before is untouched.") from error


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict]:
    """Read a file of `save_tensors`: the tensors (on the CPU) and the header.

    Raises:
        MissingFile: there is no such file.
        UserError: the file is cut short, or is no safetensors file. The header is {} if another program wrote it.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFile(f"{path} does not exist.")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            header = json.loads((file.metadata() or {}).get(HEADER, "{}"))
            if not isinstance(header, dict):
                raise ValueError("its header is no dict")
            return {name: file.get_tensor(name) for name in file.keys()}, header
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a whole safetensors file ({error}): make or download it again.") from error


def save_torch(path: Path, content: object) -> None:
    """Write tensors, numbers and texts, nested in dicts and lists, as one torch file: for states, not for weights."""
    with replacing(path) as temporary:
        try:
            torch.save(content, temporary)
        except RuntimeError as error:  # torch reports a full disk like this
            raise UserError(f"cannot write {path}: {error}. What stood there before is untouched.") from error


def load_torch(path: Path) -> object:
    """The content of a torch file, on the CPU. It is read with weights_only: no code in it is executed.

    Raises:
        UserError: the file is cut short, is no torch file, or holds anything but tensors and plain values.
    """
    try:
        with open(path, "rb") as file:  # else torch goes by the file's suffix, and not by what is in it
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds here; to the user they are one
        raise UserError(
            f"{path} cannot be read as weights: it is cut short, or holds more than tensors and is not executed for "
            f"safety ({type(error).__name__})."
        ) from error


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays in an .npz file, by name. Nothing in it is unpickled.

    Raises:
        MissingFile: there is no such file.
        UserError: the file is cut short, is no .npz file, or holds pickled objects.
    """
    if not Path(path).is_file():
        raise MissingFile(f"{path} does not exist.")
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path} is not a whole .npz file of plain arrays: make or download it again. Nothing in it was executed."
        ) from error


def file_hash(path: Path) -> str:
    """sha256 of a file, as hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def text_hash(text: str) -> str:
    """sha256 of a text, as hex."""
    return hashlib.sha256(text.encode()).hexdigest()


def tensors_hash(tensors: dict[str, Tensor]) -> str:
    """sha256 over names, shapes, types and values of named tensors, in name order, as hex."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
