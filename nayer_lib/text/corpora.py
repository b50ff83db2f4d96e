"""Doc2Vec's training texts: documents as lists of words, lower case, letters only."""

import lzma
import re
import zlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from ..errors import MissingFile, UserError
from ..files import text_hash

WORDNET = Path("/usr/share/wordnet")  # where Debian's wordnet-base puts it


def words(text: str) -> list[str]:
    """The words of a text. All other characters, also full stops and digits, separate words and are dropped."""
    return re.findall("[a-z]+", text.lower())


@lru_cache(maxsize=1)  # several pools are often built from one corpus
def read_corpus(corpus: str) -> tuple[list[list[str]], dict]:
    """The documents of a corpus, and its source as header entries.

    Args:
        corpus: "wordnet", lemmas and gloss of each of WordNet 3.0's 117,659 meanings, or a text file, one document a
            line (also .gz, .bz2, .xz).

    Raises:
        MissingFile: no such file, or WordNet not installed.
        UserError: not a text file, or one without words.
    """
    if corpus == "wordnet":
        documents = list(_wordnet())
        source = {"corpus": "WordNet 3.0, lemmas and glosses"}
    else:
        path = Path(corpus)
        documents, source = _lines(path), {"corpus": path.name}
    documents = [document for document in documents if document]
    if not documents:
        raise UserError(f"the corpus {corpus!r} holds no words: name a text file with one document a line.")
    digest = text_hash("\n".join(" ".join(document) for document in documents))
    return documents, {**source, "documents": len(documents), "corpus_sha256": digest}


def vocabulary(documents: list[list[str]]) -> set[str]:
    """All words of the documents."""
    return {word for document in documents for word in document}


def _lines(path: Path) -> list[list[str]]:
    if not path.is_file():
        raise MissingFile(f"no corpus at {path}: name a text file with one document a line, or 'wordnet'.")
    from gensim import utils

    try:
        with utils.open(str(path), "rt", encoding="utf-8") as file:
            return [words(line) for line in file]
    except (OSError, EOFError, UnicodeError, ValueError, lzma.LZMAError, zlib.error) as error:
        raise UserError(f"{path} is not a whole text file ({error}): the corpus is one document a line.") from error


def _wordnet() -> Iterator[list[str]]:
    """A data line is: offset, file, kind, number of lemmas (hexadecimal), each lemma and a number, links | gloss."""
    paths = [WORDNET / f"data.{kind}" for kind in ("noun", "verb", "adj", "adv")]
    if missing := [path for path in paths if not path.is_file()]:
        raise MissingFile(f"no WordNet at {missing[0]}: `apt install wordnet-base`, or name a corpus of your own.")
    for path in paths:
        for line in path.read_text(encoding="utf-8").splitlines():
            if not line.startswith("  "):  # the licence stands at the top, indented
                entry, _, gloss = line.partition("|")
                fields = entry.split()
                lemmas = fields[4 : 4 + 2 * int(fields[3], 16) : 2]
                yield words(" ".join(lemma.partition("(")[0] for lemma in lemmas) + " " + gloss)
