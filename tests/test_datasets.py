"""Data sets: splits that never change and share no drawing, and facts that fit the images."""

import socket
import subprocess
import sys
import time
from collections import Counter

import numpy as np
import pytest
import torch

from nayer_lib.datasets import DATASETS, INKS, SPLITS, dataset, load_split
from nayer_lib.errors import MissingFile, UserError

SIZES = {"fit": 1000, "validation": 297, "test": 500, "train": 1297}
OURS = {"digits": 1, "color_digits": 5}  # splits are this many times as large


@pytest.fixture(scope="module")
def splits():
    """Every split of the data sets that need no download."""
    return {name: {split: load_split(name, split) for split in SPLITS} for name in OURS}


def rows(*parts):
    """How often each (image, label) occurs in these splits."""
    pairs = (zip(part.images, part.labels.tolist(), strict=True) for part in parts)
    return Counter((image.numpy().tobytes(), label) for pair in pairs for image, label in pair)


def moments(images):
    """Mean and standard deviation of each channel in [0, 1] units, from how often each byte occurs."""
    share = torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in images.unbind(1)]).double()
    share /= share.sum(1, keepdim=True)
    values = torch.arange(256).double() / 255
    mean = share @ values
    return mean, (share * (values - mean[:, None]) ** 2).sum(1).sqrt()


# --- digits and color_digits


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", OURS)
def test_splits_have_their_sizes_and_shapes(splits, name, split):
    facts, part = dataset(name), splits[name][split]
    count = SIZES[split] * OURS[name]
    assert part.images.shape == (count, facts.channels, facts.size, facts.size) and part.labels.shape == (count,)
    assert part.images.dtype == torch.uint8 and part.labels.dtype == torch.int64
    assert (part.images.min(), part.images.max()) == (0, 255)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", OURS)
def test_every_class_has_its_share_of_every_split(splits, name, split):
    """Stratified: within one image of the class's share of all 1,797."""
    classes = len(dataset(name).class_names)
    everything = sum(torch.bincount(splits[name][s].labels, minlength=classes) for s in ("train", "test"))
    counts = torch.bincount(splits[name][split].labels, minlength=classes)
    share = everything * SIZES[split] / 1797
    assert len(counts) == classes and ((counts - share).abs() <= OURS[name]).all()


@pytest.mark.parametrize("name", OURS)
def test_fit_and_validation_are_the_two_parts_of_train(splits, name):
    parts = splits[name]
    assert rows(parts["fit"], parts["validation"]) == rows(parts["train"])


def test_train_and_test_are_all_drawings_once(splits):
    """So no drawing is in both: each of the 1,797 rows was dealt out exactly once."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    original = Counter(
        (np.floor(image * 255 / 16 + 0.5).astype(np.uint8).tobytes(), int(label))
        for image, label in zip(images, labels, strict=True)
    )
    assert rows(splits["digits"]["train"], splits["digits"]["test"]) == original
    assert sum(original.values()) == 1797


def test_splits_never_change(splits):
    for name in OURS:
        for split in SPLITS:
            again = load_split(name, split)
            assert torch.equal(again.images, splits[name][split].images)
            assert torch.equal(again.labels, splits[name][split].labels)


@pytest.mark.parametrize("split", SPLITS)
def test_color_digits_are_the_digits_of_the_same_split_in_five_inks(splits, split):
    """Split first, inked after: a test drawing is in none of the training split's inks."""
    grey, colored = splits["digits"][split], splits["color_digits"][split]
    names = dataset("color_digits").class_names
    for number, (ink, color) in enumerate(INKS.items()):
        images, labels = colored.images.chunk(5)[number], colored.labels.chunk(5)[number]
        for channel, on in enumerate(color):
            assert torch.equal(images[:, channel : channel + 1], grey.images * on)
        assert torch.equal(labels, 10 * number + grey.labels)
        assert {names[label].split()[0] for label in labels.tolist()} == {ink}


def test_no_drawing_stands_in_two_splits_in_different_inks(splits):
    """Without their inks, train and test share what the digits' train and test share: no drawing at all."""

    def drawings(name, split):
        return Counter(image.amax(0).numpy().tobytes() for image in splits[name][split].images)

    for split in SPLITS:
        in_grey = drawings("digits", split)
        assert drawings("color_digits", split) == Counter({drawing: 5 * count for drawing, count in in_grey.items()})
    for name in OURS:
        assert not drawings(name, "train").keys() & drawings(name, "test").keys()


@pytest.mark.parametrize("label", [0, 7, 19, 23, 35, 49])
def test_a_color_digits_label_is_ten_times_ink_plus_digit(splits, label):
    """And its name says both."""
    digits, names = dataset("digits").class_names, dataset("color_digits").class_names
    assert names[label] == f"{[*INKS][label // 10]} {digits[label % 10]}"
    part = splits["color_digits"]["test"]
    bright = part.images[part.labels == label].sum((0, 2, 3)) > 0
    assert tuple(bright.int().tolist()) == INKS[names[label].split()[0]]


@pytest.mark.parametrize(("name", "split"), [("digits", "fit"), ("color_digits", "train")])
def test_the_normalisation_is_that_of_the_images(splits, name, split):
    mean, std = moments(splits[name][split].images)
    assert dataset(name).mean == tuple(round(value, 4) for value in mean.tolist())
    assert dataset(name).std == tuple(round(value, 4) for value in std.tolist())


def test_a_split_moves_to_a_device_whole(splits):
    moved = splits["digits"]["test"].to("meta")
    assert moved.images.is_meta and moved.labels.is_meta


# --- facts


def test_the_normalisation_of_section_3_6():
    """What the published teachers were trained with; CIFAR-10's std is not that of its pixels."""
    published = {
        "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
        "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
        "tiny_imagenet": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    }
    assert {name: (dataset(name).mean, dataset(name).std) for name in published} == published


@pytest.mark.parametrize("name", DATASETS)
def test_facts_fit_together(name):
    facts = dataset(name)
    assert facts.name == name and len(facts.mean) == len(facts.std) == facts.channels
    assert facts.size == {"digits": 8, "color_digits": 8, "tiny_imagenet": 64, "imagenet": 224}.get(name, 32)
    assert facts.crop_padding == (1 if "digits" in name else 4)
    assert facts.flip == ("digits" not in name)  # a mirrored 2 is no 2


# --- mistakes


@pytest.mark.parametrize(("typed", "meant"), [("cifar", "cifar10"), ("Digits", "digits"), ("colour", "color_digits")])
def test_an_unknown_data_set_names_the_nearest(typed, meant):
    for ask in (dataset, lambda name: load_split(name, "test")):
        with pytest.raises(UserError, match=f"unknown data set '{typed}'. Did you mean '{meant}'"):
            ask(typed)


def test_an_unknown_split_names_the_nearest():
    with pytest.raises(UserError, match="unknown split 'valid'. Did you mean 'validation'"):
        load_split("digits", "valid")


@pytest.mark.parametrize("name", ["cifar100", "tiny_imagenet", "imagenet"])
def test_what_cannot_be_read_yet_says_so(name):
    with pytest.raises(UserError, match=f"{name} cannot be read yet: use one of digits, color_digits, cifar10"):
        load_split(name, "test")


# --- CIFAR-10


class FakeCIFAR10:
    """torchvision's reader over images of one pixel, whose value is their number; notes how it was called."""

    calls = []

    def __init__(self, root, train, download):
        self.calls.append((root, train, download))
        count = 50000 if train else 10000
        numbers = np.arange(count)
        self.data = np.stack([numbers % 256, numbers // 256, numbers * 0], 1).astype(np.uint8).reshape(count, 1, 1, 3)
        self.targets = (numbers % 10).tolist()


@pytest.mark.parametrize(
    ("split", "numbers"),
    [("train", (0, 50000)), ("fit", (0, 40000)), ("validation", (40000, 50000)), ("test", (0, 10000))],
)
def test_cifar10_validates_on_the_last_training_batch(monkeypatch, tmp_path, split, numbers):
    monkeypatch.setenv("NAYER_DATASETS", str(tmp_path))
    monkeypatch.setattr("torchvision.datasets.CIFAR10", FakeCIFAR10)
    monkeypatch.setattr(FakeCIFAR10, "calls", [])
    part = load_split("cifar10", split)
    expected = torch.arange(*numbers)
    assert torch.equal(part.images[:, 0, 0, 0] + 256 * part.images[:, 1, 0, 0].long(), expected)
    assert torch.equal(part.labels, expected % 10)
    assert FakeCIFAR10.calls == [(tmp_path, split != "test", True)]
    (tmp_path / "cifar-10-batches-py").mkdir()
    load_split("cifar10", split)
    assert FakeCIFAR10.calls[1] == (tmp_path, split != "test", False)  # it is there: no network is asked


def no_such_host(*_args, **_kwargs):
    raise socket.gaierror(-2, "Name or service not known")


def test_cifar10_without_file_and_network_is_one_sentence_at_once(monkeypatch, tmp_path):
    monkeypatch.setattr(socket, "getaddrinfo", no_such_host)
    monkeypatch.setenv("NAYER_DATASETS", str(tmp_path / "sets"))
    pytest.importorskip("torchvision.datasets")
    start = time.perf_counter()
    with pytest.raises(MissingFile, match="CIFAR-10 is not whole .* could not be downloaded: connect to the network"):
        load_split("cifar10", "test")
    assert time.perf_counter() - start < 5


def test_cifar10_that_is_not_whole_is_told(monkeypatch, tmp_path):
    (tmp_path / "cifar-10-batches-py").mkdir()
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(b"half of it")
    monkeypatch.setenv("NAYER_DATASETS", str(tmp_path))
    with pytest.raises(MissingFile, match="CIFAR-10 is not whole"):
        load_split("cifar10", "test")


@pytest.fixture(scope="session")
def cifar10(test_data, tmp_path_factory):
    """cifar-10-batches-py, rebuilt bit by bit from the shards at hand."""
    shards, out = test_data / "cifar10", tmp_path_factory.mktemp("cifar10")
    done = subprocess.run([sys.executable, shards / "rebuild_cifar10.py", shards, out], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.slow
def test_cifar10_itself(cifar10, test_data, monkeypatch):
    """The numbers that its description gives."""
    monkeypatch.setenv("NAYER_DATASETS", str(cifar10))
    train, test = load_split("cifar10", "train"), load_split("cifar10", "test")
    assert train.images.shape == (50000, 3, 32, 32) and test.images.shape == (10000, 3, 32, 32)
    assert torch.bincount(test.labels).tolist() == [1000] * 10 and torch.bincount(train.labels).tolist() == [5000] * 10
    mean, std = moments(train.images)
    assert mean.tolist() == pytest.approx([0.49139968, 0.48215841, 0.44653091], abs=1e-8)
    assert std.tolist() == pytest.approx([0.24703223, 0.24348513, 0.26158784], abs=1e-8)
    shard = test_data / "cifar10" / "test_labels.npz"
    assert torch.equal(test.labels, torch.from_numpy(np.load(shard)["labels"].astype(np.int64)))
    fit, validation = load_split("cifar10", "fit"), load_split("cifar10", "validation")
    assert torch.equal(torch.cat([fit.images, validation.images]), train.images)
    assert torch.equal(torch.cat([fit.labels, validation.labels]), train.labels)
    assert len(validation.labels) == 10000
