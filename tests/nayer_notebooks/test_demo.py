"""`make demo` without a kernel: papermill is replaced by a function that leaves what the notebook would leave."""

import re
import sys
import time
from pathlib import Path

import nbclient
import nbformat
import papermill
import pytest
from tiny import read_json, tiny_setup

from nayer_lib.errors import UserError
from nayer_lib.runs.run import Run
from nayer_notebooks.demo import NOTEBOOK, demo


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("NAYER_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "")  # the demo sets it; put back afterwards
    return tmp_path / "runs"


@pytest.fixture
def asked(monkeypatch) -> dict:
    """Notebook 04 "runs": a tiny run lands in the folder that it is told, and an executed notebook beside it."""
    asked = {"pause": 0.0}

    def execute_notebook(input_path, output_path, **options):
        asked.update(options, input=Path(input_path), output=Path(output_path))
        for _ in Run(tiny_setup(), Path(options["parameters"]["run_folder"])):
            time.sleep(asked["pause"])
        cells = [nbformat.v4.new_markdown_cell("# executed")]
        nbformat.write(nbformat.v4.new_notebook(cells=cells), output_path)

    monkeypatch.setattr(papermill, "execute_notebook", execute_notebook)
    return asked


def test_the_demo_tells_what_the_run_card_says(asked, runs, capsys, monkeypatch):
    monkeypatch.setattr("nayer_notebooks.demo.POLL", 0.01)
    asked["pause"] = 0.05  # the progress bar looks several times an epoch
    demo()
    [folder] = runs.iterdir()
    card = read_json(folder / "run" / "card.json")
    teacher, student = 100 * card["teacher"]["accuracy"], 100 * card["accuracy_last"]
    seconds = card["seconds"]
    said = capsys.readouterr()
    assert said.out.splitlines() == [
        "running notebook 04 in profile 'quick'; a student learns from a teacher without its data",
        f"teacher {teacher:.1f} %",
        f"student {student:.1f} % (last epoch)",
        f"gap {teacher - student:.1f} points",
        "images made 100; real training images read 0",
        f"synthesis {seconds['synthesis']:.0f} s, distillation {seconds['student']:.0f} s",
        f"notebook {folder / NOTEBOOK}",
        f"page     {folder / NOTEBOOK.replace('ipynb', 'html')}",
        f"run      {folder / 'run'} (card, curve, student.safetensors, images.png)",
    ]
    assert "executed" in (folder / NOTEBOOK.replace("ipynb", "html")).read_text(encoding="utf-8")
    assert "warm-up: images only" in said.err and re.search(r"student \d+\.\d %", said.err)


def test_the_demo_executes_notebook_04_with_its_own_run_folder(asked, runs):
    demo()
    assert asked["input"].name == NOTEBOOK and asked["input"].parent.name == "notebooks" and asked["input"].is_file()
    assert asked["output"].parent.parent == runs == Path(asked["parameters"]["run_folder"]).parents[1]
    notebook = nbformat.read(asked["input"], as_version=4)
    [parameters] = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    assert set(asked["parameters"]) <= set(re.findall(r"^(\w+) = ", parameters.source, re.M))


def test_a_cell_that_fails_is_named(monkeypatch):
    def failing(*_, **__):
        raise papermill.PapermillExecutionError(3, 14, "1 / 0", "ZeroDivisionError", "division by zero", [])

    monkeypatch.setattr(papermill, "execute_notebook", failing)
    with pytest.raises(
        UserError, match=rf"^cell 14 failed with ZeroDivisionError: division by zero \(see .*{NOTEBOOK}"
    ):
        demo()


def test_a_notebook_whose_process_died_is_told(monkeypatch):
    def killed(*_, **__):
        raise nbclient.exceptions.DeadKernelError("Kernel died")

    monkeypatch.setattr(papermill, "execute_notebook", killed)
    with pytest.raises(UserError, match=r"^the notebook's process died, .*: close other programs and run it again\.$"):
        demo()


@pytest.mark.parametrize("name", ["papermill", "nbconvert"])
def test_without_papermill_it_says_what_to_install(name, monkeypatch, runs):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=r"needs papermill and nbconvert: `pip install -e '\.\[notebooks\]'`"):
        demo()
    assert not runs.exists()


def test_a_folder_that_cannot_be_written_is_told_before_anything_runs(monkeypatch, tmp_path, asked):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("NAYER_RUNS", str(tmp_path / "file"))
    with pytest.raises(UserError, match="cannot write"):
        demo()
    assert set(asked) == {"pause"}
