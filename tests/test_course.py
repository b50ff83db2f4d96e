"""`make course`: what the student's edition leaves out, what the teacher's adds, and that every hole is told apart."""

import ast
import contextlib
import copy
import importlib.util
import io
import re
import socket
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from nayer_notebooks.exercises import Wrong

ROOT = Path(__file__).resolve().parents[1]


def load_script():
    spec = importlib.util.spec_from_file_location("course", ROOT / ".ci" / "course.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


course = load_script()
NOTEBOOKS = course.read_notebooks()
HOLES = [
    (name, cell.id)
    for name, notebook in NOTEBOOKS.items()
    for cell in notebook.cells
    if "solution" in course.tags(cell)
]


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("course")
    subprocess.run([sys.executable, ROOT / ".ci" / "course.py", "--out", out], check=True, capture_output=True)
    return out


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_made_twice_it_is_the_same(built, tmp_path):
    subprocess.run([sys.executable, ROOT / ".ci" / "course.py", "--out", tmp_path], check=True, capture_output=True)
    assert contents(tmp_path) == contents(built)
    assert {"student/SETUP.md", "teacher/SETUP.md", "teacher/PLAN.md", "teacher/quiz.md"} <= contents(built).keys()
    assert "student/quiz.md" not in contents(built)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_the_students_edition_differs_only_where_something_is_to_be_written_or_answered(name, built):
    source, made = NOTEBOOKS[name].cells, nbformat.read(built / "student" / name, as_version=4).cells
    assert [cell.id for cell in made] == [cell.id for cell in source]
    asked = False
    for cell, student in zip(source, made, strict=True):
        predicted, asked = asked, (asked or course.PREDICT in cell.source) and "answer" not in course.tags(cell)
        other = {"<details>", course.PREDICT, "Open in Colab"} if cell.cell_type == "markdown" else set()
        if {"solution", "answer"} & {*course.tags(cell)} or any(words in cell.source for words in other):
            assert student.source != course.linked(cell.source)
        elif predicted and cell.cell_type == "code":
            assert student.source == course.without_asserts(cell.source)
            assert not any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(student.source)))
        else:
            assert student.source == course.linked(cell.source)
        assert (course.PREDICTED in student.source) == (course.PREDICT in cell.source)
        assert "Open in Colab" not in student.source
        assert not student.get("outputs") and student.get("execution_count") is None
        assert "SOLUTION" not in student.source
        assert student.cell_type == "code" or "<details>" not in student.source
    text = " ".join(" ".join(cell.source.split()) for cell in made)
    for cell in source:
        if "answer" in course.tags(cell):
            words = cell.source.split()
            assert " ".join(words[:8]) not in text and " ".join(words[-8:]) not in text


@pytest.mark.parametrize("name", NOTEBOOKS)
@pytest.mark.parametrize("edition", ["student", "teacher"])
def test_what_a_text_links_or_shows_is_in_the_edition_or_on_the_web(name, edition, built):
    for cell in nbformat.read(built / edition / name, as_version=4).cells:
        if cell.cell_type == "markdown":
            for address in re.findall(r"\]\(([^)\s#]+)", cell.source):
                assert address.startswith("https://") or (built / edition / address).is_file(), address


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_the_teachers_edition_is_the_source_with_notes_between(name, built):
    source, made = copy.deepcopy(NOTEBOOKS[name].cells), nbformat.read(built / "teacher" / name, as_version=4).cells
    notes = [cell for cell in made if cell.id.endswith("-note")]
    for cell in source:
        cell.source = course.linked(cell.source)
    assert [cell for cell in made if cell not in notes] == source
    assert all(cell.source.startswith("> **Teacher, ") for cell in notes)


def test_every_note_has_its_cell_and_minutes_add_up():
    plan = course.tomllib.loads((course.SOURCE / "plan.toml").read_text())
    for lesson in plan["lesson"]:
        assert sum(part["minutes"] for part in lesson["part"]) == 90
        for part in lesson["part"]:
            [name] = [name for name in NOTEBOOKS if name.startswith(part["notebook"])]
            ids = {cell.id for cell in NOTEBOOKS[name].cells}
            assert {note["cell"] for note in part["note"]} <= ids
            assert sum(note["minutes"] for note in part["note"]) == part["minutes"]


def test_the_quiz_has_every_prediction_with_its_letter(built):
    quiz = (built / "teacher" / "quiz.md").read_text()
    asked = sum(cell.source.count("Predict before you run") for n in NOTEBOOKS.values() for cell in n.cells)
    assert quiz.count("> **Predict before you run") == asked == len(re.findall(r"Key: \*\*\([a-d]\)\*\*", quiz))


def test_the_documents_of_an_edition_link_what_is_in_it_or_on_the_web(built):
    documents = sorted((built / "student" / "docs").glob("*.md"))
    assert {"glossary.md", "claims.md"} <= {path.name for path in documents}
    for path in documents:
        for address in re.findall(r"\]\(([^)\s#]+)", path.read_text(encoding="utf-8")):
            assert address.startswith("https://") or (path.parent / address).is_file(), (path.name, address)


def test_asserts_are_left_out_inside_loops_and_conditions_too():
    code = "for x in y:\n    print(x)\n    assert x > 75\nif QUICK:\n    assert x\n    assert (\n        y)\nz = 1"
    assert course.without_asserts(code) == "for x in y:\n    print(x)\nz = 1"


def test_asserts_are_left_out_with_all_their_lines():
    assert course.without_asserts("x = 1\nassert x == 1  # so it is\nassert (\n    x\n)\nprint(x)") == "x = 1\nprint(x)"


def test_a_hole_has_its_hint_its_indent_and_the_number_of_lines():
    begin, end = "    ### BEGIN SOLUTION double, add\n", "    ### END SOLUTION"
    source = f"def f(x):\n    '''Doc.'''\n{begin}    y = 2 * x\n\n    return y + 1\n{end}"
    assert course.hole(source) == "def f(x):\n    '''Doc.'''\n    ...  # TODO (2 lines): double, add"


def test_nbgraders_fields_are_there_when_they_are_asked_for():
    for notebook in NOTEBOOKS.values():
        made = course.student(notebook, nbgrader=True)
        nbformat.validate(made)
        graded = [cell.metadata.nbgrader for cell in made.cells if "nbgrader" in cell.metadata]
        assert len({fields["grade_id"] for fields in graded}) == len(graded) >= 4
        assert sum(fields.get("points", 0) for fields in graded) == sum(fields["solution"] for fields in graded)


# A wrong solution of each hole: what is replaced by what, and the sentence that comes of it.
SLIPS = {
    "kd-write": ("T**2 * F", "F", "the factor T squared is missing"),
    "loop-write": ("range(steps)", "range(3)", "expected"),
    "order-write": ("order.index(name)", "names.index(order[names.index(name)])", "expected"),
    "cosine-write": ("unit @ unit.T", "table @ table.T", "expected"),
    "group-write": (".fill_diagonal_(-1)", "", "leave the diagonal out"),
    "norm-write": ("correction=0", "correction=1", "divides by K, not by K - 1"),
    "count-write": ("math.ceil(B / K)", "B", "expected"),
    "eq3-write": ("layer.norm(e_y)", "e_y", "expected"),
    "redraw-write": ("    layer.bias.zero_()\n", "", "expected"),
    "bn-write": (".norm()", ".pow(2).sum()", "expected"),
    "opponent-write": ("return -", "return ", "the sign is turned round"),
    "step-write": ("    optimizer.zero_grad()\n", "", "expected"),
    "rule-write": ("p_equal < 0.05", "p_equal < 0", "expected"),
    "interval-write": ("0.975", "0.95", "expected"),
    "entropy-write": (
        "mean = logits.softmax(1).mean(0)\n    return -(mean * mean.log()).sum()",
        "each = logits.softmax(1)\n    return -(each * each.log()).sum(1).mean()",
        "take the mean answer first",
    ),
    "round-write": ("2 ** (bits - 1) - 1", "2**bits - 1", "expected"),
    "equal-write": (".sqrt() / r1", ".sqrt() / r2", "expected"),
    "speedup-write": ("sum(ratios) / len(ratios)", "sum(slow[n] for n in hours) / sum(hours.values())", "expected"),
    "batch-norm-write": ("correction=0", "correction=1", "expected"),
    "mix-write": ("(1 - share) * own + share * other", "share * own + (1 - share) * other", "expected"),
    "half-write": ("math.log(0.5)", "math.log(2)", "expected"),
    "questions-write": ("E * S * b", "S * b", "expected"),
}


def test_every_hole_has_a_wrong_solution_here():
    assert {hole for _, hole in HOLES} == SLIPS.keys()


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_):
        raise OSError("no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def run_through(name: str) -> dict:
    """A notebook's code in one namespace; each hole as the student gets it, then wrong, then as it should be."""
    notebook, space = NOTEBOOKS[name], {"__name__": "__main__"}
    cells = [cell for cell in notebook.cells if cell.cell_type == "code" and cell is not notebook.cells[1]]
    last = max(place for place, cell in enumerate(cells) if "check" in course.tags(cell))
    for place, cell in enumerate(cells[: last + 1]):
        if "solution" in course.tags(cell):
            old, new, sentence = SLIPS[cell.id]
            assert old in cell.source
            told = "not written yet, or not returned: fill in the lines marked TODO"
            for source, match in ((course.hole(cell.source), told), (cell.source.replace(old, new), sentence)):
                exec(source, space)
                with pytest.raises(Wrong, match=match):
                    exec(cells[place + 1].source, space)
        exec(cell.source, space)
    return space


def test_holes_and_wrong_solutions_are_told_apart():
    with contextlib.redirect_stdout(io.StringIO()):
        run_through("01_label_text_embeddings.ipynb")


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_so_they_are_in_every_notebook_and_all_exercises_run_without_a_network(name, monkeypatch, no_network):
    monkeypatch.setenv("CI", "1")
    with contextlib.redirect_stdout(io.StringIO()):
        space = run_through(name)
        for answer in re.findall(r"```python\n(.*?)```", NOTEBOOKS[name].cells[-2].source, re.DOTALL):
            exec(answer, space)


@pytest.mark.slow
def test_the_teachers_edition_passes_nbval(built):
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--nbval-lax", "--nbval-current-env"]
        + ["--nbval-cell-timeout=300", built / "teacher" / next(iter(NOTEBOOKS))],
        cwd=built,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:]


def test_the_plan_is_readable(built):
    plan = (built / "teacher" / "PLAN.md").read_text()
    assert re.findall(r"^## Lesson (\w+): .*, 90 minutes$", plan, re.M) == ["I", "II"]
    assert plan.count("|---|---|--:|") == 2
