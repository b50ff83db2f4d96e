"""What every notebook is, asked of the committed files without a kernel; nbval runs them and compares the rest."""

import base64
import csv
import json
import re
import statistics
import subprocess
import sys
from collections import Counter
from pathlib import Path

import nbformat
import pytest
from bs4 import BeautifulSoup

from nayer_beyond.with_data import WithData
from nayer_lib.methods import METHODS
from nayer_notebooks.tables import NAMES

ROOT = Path(__file__).resolve().parents[1]
PATHS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
TIMES = json.loads((ROOT / "data" / "times.json").read_text())

HEAD = ("# ", "[![Open in Colab]", "**Go to**", "**You will be able to**", "**Needs**", "**Paper**", "**Time**")
LINK = re.compile(r"(?<!!)\[((?:[^][]|!\[[^]]*\]\([^)]*\))*)\]\(([^)\s]+)\)")
PATH_OF_A_MACHINE = re.compile(
    r"(?<![\w.])/(home|root|tmp|work|Users|mnt|media|opt|private|srv|var)/|[A-Z]:\\\\|ipykernel_\d"
)

IT_WAS = re.compile(r"(?:<details><summary>Which was it\?</summary>\n\n)?It was \(([a-d])\)")


@pytest.fixture(params=PATHS, ids=lambda path: path.stem)
def path(request) -> Path:
    return request.param


@pytest.fixture
def cells(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return notebook.cells


def code(cells):
    return [cell for cell in cells if cell.cell_type == "code"]


def text(cells):
    return [cell for cell in cells if cell.cell_type == "markdown"]


def tagged(cells, tag):
    return [cell for cell in cells if tag in cell.metadata.get("tags", [])]


def outputs(cells):
    return [output for cell in code(cells) for output in cell.outputs]


def alternative(output) -> str | None:
    """What a figure says in words; None if the output is no figure."""
    data = output.get("data", {})
    if image := BeautifulSoup(data.get("text/html", ""), "html.parser").img:
        return image.get("alt", "")
    return None


def figures(cell) -> list[dict]:
    return [output for output in cell.get("outputs", []) if alternative(output) is not None]


def words(cell) -> int:
    """Of running text: a table is looked up, a drawing is seen, a fold is opened, and code is run."""
    read = re.sub(r"```.*?```", "", cell.source, flags=re.DOTALL)
    return sum(len(line.split()) for line in read.splitlines() if not line.startswith(("|", "![", "<")))


def lines(cell) -> int:
    return len(cell.source.splitlines())


def verbs(cell) -> list[str]:
    return re.findall(r"^- \*\*(\w+)\*\*", cell.source, re.M)


def texts_of(output) -> str:
    """What an output says in words: streams and every kind of data but pictures."""
    data = {kind: value for kind, value in output.get("data", {}).items() if not kind.startswith("image/")}
    texts = [re.sub(r"base64,[\w+/=]+", "", str(value)) for value in data.values()]
    return "\n".join([output.get("text", ""), *texts])


def links(cells) -> list[tuple[str, str]]:
    """Words and address of each link in the texts."""
    return [link for cell in text(cells) for link in LINK.findall(cell.source)]


def references() -> list[dict]:
    with open(ROOT / "data" / "references.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_there_are_notebooks():
    assert PATHS


# --- beginning and end


def test_the_first_cell_says_what_one_will_be_able_to_do_what_it_needs_and_how_long_it_takes(path, cells):
    head = cells[0]
    blocks = head.source.split("\n\n")
    assert re.fullmatch(rf"# {path.stem[:2]} · \S.*", blocks[0])
    for part in HEAD:
        assert part in head.source, part
    assert [block for block in blocks if not block.startswith(HEAD)] == []  # nothing is left over
    assert len(verbs(head)) == 3


def test_the_last_cell_says_the_same_three_as_done(cells):
    assert cells[-1].cell_type == "markdown" and cells[-1].source.startswith("## Done\n")
    assert verbs(cells[-1]) == verbs(cells[0])


def test_badge_time_and_bootstrap_are_as_make_notebooks_renders_them():
    done = subprocess.run([sys.executable, ROOT / ".ci" / "notebooks.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_name_that_no_notebook_has_is_told():
    words = [sys.executable, ROOT / ".ci" / "notebooks.py", "--check", "4"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr == "no notebook's name begins with 4: take two digits, as 04.\n"


def test_the_bootstrap_stands_second_and_does_nothing_but_on_colab(cells):
    assert cells[1].cell_type == "code" and not cells[1].outputs
    first, _, condition, *rest = cells[1].source.splitlines()
    assert first == "import sys" and condition.startswith('if "google.colab" in sys.modules:')
    assert all(line.startswith("    ") for line in rest if line)
    for name in ("torch", "torchvision", "numpy"):  # kept as Colab has them
        assert f'"{name}"' in cells[1].source


def test_one_cell_holds_the_parameters(cells):
    [parameters] = tagged(cells, "parameters")
    assert parameters is code(cells)[1] and "profile()" in parameters.source


def test_its_time_was_measured(path):
    assert re.fullmatch(r"\d+ s on \d+ CPU cores", TIMES[path.stem]["quick"])


# --- outputs


def test_it_was_run_once_from_top_to_bottom(cells):
    assert [cell.execution_count for cell in code(cells)] == list(range(1, len(code(cells)) + 1))
    assert not [output for output in outputs(cells) if output.output_type == "error"]


def test_checked_cells_have_something_to_compare_and_no_warnings_in_it(cells):
    checked = tagged(cells, "nbval-check-output")
    assert checked and all(cell.cell_type == "code" for cell in checked)
    for cell in checked:
        assert cell.outputs and cell.execution_count, cell.source  # else nbval would compare nothing
        assert not [output for output in cell.outputs if output.get("name") == "stderr"]
        assert not figures(cell)  # never compared


def test_tags_are_ones_that_something_reads(cells):
    read = {"parameters", "nbval-check-output", "solution", "check", "answer", "hide-output"}
    assert {tag for cell in cells for tag in cell.metadata.get("tags", [])} <= read


def test_a_figure_comes_at_least_every_eight_code_cells(cells):
    written = [*tagged(cells, "solution"), *tagged(cells, "check")]  # by the learner: no part of the tour
    row = [bool(figures(cell)) for cell in code(cells)[2:] if cell not in written]  # after bootstrap and parameters
    longest = max(len(gap) for gap in "".join(" F"[drawn] for drawn in row).split("F"))
    assert any(row) and longest < 8


def test_figures_are_png_with_a_sentence_of_alternative_text(cells):
    for cell in code(cells):
        for output in figures(cell):
            alt = alternative(output)
            assert len(alt.split()) >= 5 and alt.endswith("."), cell.source
    assert not [output for output in outputs(cells) if "image/svg+xml" in output.get("data", {})]


def says_numbers(output) -> bool:
    """Whether an output is printed, or a table (`notebook.table`)."""
    return output.get("name") == "stdout" or "<caption>" in output.get("data", {}).get("text/html", "")


def test_figures_are_at_most_900_pixels_wide_and_code_88_characters(cells):
    for cell in code(cells):
        for output in figures(cell):
            image = BeautifulSoup(output["data"]["text/html"], "html.parser").img
            head = base64.b64decode(image["src"].partition(",")[2])[:24]
            assert int.from_bytes(head[16:20], "big") <= 900, cell.source  # width in a PNG's first chunk
        if cell is not cells[1]:
            assert max(map(len, cell.source.splitlines())) <= 88, cell.source


def test_a_figures_numbers_are_printed_too(cells):
    """In the same code cell or the next one."""
    after = code(cells)[1:] + [nbformat.v4.new_code_cell()]
    for cell, following in zip(code(cells), after, strict=True):
        if figures(cell):
            assert any(map(says_numbers, [*cell.outputs, *following.outputs])), cell.source


NAMED_ELSEWHERE = {"in the paper", "in a config"}  # columns for the other names of an arm
OTHERS = {other for others in NAMES.values() for other in others} - {"NAYER", "noise", "noisy"}  # words of their own
OTHER = re.compile(rf"(?<![\w(])({'|'.join(map(re.escape, sorted(OTHERS, key=len, reverse=True)))})(?![\w(])")


def without_other_names(output) -> str:
    """What an output says, but for source code and for the columns in which another name of an arm belongs."""
    page = BeautifulSoup(output.get("data", {}).get("text/html", ""), "html.parser")
    if page.find("div", class_="highlight"):
        return ""
    if not page.find("table"):
        return texts_of(output)
    heads = [cell.get_text(strip=True) for cell in page.thead.find_all("th")]
    cells = [cell for row in page.tbody.find_all("tr") for cell in zip(heads, row.find_all(["th", "td"]), strict=True)]
    shown = [cell.get_text() for head, cell in cells if head not in NAMED_ELSEWHERE]
    return "\n".join([page.caption.get_text(), *heads, *shown])


@pytest.mark.parametrize("number", [3, 5])
def test_an_arm_has_one_name_in_outputs_and_texts(number):
    cells = nbformat.read(PATHS[number], as_version=4).cells
    said = [without_other_names(output) for output in outputs(cells)]
    said += [re.sub(r"`[^`]*`|\$[^$]*\$", "", cell.source) for cell in text(cells)]
    assert [(found[0], where) for where in said for found in OTHER.finditer(where)] == []
    assert any("K-to-1, kept" in where for where in said)


@pytest.mark.parametrize(("words", "found"), [("NAYER(woRI) falls", True), ("OH, Z", True), ("Z(e_y): 3", False)])
def test_another_name_of_an_arm_is_found(words, found):
    assert bool(OTHER.search(words)) == found


def test_it_names_no_folder_of_any_machine(path, cells):
    for cell in cells:
        assert not PATH_OF_A_MACHINE.search(cell.source), cell.source
    for output in outputs(cells):
        assert not PATH_OF_A_MACHINE.search(texts_of(output)), texts_of(output)


def test_it_is_small(path):
    assert path.stat().st_size < 1_000_000


# --- rhythm


def test_code_cells_are_short_and_define_no_class(cells):
    own = [cell for cell in code(cells) if cell is not cells[1]]
    assert max(map(lines, own)) <= 25 and statistics.median(map(lines, own)) <= 10
    for cell in own:
        assert not re.search(r"^\s*class \w", cell.source, re.M), cell.source


def test_text_cells_are_short(cells):
    assert max(map(words, text(cells))) <= 130 and statistics.median(map(words, text(cells))) <= 60


def test_no_code_cell_begins_with_a_magic(cells):
    assert not [cell.source for cell in code(cells) if cell.source.lstrip().startswith(("%", "!"))]


def test_nothing_is_unpickled(cells):
    for cell in code(cells):
        assert not re.search(r"\bpickle\b|\bjoblib\b|\b(np|numpy|torch)\.load\(", cell.source), cell.source


def test_predictions_come_before_results_and_the_text_after_them_says_which_it_was(cells):
    places = [i for i, cell in enumerate(cells) if "Predict before you run" in cell.source]
    assert 2 <= len(places) <= 9
    for place in places:
        assert cells[place].cell_type == "markdown"
        prompt = cells[place].source.split("Predict before you run")[1]
        assert re.findall(r"\(([a-d])\)", prompt)[:3] == ["a", "b", "c"]
        assert cells[place + 1].cell_type == "code"
        told = [cell for cell in cells[place + 2 : place + 4] if cell.cell_type == "markdown"]
        assert told and IT_WAS.match(told[0].source), prompt
        assert told[0].metadata.get("tags") == ["answer"] and "\n## " not in told[0].source


def test_no_answer_is_seen_before_it_is_asked_for(path, cells):
    """The output behind a prediction is folded, on the site by the tag and in JupyterLab by the metadata."""
    for place, cell in enumerate(cells):
        if "Predict before you run" in cell.source:
            following = cells[place + 1].metadata
            assert "hide-output" in following.tags and following.jupyter == {"outputs_hidden": True}
    for cell in tagged(cells, "answer"):
        assert cell.source.startswith("<details><summary>Which was it?</summary>\n\nIt was")
        assert cell.source.endswith("\n\n</details>")


def test_no_letter_is_right_too_often():
    """Over all notebooks; a learner who always says (b) learns nothing."""
    told = [cell for path in PATHS for cell in tagged(nbformat.read(path, as_version=4).cells, "answer")]
    letters = Counter(IT_WAS.match(cell.source)[1] for cell in told)
    assert max(letters.values()) <= 0.4 * letters.total(), letters


def test_a_learner_writes_code_in_every_notebook_and_a_check_follows(cells):
    written = tagged(cells, "solution")
    assert len(written) >= 2 and len(written) == len(tagged(cells, "check"))
    for cell in written:
        place = cells.index(cell)
        assert cells[place - 1].source.startswith("**Write it.**")
        assert "check" in cells[place + 1].metadata.tags and re.search(r"^ *check\(", cells[place + 1].source, re.M)
        assert re.search(r"^ +### BEGIN SOLUTION \S.*\n(.+\n)+ +### END SOLUTION$", cell.source, re.M), cell.source


def test_it_ends_in_two_exercises_with_folded_answers(cells):
    exercises = cells[-2].source
    assert exercises.startswith("## Exercises")
    assert re.findall(r"^\*\*(\d)\.\*\*", exercises, re.M) == ["1", "2"]
    assert exercises.count("<details>") == exercises.count("</details>") == exercises.count("</summary>") == 2


# --- links


def test_links_and_drawings_lead_somewhere(cells):
    assert len(links(cells)) >= 8
    shown = [address for cell in text(cells) for address in re.findall(r"!\[[^]]+\]\((?!https:)([^)]+)\)", cell.source)]
    for address in [*shown, *(address for _, address in links(cells))]:
        assert address.startswith("https://") or (ROOT / "notebooks" / address).is_file(), address


def test_a_document_that_a_text_names_is_linked(cells):
    for cell in text(cells):
        if "answer" not in cell.metadata.get("tags", []):
            named = re.sub(r"<details>.*?</details>", "", cell.source, flags=re.DOTALL)
            assert not re.search(r"(?<!\[)`docs/\w+\.md`", named), named


def test_references_are_those_of_the_methods_and_well_formed():
    told = {row["key"]: (row["name"], row["citation"]) for row in references()}
    methods = {**METHODS, "kd": WithData}
    assert {key: (method.name, method.citation) for key, method in methods.items()}.items() <= told.items()
    form = re.compile(r"https://(arxiv\.org/abs/\d{4}\.\d{4,5}|doi\.org/10\.\S+|(cvpr|iccv)\.thecvf\.com/\S+|openreview\.net/forum\?id=\w+)")
    assert all(row["title"] and form.fullmatch(row["address"]) for row in references())


def test_papers_are_linked_by_the_addresses_of_the_references(cells):
    known = {row["address"] for row in references()}
    web = {address for _, address in links(cells) if re.search(r"arxiv|doi|thecvf", address)}
    assert web and web <= known


NOT_IN_06 = {"zeroq", "dfq_nagel", "zaq", "nayer_plus", "cpnet", "ta_dfkd", "stealing"}  # quantised students; after


def test_in_06_a_methods_first_mention_links_its_paper():
    texts = "\n".join(cell.source for cell in text(nbformat.read(PATHS[6], as_version=4).cells))
    said = {"deepinv": "DeepInversion", "kakr_mb": "KAKR", "kakr_gr": "KAKR"}
    for row in references():
        if row["key"] in METHODS.keys() - NOT_IN_06:
            name = said.get(row["key"], row["name"])
            first = re.search(rf"(?<![\w/-]){name}(?![\w-])", texts).start()
            assert texts[first - 1 :].startswith(f"[{name}]({row['address']})"), texts[first - 40 : first + 40]


# --- the paper's exhibits

EXHIBITS = {"Algorithm": 1, "Eq.": 6, "Figure": 7, "Table": 11}


def sections(path: Path) -> dict[int, str]:
    """Texts, code and outputs of a notebook's numbered sections, with "Figure" for "Fig."."""
    said, number = {}, 0
    for cell in nbformat.read(path, as_version=4).cells:
        said[number] = said.get(number, "")
        for part in re.split(r"^(?=## )", cell.source, flags=re.M):
            if part.startswith("## "):
                number = int(found[1]) if (found := re.match(r"## (\d+) · ", part)) else 0
            said[number] = said.get(number, "") + "\n" + part
        said[number] += "".join("\n" + texts_of(output) for output in cell.get("outputs", []))
    return {number: text.replace("Fig.", "Figure") for number, text in said.items()}


def occurs(exhibit: str, text: str) -> bool:
    """Whether a text has an exhibit by its kind and number, also in "Tables 4 and 5"."""
    kind, number = exhibit.split()
    lists = re.findall(rf"{re.escape(kind)}s? ((?:\d+[a-d]?(?:, | and |–)?)+)", text)
    return any(number in re.findall(r"\d+", numbers) for numbers in lists)


def test_every_exhibit_of_the_paper_is_where_00_says():
    told = "\n".join(cell.source for cell in nbformat.read(PATHS[0], as_version=4).cells)
    rows = re.findall(rf"^\| ((?:{'|'.join(map(re.escape, EXHIBITS))}) \d+), [^|]+ \| ([^|]+) \|$", told, re.M)
    assert [name for name, _ in rows] == [f"{kind} {k}" for kind, last in EXHIBITS.items() for k in range(1, last + 1)]
    for name, places in rows:
        for file, number in re.findall(r"\(([\w.]+\.ipynb)\), section (\d+)", places):
            assert occurs(name, sections(ROOT / "notebooks" / file)[int(number)]), (name, file, number)


@pytest.mark.parametrize(("text", "found"), [("Tables 4 and 5", True), ("Table 15", False), ("Table 5's", True)])
def test_an_exhibit_in_a_list_is_found(text, found):
    assert occurs("Table 5", text) == found
