"""The LTE pool P: asked for once, kept with its provenance, and refused where it does not belong."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nayer_lib import files
from nayer_lib.errors import MissingFile, UserError
from nayer_lib.text.encoders import ENCODERS, encode
from nayer_lib.text.labels import class_names, labels_hash
from nayer_lib.text.lte_pool import (
    LTEPool,
    agreement,
    build_pool,
    equal_rows,
    find_pool,
    load_pool,
    pool_path,
    read_pool,
    save_pool,
)
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

    def fake(texts, model, device, bar):
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
    assert torch.equal(rows[0], encode(["a truck"], "random")[0][0])


def test_the_encoder_reads_the_names_as_one_would_say_them():
    """The header keeps the hash of the names as they are: they are the data set's."""
    pool = build_pool(["pickup_truck", "tench, Tinca tinca"], "random", "a")
    assert torch.equal(pool.table, encode(["a pickup truck", "a tench"], "random")[0])
    assert pool.header["labels_sha256"] == labels_hash(["pickup_truck", "tench, Tinca tinca"])


def test_device_model_and_bar_reach_the_encoder(monkeypatch):
    asked = []

    def fake(texts, model, **options):
        asked.append((model, options))
        return torch.eye(len(texts)), {}

    monkeypatch.setitem(ENCODERS, "fake", fake)
    build_pool(NAMES, "fake", "a", "some:model", device="cuda", bar=True)
    assert asked == [("some:model", {"device": "cuda", "bar": True})]


def test_the_header_says_how_the_pool_was_made():
    header = build_pool(NAMES, "random", "p2").header
    assert header["encoder"] == "random" and header["model"]
    assert header["prompt"] == "A class of {name}"  # the template, not its id: ids may change
    assert header["labels_sha256"] == labels_hash(NAMES)


def test_names_are_checked_before_the_encoder_is_asked(monkeypatch):
    monkeypatch.setitem(ENCODERS, "fake", lambda *_, **__: pytest.fail("asked"))
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
        ({"lte": torch.zeros(3)}, {"labels_sha256": labels_hash(NAMES)}),
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


def test_a_pool_can_be_read_without_knowing_its_classes(path):
    pool = read_pool(path)
    assert pool.header == pool_of(pool.table).header
    assert torch.equal(pool.table, load_pool(path, NAMES).table)


# --- found, built, cached


@pytest.fixture
def encoder(monkeypatch, tmp_path):
    """An encoder "fake" that counts how often it is asked, and an empty cache; returns what it was asked."""
    asked = []

    def fake(texts, model, device, bar):
        asked.append(texts)
        return torch.arange(3.0 * len(texts)).view(-1, 3) / 7, {"model": "counting"}

    monkeypatch.setitem(ENCODERS, "fake", fake)
    monkeypatch.setenv("NAYER_DATASETS", str(tmp_path))
    return asked


def cached(folder) -> list:
    return sorted(file.name for file in (folder / "lte").glob("*"))


def test_the_pool_that_the_kit_brings_is_taken(monkeypatch, encoder, tmp_path):
    monkeypatch.setitem(ENCODERS, "sbert", lambda *_, **__: pytest.fail("asked"))
    names = class_names("digits")
    beside = tmp_path / "lte" / f"{labels_hash(names)[:12]}.sbert.a.safetensors"
    save_pool(beside, LTEPool(torch.zeros(10, 3), {"labels_sha256": labels_hash(names)}))
    pool = find_pool("digits", names, "sbert", "a")
    assert torch.equal(pool.table, load_pool(pool_path("digits", "sbert", "a"), names).table)


def test_a_pool_that_there_is_not_is_built_once_and_cached(encoder, tmp_path):
    first = find_pool("leaves", NAMES, "fake", "a")
    assert encoder == [["a cat", "a dog", "a truck"]]
    assert cached(tmp_path) == [f"{labels_hash(NAMES)[:12]}.fake.a.safetensors"]
    again = find_pool("leaves", NAMES, "fake", "a")
    assert len(encoder) == 1
    assert torch.equal(first.table, again.table) and first.header == again.header  # rounded the first time too
    assert first.header["model"] == "counting" and first.header["labels_sha256"] == labels_hash(NAMES)


def test_other_names_prompts_and_encoders_are_other_pools(encoder, tmp_path):
    for names, name, prompt in (
        (NAMES, "fake", "a"),
        (NAMES[::-1], "fake", "a"),
        (NAMES, "fake", "p2"),
        (NAMES, "fake", "a sketch of {name}"),
        (NAMES, "fake", "a drawing of {name}"),
        (NAMES, "random", "a"),
    ):
        assert find_pool("leaves", names, name, prompt).header["labels_sha256"] == labels_hash(names)
    assert len(encoder) == 5 and len(cached(tmp_path)) == 6


def test_a_template_of_ones_own_gives_a_pool_a_hash_for_a_name():
    name = pool_path("leaves", "fake", "a sketch of {name}").name
    assert re.fullmatch(r"leaves\.fake\.[0-9a-f]{8}\.safetensors", name)
    assert name != pool_path("leaves", "fake", "a drawing of {name}").name
    assert pool_path("leaves", "fake", "photo").name == "leaves.fake.photo.safetensors"
    with pytest.raises(UserError, match="unknown prompt"):
        pool_path("leaves", "fake", "../photo")


def test_a_cached_pool_that_is_damaged_or_of_other_classes_is_built_again(encoder, tmp_path):
    whole = find_pool("leaves", NAMES, "fake", "a")
    [file] = (tmp_path / "lte").iterdir()
    save_pool(file, LTEPool(torch.zeros(3, 3), {"labels_sha256": labels_hash(NAMES[::-1])}))
    assert torch.equal(find_pool("leaves", NAMES, "fake", "a").table, whole.table)
    file.write_bytes(b"no pool")
    assert torch.equal(find_pool("leaves", NAMES, "fake", "a").table, whole.table)
    assert len(encoder) == 3


def test_an_encoder_or_prompt_that_there_is_not_is_told_and_leaves_nothing(encoder, tmp_path):
    with pytest.raises(UserError, match="unknown text encoder 'bert'. Did you mean 'sbert'"):
        find_pool("digits", class_names("digits"), "bert", "a")
    with pytest.raises(UserError, match="unknown prompt .*'phot'. Did you mean 'photo'"):
        find_pool("digits", class_names("digits"), "sbert", "phot")
    assert not encoder and not cached(tmp_path)


# --- compared


def test_a_pool_agrees_with_itself_whatever_its_length():
    pool = pool_of(torch.tensor([[1.0, 2.0], [3.0, -4.0], [0.5, 0.0]]))
    assert agreement(pool, pool_of(3 * pool.table)).tolist() == pytest.approx([1, 1, 1])


def test_agreement_is_the_cosine_of_each_classs_two_rows():
    one = pool_of(torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]))
    other = pool_of(torch.tensor([[0.0, 2.0], [3.0, 4.0], [-1.0, 0.0]]))
    assert agreement(one, other).tolist() == pytest.approx([0, 0.6, -1])


def test_pools_of_other_classes_or_of_another_width_are_not_compared():
    pool = pool_of(torch.randn(3, 5))
    with pytest.raises(UserError, match="different class names or orders: there is nothing to compare"):
        agreement(pool, LTEPool(pool.table, {"labels_sha256": labels_hash(NAMES[::-1])}))
    with pytest.raises(UserError, match="5 and 4 numbers a class: they come from different encoders"):
        agreement(pool, pool_of(torch.randn(3, 4)))


def test_equal_rows_are_told_in_pairs():
    rows = torch.tensor([[1.0, 2.0], [3.0, 4.0], [1.0, 2.0], [3.0, 4.0], [1.0, 2.0], [1.0, 2.5]])
    assert equal_rows(rows) == [(0, 2), (0, 4), (1, 3), (2, 4)]
    assert equal_rows(rows[[0, 1, 5]]) == []


def test_equal_rows_are_told_whatever_rows_lie_between_them_along_a_direction():
    """Each row has a twin nearer to it than a thousandth of the longest; along any direction others lie between."""
    rows, noise = torch.randn(2, 300, 8, generator=torch.Generator().manual_seed(0))
    twins = rows + 5e-4 * rows.norm(dim=1).max() * torch.nn.functional.normalize(noise)
    assert equal_rows(torch.cat([rows, twins])) == [(k, k + 300) for k in range(300)]


# --- what the kit brings


SMALL = ("cifar10", "cifar100", "digits", "color_digits")
BROUGHT = {
    *((dataset, "sbert", prompt) for dataset in SMALL for prompt in PROMPTS),
    *((dataset, "doc2vec", prompt) for dataset in SMALL for prompt in PROMPTS if prompt != "p3"),
    *((dataset, encoder, "a") for dataset in ("tiny_imagenet", "imagenet") for encoder in ("sbert", "doc2vec")),
}


def test_the_kit_brings_the_pools_of_two_encoders_for_all_data_sets():
    """Doc2Vec cannot tell the texts of P3 apart."""
    assert {pool_path(*which) for which in BROUGHT} == set(COMMITTED)


def test_the_pools_that_the_kit_brings_are_small():
    assert sum(path.stat().st_size for path in COMMITTED) < 4_000_000


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_a_committed_pool_fits_its_data_set_and_names_its_origin(path):
    dataset, encoder, prompt = path.stem.split(".")
    pool = load_pool(path, class_names(dataset))
    assert pool.header["encoder"] == encoder
    assert pool.header["prompt"] == PROMPTS[prompt]
    assert pool.header["model"] and not pool.header["model"].startswith(("/", "~"))
    origin = "corpus_sha256" if encoder == "doc2vec" else "weights_sha256"
    assert re.fullmatch("[0-9a-f]{64}", pool.header[origin])
    assert re.fullmatch(r"[\w-]+ \d+\.[\w.+]+", pool.header["library"])
    assert pool.header.get("unknown_words", []) == []
    assert torch.pdist(pool.table).min() > 0.04  # no two classes share a row


@pytest.mark.parametrize("dataset", SMALL)
def test_the_kits_doc2vec_does_not_hear_the_full_stop_of_p1(dataset):
    p1, p2 = (read_pool(pool_path(dataset, "doc2vec", prompt)).table for prompt in ("p1", "p2"))
    assert torch.equal(p1, p2)


# --- two classes with one embedding


def test_an_encoder_that_hears_no_difference_is_told(monkeypatch):
    """As where names are longer than it reads; a last bit that differs between two batches is no difference."""
    rows = torch.eye(3, 8)
    rows[2] = rows[1] + 1e-6
    monkeypatch.setitem(ENCODERS, "deaf", lambda texts, model, device, bar: (rows, {}))
    with pytest.raises(UserError, match="'b' and 'c' get one and the same embedding .1 such pair"):
        build_pool(["a", "b", "c"], "deaf", "a")


def test_a_pool_with_one_embedding_for_two_classes_is_warned_about(tmp_path):
    names = ["a", "b", "c"]
    pool = LTEPool(torch.tensor([[1.0, 2], [3, 4], [1, 2]]), {"labels_sha256": labels_hash(names)})
    save_pool(tmp_path / "p.safetensors", pool)
    with pytest.warns(UserWarning, match="p.safetensors has one embedding for 'a' and 'c'"):
        load_pool(tmp_path / "p.safetensors", names)
