"""Class names: the order is the data set's, and no two classes may look the same to a text encoder."""

import csv
import hashlib
import pickletools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nayer_lib.errors import UserError
from nayer_lib.files import data_dir
from nayer_lib.text.labels import check_names, class_names, labels_hash, read_names, readable, superclasses, wnids

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
LISTS = {"digits": 10, "color_digits": 50, "cifar10": 10, "cifar100": 100, "tiny_imagenet": 200, "imagenet": 1000}
TOLD_APART = {134: "crane bird", 264: "Cardigan Welsh corgi", 639: "maillot tank suit"}


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
    """Its batches.meta is a pickle; `pickletools` lists the texts in it and executes nothing."""
    meta = (test_data / "cifar10" / "batches.meta").read_bytes()
    texts = [argument for _, argument, _ in pickletools.genops(meta) if isinstance(argument, str)]
    first = texts.index("label_names") + 1
    assert tuple(texts[first : first + 10]) == class_names("cifar10")
    assert list(class_names("cifar10")) == (test_data / "cifar10" / "classes.txt").read_text().split()


@pytest.mark.parametrize(("dataset", "classes"), LISTS.items())
def test_every_list_has_its_classes_and_no_two_look_alike_to_an_encoder(dataset, classes):
    """Text encoders ignore case."""
    names = class_names(dataset)
    assert len({name.casefold() for name in names}) == len(names) == classes
    assert readable(names) == names  # nothing left to make readable


def test_there_is_no_list_that_is_not_tested():
    assert {path.stem for path in (data_dir() / "labels").glob("*.txt")} == set(LISTS)


def test_cifar100_is_in_alphabetical_order_as_in_the_released_list(test_data):
    names = class_names("cifar100")
    assert list(names) == sorted(names)
    with np.load(test_data / "clip-text-embeddings" / "nayer_authors_clip_vitb32.npz") as tables:
        assert readable(tables["cifar100_labels"].tolist()) == names


def test_tiny_imagenet_is_in_the_order_of_its_wordnet_ids(test_data):
    """The order in which a loader finds its folders, which is not the order of the data set's own wnids.txt."""
    lines = (test_data / "labels" / "tiny_imagenet_classes.txt").read_text(encoding="utf-8").splitlines()
    wnids, synonyms = zip(*(line.split("\t") for line in lines), strict=True)
    assert list(wnids) == sorted(wnids)
    assert readable(synonyms) == class_names("tiny_imagenet")


def differing(dataset, names) -> dict[int, str]:
    """The classes of a data set that another list calls something else."""
    pairs = enumerate(zip(class_names(dataset), names, strict=True))
    return {k: ours for k, (ours, theirs) in pairs if ours != theirs}


def test_imagenet_is_the_known_list_but_for_three_classes_told_apart(test_data):
    lines = (test_data / "labels" / "imagenet_wnid_short_name.txt").read_text(encoding="utf-8").splitlines()
    wnids, short = zip(*(line.split("\t") for line in lines), strict=True)
    assert list(wnids) == sorted(wnids)
    assert differing("imagenet", [name.replace("_", " ") for name in short]) == TOLD_APART


def test_imagenet_has_the_order_of_torchvisions_networks():
    """torchvision tells two of the three apart likewise, but not the Cardigan from the cardigan."""
    from torchvision.models import ResNet18_Weights

    theirs = ResNet18_Weights.DEFAULT.meta["categories"]
    assert differing("imagenet", theirs) == {264: TOLD_APART[264]}
    assert theirs[264].casefold() == theirs[474].casefold() == class_names("imagenet")[474]


def test_cifar100s_superclasses_are_twenty_of_five():
    names, over = class_names("cifar100"), superclasses()
    assert len(over) == 100 and len(set(over)) == 20
    assert all(over.count(name) == 5 for name in over)
    assert over[names.index("beaver")] == "aquatic mammals" and over[names.index("wolf")] == "large carnivores"
    with open(data_dir() / "labels" / "cifar100_superclasses.csv", newline="", encoding="utf-8") as file:
        assert tuple(row["class"] for row in csv.DictReader(file)) == names


# --- names as one would say them


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["pickup_truck", "lawn_mower"], ("pickup truck", "lawn mower")),
        (["tench, Tinca tinca", "goldfish, Carassius auratus"], ("tench", "goldfish")),
        (["  great   white_ shark ", "cat"], ("great white shark", "cat")),
        (["maillot", "maillot, tank suit"], ("maillot", "maillot tank suit")),
        (["Cardigan, Cardigan Welsh corgi", "cardigan"], ("Cardigan Cardigan Welsh corgi", "cardigan")),
        (["crane, bird", "CRANE, machine", "heron, bird"], ("crane bird", "CRANE machine", "heron")),
    ],
    ids=["underscores", "the first synonym", "blanks", "shared with a whole name", "shared up to case", "two of three"],
)
def test_readable(names, said):
    assert readable(names) == said


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text("ab_, ", min_size=1).filter(lambda name: name.strip("_, ")), min_size=1, max_size=6))
def test_readable_keeps_the_number_of_classes_and_leaves_no_underscore_or_comma(names):
    said = readable(names)
    assert len(said) == len(names)
    assert all("_" not in name and "," not in name and "  " not in name for name in said)


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
    with pytest.raises(UserError, match=r"birds.txt, line 2, is blank"):
        class_names("birds")


def test_an_empty_list_is_refused(labels):
    (labels / "birds.txt").write_text("")
    with pytest.raises(UserError, match="line 1, is blank"):
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


def test_names_that_differ_in_underscores_have_one_hash():
    """A list of names and the folders of a data set: both give the same texts to the encoder."""
    assert labels_hash(["red_leaf", "wood"]) == labels_hash(["red leaf", "wood"]) != labels_hash(["redleaf", "wood"])


@pytest.mark.parametrize("other", [("dog", "cat"), ("cat", "dogs"), ("cat",), ("cat", "dog", "fox"), ("Cat", "dog")])
def test_another_order_or_another_name_is_another_hash(other):
    assert labels_hash(other) != labels_hash(("cat", "dog"))


# --- names files


@settings(deadline=None)
@given(
    names=st.lists(
        st.text("ab\u00e9\u4e2d _", min_size=1, max_size=5).map(str.strip).filter(bool), min_size=1, unique=True
    ),
    end=st.sampled_from(("\n", "\r\n", "\r")),
    encoding=st.sampled_from(("utf-8", "utf-8-sig", "utf-16")),
    blanks=st.integers(0, 3),
)
def test_names_are_read_whatever_wrote_the_file(names, end, encoding, blanks, tmp_path_factory):
    path = tmp_path_factory.mktemp("names") / "names.txt"
    path.write_bytes((end.join(f" {name}\t" for name in names) + end * blanks).encode(encoding))
    assert read_names(path) == tuple(names)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"a\n\nb", "names.txt, line 2, is blank"),
        (b"0\ta\n1\tb", "names.txt, line 1, holds a tab"),
        (b"a\nb\0", "names.txt, line 2, holds characters of no text"),
        (b"a\nb\nc\nb", "names.txt, lines 2 and 4: two classes are called 'b'"),
        (b"caf\xe9", "names.txt is not a text file in UTF-8"),
        (b"", "names.txt, line 1, is blank"),
        (b"\n\n", "names.txt, line 1, is blank"),
        (b"\xff\xfea", "not a text file"),
    ],
)
def test_a_line_that_is_no_name_is_told_by_its_number(content, sentence, tmp_path):
    (tmp_path / "names.txt").write_bytes(content)
    with pytest.raises(UserError, match=sentence):
        read_names(tmp_path / "names.txt")


@pytest.mark.parametrize("names", [None, 3, "leaf"])
def test_names_that_are_no_list_are_refused(names):
    with pytest.raises(UserError, match="class names"):
        check_names(names)
