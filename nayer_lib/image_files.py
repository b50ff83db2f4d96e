"""From image files to bytes, for Tiny-ImageNet, ImageNet and a folder of your own."""

from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .errors import MissingFile, UserError
from .text.labels import plain

LEFT_BEHIND = ("Thumbs.db", "desktop.ini", "Icon\r")  # by Windows and macOS, beside hidden files
LARGEST = 1024  # pixels
Labelled = list[tuple[Path, int]]  # a file and its label


def class_folders(folder: Path, pattern: str = "*") -> dict[str, list[Path]]:
    """The files under each subfolder of `folder`, by name; subfolders without any are left out.

    What systems leave in folders (hidden files, `Thumbs.db`, ...) is passed over.

    Raises:
        MissingFile: no such folder.
    """
    if not folder.is_dir():
        raise MissingFile(f"{folder} does not exist: name a folder with one subfolder of images a class.")

    def kept(path: Path) -> bool:
        parts = path.relative_to(folder).parts
        return not any(part.startswith((".", "__MACOSX", "@eaDir")) for part in parts) and path.name not in LEFT_BEHIND

    subfolders = [path for path in folder.iterdir() if path.is_dir()]
    found = {path.name: sorted(p for p in path.rglob(pattern) if p.is_file() and kept(p)) for path in subfolders}
    return {name: paths for name, paths in found.items() if paths}


def with_labels(
    by_class: Mapping[str, list[Path]], classes: Sequence[str], folder: Path, each: int | None = None
) -> Labelled:
    """The files with their labels, class after class: a file's label is the place of its class in `classes`.

    Blanks and underscores in a name are alike.

    Args:
        by_class: the files of each class.
        folder: where the files lie, for the error's sentence.
        each: how many files a class must have; None takes any number from 1 up.

    Raises:
        UserError: a class without files or with another number of files, or files without a class.
    """
    wanted = {plain(name): name for name in classes}
    strange = sorted(name for name in by_class if plain(name) not in wanted)
    twice = [wanted[name] for name, count in Counter(map(plain, by_class)).items() if count > 1 and name in wanted]
    by_class = {wanted.get(plain(name), name): paths for name, paths in by_class.items()}
    misfits = {
        "no images for": [name for name in classes if not by_class.get(name)],
        "no class for the folders": strange,
        "two folders for": twice,
        f"not {each} images for": [name for name in classes if each and len(by_class.get(name, ())) not in (0, each)],
    }
    problems = [f"{problem} {', '.join(names[:3])} ({len(names)})" for problem, names in misfits.items() if names]
    if problems:
        remedy = "; put the whole data set in its place" if each else ""
        raise UserError(f"{folder} does not fit the class names: {'; '.join(problems)}{remedy}.")
    return [(path, label) for label, name in enumerate(classes) for path in by_class[name]]


def read_images(paths: Sequence[Path], size: int, channels: int = 3, shorter_side: int | None = None) -> Tensor:
    """Decode image files of any mode and size, in their order: (N, channels, size, size) uint8.

    Threads share the work, because decoding releases Python's lock; a progress bar appears after 3 seconds.

    Args:
        channels: 1 reads all images as grey, 3 as RGB.
        shorter_side: pixels of the shorter side before the middle `size` pixels are cut out, the usual way to score on
            ImageNet; None squeezes the whole image into the square.

    Raises:
        UserError: a file that is no whole image, or a size or channels that there are not.
    """
    from tqdm import tqdm

    if not 1 <= size <= LARGEST or channels not in (1, 3):
        raise UserError(f"images are read as 1 to {LARGEST} px with 1 or 3 channels, not {size} px with {channels}.")

    def decode(path: Path) -> Tensor:
        image = _open(path, channels)
        if shorter_side is None:
            image = image.resize((size, size))
        else:
            from torchvision.transforms.functional import center_crop, resize

            image = center_crop(resize(image, shorter_side), size)
        return torch.from_numpy(np.array(image).reshape(size, size, channels)).permute(2, 0, 1)

    images = torch.empty(len(paths), channels, size, size, dtype=torch.uint8)
    with ThreadPoolExecutor() as pool:
        decoded = tqdm(pool.map(decode, paths), total=len(paths), unit="image", delay=3)
        for image, pixels in zip(images, decoded, strict=True):
            image.copy_(pixels)
    return images


def own_side(paths: Sequence[Path]) -> int | None:
    """The side in pixels of image files that are all squares of one size; None of any others."""
    from PIL import Image

    sides = set()
    for path in paths:
        try:
            with Image.open(path) as image:
                sides |= {*image.size}
        except Exception as error:  # as in `_open`
            raise UserError(f"{path} is not a whole image: remove or replace it.") from error
    return sides.pop() if len(sides) == 1 else None


def read_sheets(paths: Sequence[Path], size: int, channels: int = 3) -> Tensor:
    """Decode sheets, each a column of square images, from top to bottom: (N, channels, size, size) uint8.

    Raises:
        UserError: a file that is no whole image, or no column of images of this size.
    """

    def decode(path: Path) -> Tensor:
        image = _open(path, channels)
        if image.width != size or image.height % size:
            raise UserError(f"{path} has {image.width} x {image.height} pixels: no column of {size} x {size} images.")
        return torch.from_numpy(np.array(image).reshape(-1, size, size, channels)).permute(0, 3, 1, 2).contiguous()

    with ThreadPoolExecutor() as pool:
        return torch.cat(list(pool.map(decode, paths)))


def _open(path: Path, channels: int):
    """A whole image file as grey or RGB, 8 bits; 16 bits and floats in [0, 1] are scaled by their range.

    Pillow alone would cut off what is above 255.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):
                values, most = np.asarray(image), 1.0 if image.mode == "F" else 65535
                if not (values.min() >= 0 and values.max() <= most):
                    raise UserError(f"{path} goes from {values.min()} to {values.max()}: scale it to 0 to {most:g}.")
                image = Image.fromarray((values * (255 / most)).round().astype(np.uint8))
            return image.convert("L" if channels == 1 else "RGB")
    except UserError:
        raise
    except Image.DecompressionBombError as error:
        raise UserError(f"{path} has too many pixels to be read safely: scale it down first.") from error
    except Exception as error:  # Pillow raises many kinds for what is no whole image
        raise UserError(f"{path} is not a whole image: remove or replace it.") from error
