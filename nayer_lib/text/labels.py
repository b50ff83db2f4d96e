"""Class names in the index order of each data set: the y of Section 3.2.

One line a class in `data/labels/<dataset>.txt`; line k is class k. The order matters most: an embedding
given to the wrong class is worse than noise, so a pool has a `labels_hash` and is refused if the hash differs.
"""

import codecs
import csv
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..errors import MissingFile, UserError, unknown
from ..files import data_dir, text_hash


def class_names(dataset: str) -> tuple[str, ...]:
    """The K class names of a data set, in index order.

    Raises:
        UserError: no list of that name in data/labels.
    """
    folder = data_dir() / "labels"
    path = folder / f"{dataset}.txt"
    if not path.is_file():
        raise unknown("data set (no class names in data/labels)", dataset, (p.stem for p in folder.glob("*.txt")))
    return read_names(path)


def read_names(path: Path) -> tuple[str, ...]:
    """The class names in a text file, one a line: UTF-8, or UTF-16 with its mark, with any line ends.

    Blanks around a name and blank lines at the end do not count.

    Raises:
        MissingFile, UserError: no such file, no text, a line that is no name, or two of one name, by their numbers.
    """
    if not path.is_file():
        raise MissingFile(f"{path} does not exist: it should hold the class names, one a line.")
    content = path.read_bytes()
    marked = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = content.decode("utf-16" if marked else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a text file in UTF-8: save it so, with the class names, one a line.") from error
    lines = [line.strip() for line in re.split("\r\n|\r|\n", text.rstrip())]
    first: dict[str, int] = {}
    for number, name in enumerate(lines, 1):
        if not name.isprintable() or not name:
            what = "is blank" if not name else "holds a tab" if "\t" in name else "holds characters of no text"
            raise UserError(f"{path}, line {number}, {what}: give one class name a line and nothing else.")
        if first.setdefault(name, number) != number:
            raise UserError(f"{path}, lines {first[name]} and {number}: two classes are called {name!r}.")
    return check_names(lines)


def plain(name: str) -> str:
    """A name by which folders and lists are matched: blanks for underscores, letters composed."""
    return " ".join(unicodedata.normalize("NFC", name).replace("_", " ").split())


def superclasses() -> tuple[str, ...]:
    """CIFAR-100's 20 superclasses: the superclass of each of its 100 classes, in index order."""
    return _column("cifar100_superclasses", "superclass")


def wnids(dataset: str) -> tuple[str, ...]:
    """The WordNet ids of the K classes of "tiny_imagenet" or "imagenet", in index order, which is sorted order.

    The ids are the names of these data sets' folders.
    """
    return _column(f"{dataset}_wnids", "wnid")


def _column(file: str, name: str) -> tuple[str, ...]:
    with open(data_dir() / "labels" / f"{file}.csv", newline="", encoding="utf-8") as lines:
        return tuple(row[name] for row in csv.DictReader(lines))


def readable(names: Sequence[str]) -> tuple[str, ...]:
    """Class names as spoken text: blanks for underscores, and the first of a list of synonyms.

    If several classes share their first synonym, they keep all synonyms: "maillot tank suit" beside "maillot".
    """
    spaced = [" ".join(name.replace("_", " ").split()) for name in names]
    first_synonyms = [name.split(",")[0].strip() for name in spaced]
    counts = Counter(name.casefold() for name in first_synonyms)
    return tuple(
        first if counts[first.casefold()] == 1 else " ".join(name.replace(",", " ").split())
        for first, name in zip(first_synonyms, spaced, strict=True)
    )


def check_names(names: Sequence[str]) -> tuple[str, ...]:
    """The names as a tuple, if there are some and no two classes share one: equal names would get equal embeddings."""
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise UserError(f"class names are a list of texts, one a class, not {names!r}.")
    names = tuple(names)
    odd = [k for k, name in enumerate(names) if not isinstance(name, str) or not name.strip() or "\n" in name]
    if not names or odd:
        raise UserError(f"class names must be texts of one line, one a class; not so: {odd or 'no names at all'}.")
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise UserError(f"two classes are called {twice[0]!r}: tell them apart, as 'crane bird' and 'crane machine'.")
    return names


def labels_hash(names: Sequence[str]) -> str:
    """sha256 of the names in order: equal hashes mean equal names in the same order, but for underscores and blanks."""
    return text_hash("\n".join(map(plain, names)))
