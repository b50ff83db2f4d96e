"""`make course`: a student's and a teacher's edition of the notebooks, in build/course.

The committed notebooks are the one source. In the student's edition the part to write of each cell tagged `solution` is
a line with a hint, answers are left out, also asserts of what is to be predicted, and no cell has an output. The
teacher's edition has everything, and behind the cells that docs/course/plan.toml names a block: minutes, what tempts,
what to expect, what to ask. `--nbgrader` adds nbgrader's cell metadata to the student's edition: parts to write as
solutions, checks as locked tests of one point.
"""

import argparse
import ast
import copy
import re
import shutil
import sys
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path

import nbformat
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "docs" / "course"
BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"
YOURS, PREDICTED, CAME_OUT = "*Your answer:*", "*Your prediction:*", "*What came out, and why?*"
PREDICT = "Predict before you run"
ADDRESS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]


def read_notebooks() -> dict[str, NotebookNode]:
    """The committed notebooks by the name of their file."""
    return {path.name: nbformat.read(path, as_version=4) for path in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))}


def tags(cell: NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def hole(source: str) -> str:
    """The source of a `solution` cell with the part to write left out, and the hint beside what is left."""

    def left(found: re.Match) -> str:
        lines = [line for line in found["body"].splitlines() if line.strip()]
        return f"{found['indent']}...  # TODO ({len(lines)} line{'s' * (len(lines) > 1)}): {found['hint']}\n"

    pattern = rf"^(?P<indent> *){BEGIN} (?P<hint>.*)\n(?P<body>(?:.*\n)*?) *{END}\n?"
    return re.sub(pattern, left, source, flags=re.MULTILINE).rstrip("\n")


def without_answers(source: str) -> str:
    """A text with its folded answers left out."""
    return re.sub(r"<details>.*?</details>", YOURS, source, flags=re.DOTALL)


def without_asserts(source: str) -> str:
    """A cell's code without its asserts, which say what comes out."""
    lines = source.splitlines()
    for node in reversed([*_asserts(ast.parse(source).body)]):
        del lines[node.lineno - 1 : node.end_lineno]
    return "\n".join(lines)


def _asserts(nodes: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """The asserts among some statements and inside them; a statement that holds nothing else counts as one."""
    for node in nodes:
        inner = [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]
        if isinstance(node, ast.Assert) or (inner and all(isinstance(child, ast.Assert) for child in inner)):
            yield node
        else:
            yield from _asserts(inner)


def linked(source: str) -> str:
    """A text whose links hold in an edition's folder: drawings and documents are copied into it, other files are the
    repository's."""
    source = source.replace("](../docs/drawings/", "](drawings/")
    source = re.sub(r"\]\(\.\./docs/(\w+\.md)", r"](docs/\1", source)
    return source.replace("](../", f"]({ADDRESS}/blob/main/")


def document(text: str) -> str:
    """A document of docs/ whose links hold in an edition's folder docs/."""
    text = re.sub(r"\]\(\.\./notebooks/(\d\d_\w+\.ipynb)", r"](../\1", text)
    text = re.sub(r"\]\(\.\./(?!\d\d_)", f"]({ADDRESS}/blob/main/", text)
    return text.replace("](drawings/", "](../drawings/")


def student(notebook: NotebookNode, nbgrader: bool = False) -> NotebookNode:
    """The student's edition: holes, no answers, no outputs, and no badge, which leads to the answers."""
    made = copy.deepcopy(notebook)
    predicting = False
    for cell in made.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
            cell.source = without_asserts(cell.source) if predicting else cell.source
        elif "answer" in tags(cell):
            cell.source, predicting = CAME_OUT, False
        else:
            predicting = predicting or PREDICT in cell.source
            cell.source = re.sub(r"\[!\[Open in Colab\].*\n\n", "", without_answers(cell.source))
            cell.source += f"\n\n{PREDICTED}" if PREDICT in cell.source else ""
        if "solution" in tags(cell):
            cell.source = hole(cell.source)
            cell.metadata.tags = ["todo" if tag == "solution" else tag for tag in tags(cell)]
        if nbgrader and {"todo", "check"} & {*tags(cell)}:
            solution = "todo" in tags(cell)
            cell.metadata.nbgrader = {
                "schema_version": 3,
                "grade_id": cell.id,
                "solution": solution,
                "grade": not solution,
                "locked": not solution,
                "task": False,
                **({} if solution else {"points": 1}),
            }
    return made


def teacher(notebook: NotebookNode, notes: dict[str, dict]) -> NotebookNode:
    """The teacher's edition: everything, and a block behind each cell of which there is a note, by its id."""
    made = copy.deepcopy(notebook)
    made.cells = []
    for cell in copy.deepcopy(notebook.cells):
        made.cells.append(cell)
        if cell.id in notes:
            block = nbformat.v4.new_markdown_cell(note_in_words(notes[cell.id]), id=f"{cell.id}-note")
            made.cells.append(block)
    return made


def note_in_words(note: dict) -> str:
    """A note as the teacher's edition shows it."""
    parts = {"tempts": "What tempts", "expect": "What to expect", "ask": "Ask"}
    said = [f"**{title}**: {note[key]}" for key, title in parts.items() if key in note]
    return "\n>\n> ".join([f"> **Teacher, {note['minutes']} min**", *said])


def notes_of(plan: dict, name: str) -> dict[str, dict]:
    """Cell id -> note, for the notebook whose name begins with a part's number."""
    parts = [part for lesson in plan["lesson"] for part in lesson["part"] if name.startswith(part["notebook"])]
    return {note["cell"]: note for part in parts for note in part["note"]}


def plan_in_words(plan: dict) -> str:
    """PLAN.md: the lessons with their parts and minutes."""
    text = [f"# {plan['title']}", plan["before"].strip()]
    for lesson in plan["lesson"]:
        rows = [f"| {part['title']} | {part['notebook']} | {part['minutes']} |" for part in lesson["part"]]
        total = sum(part["minutes"] for part in lesson["part"])
        head = ["| part | notebook | min |", "|---|---|--:|"]
        text += [f"## {lesson['title']}, {total} minutes", "\n".join([*head, *rows])]
    return "\n\n".join([*text, plan["after"].strip()]) + "\n"


def quiz(notebooks: dict[str, NotebookNode]) -> str:
    """quiz.md: every prediction with its key."""
    asked = []
    for name, notebook in notebooks.items():
        for place, cell in enumerate(notebook.cells):
            if PREDICT in cell.source:
                prompt = cell.source[cell.source.index("> **Predict") :]
                told = next(c.source for c in notebook.cells[place + 1 :] if "answer" in tags(c))
                key = re.search(r"^It was (\([a-d]\))", told, re.M)[1]
                asked.append(f"{prompt}\n\nKey: **{key}** (notebook {name[:2]})")
    return "\n\n---\n\n".join(["# All predictions, with their key", *asked]) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "course")
    parser.add_argument("--nbgrader", action="store_true")
    arguments = parser.parse_args()
    notebooks, plan = read_notebooks(), tomllib.loads((SOURCE / "plan.toml").read_text(encoding="utf-8"))
    for edition in ("student", "teacher"):
        folder = arguments.out / edition
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        shutil.copy(SOURCE / "setup.md", folder / "SETUP.md")
        shutil.copytree(ROOT / "docs" / "drawings", folder / "drawings", ignore=shutil.ignore_patterns("*.py", "__*"))
        (folder / "docs").mkdir()
        for path in sorted((ROOT / "docs").glob("*.*")):
            if path.suffix == ".md":
                (folder / "docs" / path.name).write_text(document(path.read_text(encoding="utf-8")), encoding="utf-8")
            elif path.suffix == ".png":
                shutil.copy(path, folder / "docs")
        for name, notebook in notebooks.items():
            made = teacher(notebook, notes_of(plan, name))
            if edition == "student":
                made = student(notebook, arguments.nbgrader)
            for cell in made.cells:
                cell.source = linked(cell.source)
            nbformat.validate(made)
            nbformat.write(made, folder / name)
    (arguments.out / "teacher" / "PLAN.md").write_text(plan_in_words(plan), encoding="utf-8")
    (arguments.out / "teacher" / "quiz.md").write_text(quiz(notebooks), encoding="utf-8")
    print(f"{len(notebooks)} notebooks in two editions: {arguments.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
