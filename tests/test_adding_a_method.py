"""docs/adding_a_method.md, followed: its blocks are what stands in the kit, and its commands are commands."""

import re
import shlex
from pathlib import Path

import pytest

from nayer_lib.methods import METHODS
from nayer_lib.runs.sweep import read_sweep

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "docs" / "adding_a_method.md").read_text(encoding="utf-8")
# Each block of code with the file named last before it.
BLOCKS = [
    (re.findall(r"`((?:nayer_lib|tests)/[\w/]+\.py)`", TEXT[: block.start()])[-1], block[1])
    for block in re.finditer(r"^```python\n(.*?)^```", TEXT, re.M | re.S)
]


@pytest.mark.parametrize(("path", "code"), BLOCKS, ids=[path for path, _ in BLOCKS])
def test_a_block_stands_in_the_file_that_it_names(path, code):
    assert code in (ROOT / path).read_text(encoding="utf-8")


def test_the_example_of_saved_is_mads():
    [(base, name)] = re.findall(r'`saved = \(\*(\w+)\.saved, "(\w+)"\)`', TEXT)
    assert METHODS["mad"].__base__.__name__ == base
    assert METHODS["mad"].saved == (*METHODS["mad"].__base__.saved, name)


def test_the_method_is_shown_whole():
    """All but the header and the imports."""
    shown, file = dict(BLOCKS)["nayer_lib/methods/dfad.py"], (ROOT / "nayer_lib/methods/dfad.py").read_text()
    assert shown == file[file.index("@dataclass") :]


def test_the_blocks_are_all_that_a_method_needs():
    """No other line of the library names it."""
    lines = {line.strip() for _, code in BLOCKS for line in code.splitlines()}
    for path in set((ROOT / "nayer_lib").rglob("*.py")) - {ROOT / "nayer_lib" / "methods" / "dfad.py"}:
        named = {
            line.strip() for line in path.read_text(encoding="utf-8").splitlines() if re.search("dfad", line, re.I)
        }
        assert named <= lines, path
    assert METHODS["dfad"].__name__ == "DFAD"


def test_its_sweeps_have_the_methods_arms():
    files = re.findall(r"data/sweeps/\w+\.json", TEXT)
    assert len(files) == 2
    for file in files:
        arms = read_sweep(ROOT / file).arms.values()
        assert "dfad" in {config.method for configs in arms for config in configs}


def test_its_tests_are_there():
    [line] = re.findall(r"^\.venv/bin/pytest (.*)$", TEXT, re.M)
    file, chosen = shlex.split(line)[1], shlex.split(line)[-1]
    chosen_tests = []

    class Collected:
        def pytest_collection_finish(self, session):
            chosen_tests.extend(item.name for item in session.items)

    # In this process: another one would import torch again.
    assert pytest.main(["-q", "--collect-only", str(ROOT / file), "-k", chosen], plugins=[Collected()]) == 0
    for promise in ("16_bits", "ranks_agree", "interrupted_is_uninterrupted", "teacher_is_left"):
        assert [name for name in chosen_tests if promise in name and "dfad" in name]
