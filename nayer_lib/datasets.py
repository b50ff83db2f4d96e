"""Data sets as uint8 tensors, and the facts about each that the method needs.

Distilling reads the test split alone, to score; only training a teacher asks for training images.
"""

import hashlib
import pickle
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .errors import MissingFile, UserError, unknown
from .files import datasets_dir, load_arrays
from .image_files import Labelled, class_folders, read_images, read_sheets, with_labels
from .text.labels import class_names, plain, superclasses, wnids

SPLITS = ("train", "fit", "validation", "test")
INKS = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1), "yellow": (1, 1, 0), "purple": (1, 0, 1)}


@dataclass(frozen=True)
class DataSet:
    """What is known about a data set without reading an image.

    Attributes:
        channels, size: of an image, size in pixels.
        mean, std: the normalisation that its teachers are trained with, in [0, 1] units (CIFAR: the released code's).
        crop_padding: pixels of zero padding for the random crop, in synthesis and for the student.
        flip: whether a mirrored image keeps its class (a flipped 2 is no 2).
    """

    name: str
    channels: int
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_padding: int
    flip: bool

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.channels, self.size, self.size

    @property
    def factors(self) -> Tensor | None:
        """(K, F) the parts of each class: ink and digit, or superclass and class; None where classes have no parts."""
        if self.name == "color_digits":
            return torch.cartesian_prod(torch.arange(len(INKS)), torch.arange(10))
        if self.name == "cifar100":
            groups = superclasses()
            numbers = {group: number for number, group in enumerate(sorted(set(groups)))}
            return torch.tensor([[numbers[group], k] for k, group in enumerate(groups)])
        return None

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """K names in index order."""
        return class_names(self.name)

    def check_classes(self, names: Sequence[str]) -> None:
        """Raise a `UserError` unless a teacher's class names are the data set's, in the same order."""
        if [*map(plain, names)] != [*map(plain, self.class_names)]:
            raise UserError(
                f"the teacher's class names are not those of {self.name}, in its order: the teacher's "
                f"start with {', '.join(names[:3])}, the data set's with {', '.join(self.class_names[:3])}."
            )


@dataclass(frozen=True)
class Split:
    """Images (N, C, H, W), uint8 or floats in [0, 1], square, and labels (N,) int64; tensors, or arrays of NumPy.

    `name` is one of SPLITS, and "test" for images of your own.
    """

    images: Tensor
    labels: Tensor
    name: str = "test"

    def checked(self, classes: int) -> "Split":
        """This split as tensors, checked; every split passes here before it is scored on.

        Raises:
            UserError: images or labels of another kind, not as many of the one as of the other, or none; a label
                beyond so many classes.
        """
        images, labels = _tensor(self.images, "images"), _tensor(self.labels, "labels")
        shape = tuple(images.shape)
        if images.dim() != 4 or shape[2] != shape[3]:
            hint = " (channels first: images.permute(0, 3, 1, 2))" if images.dim() == 4 and shape[1] == shape[2] else ""
            raise UserError(f"images are (N, C, H, W) and square, not of shape {shape}{hint}.")
        if labels.shape != images.shape[:1] or labels.is_floating_point() or labels.dtype == torch.bool:
            raise UserError(
                f"{len(images)} images want as many labels, one whole number each, not {labels.dtype} of shape "
                f"{tuple(labels.shape)}: labels.long(), and of one-hot labels their argmax(1)."
            )
        if not images.numel():
            raise UserError("there is no image: the split is empty.")
        if images.is_floating_point():
            images = images.float()
            if not (images.min() >= 0 and images.max() <= 1):
                raise UserError(
                    f"images as floats lie in [0, 1], not from {images.min():.3g} to {images.max():.3g}: take the "
                    "normalisation off, which the Classifier does, or divide by 255."
                )
        elif images.dtype != torch.uint8:
            raise UserError(f"images are uint8 from 0 to 255, or floats in [0, 1], not {images.dtype}.")
        labels = labels.long()
        least, most = labels.min().item(), labels.max().item()
        if least < 0:
            raise UserError(f"labels count the classes from 0, and one is {least}.")
        if most >= classes:
            raise UserError(f"labels go up to {most}, and there are {classes} classes.")
        return Split(images, labels, self.name)

    def to(self, device: torch.device | str) -> "Split":
        """The same split on a device."""
        return Split(self.images.to(device), self.labels.to(device), self.name)


def _tensor(values: object, what: str) -> Tensor:
    """A tensor, or what NumPy makes of anything else, in this machine's byte order."""
    if isinstance(values, Tensor):
        return values.detach()
    try:
        array = np.asarray(values)
        return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("="), order="C"))
    except (TypeError, ValueError) as error:
        raise UserError(f"{what} must be a tensor or an array of numbers, not {type(values).__name__}.") from error


DATASETS = {
    d.name: d
    for d in (
        DataSet("digits", 1, 8, (0.3051,), (0.3757,), crop_padding=1, flip=False),
        DataSet("color_digits", 3, 8, (0.1832, 0.1221, 0.1221), (0.3273, 0.2808, 0.2808), crop_padding=1, flip=False),
        DataSet("cifar10", 3, 32, (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010), crop_padding=4, flip=True),
        DataSet("cifar100", 3, 32, (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761), crop_padding=4, flip=True),
        DataSet("tiny_imagenet", 3, 64, (0.5,) * 3, (0.5,) * 3, crop_padding=4, flip=True),
        DataSet("imagenet", 3, 224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), crop_padding=4, flip=True),
    )
}


def dataset(name: str) -> DataSet:
    """A data set's facts by its name.

    Raises:
        UserError: unknown name (the nearest is named).
    """
    if name not in DATASETS:
        raise unknown("data set", name, DATASETS)
    return DATASETS[name]


def load_split(name: str, split: str) -> Split:
    """Read a split. "train" is the whole training split, "fit" and "validation" its two parts: choose on validation.

    Raises:
        UserError: unknown data set or split, files that are not whole, or a split too large to read.
        MissingFile: the data set is not on this machine and cannot be downloaded.
    """
    dataset(name)
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    readers = {
        "digits": _digits,
        "color_digits": _color_digits,
        "cifar10": partial(_cifar, "cifar10"),
        "cifar100": partial(_cifar, "cifar100"),
        "tiny_imagenet": _tiny_imagenet,
        "imagenet": _imagenet,
    }
    return replace(readers[name](split), name=split)


def load_folder(folder: Path, class_names: Sequence[str], size: int, channels: int = 3) -> Split:
    """Your own evaluation images: one subfolder a class, named as the class (the layout of torchvision's ImageFolder).

    Labels follow `class_names`, whatever the order of the folders. Grey, palette and CMYK images are converted to
    `channels` colours; all images are resized to `size` pixels.

    Raises:
        MissingFile: no such folder.
        UserError: a class without a folder or images, a folder without a class, or a file that is no image.
    """
    folder = Path(folder)
    return _read(with_labels(class_folders(folder), class_names, folder), size, channels)


def is_packed(path: Path, split: str = "test") -> bool:
    """Whether `load_packed` finds a split there: an .npz file, or a folder of sheets with their labels."""
    return path.suffix == ".npz" or (path / f"{split}_labels.npz").is_file()


def load_packed(path: Path, name: str, split: str = "test") -> Split:
    """The "train" or "test" images of a data set from files of your own, at the data set's size.

    Either an .npz file with `images`, (N, C, H, W) or (N, H, W, C) uint8, and `labels` (N,). Or a folder of sheets:
    PNG or lossless WebP files `<split>_000`, `<split>_001`, ..., each a column of images, and `<split>_labels.npz` with
    the `labels` of all images in this order. The last sheets may be left out.

    Raises:
        MissingFile, UserError: no such file or folder; sheets with a gap; images of another shape; not as many
            labels as images; a label that the data set has no class for.
    """
    facts, path = dataset(name), Path(path)
    if path.suffix == ".npz":
        arrays = load_arrays(path)
        images, labels = arrays.get("images", np.empty(0)), arrays.get("labels", np.empty(0))
        channels_last = (facts.size, facts.size, facts.channels)
        if images.shape[1:] == channels_last:
            images = images.transpose(0, 3, 1, 2)
        if images.shape[1:] != facts.image_shape or images.dtype != np.uint8:
            raise UserError(
                f"the images in {path} are {images.dtype} of shape {images.shape}: for {name} give `images` as uint8, "
                f"(N, *{facts.image_shape}) or (N, *{channels_last})."
            )
    else:
        sheets = sorted(sheet for sheet in path.glob(f"{split}_*") if sheet.suffix in (".png", ".webp"))
        if not sheets:
            raise MissingFile(
                f"no images in {path}: it should be an .npz file, or a folder of sheets {split}_000.png, ..."
            )
        digits = len(sheets[0].stem) - len(f"{split}_")
        if [sheet.stem for sheet in sheets] != [f"{split}_{k:0{digits}}" for k in range(len(sheets))]:
            raise UserError(
                f"the sheets {split}_* in {path} must be numbered from 0 without a gap, so that labels match."
            )
        images = read_sheets(sheets, facts.size, facts.channels)
        labels = load_arrays(path / f"{split}_labels.npz").get("labels", np.empty(0))
        labels = labels[: len(images)]
    try:
        return Split(images, labels, split).checked(len(facts.class_names))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _read(files: Labelled, size: int, channels: int = 3, shorter_side: int | None = None) -> Split:
    """Labelled image files as a split."""
    images = read_images([path for path, _ in files], size, channels, shorter_side)
    return Split(images, torch.tensor([label for _, label in files]))


@cache
def _drawings() -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Images (1797, 8, 8) from 0 to 16, labels, and the places of each split: the same in every call."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    train, test = train_test_split(np.arange(1797), test_size=500, stratify=bunch.target, random_state=0)
    fit, validation = train_test_split(train, test_size=297, stratify=bunch.target[train], random_state=0)
    return bunch.images, bunch.target, {"train": train, "fit": fit, "validation": validation, "test": test}


def _digits(split: str) -> Split:
    """scikit-learn's 1,797 8x8 grey digits (UCI) in a fixed stratified split: 1000 + 297 train, 500 test."""
    images, labels, places = _drawings()
    chosen = torch.from_numpy(images[places[split]] * 255 / 16).round().to(torch.uint8)
    return Split(chosen.unsqueeze(1), torch.from_numpy(labels[places[split]]).long())


def _color_digits(split: str) -> Split:
    """The same digits in five inks on black, 50 classes "red zero" .. "purple nine" (10 * ink + digit).

    The original digits are split first and inked afterwards, so no drawing is in two splits.
    """
    grey = _digits(split)
    inks = torch.tensor(list(INKS.values()), dtype=torch.uint8).view(-1, 1, 3, 1, 1)
    labels = 10 * torch.arange(len(INKS)).view(-1, 1) + grey.labels
    return Split((inks * grey.images).flatten(0, 1), labels.flatten())


CIFAR_VALIDATION = 10_000  # images


def _cifar(name: str, split: str) -> Split:
    """CIFAR-10 or -100 (fine labels); validation is the last 10,000 training images.

    Only the files of the split are read; if one of these is missing, torchvision downloads the whole archive.
    """
    import torchvision.datasets
    from torchvision.datasets.utils import download_and_extract_archive

    source = getattr(torchvision.datasets, name.upper())
    folder = datasets_dir() / source.base_folder
    needed = source.test_list if split == "test" else source.train_list
    if not all((folder / file).is_file() for file, _ in needed):
        try:
            download_and_extract_archive(source.url, datasets_dir(), filename=source.filename, md5=source.tgz_md5)
        except (RuntimeError, OSError) as error:
            raise _not_whole(name, source.base_folder) from error
    batches = [_cifar_batch(folder / file, md5) for file, md5 in needed]
    images = torch.from_numpy(np.concatenate([batch["data"] for batch in batches])).view(-1, 3, 32, 32)
    labels = torch.tensor([k for batch in batches for k in batch.get("fine_labels", batch.get("labels"))])
    last = -CIFAR_VALIDATION
    part = {"fit": slice(None, last), "validation": slice(last, None)}.get(split, slice(None))
    return Split(images[part], labels[part])


def _cifar_batch(path: Path, md5: str) -> dict:
    """One of CIFAR's files: a pickle, and the only kind of pickle that this kit opens.

    Bytes are unpickled only if their checksum is that of the official file, on which torchvision relies too.
    """
    content = path.read_bytes()
    if hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
        raise UserError(f"{path} is not the official file, its checksum differs: remove or replace it.")
    return pickle.loads(content, encoding="latin1")


TINY_IMAGENET = "http://cs231n.stanford.edu/tiny-imagenet-200.zip", "90528d7ca1a48142e341f4ef8d21d0de"  # address, md5
PER_CLASS = {"train": 500, "validation": 50, "test": 50}  # images of Tiny-ImageNet
IMAGENET_PER_CLASS = 50  # validation images of ImageNet


def _tiny_imagenet(split: str) -> Split:
    """Tiny-ImageNet-200 from its official archive; validation is the last 50 images of each class, by file name.

    "test" is the archive's val folder, since the labels of its test folder are not public. The labels are read from
    val_annotations.txt, or from the names of subfolders if the images have been sorted into one a class.
    """
    root = datasets_dir() / "tiny-imagenet-200"
    if not root.is_dir():
        _download_tiny_imagenet(root)
    folder = root / ("val" if split == "test" else "train")
    annotations, flat = folder / "val_annotations.txt", sorted(folder.glob("images/*.JPEG"))
    if flat and annotations.is_file():
        wnid_of = dict(line.split("\t")[:2] for line in annotations.read_text(encoding="utf-8").splitlines())
        by_class = defaultdict(list)
        for path in flat:
            by_class[wnid_of.get(path.name, path.name)].append(path)
    else:
        by_class = class_folders(folder, "*.JPEG")
    files = with_labels(by_class, wnids("tiny_imagenet"), folder, PER_CLASS["test" if split == "test" else "train"])
    if split in ("fit", "validation"):
        last = PER_CLASS["train"] - PER_CLASS["validation"]
        files = [f for i, f in enumerate(files) if (i % PER_CLASS["train"] >= last) == (split == "validation")]
    return _read(files, size=64)


def _download_tiny_imagenet(root: Path) -> None:
    """The official archive, unpacked in a temporary folder and then renamed: `root` is whole or missing."""
    from torchvision.datasets.utils import download_and_extract_archive

    address, md5 = TINY_IMAGENET
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".tiny-imagenet.", dir=root.parent) as aside:
            download_and_extract_archive(address, aside, md5=md5)
            (Path(aside) / root.name).rename(root)
    except (RuntimeError, OSError) as error:
        raise _not_whole("tiny_imagenet", root.name) from error


def _imagenet(split: str) -> Split:
    """ImageNet's (ILSVRC-2012) 50,000 validation images as "test": 256 px the shorter side, 224 cut out; 7.5 GB.

    Its training images (190 GB so cut) are not read: nothing here trains on them.
    """
    if split != "test":
        raise UserError(
            "imagenet's training images do not fit into memory, so only its test split is read: take a trained teacher "
            "(`python -m nayer_lib teacher convert --help`)."
        )
    folder = datasets_dir() / "imagenet" / "val"
    if not folder.is_dir():
        raise MissingFile(
            f"imagenet cannot be downloaded freely: put its validation images into {folder}, one subfolder of .JPEG "
            "files a class, named by WordNet id (NAYER_DATASETS names another folder)."
        )
    files = with_labels(class_folders(folder, "*.JPEG"), wnids("imagenet"), folder, IMAGENET_PER_CLASS)
    return _read(files, size=224, shorter_side=256)


def _not_whole(name: str, base: str) -> MissingFile:
    return MissingFile(
        f"{name} is not whole in {datasets_dir()} and could not be downloaded: connect to the network once, or put "
        f"{base} there (NAYER_DATASETS names another folder)."
    )
