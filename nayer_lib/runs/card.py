"""Run cards: what a run is known by, how a card is read, where cards lie, and which are kept.

A run folder holds card.json, curve.csv (a line an epoch, so `tail -f` works), student.safetensors and images.png.
Runs go to `files.runs_dir()`; `keep` copies a card to data/runs, and every number in the README comes from there.
"""

import json
import os
import platform
import re
import shutil
import warnings
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import torch

from .. import __version__, files
from ..base_config import check
from ..checkpoint import Checkpoint
from ..compute import compute_of
from ..config import Config, fields_of
from ..errors import MissingFile, UserError, unknown
from ..methods import KINDS
from .entries import check_entries
from .lock import in_use

REGISTRATION = "NAYER_REGISTRATION"  # the variable of the environment that carries a sweep's to its runs' cards


class NewerCard(UserError):
    """A card that a newer kit wrote."""


# --- names ------------------------------------------------------------------------------------------------------------


def new_id(config: Config) -> str:
    """The name of a run that starts now: when, and what it runs."""
    return (
        f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{config.method}-{config.dataset}-{config.teacher}-{config.student}-"
        f"{config.variant}-{config.profile}-{config.hash[:6]}-s{config.seed}"
    )


def device_name(device: torch.device) -> str:
    """The GPU's name, or the processor's and its number of cores."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    model = re.search(r"^model name\s*:(.*)", info.read_text(), re.M) if info.is_file() else None
    return f"{model[1].strip() if model else platform.machine()} ({os.cpu_count()} cores)"


# --- reading ----------------------------------------------------------------------------------------------------------


def read_card(path: Path) -> dict:
    """A card from card.json, or from the folder that holds it.

    Raises:
        MissingFile, UserError: there is none, it is not a whole card, or a newer kit wrote it.
    """
    path = Path(path)
    path = path / "card.json" if path.is_dir() else path
    if not path.is_file():
        raise MissingFile(f"no run card at {path}.")
    return _parsed(_text(path), path)


def _text(path: Path) -> str:
    """The text of a file of cards.

    Raises:
        UserError: it cannot be read, or is no text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as a run card ({error}): remove it, or copy it anew.") from error


def _parsed(text: str, path: Path) -> dict:
    try:
        card = json.loads(text)
        versions = card.get("versions") if isinstance(card, dict) else None
        written_by = versions.get("nayer_lib", "0") if isinstance(versions, dict) else "0"  # the oldest do not say it
        if _numbers(str(written_by)) > _numbers(__version__):
            raise NewerCard(
                f"{path} holds a card of kit {written_by}, and this is {__version__}: bring the kit up to date."
            )
        check_entries(card)
        check(card_config(card))
        compute_of(card)
    except NewerCard:
        raise
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(
            f"{path} is not a whole run card ({str(error).rstrip('.')}): remove it, or copy it anew."
        ) from error
    return card


def _numbers(kit: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", kit)]


def card_config(card: dict) -> Config:
    """The config of a card.

    A field newer than the card has its default, with which the card's run was computed. A field that the method does
    not read is dropped, with a warning if no method reads it any more.

    Raises:
        UserError: a card of a method that this kit does not have.
    """
    method, fields = card["config"]["method"], card["config"]
    if method not in KINDS:
        raise unknown("method of a run card", method, KINDS)
    read = fields_of(method)
    if not fields.keys() <= read and (gone := fields.keys() - set().union(*map(fields_of, KINDS))):
        gone = ", ".join(sorted(gone))
        warnings.warn(f"older run cards are read without fields that are gone: {gone}.", stacklevel=1)
    fields = {name: tuple(v) if isinstance(v, list) else v for name, v in fields.items() if name in read}
    return KINDS[method].config_class(**fields)


def split_of(card: dict) -> str:
    """The split that a run was scored on: "test", or "validation" where settings were chosen."""
    return card.get("test_split", {}).get("split", "test")


# --- where they lie ---------------------------------------------------------------------------------------------------


def local_cards() -> list[dict]:
    """The cards of the runs on this machine, oldest first."""
    return [card for _, card in _local()]


def resumable(config: Config, split: str = "test") -> Path | None:
    """The folder of the newest run of this config on this machine that stopped and can go on; None if there is none.

    Where one stopped and cannot go on, a warning says that it starts over. A run that is running is left alone.
    """
    runs = [(path.parent, card) for path, card in _local() if card_config(card) == config and split_of(card) == split]
    stopped = [folder for folder, card in reversed(runs) if card["status"] != "finished" and not in_use(folder)]
    for folder in stopped:
        state = Checkpoint(folder)
        try:
            if state.exists() and state.read():
                return folder
        except UserError as error:
            warnings.warn(f"left out: {error}", stacklevel=2)
    if stopped and stopped[0] == runs[-1][0]:
        warnings.warn(
            f"the run in {stopped[0]} left no state to go on from: it starts again from the first epoch, in a folder "
            "of its own.",
            stacklevel=2,
        )
    return None


def kept_cards(split: str = "test") -> list[dict]:
    """The cards in data/runs that were scored on a split, oldest first: one a file, and those of kept sweeps, one a
    line."""
    folder = files.data_dir() / "runs"
    kept = _readable([*sorted(folder.glob("*.json")), *sorted(folder.glob("*.jsonl"))])
    cards = {card["id"]: card for _, card in kept if split_of(card) == split}  # two sweeps may share a run
    return [card for _, card in sorted(cards.items())]


def finished_runs() -> list[tuple[Config, dict]]:
    """(config, card) of the finished runs that are kept or on this machine, on whichever split they were scored."""
    cards = kept_cards() + kept_cards("validation") + local_cards()
    return [(card_config(card), card) for card in cards if card["status"] == "finished"]


def _local() -> Iterator[tuple[Path, dict]]:
    return _readable(sorted(files.runs_dir().glob("*/card.json")))


def _readable(paths: Iterable[Path]) -> Iterator[tuple[Path, dict]]:
    """The cards in some files, one a file or one a line; what is none, or a newer kit's, is left out with a warning."""
    for path in paths:
        try:
            texts = _text(path).splitlines() if path.suffix == ".jsonl" else [_text(path)]
        except UserError as error:
            warnings.warn(f"left out: {error}", stacklevel=1)
            continue
        for text in texts:
            try:
                card = _parsed(text, path)
            except UserError as error:
                warnings.warn(f"left out: {error}", stacklevel=1)
            else:
                yield path, card


def unread_lines(path: Path) -> list[str]:
    """The lines of a file of kept cards that are no card, or a newer kit's; none if there is no such file.

    Raises:
        UserError: the file cannot be read.
    """
    lines = _text(path).splitlines() if path.exists() else []
    return [line for line in lines if line and not _is_card(line, path)]


def _is_card(text: str, path: Path) -> bool:
    try:
        return bool(_parsed(text, path))
    except UserError:
        return False


def keep(run_id: str, student: bool = False) -> Path:
    """Copy a finished run's card, and the picture of its images, to data/runs, where tables and README find them.

    Args:
        student: the student's weights too, as float16.

    Raises:
        UserError: no such run (the nearest is named), or one that did not finish.
    """
    among = Path(os.path.abspath(files.runs_dir()))
    folder = Path(os.path.abspath(among / run_id))  # also where it is given as a folder
    if folder.parent != among or folder.name.startswith(".") or not folder.is_dir():
        raise unknown("run", run_id, sorted(p.parent.name for p in files.runs_dir().glob("*/card.json")))
    card, run_id = read_card(folder), folder.name
    if card["status"] != "finished":
        raise UserError(f"{run_id} is {card['status']}: only finished runs are kept.")
    target = files.data_dir() / "runs" / f"{run_id}.json"
    if (folder / "images.png").is_file():  # else the card says why there is none
        with files.replacing(target.with_suffix(".png")) as temporary:
            shutil.copyfile(folder / "images.png", temporary)
    if student:
        weights, header = files.load_tensors(folder / "student.safetensors")
        files.save_tensors(target.with_suffix(".safetensors"), weights, header, half=True)
    files.write_text(target, json.dumps(card, indent=1) + "\n")
    return target
