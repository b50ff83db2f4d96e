"""What several commands take: class names from a file, and a teacher that is not the kit's."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch

from .. import datasets
from ..classifiers.teacher import Classifier, foreign_teacher, load_classifier
from ..errors import UserError
from ..evaluate import in_batches
from ..image_files import class_folders, own_side, read_images, with_labels
from ..text.labels import read_names


def own_teacher(
    dataset: str,
    checkpoint: Path | None,
    network: str | None,
    classes: Path | None = None,
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    key: str | None = None,
) -> Classifier | None:
    """The teacher in a checkpoint: a file of this kit, or with `network` anybody's; None without a checkpoint.

    What is not given of class names, mean and std is the data set's.
    """
    if network and not checkpoint:
        raise UserError("--network describes the checkpoint of --teacher: give both.")
    if key and not network:
        raise UserError("--key names a part of somebody else's checkpoint: give --network too.")
    if not network:
        return load_classifier(checkpoint) if checkpoint else None
    facts = datasets.DATASETS.get(dataset)
    names = read_names(classes) if classes else facts and facts.class_names
    mean, std = mean or (facts and facts.mean), std or (facts and facts.std)
    if not names or not mean or not std:
        raise UserError(f"{dataset} is not one of the kit's data sets: give --classes, --mean and --std.")
    return foreign_teacher(checkpoint, network, names, mean, std, key)


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
