"""The LTE pool P: asked for once, kept with its provenance, and refused where it does not belong."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nayer_lib import files
from nayer_lib.errors import MissingFile, UserError
from nayer_lib.text.encoders import ENCODERS
from nayer_lib.text.labels import class_names, labels_hash
from nayer_lib.text.lte_pool import LTEPool, build_pool, load_pool, pool_path, save_pool
from nayer_lib.text.prompts import PROMPTS

NAMES = ("cat", "dog", "truck")
COMMITTED = sorted((files.data_dir() / "lte").glob("*.safetensors"))


def pool_of(table):
    return LTEPool(table, {"encoder": "fake", "labels_sha256": labels_hash(NAMES)})


@pytest.fixture
def path(tmp_path):
    """A whole pool for NAMES."""
    torch.manual_seed(0)
    save_pool(tmp_path / "pool.safetensors", pool_of(torch.randn(3, 5)))
    return tmp_path / "pool.safetensors"


def test_a_pool_asks_the_encoder_exactly_once_for_all_classes(monkeypatch):
    asked = []

    def fake(texts, model):
        asked.append(texts)
        return torch.eye(len(texts)), {}

    monkeypatch.setitem(ENCODERS, "fake", fake)
    pool = build_pool(NAMES, "fake", "p1")
    for label in range(3):
        pool[torch.tensor([label])]
    assert asked == [["A class of cat.", "A class of dog.", "A class of truck."]]


def test_row_k_is_the_embedding_of_class_k():
    """Eq. 1 and Algorithm 1, line 6: the same label always gets the same row."""
    pool = build_pool(NAMES, "random", "a")
    rows = pool[torch.tensor([2, 0, 2])]
    assert rows.shape == (3, 384)
    assert torch.equal(rows[0], pool.table[2]) and torch.equal(rows[1], pool.table[0]) and torch.equal(rows[0], rows[2])
    expected, _ = ENCODERS["random"](["a truck"], None)
    assert torch.equal(rows[0], expected[0])


def test_the_header_says_how_the_pool_was_made():
    header = build_pool(NAMES, "random", "p2").header
    assert header["encoder"] == "random" and header["model"]
    assert header["prompt"] == "A class of {name}"  # the template, not its id: ids may change
    assert header["labels_sha256"] == labels_hash(NAMES)


def test_names_are_checked_before_the_encoder_is_asked(monkeypatch):
    monkeypatch.setitem(ENCODERS, "fake", lambda texts, model: pytest.fail("asked"))
    with pytest.raises(UserError, match="two classes are called 'crane'"):
        build_pool(["crane", "crane"], "fake", "a")


@given(st.lists(st.floats(-1000, 1000, width=32), min_size=3, max_size=3))
@settings(max_examples=25, deadline=None)
def test_keeping_a_pool_rounds_it_to_float16_and_no_more(tmp_path_factory, values):
    path = tmp_path_factory.mktemp("pool") / "pool.safetensors"
    pool = pool_of(torch.tensor(values).unsqueeze(1))
    save_pool(path, pool)
    kept = load_pool(path, NAMES)
    assert kept.table.dtype == torch.float32 and kept.header == pool.header
    # Half a unit in the last of 11 bits; 2^-25 below float16's smallest normal number.
    assert ((kept.table - pool.table).abs() <= 2**-11 * pool.table.abs() + 2**-25).all()


def test_keeping_a_kept_pool_changes_nothing(path, tmp_path):
    kept = load_pool(path, NAMES)
    save_pool(tmp_path / "again.safetensors", kept)
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


# --- refusals


def test_another_number_of_classes_is_refused(path):
    with pytest.raises(UserError, match="pool.safetensors has 3 classes, the data set has 2: build its own pool"):
        load_pool(path, NAMES[:2])


@pytest.mark.parametrize("names", [("dog", "cat", "truck"), ("cat", "dog", "lorry")])
def test_another_order_or_other_names_are_refused(path, names):
    with pytest.raises(UserError, match="built for other class names or another order"):
        load_pool(path, names)


@pytest.mark.parametrize("bad", [float("nan"), float("-inf")])
def test_rows_that_are_not_finite_are_refused(tmp_path, bad):
    table, path = torch.randn(3, 5), tmp_path / "pool.safetensors"
    table[1, 2] = bad
    files.save_tensors(path, {"lte": table}, pool_of(table).header)
    with pytest.raises(UserError, match="not finite: build it again"):
        load_pool(path, NAMES)


def test_rows_that_float16_cannot_hold_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(UserError, match="too large for a pool"):
        save_pool(tmp_path / "pool.safetensors", pool_of(torch.full((3, 5), 1e5)))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("tensors", "header"),
    [
        ({"weight": torch.zeros(3, 5)}, {}),
        ({"lte": torch.zeros(3, 5)}, {}),
        ({"lte": torch.zeros(3, 5), "bias": torch.zeros(3)}, {"labels_sha256": labels_hash(NAMES)}),
    ],
)
def test_other_safetensors_are_no_pool(tmp_path, tensors, header):
    files.save_tensors(tmp_path / "pool.safetensors", tensors, header)
    with pytest.raises(UserError, match="is not a pool of label-text embeddings: build one with `python -m nayer_lib"):
        load_pool(tmp_path / "pool.safetensors", NAMES)


@pytest.mark.parametrize("keep", [0, 7, 60, -1])
def test_a_pool_that_was_cut_short_is_refused(path, keep):
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match="not a whole safetensors file .* again"):
        load_pool(path, NAMES)


def test_a_missing_pool_says_what_to_do(tmp_path):
    with pytest.raises(MissingFile, match="digits.clip.a.safetensors: build them with `python -m nayer_lib lte"):
        load_pool(tmp_path / "digits.clip.a.safetensors", NAMES)


# --- what the kit brings


def test_pools_are_found_by_data_set_encoder_and_prompt():
    assert pool_path("digits", "sbert", "a") in COMMITTED
    for dataset in ("digits", "color_digits"):
        assert {pool_path(dataset, "sbert", prompt) for prompt in ("a", "p2", "photo")} <= set(COMMITTED)


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_a_committed_pool_is_small_fits_its_data_set_and_names_its_origin(path):
    dataset, encoder, prompt = path.stem.split(".")
    pool = load_pool(path, class_names(dataset))
    assert path.stat().st_size < 100_000
    assert pool.header["encoder"] == encoder
    assert pool.header["prompt"] == PROMPTS[prompt]
    assert pool.header["model"] and not pool.header["model"].startswith(("/", "~"))
    assert encoder == "random" or re.fullmatch("[0-9a-f]{64}", pool.header["weights_sha256"])
    assert encoder == "random" or re.fullmatch(r"[\w-]+ \d+\.[\w.+]+", pool.header["library"])
    assert torch.pdist(pool.table).min() > 0.05  # no two classes share a row
