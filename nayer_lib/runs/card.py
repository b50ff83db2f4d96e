"""Run cards: where they lie, how they are read, and which are kept.

A run folder holds card.json, curve.csv (a line an epoch, so `tail -f` works), student.safetensors and images.png.
Runs go to `files.runs_dir()`; `keep` copies a card to data/runs, and every number in the README comes from there.
"""

import json
import os
import platform
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import torch

from .. import files
from ..checkpoint import STATE
from ..config import Config, fields_of
from ..errors import MissingFile, UserError, unknown
from ..methods import METHODS

REGISTRATION = "NAYER_REGISTRATION"  # the variable of the environment that carries a sweep's to its runs' cards


def new_id(config: Config) -> str:
    """The name of a run that starts now: when, and what it runs."""
    return (
        f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{config.method}-{config.dataset}-{config.teacher}-{config.student}-"
        f"{config.variant}-{config.profile}-{config.hash[:6]}-s{config.seed}"
    )


def read_card(path: Path) -> dict:
    """A card from card.json, or from the folder that holds it.

    Raises:
        MissingFile, UserError: there is none, or it is not a whole card.
    """
    path = Path(path)
    path = path / "card.json" if path.is_dir() else path
    if not path.is_file():
        raise MissingFile(f"no run card at {path}.")
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(card, dict) or not {"id", "status", "config"} <= set(card):
            raise ValueError("no id, status or config")
    except ValueError as error:
        raise UserError(f"{path} is not a whole run card ({error}).") from error
    return card


def card_config(card: dict) -> Config:
    """The config of a card; fields that are newer than the card have their defaults, which is what it ran with, and
    those that its method does not read, which older cards have, are dropped.

    Raises:
        UserError: a card of a method that this kit does not have.
    """
    method = card["config"]["method"]
    if method not in METHODS:
        raise unknown("method of a run card", method, METHODS)
    fields = {name: card["config"][name] for name in fields_of(method) & card["config"].keys()}
    fields = {name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()}
    return METHODS[method].config_class(**fields)


def local_cards() -> list[dict]:
    """The cards of the runs on this machine, oldest first."""
    return [read_card(path) for path in sorted(files.runs_dir().glob("*/card.json"))]


def split_of(card: dict) -> str:
    """The split that a run was scored on: "test", or "validation" where settings were chosen."""
    return card.get("test_split", {}).get("split", "test")


def resumable(config: Config, split: str = "test") -> Path | None:
    """The folder of the newest run of this config on this machine that stopped and can go on; None if there is none."""
    stopped = []
    for path in sorted(files.runs_dir().glob("*/card.json")):
        card = read_card(path)
        if (path.parent / STATE).is_file() and card_config(card) == config and split_of(card) == split:
            stopped.append(path.parent)
    return stopped[-1] if stopped else None


def kept_cards(split: str = "test") -> list[dict]:
    """The cards in data/runs that were scored on a split, oldest first: one a file, and those of kept sweeps, one a
    line."""
    cards = {card["id"]: card for _, card in _kept() if split_of(card) == split}  # two sweeps may share a run
    return [card for _, card in sorted(cards.items())]


def kept_files() -> dict[str, list[str]]:
    """Where each kept card lies: its id -> names of files in data/runs."""
    found: dict[str, list[str]] = {}
    for path, card in _kept():
        found.setdefault(card["id"], []).append(path.name)
    return found


def _kept() -> Iterator[tuple[Path, dict]]:
    folder = files.data_dir() / "runs"
    for path in sorted(folder.glob("*.json")):
        yield path, read_card(path)
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            yield path, json.loads(line)


def keep(run_id: str, student: bool = False) -> Path:
    """Copy a finished run's card, and the picture of its images, to data/runs, where tables and README find them.

    Args:
        student: the student's weights too, as float16.

    Raises:
        UserError: no such run (the nearest is named), or one that did not finish.
    """
    folder = files.runs_dir() / run_id
    if not folder.is_dir():
        raise unknown("run", run_id, sorted(p.parent.name for p in files.runs_dir().glob("*/card.json")))
    card = read_card(folder)
    if card["status"] != "finished":
        raise UserError(f"{run_id} is {card['status']}: only finished runs are kept.")
    target = files.data_dir() / "runs" / f"{run_id}.json"
    with files.replacing(target.with_suffix(".png")) as temporary:
        shutil.copyfile(folder / "images.png", temporary)
    if student:
        weights, header = files.load_tensors(folder / "student.safetensors")
        half = {name: x.half() if x.is_floating_point() else x for name, x in weights.items()}
        files.save_tensors(target.with_suffix(".safetensors"), half, header)
    files.write_text(target, json.dumps(card, indent=1) + "\n")
    return target


def device_name(device: torch.device) -> str:
    """The GPU's name, or the processor's and its number of cores."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    models = (
        [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        if (info.is_file())
        else []
    )
    return f"{models[0] if models else platform.machine()} ({os.cpu_count()} cores)"
