"""The authors' released tables: read from their bytes, put in the order of the labels, refused where they are not."""

import pickle

import numpy as np
import pytest
import torch

from nayer_lib import cli, files
from nayer_lib.errors import MissingFile, UserError
from nayer_lib.text.labels import class_names, labels_hash, readable
from nayer_lib.text.lte_pool import equal_rows, load_pool
from nayer_lib.text.released import read_released_table, released_pool

NAMES = ("cat", "dog", "truck")


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_released_table_is_read_from_its_bytes(tmp_path, dtype, monkeypatch):
    table, path = torch.randn(7, 12).to(dtype), tmp_path / "le.pickle"
    path.write_bytes(pickle.dumps(table.requires_grad_(), protocol=4))
    monkeypatch.setattr(pickle, "Unpickler", None)
    monkeypatch.setattr(torch, "load", None)
    assert torch.equal(read_released_table(path), table.detach().float())


def test_nothing_in_a_pickle_is_executed(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "executed"), "w"))

    for thing in (Evil(), {"a": 1}, torch.randn(3), torch.randn(2, 3, 4), (torch.randn(2, 3), torch.randn(2, 3))):
        path = tmp_path / "le.pickle"
        path.write_bytes(pickle.dumps(thing, protocol=4))
        with pytest.raises(UserError, match="nothing in it was executed"):
            read_released_table(path)
    path.write_bytes(b"no pickle at all")
    with pytest.raises(UserError, match="nothing in it was executed"):
        read_released_table(path)
    path.write_bytes(pickle.dumps(torch.randn(5, 6), protocol=4)[:-40])
    with pytest.raises(UserError, match="nothing in it was executed"):
        read_released_table(path)
    assert not (tmp_path / "executed").exists()
    with pytest.raises(MissingFile):
        read_released_table(tmp_path / "nowhere.pickle")


def test_a_released_table_becomes_a_pool_of_its_classes(tmp_path):
    path = tmp_path / "le.pickle"
    path.write_bytes(pickle.dumps(torch.randn(10, 12).half(), protocol=4))
    pool = released_pool(path, class_names("cifar10"))
    assert pool.header["prompt"] == "a {name}" and len(pool.header["file_sha256"]) == 64
    with pytest.raises(UserError, match="10 rows, there are 3 class names"):
        released_pool(path, NAMES)
    out = tmp_path / "pool.safetensors"
    assert cli.main(["lte", "convert", "--dataset", "cifar10", "--released", str(path), "--out", str(out)]) == 0
    assert torch.equal(load_pool(out, class_names("cifar10")).table, pool.table)


def released(folder, table):
    path = folder / "le.pickle"
    path.write_bytes(pickle.dumps(torch.as_tensor(table), protocol=4))
    return path


def test_rows_in_another_order_are_put_right_by_name(tmp_path):
    table = torch.randn(4, 6).half()
    names = ("tench", "pickup truck", "maillot", "maillot tank suit")
    order = ("maillot, tank suit", "pickup_truck", "tench, Tinca tinca", "maillot")
    pool = released_pool(released(tmp_path, table), names, order)
    assert torch.equal(pool.table, table[[2, 1, 3, 0]].float())
    assert pool.header["moved_rows"] == 3 and pool.header["labels_sha256"] == labels_hash(names)
    as_it_is = released_pool(released(tmp_path, table), names)
    assert torch.equal(as_it_is.table, table.float()) and as_it_is.header["moved_rows"] == 0


@pytest.mark.parametrize(
    ("order", "told"),
    [
        (("truck", "cat", "fox"), r"does not name 'dog' once \(1 of 3\)"),
        (("truck", "cat"), r"does not name 'dog' once \(1 of 3\)"),
        (("truck", "cat", "dog", "cat"), r"does not name 'cat' once \(1 of 3\)"),
        (("lorry", "kitten", "puppy"), r"does not name 'cat' once \(3 of 3\)"),
        ((), r"does not name 'cat' once \(3 of 3\)"),
    ],
)
def test_a_list_that_does_not_name_every_class_once_is_refused(tmp_path, order, told):
    with pytest.raises(UserError, match=f"the class list {told}"):
        released_pool(released(tmp_path, torch.randn(3, 6)), NAMES, order)


def test_a_list_may_say_one_class_in_a_hundred_otherwise_if_all_others_are_in_place(tmp_path):
    """ImageNet's list has "crane" twice, where the kit tells the bird from the machine."""
    names = tuple(f"class {k}" for k in range(200))
    order, table = list(names), torch.randn(200, 4)
    order[7] = order[150] = "crane"
    assert torch.equal(released_pool(released(tmp_path, table), names, order).table, table)
    for spoilt in (
        [*order[:20], "lorry", *order[21:]],  # a third
        [*order[:20], order[21], order[20], *order[22:]],  # two others change places
        [*order, "class 200"],
    ):
        with pytest.raises(UserError, match="the class list does not name 'class 7' once"):
            released_pool(released(tmp_path, table), names, spoilt)


def test_a_list_of_another_length_is_refused(tmp_path):
    with pytest.raises(UserError, match="the class list has 4 names, the table 3 rows: it is another table's"):
        released_pool(released(tmp_path, torch.randn(3, 6)), NAMES, (*NAMES, "lorry"))


def test_an_npz_file_brings_its_tables_with_their_names(tmp_path):
    table, other = torch.randn(3, 6).half(), torch.randn(3, 5)
    pets = {"pets": table.numpy(), "pets_labels": np.array(["dog, hound", "pickup_truck", "cat"])}
    path = tmp_path / "tables.npz"
    np.savez(path, **pets, others=other.numpy(), others_labels=np.array(NAMES))
    names = ("cat", "dog", "pickup truck")
    pool = released_pool(path, names, key="pets")
    assert torch.equal(pool.table, table[[2, 0, 1]].float())
    told = {"encoder": "clip", "key": "pets", "moved_rows": 3, "labels_sha256": labels_hash(names)}
    assert told.items() <= pool.header.items() and pool.header["file_sha256"] == files.file_hash(path)
    assert torch.equal(released_pool(path, NAMES, key="others").table, other)
    assert torch.equal(released_pool(path, names, order=names, key="pets").table, table.float())  # a list goes first
    with pytest.raises(UserError, match=r"has no table 'cars': choose one of those it has with --key \(pets, others\)"):
        released_pool(path, names, key="cars")
    with pytest.raises(UserError, match=r"does not name 'kitten' once \(3 of 3\)"):
        released_pool(path, ("kitten", "puppy", "lorry"), key="pets")


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({"pets": np.zeros((3, 2))}, "does not say whose rows 'pets' has: pets_labels must hold 3 names"),
        ({"pets": np.zeros((3, 2)), "pets_labels": np.array(["a", "b"])}, "pets_labels must hold 3 names"),
        ({"pets": np.zeros((3, 2)), "pets_labels": np.arange(3)}, "pets_labels must hold 3 names"),
        ({"pets": np.zeros(3), "pets_labels": np.array(NAMES)}, r"no table of embeddings: float64 of shape \(3,\)"),
        ({"pets": np.zeros((3, 2), int), "pets_labels": np.array(NAMES)}, "no table of embeddings: int64 of shape"),
        ({"cats": np.zeros((3, 2))}, r"has no table 'pets': choose .* with --key \(none with class names\)"),
        (
            {"pets": np.array([[{}]]), "pets_labels": np.array(["a"])},
            "plain arrays: make or download it again. Nothing",
        ),
    ],
)
def test_an_npz_file_that_is_no_table_with_names_is_told(tmp_path, arrays, told):
    np.savez(tmp_path / "tables.npz", **arrays)
    with pytest.raises(UserError, match=told):
        released_pool(tmp_path / "tables.npz", NAMES, key="pets")


def test_tiny_imagenets_rows_are_not_taken_without_their_list(tmp_path):
    with pytest.raises(UserError, match="rows of Tiny-ImageNet are in another order than its labels: give the class"):
        released_pool(released(tmp_path, torch.randn(200, 6)), class_names("tiny_imagenet"))


@pytest.fixture(scope="module")
def tables(test_data):
    """The released tables and the lists that lie beside them."""
    with np.load(test_data / "clip-text-embeddings" / "nayer_authors_clip_vitb32.npz") as file:
        return dict(file)


@pytest.mark.parametrize(("dataset", "classes"), [("cifar10", 10), ("cifar100", 100), ("imagenet", 1000)])
def test_the_released_tables_are_in_the_order_of_the_labels(tables, tmp_path, dataset, classes):
    names = class_names(dataset)
    pool = released_pool(released(tmp_path, tables[dataset]), names)
    assert pool.table.shape == (classes, 512) and pool.header["moved_rows"] == 0
    assert torch.equal(pool.table, torch.from_numpy(tables[dataset]).float())
    beside = readable(tables[f"{dataset}_labels"].tolist())
    assert {k for k in range(classes) if beside[k] != names[k]} <= {134, 264}  # ImageNet's, told apart in another way


def test_tiny_imagenets_released_rows_are_put_right_by_name(tables, tmp_path, test_data):
    """Row k must be that of the class whose WordNet id is the k-th: looked up by its whole string of synonyms."""
    names, beside = class_names("tiny_imagenet"), tables["tiny_imagenet_labels"].tolist()
    assert labels_hash(readable(beside)) != labels_hash(names) and sorted(readable(beside)) == sorted(names)
    pool = released_pool(released(tmp_path, tables["tiny_imagenet"]), names, beside)
    assert pool.table.shape == (200, 512) and pool.header["moved_rows"] == 189
    lines = (test_data / "labels" / "tiny_imagenet_classes.txt").read_text(encoding="utf-8").splitlines()
    rows = [beside.index(line.split("\t")[1]) for line in lines]
    assert torch.equal(pool.table, torch.from_numpy(tables["tiny_imagenet"][rows]).float())


@pytest.mark.parametrize(
    ("dataset", "moved"), [("cifar10", 0), ("cifar100", 0), ("tiny_imagenet", 189), ("imagenet", 0)]
)
def test_the_file_of_all_released_tables_is_read_as_they_are(tables, test_data, tmp_path, dataset, moved):
    path, names = test_data / "clip-text-embeddings" / "nayer_authors_clip_vitb32.npz", class_names(dataset)
    pool, order = released_pool(path, names, key=dataset), tables[f"{dataset}_labels"].tolist() if moved else None
    again = released_pool(released(tmp_path, tables[dataset]), names, order)
    assert torch.equal(pool.table, again.table) and pool.header["moved_rows"] == moved
    assert pool.header.keys() - again.header.keys() == {"key"}


def test_imagenets_two_cranes_have_one_released_embedding(tables):
    """The bird (134) and the machine (517); no other two classes of any table."""
    twins = {name: equal_rows(torch.from_numpy(tables[name]).float()) for name in tables if "_labels" not in name}
    assert twins == {"cifar10": [], "cifar100": [], "tiny_imagenet": [], "imagenet": [(134, 517)]}
