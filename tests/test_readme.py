"""What the README and the documents say is there: commands, pictures, files, numbers."""

import re
from pathlib import Path

import pytest
import render
from result_tables import NEAR

from nayer_lib import cli
from nayer_lib.methods import METHODS
from nayer_lib.runs.card import kept_cards
from nayer_lib.runs.sweep import read_sweep
from nayer_notebooks import paper
from nayer_notebooks.rule import SMALL

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
DOCUMENTS = [README, *sorted(ROOT.glob("docs/*.md")), ROOT / "data" / "README.md", ROOT / "CONTRIBUTING.md"]


def commands() -> set[str]:
    """The names that `python -m nayer_lib` knows, and those of a group's commands, as "lte build"."""
    groups = {name: group.COMMANDS for name, group in cli.COMMANDS.items() if hasattr(group, "COMMANDS")}
    return {*cli.COMMANDS, *(f"{name} {command}" for name in groups for command in groups[name])} - set(groups)


def named(text: str) -> set[str]:
    """The commands that a text names."""
    groups = "|".join(name for name, group in cli.COMMANDS.items() if hasattr(group, "COMMANDS"))
    return set(re.findall(rf"-m nayer_lib ((?:(?:{groups}) )?\w+)", text))


def fenced(text: str) -> str:
    return "\n".join(re.findall(r"^```.*?\n(.*?)^```", text, re.M | re.S))


@pytest.mark.parametrize("command", ["make demo", "make test"])
def test_the_readme_shows_the_two_commands_to_know(command):
    assert re.search(rf"^{command}\b", fenced(README.read_text(encoding="utf-8")), re.M)
    assert re.search(rf"^{command.split()[1]}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)


def test_what_is_rendered_is_what_the_kept_cards_say():
    for name, text in render.pages(kept_cards()).items():
        assert text == (ROOT / name).read_text(encoding="utf-8"), f"{name}: run `make report`"


def test_the_rules_that_the_tables_page_tells_are_those_of_the_code():
    head = (ROOT / "docs" / "tables.md").read_text(encoding="utf-8").split("\n## ")[0]
    assert f"within ±{SMALL:g} point" in head and f"at most {NEAR:g} points" in head and paper.EDITION in head


@pytest.mark.parametrize("path", [README, ROOT / "docs" / "tables.md"], ids=lambda path: path.name)
def test_pictures_are_there_and_have_alternative_text(path):
    pictures = re.findall(r"!\[([^]]*)\]\((?!https?:)([^)]+)\)", path.read_text(encoding="utf-8"))
    assert pictures
    for alt, address in pictures:
        assert (path.parent / address).is_file() and len(alt.split()) >= 5


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_relative_links_lead_somewhere(path):
    for address in re.findall(r"\]\((?!https?:|#|mailto:)([^)\s]+)\)", path.read_text(encoding="utf-8")):
        assert (path.parent / address.split("#")[0]).exists(), address


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_commands_it_names_exist(path):
    found = named(path.read_text(encoding="utf-8"))
    assert found <= commands()
    if path == README:
        assert found


def test_the_sweep_file_that_it_shows_is_one_and_its_job_array_has_as_many_tasks_as_shares(tmp_path):
    text = (ROOT / "docs" / "sweeps.md").read_text(encoding="utf-8")
    [shown] = re.findall(r"^```json\n(.*?)^```", text, re.M | re.S)
    (tmp_path / "mine.json").write_text(shown, encoding="utf-8")
    runs = read_sweep(tmp_path / "mine.json").runs()
    [tasks] = re.findall(r"--array=1-(\d+)", text)
    assert f"--only $SLURM_ARRAY_TASK_ID/{tasks}\n" in text and len(runs) == int(tasks)


def test_every_method_is_named_with_its_option():
    text = (ROOT / "docs" / "sweeps.md").read_text(encoding="utf-8")
    named = text[text.index("`--method") : text.index(": the same loop")]
    assert set(re.findall(r"`(?:--method )?(\w+)`", named)) == set(METHODS) - {"nayer"}


def test_the_readme_is_short():
    lines = README.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 120 and sum(line.startswith("![") for line in lines) == 1
    assert [line for line in lines if len(line) > 100 and not line.startswith(("|", "!["))] == []


def test_every_notebook_is_listed_in_the_readme():
    text = README.read_text(encoding="utf-8")
    for path in (ROOT / "notebooks").glob("[0-9]*.ipynb"):
        assert f"(notebooks/{path.name})" in text, path.name


def test_what_the_sentences_of_the_library_tell_to_run_exists():
    for path in (ROOT / "nayer_lib").rglob("*.py"):
        assert named(path.read_text(encoding="utf-8")) <= commands(), path.name
