"""The committed drawings of docs/drawings are what their code draws; matplotlib and fonts may differ a little."""

import importlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "drawings"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "style")


def difference(one: Image.Image, other: Image.Image) -> float:
    """The mean difference of two pictures' pixels, of 255."""
    return float(np.abs(np.asarray(one.convert("RGB"), float) - np.asarray(other.convert("RGB"), float)).mean())


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)


def drawn(name: str) -> Image.Image:
    return importlib.import_module("style").picture(importlib.import_module(name).draw())


def test_there_are_three_and_nothing_else():
    assert NAMES == ["enters_g", "game", "loop"] == sorted(path.stem for path in FOLDER.glob("*.png"))


@pytest.mark.parametrize("name", NAMES)
def test_the_committed_picture_is_what_the_code_draws(name):
    path = FOLDER / f"{name}.png"
    with Image.open(path) as committed:
        made = drawn(name)
        assert committed.size == made.size and committed.size[0] == 900
        assert difference(committed, made) < 4
    assert path.stat().st_size <= 60_000


def test_a_box_that_was_moved_is_found():
    loop = importlib.import_module("loop")
    canvas = loop.draw()
    canvas.box(60, 30, 8, 7, "15", loop.RANDOM)
    with Image.open(FOLDER / "loop.png") as committed:
        assert difference(committed, importlib.import_module("style").picture(canvas)) > 0.5
