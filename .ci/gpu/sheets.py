"""The sheets that were carried, with one command or several, as one file a split: python sheets.py FOLDER OUT."""

import sys
from pathlib import Path

import numpy as np
from PIL import Image


def gather(folder: Path, split: str) -> dict[str, np.ndarray]:
    """`images` (N, H, H, 3) uint8 and `labels` (N,). Sheets may be missing anywhere: a sheet's number says which of all
    labels are its own."""
    labels, images, own = np.load(folder / f"{split}_labels.npz")["labels"], [], []
    for path in sorted(folder.glob(f"{split}_*.webp")):
        pixels = np.asarray(Image.open(path).convert("RGB"))
        sheet = pixels.reshape(-1, pixels.shape[1], pixels.shape[1], 3)
        first = int(path.stem.split("_")[1]) * len(sheet)
        images.append(sheet)
        own.append(labels[first : first + len(sheet)])
    return {"images": np.concatenate(images), "labels": np.concatenate(own)} if images else {}


if __name__ == "__main__":
    for split in ("train", "test"):
        if found := gather(Path(sys.argv[1]), split):
            np.savez(Path(sys.argv[2]) / f"{split}.npz", **found)
