"""Data sets as uint8 tensors, and the facts about each that the method needs.

Distilling reads the test split alone, to score; only training a teacher asks for training images.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .errors import MissingFile, UserError, unknown
from .files import datasets_dir
from .text.labels import class_names

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
    def factors(self) -> Tensor | None:
        """(K, F) what each class is made of, e.g. ink and digit; None where classes have no such parts."""
        if self.name != "color_digits":
            return None
        return torch.cartesian_prod(torch.arange(len(INKS)), torch.arange(10))

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """K names in index order."""
        return class_names(self.name)


@dataclass(frozen=True)
class Split:
    """Images (N, C, H, W) uint8 and labels (N,) int64."""

    images: Tensor
    labels: Tensor

    def to(self, device: torch.device | str) -> "Split":
        """The same split on a device."""
        return Split(self.images.to(device), self.labels.to(device))


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
        UserError: unknown data set or split, or one that this version cannot read.
        MissingFile: the data set is not on this machine and cannot be downloaded.
    """
    dataset(name)
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    readers = {"digits": _digits, "color_digits": _color_digits, "cifar10": _cifar10}
    if name not in readers:
        raise UserError(f"{name} cannot be read yet: use one of {', '.join(readers)}.")
    return readers[name](split)


def load_folder(folder: Path, class_names: Sequence[str], size: int, channels: int = 3) -> Split:
    """Your own evaluation images: one subfolder a class, named as the class (the layout of torchvision's ImageFolder).

    Labels follow `class_names`, whatever the order of the folders. Grey, palette and CMYK images are converted to
    `channels` colours; all are resized to `size` pixels.

    Raises:
        MissingFile: no such folder.
        UserError: a class without a folder or images, a folder without a class, or a file that is no image.
    """
    from PIL import Image, UnidentifiedImageError

    folder = Path(folder)
    if not folder.is_dir():
        raise MissingFile(f"{folder} does not exist: name a folder with one subfolder of images a class.")
    found = {path.name: sorted(p for p in path.iterdir() if p.is_file()) for path in folder.iterdir() if path.is_dir()}
    missing = [name for name in class_names if not found.get(name)]
    extra = sorted(set(found) - set(class_names))
    if missing or extra:
        told = [f"no images for {', '.join(missing[:3])} ({len(missing)})"] if missing else []
        told += [f"no class for the folders {', '.join(extra[:3])} ({len(extra)})"] if extra else []
        raise UserError(f"{folder} does not fit the teacher's classes: {'; '.join(told)}.")
    images, labels = [], []
    for label, name in enumerate(class_names):
        for path in found[name]:
            try:
                with Image.open(path) as image:
                    pixels = np.asarray(image.convert("L" if channels == 1 else "RGB").resize((size, size)))
            except (UnidentifiedImageError, OSError) as error:
                raise UserError(f"{path} is not a whole image: remove or replace it.") from error
            images.append(torch.from_numpy(pixels.reshape(size, size, channels).copy()).permute(2, 0, 1))
            labels.append(label)
    return Split(torch.stack(images), torch.tensor(labels))


def _digits(split: str) -> Split:
    """scikit-learn's 1,797 8x8 grey digits (UCI), a stratified split that never changes: 1000 + 297 train, 500 test."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    train, test = train_test_split(np.arange(1797), test_size=500, stratify=bunch.target, random_state=0)
    fit, validation = train_test_split(train, test_size=297, stratify=bunch.target[train], random_state=0)
    chosen = {"train": train, "fit": fit, "validation": validation, "test": test}[split]
    images = torch.from_numpy(bunch.images[chosen] * 255 / 16).round().to(torch.uint8)
    return Split(images.unsqueeze(1), torch.from_numpy(bunch.target[chosen]).long())


def _color_digits(split: str) -> Split:
    """The same digits in five inks on black, 50 classes "red zero" .. "purple nine" (10 * ink + digit).

    Split by the original digit first and inked after, so no drawing stands in two splits.
    """
    grey = _digits(split)
    inks = torch.tensor(list(INKS.values()), dtype=torch.uint8).view(-1, 1, 3, 1, 1)
    labels = 10 * torch.arange(len(INKS)).view(-1, 1) + grey.labels
    return Split((inks * grey.images).flatten(0, 1), labels.flatten())


def _cifar10(split: str) -> Split:
    """CIFAR-10 through torchvision, downloaded once where there is network; validation is the last training batch."""
    from torchvision.datasets import CIFAR10

    folder = datasets_dir()
    try:
        data = CIFAR10(folder, train=split != "test", download=not (folder / "cifar-10-batches-py").is_dir())
    except (RuntimeError, OSError) as error:
        raise MissingFile(
            f"CIFAR-10 is not whole in {folder} and could not be downloaded: connect to the network once, or put "
            "cifar-10-batches-py there (NAYER_DATASETS names another folder)."
        ) from error
    part = {"fit": slice(0, 40000), "validation": slice(40000, None)}.get(split, slice(None))
    images = torch.from_numpy(data.data[part]).permute(0, 3, 1, 2).contiguous()
    return Split(images, torch.tensor(data.targets[part]))
