"""What Doc2Vec is trained on: words of WordNet, or of a file."""

import bz2
import gzip
import hashlib
import lzma
import re
import string
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nayer_lib.errors import MissingFile, UserError
from nayer_lib.text import corpora
from nayer_lib.text.corpora import read_corpus, vocabulary, words

TEXT = "A dog barks.\n\nThe cat: 2 mice!\n"
DOCUMENTS = [["a", "dog", "barks"], ["the", "cat", "mice"]]


@pytest.fixture(autouse=True)
def fresh():
    """A corpus is read once; each test here reads its own."""
    read_corpus.cache_clear()
    yield
    read_corpus.cache_clear()


# --- words


def test_words_are_lower_case_letters_and_all_else_parts_them():
    assert words("A photo of class 0") == ["a", "photo", "of", "class"]
    assert words("T-shirt, sea_lion's 3rd (ip)") == ["t", "shirt", "sea", "lion", "s", "rd", "ip"]
    assert words("1 2 3 ...") == []


@settings(max_examples=50, deadline=None)
@given(st.text(string.printable))
def test_the_words_of_words_are_themselves(text):
    found = words(text)
    assert words(" ".join(found)) == found
    assert "".join(found) == re.sub("[^a-z]", "", text.lower())


def test_the_vocabulary_is_every_word():
    assert vocabulary(DOCUMENTS) == {"a", "dog", "barks", "the", "cat", "mice"}


# --- files


def pack(plain: bytes) -> dict[str, bytes]:
    return {"": plain, ".gz": gzip.compress(plain), ".bz2": bz2.compress(plain), ".xz": lzma.compress(plain)}


@pytest.mark.parametrize("ending", ["", ".gz", ".bz2", ".xz"])
def test_a_line_of_a_file_is_a_document_also_where_it_is_packed(tmp_path, ending):
    path = tmp_path / f"pets.txt{ending}"
    path.write_bytes(pack(TEXT.encode())[ending])
    documents, source = read_corpus(str(path))
    assert documents == DOCUMENTS  # the empty line is none
    digest = hashlib.sha256(b"a dog barks\nthe cat mice").hexdigest()  # of the words: packing does not change it
    assert source == {"corpus": path.name, "documents": 2, "corpus_sha256": digest}


def test_a_file_that_is_not_there_names_what_there_could_be(tmp_path):
    with pytest.raises(MissingFile, match=r"no corpus at .*nowhere\.txt: name a text file .*, or 'wordnet'"):
        read_corpus(str(tmp_path / "nowhere.txt"))
    with pytest.raises(MissingFile, match="no corpus at "):
        read_corpus(str(tmp_path))


@pytest.mark.parametrize("text", ["", "\n\n", "1 2 3\n4\n"])
def test_a_file_without_a_word_is_refused(tmp_path, text):
    (tmp_path / "empty.txt").write_text(text)
    with pytest.raises(UserError, match="the corpus .* holds no words: name a text file with one document a line"):
        read_corpus(str(tmp_path / "empty.txt"))


def test_a_file_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "corpus.txt").write_bytes(bytes(range(256)))
    with pytest.raises(UserError, match=r"corpus\.txt is not a whole text file \(.*codec can't decode"):
        read_corpus(str(tmp_path / "corpus.txt"))


def spoilt(kind: str, whole: bytes) -> bytes:
    middle = len(whole) // 2
    kinds = {
        "cut": whole[:middle],
        "no archive": b"a dog barks\n",
        "changed": whole[:middle] + bytes(255 - byte for byte in whole[middle : middle + 4]) + whole[middle + 4 :],
    }
    return kinds[kind]


@pytest.mark.parametrize("kind", ["cut", "no archive", "changed"])
@pytest.mark.parametrize("ending", [".gz", ".bz2", ".xz"])
def test_an_archive_that_is_not_whole_is_refused(tmp_path, ending, kind):
    text = "".join(f"document {number} of some words\n" for number in range(500)).encode()
    path = tmp_path / f"corpus{ending}"
    path.write_bytes(spoilt(kind, pack(text)[ending]))
    with pytest.raises(UserError, match="is not a whole text file"):
        read_corpus(str(path))


# --- WordNet

ENTRY = '00001740 03 {} 01 {} 0 000 | a gloss; "an example"\n'
NOUN = (
    "  1 This software and database is being provided to you, the LICENSEE, by Princeton | University\n"
    "00001930 03 n 02 physical_entity 0 T-shirt 0 001 @ 00001740 n 0000 | an entity (2) that has existence\n"
)
LEMMAS = " ".join(f"{letter}word 0" for letter in string.ascii_lowercase[:17])


@pytest.fixture
def wordnet(tmp_path, monkeypatch):
    """A WordNet of four meanings."""
    (tmp_path / "data.noun").write_text(NOUN)
    (tmp_path / "data.verb").write_text(ENTRY.format("v", "run"))
    (tmp_path / "data.adj").write_text("00013887 00 s 02 abounding 0 galore(ip) 0 001 & 00013887 a 0000 | whiskey\n")
    (tmp_path / "data.adv").write_text(f"00001 02 r 11 {LEMMAS} 002 ! 00002 r 0101 ! 00003 r 0101 | seventeen\n")
    monkeypatch.setattr(corpora, "WORDNET", tmp_path)
    return tmp_path


def test_a_meaning_of_wordnet_is_its_lemmas_and_its_gloss(wordnet):
    """Nouns, verbs, adjectives, adverbs; the licence is no meaning, and the number of lemmas is hexadecimal."""
    documents, source = read_corpus("wordnet")
    noun, verb, adjective, adverb = map(" ".join, documents)
    assert noun == "physical entity t shirt an entity that has existence"
    assert verb == "run a gloss an example"
    assert adjective == "abounding galore whiskey"  # "(ip)" says where the adjective stands and is no word
    assert adverb == " ".join(f"{letter}word" for letter in string.ascii_lowercase[:17]) + " seventeen"
    assert source["corpus"] == "WordNet 3.0, lemmas and glosses" and source["documents"] == 4


def test_without_wordnet_it_is_said_how_to_get_it(wordnet):
    (wordnet / "data.adj").unlink()
    with pytest.raises(MissingFile, match=r"no WordNet at .*data\.adj: `apt install wordnet-base`"):
        read_corpus("wordnet")


def only_markers_more(document: list[str], other: list[str]) -> bool:
    """Whether `other` is the document with adjective markers in it: (a), (p) or (ip) behind a lemma."""
    rest = iter(other)
    in_order = all(word in rest for word in document)
    return in_order and set(Counter(other) - Counter(document)) <= {"a", "p", "ip"}


def test_wordnet_is_the_corpus_that_was_made_of_it_elsewhere(test_data):
    """117,659 meanings; an independent reading of the same files left the markers of 799 adjectives in."""
    if not (corpora.WORDNET / "data.noun").is_file():
        pytest.skip("WordNet is not installed: apt install wordnet-base")
    with lzma.open(test_data / "doc2vec-wordnet" / "wordnet30_glosses.txt.xz", "rt", encoding="utf-8") as file:
        elsewhere = [line.split() for line in file]
    documents, source = read_corpus("wordnet")
    assert len(documents) == len(elsewhere) == source["documents"] == 117_659
    differing = [(ours, theirs) for ours, theirs in zip(documents, elsewhere, strict=True) if ours != theirs]
    assert len(differing) == 799
    assert all(only_markers_more(ours, theirs) for ours, theirs in differing)
