"""Somebody else's weights: where they stand in a file, whether they are sound, and whether they fit a network."""

import re
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from .. import files
from ..errors import MissingFile, UserError, unknown

SAVE = "save `model.state_dict()` and pass that"
AGAIN = "download the file itself again"
# What people pass in place of weights, by how such a file begins.
STRANGERS = {
    b"version https://git-lfs": f"is a pointer of Git LFS, not the weights: {AGAIN} (`git lfs pull`)",
    b"<": f"is a web page, not weights: {AGAIN}",
    b"\x89HDF": "is an HDF5 file, as Keras writes: convert it to a PyTorch state_dict first",
    b"\x1f\x8b": "is packed by gzip: unpack it first",
    b"\x93NUMPY": f"is a NumPy array, not a state_dict: {SAVE}",
}


def check_content(path: Path) -> bool:
    """Whether a file is safetensors, by its content and not its suffix.

    Raises:
        MissingFile, UserError: no such file, an empty one, or one of `STRANGERS`.
    """
    if not Path(path).is_file():
        raise MissingFile(f"{path} does not exist." if not Path(path).exists() else f"{path} is no file.")
    with open(path, "rb") as file:
        start = file.read(512)
    if not start:
        raise UserError(f"{path} is empty: {AGAIN}.")
    for beginning, sentence in STRANGERS.items():
        if start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(beginning):
            raise UserError(f"{path} {sentence}.")
    return start[8:9] == b"{"  # after eight bytes that say how long the header is


def read_checkpoint(path: Path, key: str | None = None) -> dict[str, Tensor]:
    """The weights of a foreign checkpoint: safetensors, or a torch file with one state_dict in it or as a whole.

    A state_dict is a dict of tensors by name, however deep it lies among the file's dicts. Prefixes that all its keys
    share (`module.`, `_orig_mod.`, `model.`, ...) are dropped. Nothing is ever unpickled: a torch file is read with
    weights_only, and one that holds anything but tensors and plain values is refused.

    Args:
        key: which one of several, as `model_ema` or `state.model`.

    Raises:
        MissingFile, UserError: no such file; no state_dict in it or several; code in it; what is wrong with it.
    """
    path = Path(path)
    if check_content(path):
        content = files.load_tensors(path)[0]
    else:
        try:
            content = files.load_torch(path)
        except UserError as error:
            raise _refused(path, error) from error
    found = dict(_state_dicts(content))
    if key is not None and key not in found:
        raise unknown(f"state_dict in {path}", key, [name or "the whole file" for name in found])
    if not found:
        raise UserError(f"{path} holds no state_dict: {SAVE}.")
    if key is None and len(found) > 1:
        raise UserError(f"{path} holds several state_dicts ({', '.join(found)}): choose one with --key.")
    weights = found[key] if key is not None else next(iter(found.values()))
    while len(firsts := {name.partition(".")[0] for name in weights}) == 1 and all("." in name for name in weights):
        weights = {name.removeprefix(f"{next(iter(firsts))}."): value for name, value in weights.items()}
    return dict(weights)


def _state_dicts(content: object) -> list[tuple[str, dict[str, Tensor]]]:
    """The dicts of tensors at the shallowest level of a file where there are any, by their dotted place."""
    level = [("", content)]
    while level:
        dicts = [(place, x) for place, x in level if isinstance(x, Mapping) and all(isinstance(k, str) for k in x)]
        found = [(place, dict(x)) for place, x in dicts if _is_state_dict(x)]
        if found:
            return found
        level = [(f"{place}.{name}".lstrip("."), inner) for place, x in dicts for name, inner in x.items()]
    return []


def _is_state_dict(content: Mapping) -> bool:
    """Tensors alone, one of them with two dimensions: numbers that were kept as tensors are no weights."""
    values = content.values()
    return all(isinstance(x, Tensor) for x in values) and any(x.dim() > 1 for x in values)


def _refused(path: Path, error: UserError) -> UserError:
    """Why a torch file was not read: a class whose code would have to run, or what `files.load_torch` says."""
    reason = str(error.__cause__)
    if "TorchScript" in reason:
        return UserError(f"{path} is a TorchScript program, and no code in a file is executed: {SAVE}.")
    if refused := re.search(r"GLOBAL ([\w.]+)", reason):
        return UserError(
            f"{path} cannot be read as weights: it holds more than tensors, a {refused[1]}, and is not executed for "
            f"safety: {SAVE}."
        )
    return UserError(f"{error} {SAVE[0].upper()}{SAVE[1:]}.")


def check_weights(weights: Mapping[str, Tensor], source: object) -> None:
    """Raise a `UserError` that names the keys of weights that are not finite and of variances below 0."""
    floats = {name: x for name, x in weights.items() if isinstance(x, Tensor) and x.is_floating_point()}
    problems = {
        "not finite": [name for name, x in floats.items() if not torch.isfinite(x).all()],
        "variances below 0": [name for name, x in floats.items() if name.endswith("running_var") and (x < 0).any()],
    }
    if sentence := _listed(problems):
        raise UserError(f"{source} holds damaged weights ({sentence}): take an earlier checkpoint, or the file anew.")


def load_weights(net: nn.Module, weights: dict[str, Tensor], source: object) -> None:
    """Load strictly, sound weights only; the error names missing, unexpected and misshapen keys in one sentence.

    Weights of a quantised network for a float network are refused with a sentence of their own.
    """
    expected = net.state_dict()
    if any(name.endswith((".low", ".high")) for name in weights.keys() - expected.keys()):
        raise UserError(
            f"{source} holds a quantised network, and how many bits it has stands in the header of a file of this kit "
            "alone: read such a file as it is, without naming a network."
        )
    problems = {
        # Old checkpoints do not count batches; torch starts that counter at 0.
        "missing": [k for k in expected.keys() - weights.keys() if not k.endswith("num_batches_tracked")],
        "unexpected": weights.keys() - expected.keys(),
        "of another shape": [k for k in expected.keys() & weights.keys() if expected[k].shape != weights[k].shape],
    }
    if sentence := _listed(problems):
        raise UserError(
            f"{source} holds weights of another network ({sentence}): check the network's name and its number of "
            "classes, or load it into a network of your own in Python (docs/your_own_model.md)."
        )
    check_weights(weights, source)
    net.load_state_dict(dict(weights))


def _listed(problems: Mapping[str, Collection[str]]) -> str:
    """Kinds of problems with the first three keys of each and their number; "" without any."""
    return "; ".join(f"{kind}: {', '.join(sorted(keys)[:3])} ({len(keys)})" for kind, keys in problems.items() if keys)
