"""Class names: the order is the data set's, and no two classes may look the same to a text encoder."""

import hashlib

import pytest

from nayer_lib.errors import UserError
from nayer_lib.text.labels import check_names, class_names, labels_hash, wnids

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@pytest.fixture
def labels(tmp_path, monkeypatch):
    """An empty labels folder in a data folder of its own."""
    (tmp_path / "paper").mkdir()
    (tmp_path / "labels").mkdir()
    monkeypatch.setenv("NAYER_DATA", str(tmp_path))
    return tmp_path / "labels"


def test_names_stand_in_the_order_of_the_labels():
    assert class_names("digits") == DIGITS
    assert class_names("cifar10") == CIFAR10


def test_color_digits_go_through_all_digits_of_an_ink_first():
    inks = ("red", "green", "blue", "yellow", "purple")
    assert class_names("color_digits") == tuple(f"{ink} {digit}" for ink in inks for digit in DIGITS)


def test_cifar10_has_the_order_of_the_data_itself(test_data):
    assert list(class_names("cifar10")) == (test_data / "cifar10" / "classes.txt").read_text().split()


@pytest.mark.parametrize(
    ("name", "source"), [("tiny_imagenet", "tiny_imagenet_classes.txt"), ("imagenet", "imagenet_wnid_short_name.txt")]
)
def test_wordnet_ids_go_with_the_names(test_data, name, source):
    lines = (test_data / "labels" / source).read_text(encoding="utf-8").splitlines()
    ids, names = zip(*(line.split("\t") for line in lines), strict=True)
    assert wnids(name) == ids
    pairs = zip(names, class_names(name), strict=True)
    assert all(ours.startswith(theirs.split(",")[0].replace("_", " ")) for theirs, ours in pairs)


def test_wordnet_ids_are_sorted_and_tiny_imagenets_are_some_of_imagenets():
    for name, count in (("tiny_imagenet", 200), ("imagenet", 1000)):
        assert len(wnids(name)) == count and list(wnids(name)) == sorted(set(wnids(name)))
    assert set(wnids("tiny_imagenet")) < set(wnids("imagenet"))


def test_one_line_is_one_class(labels):
    (labels / "birds.txt").write_text("great tit\nblue tit\n")
    assert class_names("birds") == ("great tit", "blue tit")


def test_an_unknown_data_set_names_the_nearest():
    with pytest.raises(UserError, match="'cifar11'. Did you mean 'cifar10'.* Known: .*digits"):
        class_names("cifar11")


def test_a_blank_line_is_told_by_its_number(labels):
    (labels / "birds.txt").write_text("great tit\n\nblue tit\n  \n")
    with pytest.raises(UserError, match=r"one a class; not so: \[1, 3\]"):
        class_names("birds")


def test_an_empty_list_is_refused(labels):
    (labels / "birds.txt").write_text("")
    with pytest.raises(UserError, match="no names at all"):
        class_names("birds")


def test_two_classes_of_one_name_are_refused():
    """ImageNet has "crane" twice: a bird and a machine would get the same embedding."""
    with pytest.raises(UserError, match="two classes are called 'crane': tell them apart"):
        check_names(["heron", "crane", "excavator", "crane"])
    assert check_names(["crane bird", "crane machine"]) == ("crane bird", "crane machine")


def test_names_must_be_texts():
    with pytest.raises(UserError, match=r"not so: \[0, 2\]"):
        check_names([0, "one", None])


def test_the_hash_is_sha256_of_the_lines():
    assert labels_hash(("cat", "dog")) == hashlib.sha256(b"cat\ndog").hexdigest()
    assert labels_hash(["cat", "dog"]) == labels_hash(("cat", "dog"))


@pytest.mark.parametrize("other", [("dog", "cat"), ("cat", "dogs"), ("cat",), ("cat", "dog", "fox"), ("Cat", "dog")])
def test_another_order_or_another_name_is_another_hash(other):
    assert labels_hash(other) != labels_hash(("cat", "dog"))
