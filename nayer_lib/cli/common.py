"""What several commands take: class names from a file, and a teacher that is not the kit's."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro

from .. import datasets
from ..classifiers.teacher import Classifier, foreign_teacher, load_classifier
from ..errors import UserError
from ..evaluate import in_batches
from ..image_files import class_folders, own_side, read_images, with_labels
from ..text.labels import read_names


@dataclass(frozen=True)
class Foreign:
    """What somebody else's checkpoint does not say of itself.

    Attributes:
        network: the architecture of somebody else's checkpoint, "resnet20", "resnet34", "wrn40_2", ...
        classes: its class names, one a line, in the order of its outputs; default: the data set's.
        mean: of its normalisation, a number a channel, in [0, 1] units; default: the data set's.
        std: likewise.
        key: which state_dict of a checkpoint that holds several, as "model_ema".
    """

    network: str | None = None
    classes: Path | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    key: str | None = None


ForeignOptions = Annotated[Foreign, tyro.conf.arg(name="")]  # its fields are options of a command, as --network
NO_FOREIGN = Foreign()


def new_file(path: Path) -> Path:
    """The path, if no file stands there.

    Raises:
        UserError: one does, and would be lost.
    """
    if path.exists():
        raise UserError(f"{path} is there already, and would be lost: give --out another file, or remove it.")
    return path


def own_teacher(dataset: str, checkpoint: Path | None, foreign: Foreign) -> Classifier | None:
    """The teacher in a checkpoint: a file of this kit, or with a network anybody's; None without a checkpoint."""
    if foreign.network and not checkpoint:
        raise UserError("--network describes the checkpoint of --teacher: give both.")
    if foreign.key and not foreign.network:
        raise UserError("--key names a part of somebody else's checkpoint: give --network too.")
    if not foreign.network:
        return load_classifier(checkpoint) if checkpoint else None
    facts = datasets.DATASETS.get(dataset)
    names = read_names(foreign.classes) if foreign.classes else facts and facts.class_names
    mean, std = foreign.mean or (facts and facts.mean), foreign.std or (facts and facts.std)
    if not names or not mean or not std:
        raise UserError(f"{dataset} is not one of the kit's data sets: give --classes, --mean and --std.")
    return foreign_teacher(checkpoint, foreign.network, names, mean, std, foreign.key)


def own_images(path: Path, dataset: str, teacher: Classifier | None, size: int) -> datasets.Split:
    """Images to score on from files of one's own: packed ones of a data set, or a folder of the teacher's classes.

    Args:
        path: an .npz file or a folder of sheets (`datasets.load_packed`), or a subfolder a class.
        size: pixels to resize a folder's images to; a warning says if that costs the teacher more than five points.
    """
    if datasets.is_packed(path):
        return datasets.load_packed(path, dataset)
    if not teacher:
        raise UserError("--images needs --teacher: the kit's own teachers have their own test images.")
    _say_what_resizing_costs(teacher, path, size)
    return datasets.load_folder(path, teacher.class_names, size, len(teacher.mean))


COMPARED, LARGEST = 1000, 256  # images, and pixels of the largest: photographs are resized for every network


def _say_what_resizing_costs(teacher: Classifier, folder: Path, size: int) -> None:
    """Warn where the teacher scores more than five points better on images of a folder as they are than resized.

    Looked at are squares of one size, at most `LARGEST`, and about `COMPARED` of them.
    """
    files = with_labels(class_folders(folder), teacher.class_names, folder)
    paths, labels = zip(*files[:: -(-len(files) // COMPARED)], strict=True)
    side = own_side(paths)
    if side in (None, size) or side > LARGEST:
        return

    def accuracy(pixels: int) -> float:
        answers = in_batches(teacher, read_images(paths, pixels, len(teacher.mean))).argmax(1)
        return 100 * (answers == torch.tensor(labels)).float().mean().item()

    try:
        as_they_are, resized = accuracy(side), accuracy(size)
    except RuntimeError:  # some networks take images of one size alone
        return
    if as_they_are - resized > 5:
        warnings.warn(
            f"the teacher scores {as_they_are:.1f} % on these images as they are, {side} px, and {resized:.1f} % "
            f"resized to {size} px: take --size {side}.",
            stacklevel=3,
        )
