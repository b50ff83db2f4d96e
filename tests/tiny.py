"""The smallest run that still does everything: a second of CPU on the digits, with the kept teacher and pool."""

import copy
import dataclasses
import functools
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nayer_lib import cli, files
from nayer_lib.config import Config, fields_of, make_config
from nayer_lib.distill import Setup, distill, prepare
from nayer_lib.methods import KINDS
from nayer_lib.runs.card import kept_cards
from nayer_notebooks.statistics import Cell, cells

CLONE = files.data_dir()
TINY = {
    "noise_dim": 16,
    "generator_width": 8,
    "generator_batch": 20,
    "generator_steps": 2,
    "warmup_epochs": 1,
    "warmup_rounds": 1,
    "epochs": 2,
    "student_steps": 2,
    "student_batch": 16,
}

# A quantised student, for methods that need one; ZeroQ's learns only if it is asked to.
QUANTISED = {"weight_bits": 4, "activation_bits": 4, "student": "wrn10_1", "fine_tune": True}


def tiny_config(variant: str = "released", **overrides) -> Config:
    """The quick profile on the digits, shrunk further; what the variant leaves off stays off."""
    base = make_config("digits", variant, "quick")
    shrunk = {name: value for name, value in TINY.items() if getattr(base, name) is not None}
    if KINDS[overrides.get("method", "nayer")].needs_bits:
        shrunk |= QUANTISED
    return make_config("digits", variant, "quick", **over(shrunk, overrides))


def over(defaults: dict, overrides: dict) -> dict:
    """Overrides of a config, over those of some defaults that its method reads."""
    read = fields_of(overrides.get("method", "nayer"))
    return {name: value for name, value in defaults.items() if name in read} | overrides


def tiny_setup(variant: str = "released", **overrides) -> Setup:
    """Teacher, pool, test split, fresh student and method of a tiny config, on the CPU; every epoch is scored."""
    return dataclasses.replace(prepare(tiny_config(variant, **overrides), device="cpu"), score_every=1)


def run_all(setup: Setup, start: int = 0):
    """All epochs of a set-up."""
    return list(distill(setup.method, setup.evaluate, start))


@functools.cache
def clone_cards(split: str = "test") -> list[dict]:
    """The clone's kept cards, read once, wherever NAYER_DATA points now: a test that changes one changes a copy."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NAYER_DATA", str(CLONE))
        return kept_cards(split)


def copy_data(target: Path) -> Path:
    """A clone's data/, without the many cards of sweeps, and README.md under `target`, for what writes there; returns
    the copied data folder."""
    real = files.data_dir()
    shutil.copytree(real, target / "data", ignore=shutil.ignore_patterns("*.jsonl"))
    shutil.copyfile(real.parent / "README.md", target / "README.md")
    return target / "data"


def like(card: dict, seed: int | None = None, **changes) -> dict:
    """A card with other values; `config` is merged."""
    card = copy.deepcopy(card)
    card["config"] |= changes.pop("config", {}) | ({} if seed is None else {"seed": seed})
    return card | changes


def cell_of(card: dict, accuracies: list[float], **changes) -> Cell:
    """The cell of runs like a card's, one a seed."""
    [cell] = cells([like(card, seed=s, accuracy_last=a, **changes) for s, a in enumerate(accuracies)])
    return cell


def read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def call(capsys, *arguments: str) -> str:
    """What a command prints; it must succeed."""
    status = cli.main(list(arguments))
    said = capsys.readouterr()
    assert status == 0, said.err
    return said.out


def refused(arguments: list[str], sentence: str, capsys) -> None:
    """A command must end with status 2 and one sentence on stderr, in which `sentence` stands."""
    assert cli.main(arguments) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("nayer_lib: ") and sentence in said.err
    assert said.err.count("\n") == 1


def same(one, other) -> bool:
    """Whether two nested states are equal: keys, tensors and plain values."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, (list, tuple)):
        return isinstance(other, (list, tuple)) and len(one) == len(other) and all(map(same, one, other))
    return one == other


def through_a_file(state: dict) -> dict:
    """Saved and read as a stranger's file would be: nothing but tensors and plain values may come through."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def write_sheets(folder, split, images, labels, each=200):
    """Images (N, C, H, W) as sheets of so many, and the labels of them all."""
    folder.mkdir(exist_ok=True)
    for k, part in enumerate(images.split(each)):
        column = part.permute(0, 2, 3, 1).reshape(-1, part.shape[3], part.shape[1]).squeeze(2)
        Image.fromarray(column.numpy()).save(folder / f"{split}_{k:03d}.png")
    np.savez(folder / f"{split}_labels.npz", labels=labels.numpy().astype(np.uint8))
