"""Words before use: where a term of docs/glossary.md first occurs in the notebooks, its cell says what it is."""

import re
from functools import cache
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
GLOSSARY = "../docs/glossary.md"


def terms(table: str) -> list[str]:
    """The words of the first column, each form for itself."""
    rows = re.findall(r"^\| ([^|]+) \|", table, re.M)[1:]
    return [term for row in rows if not row.startswith("--") for term in row.split(", ")]


def spoken(source: str) -> str:
    """A text as it is read: without tables, which are looked up, code, formulas, tags and addresses of links."""
    for block in (r"```.*?```", r"\$\$.*?\$\$", r"`[^`]*`", r"\$[^$]*\$"):
        source = re.sub(block, " ", source, flags=re.DOTALL)
    for part in (r"^\|.*$", r"!\[[^]]*\]\([^)]*\)", r"<[^>]*>", r"\]\([^)]*\)"):
        source = re.sub(part, " ", source, flags=re.MULTILINE)
    return " ".join(re.sub(r"[*\[\]]", "", source).split())


def says(term: str, text: str) -> bool:
    return re.search(rf"(?<![\w-]){re.escape(term)}(e?s)?(?![\w-])", text, re.IGNORECASE) is not None


def explains(term: str, source: str) -> bool:
    """Whether a text sets the term in italics or bold, as where a thing is named, or links it to the glossary."""
    told = re.findall(r"(?<!\*)(\*{1,2})(?![\s*])([^*]+?)\1(?!\*)", source)
    linked = re.findall(rf"\[([^]]+)\]\({re.escape(GLOSSARY)}\)", source)
    return any(says(term, spoken(part)) for part in [*(words for _, words in told), *linked])


@cache
def cells() -> list[tuple[str, str]]:
    """Name and text of every text cell in the order of teaching, but for first and last ones, which have the links."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    order = re.findall(r"^\| \[\d\d .*?\]\(notebooks/([^)]+)\)", readme, re.M)
    found = []
    for name in order:
        made = nbformat.read(ROOT / "notebooks" / name, as_version=4).cells[1:-1]
        found += [(f"{name[:2]} {cell.id}", cell.source) for cell in made if cell.cell_type == "markdown"]
    return found


def first(term: str) -> tuple[str, str] | None:
    return next(((name, source) for name, source in cells() if says(term, spoken(source))), None)


TERMS = terms((ROOT / "docs" / "glossary.md").read_text(encoding="utf-8"))


@pytest.mark.parametrize("term", TERMS)
def test_a_term_is_said_where_it_first_occurs(term):
    name, source = first(term) or ("", "")
    assert not source or explains(term, source), f"{term!r} in {name}"


def test_no_term_stands_twice_in_the_glossary():
    assert len(TERMS) == len({*TERMS})


@pytest.mark.parametrize(
    ("source", "explained"),
    [
        ("A *noisy layer* is one.", True),
        ("The **noisy layers** are many.", True),
        (f"What the [noisy layer]({GLOSSARY}) does.", True),
        ("The noisy layer is *one* and **two**.", False),
        ("The [noisy layer](03.ipynb) of another page.", False),
    ],
)
def test_a_word_is_explained_by_its_look_or_its_link(source, explained):
    assert says("noisy layer", spoken(source)) and explains("noisy layer", source) == explained


def test_a_term_in_code_or_in_a_table_is_not_said():
    assert not says("noisy layer", spoken("| noisy layer | x |\nand `noisy layer`, $noisy layer$"))
    assert not says("head", spoken("heading, ahead")) and says("head", spoken("ten heads"))
