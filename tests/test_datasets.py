"""Data sets: splits that never change and share no drawing, and facts that fit the images."""

import hashlib
import pickle
import shutil
import socket
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.datasets
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny import write_sheets

from nayer_lib import datasets
from nayer_lib.datasets import DATASETS, INKS, SPLITS, Split, dataset, is_packed, load_packed, load_split
from nayer_lib.errors import MissingFile, UserError
from nayer_lib.files import tensors_hash
from nayer_lib.text.labels import wnids

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


def no_such_host(*_args, **_kwargs):
    raise socket.gaierror(-2, "Name or service not known")


@pytest.fixture
def sets(monkeypatch, tmp_path) -> Path:
    """An empty folder of data sets on a machine without network."""
    monkeypatch.setattr(socket, "getaddrinfo", no_such_host)
    monkeypatch.setenv("NAYER_DATASETS", str(tmp_path / "sets"))
    return tmp_path / "sets"


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "tiny_imagenet", "imagenet"])
def test_without_file_and_network_there_is_one_sentence_at_once(sets, name):
    start = time.perf_counter()
    with pytest.raises(MissingFile, match=f"{name} .*downloaded.*: .*NAYER_DATASETS names another folder") as raised:
        load_split(name, "test")
    assert "\n" not in str(raised.value)
    assert time.perf_counter() - start < 5


# --- CIFAR-10 and CIFAR-100


FOLDERS = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}


@pytest.fixture(params=["cifar10", "cifar100"])
def cifar(request, sets, monkeypatch):
    """A few images in CIFAR's files, five of them validation: the data set's name, its folder, what is in each file.

    A row is a plane of red, one of green, one of blue. torchvision's lists have the checksums of these files.
    """
    name, rng = request.param, np.random.default_rng(0)
    reader, folder = getattr(torchvision.datasets, name.upper()), sets / FOLDERS[name]
    folder.mkdir(parents=True)
    content = {}
    for which in ("train_list", "test_list"):
        listed = []
        for file, _ in getattr(reader, which):
            entry = {"data": rng.integers(256, size=(7, 3072), dtype=np.uint8)}
            fine = rng.integers(10, size=7).tolist()
            entry |= {"labels": fine} if name == "cifar10" else {"fine_labels": fine, "coarse_labels": [19] * 7}
            content[file] = entry
            (folder / file).write_bytes(pickle.dumps(entry))
            listed.append([file, hashlib.md5((folder / file).read_bytes()).hexdigest()])
        monkeypatch.setattr(reader, which, listed)
    monkeypatch.setattr(datasets, "CIFAR_VALIDATION", 5)
    return name, folder, content


@pytest.mark.parametrize(
    ("split", "part"),
    [("train", slice(None)), ("fit", slice(None, -5)), ("validation", slice(-5, None)), ("test", slice(None))],
)
def test_cifar_is_read_from_the_files_of_its_split_alone(cifar, split, part):
    """Fine labels, in the files' order; neither the other split nor the file of names has to be there."""
    name, folder, content = cifar
    files = [file for file in content if file.startswith("test") == (split == "test")]
    for file in content.keys() - set(files):
        (folder / file).unlink()
    rows = np.concatenate([content[file]["data"] for file in files])
    labels = [k for file in files for k in content[file]["labels" if name == "cifar10" else "fine_labels"]]
    read = load_split(name, split)
    assert torch.equal(read.images.flatten(1), torch.from_numpy(rows[part])) and read.images.shape[1:] == (3, 32, 32)
    assert read.labels.tolist() == labels[part] and read.labels.dtype == torch.int64


def test_cifar_validates_on_the_last_ten_thousand():
    assert datasets.CIFAR_VALIDATION == 10_000


def test_a_missing_file_of_cifar_is_downloaded_and_checked(cifar, monkeypatch):
    name, folder, content = cifar
    file = next(file for file in content if file.startswith("test"))
    whole = (folder / file).read_bytes()
    (folder / file).unlink()
    with pytest.raises(MissingFile, match=f"{name} is not whole in .*: connect .* or put {folder.name} there"):
        load_split(name, "test")
    load_split(name, "train")  # whose files are here
    asked = []

    def download(url, root, filename, md5):
        asked.append((url, root, filename, md5))
        (folder / file).write_bytes(whole)

    monkeypatch.setattr("torchvision.datasets.utils.download_and_extract_archive", download)
    assert len(load_split(name, "test").labels) == len(load_split(name, "test").labels) == 7
    reader = getattr(torchvision.datasets, name.upper())
    assert asked == [(reader.url, folder.parent, reader.filename, reader.tgz_md5)]


def test_a_file_with_another_checksum_is_told_and_never_unpickled(cifar, monkeypatch):
    name, folder, content = cifar
    file = next(file for file in content if file.startswith("test"))
    (folder / file).write_bytes((folder / file).read_bytes() + b" ")
    monkeypatch.setattr(pickle, "loads", lambda *_, **__: pytest.fail("unpickled"))
    with pytest.raises(UserError, match=f"{file} is not the official file, its checksum differs: remove or replace it"):
        load_split(name, "test")


# --- Tiny-ImageNet


def draw(path, label, number, mode="RGB", size=(64, 64)):
    """A plain image that tells its label and number by its colour, up to what JPEG does to it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, (label, 60 * number, 9) if mode == "RGB" else label).save(path, quality=95)


FEW = {"train": 4, "validation": 1, "test": 2}  # images of a class


@pytest.fixture(scope="module")
def tiny_archive(tmp_path_factory):
    """What the official archive holds, with few images of each of its 200 classes; the first validation image is grey.

    The validation images are numbered in an order that has nothing to do with the classes.
    """
    root = tmp_path_factory.mktemp("archive") / "tiny-imagenet-200"
    names = wnids("tiny_imagenet")
    for label, wnid in enumerate(names):
        for number in range(FEW["train"]):
            draw(root / "train" / wnid / "images" / f"{wnid}_{number}.JPEG", label, number)
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t0\t62\t62\n")
    lines, order = [], torch.randperm(400, generator=torch.Generator().manual_seed(0)).tolist()
    for number, place in enumerate(order):
        label, file = place % 200, f"val_{number}.JPEG"
        draw(root / "val" / "images" / file, label, place // 200, "RGB" if number else "L")
        lines.append(f"{file}\t{names[label]}\t0\t32\t44\t62\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    (root / "wnids.txt").write_text("\n".join(names[::-1]) + "\n")
    return root


@pytest.fixture
def tiny(tiny_archive, sets, monkeypatch):
    """A copy of it where `load_split` looks."""
    monkeypatch.setattr(datasets, "PER_CLASS", FEW)
    return Path(shutil.copytree(tiny_archive, sets / "tiny-imagenet-200"))


@pytest.mark.parametrize(
    ("split", "numbers"), [("train", [0, 1, 2, 3]), ("fit", [0, 1, 2]), ("validation", [3]), ("test", [0, 1])]
)
def test_tiny_imagenet_labels_are_the_sorted_wnids(tiny, split, numbers):
    part = load_split("tiny_imagenet", split)
    assert part.images.shape == (200 * len(numbers), 3, 64, 64) and part.images.dtype == torch.uint8
    assert torch.bincount(part.labels).tolist() == [len(numbers)] * 200
    red, green, _ = part.images.float().mean((2, 3)).T
    assert (red - part.labels).abs().max() < 4
    coloured = part.images.float().std(1).amax((1, 2)) > 0.5
    assert coloured.sum() >= len(coloured) - 1  # a grey image has three equal channels
    told = (green[coloured] / 60).round().int()
    assert sorted(set(told.tolist())) == numbers


@pytest.mark.parametrize("images", ["", "images"])
def test_tiny_imagenets_val_folder_may_be_sorted_into_classes(tiny, images):
    official = load_split("tiny_imagenet", "test")
    for line in (tiny / "val" / "val_annotations.txt").read_text().splitlines():
        file, wnid = line.split("\t")[:2]
        (tiny / "val" / wnid / images).mkdir(parents=True, exist_ok=True)
        (tiny / "val" / "images" / file).rename(tiny / "val" / wnid / images / file)
    again = load_split("tiny_imagenet", "test")
    assert torch.equal(again.images, official.images) and torch.equal(again.labels, official.labels)


def test_tiny_imagenet_that_is_not_whole_is_told(tiny):
    first, *_, last = wnids("tiny_imagenet")
    (tiny / "train" / first / "images" / f"{first}_2.JPEG").unlink()
    with pytest.raises(UserError, match=rf"not 4 images for {first} \(1\); put the whole data set in its place"):
        load_split("tiny_imagenet", "fit")
    (tiny / "train" / last).rename(tiny / "train" / "n99999999")
    with pytest.raises(UserError, match=rf"no images for {last} \(1\); no class for the folders n99999999 \(1\);"):
        load_split("tiny_imagenet", "fit")

    photo = tiny / "val" / "images" / "val_7.JPEG"
    photo.write_bytes(photo.read_bytes()[:200])
    with pytest.raises(UserError, match=r"val_7\.JPEG is not a whole image"):
        load_split("tiny_imagenet", "test")
    photo.unlink()
    with pytest.raises(UserError, match=r"val does not fit the class names: not 2 images for n\d+ \(1\)"):
        load_split("tiny_imagenet", "test")
    draw(photo.with_name("mine.JPEG"), 0, 0)
    with pytest.raises(UserError, match=r"no class for the folders mine\.JPEG \(1\)"):
        load_split("tiny_imagenet", "test")


def test_a_folder_of_200_other_classes_is_refused(tiny):
    for folder in list((tiny / "train").iterdir()):
        folder.rename(folder.with_name(f"n9{folder.name[2:]}"))
    with pytest.raises(UserError, match=r"no images for n01443537, .* \(200\); no class for the folders n9.* \(200\)"):
        load_split("tiny_imagenet", "train")


def test_tiny_imagenet_is_downloaded_once_and_never_stands_there_by_half(sets, tiny_archive, monkeypatch):
    def download(address, folder, md5):
        asked.append((address, md5))
        shutil.copytree(tiny_archive, Path(folder) / tiny_archive.name)
        assert not (sets / tiny_archive.name).exists()
        if len(asked) == 1:
            raise OSError("the connection broke")

    asked = []
    monkeypatch.setattr(datasets, "PER_CLASS", FEW)
    monkeypatch.setattr("torchvision.datasets.utils.download_and_extract_archive", download)
    with pytest.raises(MissingFile, match="tiny_imagenet is not whole"):
        load_split("tiny_imagenet", "test")
    assert not list(sets.iterdir())
    for _ in range(2):
        assert len(load_split("tiny_imagenet", "test").labels) == 400
    assert asked == [datasets.TINY_IMAGENET] * 2 and [path.name for path in sets.iterdir()] == [tiny_archive.name]


# --- ImageNet


@pytest.fixture
def imagenet(sets, monkeypatch):
    """One validation image a class, of many shapes; wnids are sorted, so label 0 is the first."""
    monkeypatch.setattr(datasets, "IMAGENET_PER_CLASS", 1)
    for label, wnid in enumerate(wnids("imagenet")):
        draw(sets / "imagenet" / "val" / wnid / f"{label}.JPEG", label % 256, label // 256, size=(8 + label % 9, 12))
    return sets / "imagenet" / "val"


def test_imagenet_is_seen_as_torchvisions_resnet50_was_scored(imagenet):
    from torchvision.models import ResNet50_Weights

    photo = imagenet / wnids("imagenet")[1] / "1.JPEG"
    noise = np.random.default_rng(0).integers(256, size=(300, 400, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((500, 333)).save(photo)
    part, facts = load_split("imagenet", "test"), dataset("imagenet")
    assert part.images.shape == (1000, 3, 224, 224) and part.labels.tolist() == list(range(1000))
    assert ((part.images.float().mean((2, 3))[:, 0] - torch.arange(1000) % 256).abs() < 4)[2:].all()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (facts.mean, facts.std))
    expected = ResNet50_Weights.IMAGENET1K_V1.transforms()(Image.open(photo).convert("RGB"))
    torch.testing.assert_close((part.images[1].float() / 255 - mean) / std, expected)


def test_imagenet_wants_its_thousand_classes_and_gives_no_training_images(imagenet):
    gone = wnids("imagenet")[5]
    shutil.rmtree(imagenet / gone)
    with pytest.raises(UserError, match=rf"no images for {gone} \(1\); put the whole data set in its place"):
        load_split("imagenet", "test")
    for split in ("train", "fit", "validation"):
        with pytest.raises(UserError, match="do not fit into memory, so only its test split is read"):
            load_split("imagenet", split)


# --- images that lie elsewhere


@pytest.mark.parametrize("name", OURS)
def test_sheets_are_read_as_the_split_they_were_made_of(splits, tmp_path, name):
    for split in ("train", "test"):
        whole = splits[name][split]
        write_sheets(tmp_path / "sheets", split, whole.images, whole.labels)
        assert is_packed(tmp_path / "sheets", split)
        read = load_packed(tmp_path / "sheets", name, split)
        assert torch.equal(read.images, whole.images) and torch.equal(read.labels, whole.labels)
        assert read.name == split and read.labels.dtype == torch.int64
    sheets = sorted((tmp_path / "sheets").glob("train_*.png"))
    sheets[-1].unlink()  # the first sheets are enough
    part, count = load_packed(tmp_path / "sheets", name, "train"), 200 * (len(sheets) - 1)
    assert torch.equal(part.images, splits[name]["train"].images[:count]) and len(part.labels) == count
    sheets[1].unlink()
    with pytest.raises(UserError, match=r"the sheets train_\* in .* must be numbered from 0 without a gap"):
        load_packed(tmp_path / "sheets", name, "train")


@pytest.mark.parametrize("channels_last", [False, True])
def test_an_npz_file_is_read_in_either_layout(splits, tmp_path, channels_last):
    whole = splits["color_digits"]["test"]
    images = whole.images.permute(0, 2, 3, 1) if channels_last else whole.images
    np.savez(tmp_path / "a.npz", images=images.numpy(), labels=whole.labels.numpy().astype(np.int32))
    read = load_packed(tmp_path / "a.npz", "color_digits")
    assert is_packed(tmp_path / "a.npz") and torch.equal(read.images, whole.images)
    assert torch.equal(read.labels, whole.labels) and read.name == "test" and read.images.is_contiguous()


GREY = np.zeros((3, 1, 8, 8), np.uint8)


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({"labels": np.arange(3)}, r"are float64 of shape \(0,\): for digits give `images` as uint8"),
        (
            {"images": GREY[:, 0], "labels": np.arange(3)},
            r"of shape \(3, 8, 8\): for digits give `images` as uint8, \(N",
        ),
        ({"images": np.zeros((3, 3, 8, 8), np.uint8), "labels": np.arange(3)}, r"of shape \(3, 3, 8, 8\): for digits"),
        ({"images": GREY / 255, "labels": np.arange(3)}, "are float64 of shape"),
        ({"images": GREY}, r"a\.npz: 3 images want as many labels, .* not torch.float64 of shape \(0,\)"),
        ({"images": GREY, "labels": np.arange(4)}, r"3 images want as many labels, .* not torch.int64 of shape \(4,\)"),
        ({"images": GREY, "labels": np.arange(3.0)}, "3 images want as many labels, .* not torch.float64"),
        ({"images": GREY, "labels": np.eye(3, dtype=int)}, r"not torch.int64 of shape \(3, 3\)"),
        ({"images": GREY[:0], "labels": np.arange(0)}, r"a\.npz: there is no image: the split is empty"),
        ({"images": GREY, "labels": np.array([0, 10, 9])}, r"a\.npz: labels go up to 10, and there are 10 classes"),
        ({"images": GREY, "labels": np.array([0, -1, 9])}, r"a\.npz: labels count the classes from 0, and one is -1"),
    ],
)
def test_an_npz_file_of_other_images_or_labels_is_told(tmp_path, arrays, told):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(UserError, match=told):
        load_packed(tmp_path / "a.npz", "digits")


def test_sheets_without_enough_labels_or_none_at_all_are_told(splits, tmp_path):
    part = splits["digits"]["test"]
    write_sheets(tmp_path / "sheets", "test", part.images, part.labels[:400])
    with pytest.raises(UserError, match=r"sheets: 500 images want as many labels, .*uint8 of shape \(400,\)"):
        load_packed(tmp_path / "sheets", "digits")
    (tmp_path / "sheets" / "test_labels.npz").unlink()
    assert not is_packed(tmp_path / "sheets")
    with pytest.raises(MissingFile, match="test_labels.npz does not exist"):
        load_packed(tmp_path / "sheets", "digits")
    for path in (tmp_path / "sheets", tmp_path / "nowhere"):
        with pytest.raises(
            MissingFile, match=r"no images in .*: it should be an .npz file, or a folder of sheets train_000"
        ):
            load_packed(path, "digits", "train")


def test_sheets_of_cifar10_are_its_images(test_data):
    part = load_packed(test_data / "cifar10", "cifar10", "test")
    assert tensors_hash({"images": part.images, "labels": part.labels}) == (
        "e8f9f500afb5f609bb3cb5736a509b28a3e1a0f190ee9de92d9462185952de82"  # in the card of a run on CIFAR-10
    )


# --- CIFAR-10 itself


@pytest.mark.slow
def test_cifar10_itself(cifar10_folder, test_data, monkeypatch):
    """The numbers that its description gives."""
    monkeypatch.setenv("NAYER_DATASETS", str(cifar10_folder))
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


# --- a split checks itself

IMAGES = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(4)


@pytest.mark.parametrize(
    ("images", "labels", "sentence"),
    [
        (IMAGES[0], LABELS, r"\(N, C, H, W\) and square, not of shape \(3, 8, 8\)"),
        (IMAGES[:, :, :4], LABELS, "and square"),
        (IMAGES.permute(0, 2, 3, 1), LABELS, r"channels first: images.permute\(0, 3, 1, 2\)"),
        (IMAGES.long(), LABELS, "uint8 from 0 to 255, or floats in .0, 1., not torch.int64"),
        (IMAGES.float(), LABELS, "divide by 255"),
        ((IMAGES / 255 - 0.5) / 0.25, LABELS, "take the normalisation off"),
        (IMAGES / 255 * float("nan"), LABELS, "from nan to nan"),
        (IMAGES, LABELS[:3], "4 images want as many labels"),
        (IMAGES, LABELS.float(), "one whole number each, not torch.float32"),
        (IMAGES, LABELS > 0, "one whole number each, not torch.bool"),
        (IMAGES, torch.eye(4).long(), r"of one-hot labels their argmax\(1\)"),
        (IMAGES, LABELS + 1, "go up to 4, and there are 4 classes"),
        (IMAGES[:0], LABELS[:0], "there is no image: the split is empty"),
        (IMAGES, LABELS - 1, "count the classes from 0, and one is -1"),
        (IMAGES, ["a", "b", "c", "d"], "labels must be a tensor or an array of numbers"),
        (None, LABELS, "images must be a tensor or an array of numbers"),
        ([[1], [1, 2]], LABELS, "images must be a tensor or an array of numbers"),
    ],
)
def test_a_split_of_another_kind_is_told(images, labels, sentence):
    with pytest.raises(UserError, match=sentence):
        Split(images, labels).checked(4)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", ["i2", "i4", "i8"])
def test_numpys_arrays_are_a_split_whatever_their_byte_order(kind, order):
    split = Split(np.asfortranarray(IMAGES.numpy())[::-1], LABELS.numpy().astype(order + kind)).checked(4)
    assert torch.equal(split.images, IMAGES.flip(0)) and torch.equal(split.labels, LABELS)
    assert split.labels.dtype == torch.int64


@settings(deadline=None)
@given(
    shape=st.lists(st.integers(0, 3), min_size=0, max_size=5),
    dtype=st.sampled_from((torch.uint8, torch.int32, torch.float16, torch.float64, torch.bool)),
    labels=st.lists(st.integers(-1, 3), max_size=3),
)
def test_a_split_is_sound_or_refused_in_a_sentence(shape, dtype, labels):
    try:
        split = Split(torch.ones(shape, dtype=dtype), labels).checked(3)
    except UserError as error:
        assert str(error).endswith(".")
        return
    assert split.images.dtype in (torch.uint8, torch.float32) and split.images.shape[2] == split.images.shape[3]
    assert split.labels.tolist() == labels and min(labels) >= 0 and max(labels) < 3


def test_names_match_whatever_stands_for_a_blank():
    DATASETS["cifar100"].check_classes([name.replace(" ", "_") for name in DATASETS["cifar100"].class_names])
