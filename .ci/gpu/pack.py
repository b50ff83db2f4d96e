"""What the short GPU run takes along to a machine without a network: images, label text, wheels, and their sums.

    python .ci/gpu/pack.py --images FOLDER --table TABLES.npz --train 0:40 --test --out carried

The images are CIFAR-10 as sheets: `train_000.webp`, ..., `test_000.webp`, ..., lossless, 500 images stacked in the
data set's order, and their `labels` in `train_labels.npz` and `test_labels.npz`. Nothing of this is ever committed.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WHEELS = ("tyro", "typeguard", "docstring-parser")  # of the kit's dependencies, what machines with torch lack


def pack(
    out: Path,
    images: Path,
    table: Path,
    train: slice,
    test: bool,
    cifar10: Path | None,
    teacher: Path | None,
    wheels: list[str],
) -> None:
    """Fill the folder anew."""
    if out.exists() and not (out / "SHA256SUMS").is_file():
        sys.exit(f"{out} is there and was not packed by this: give --out another folder, or remove it.")
    for path in (table, *(images / f"{split}_labels.npz" for split in ("train", "test"))):
        if not path.is_file():
            sys.exit(f"{path} does not exist: --images is the folder of sheets and their labels, --table an .npz file.")
    shutil.rmtree(out, ignore_errors=True)
    sheets = sorted(images.glob("train_*.webp"))[train] + (sorted(images.glob("test_*.webp")) if test else [])
    for path in [*sheets, *(images / f"{split}_labels.npz" for split in ("train", "test"))]:
        copy(path, out / "sheets" / path.name)
    pool = out / "data" / "lte" / "cifar10.clip.a.safetensors"
    kit("lte", "convert", "--dataset", "cifar10", "--released", table, "--out", pool)
    if cifar10:
        official = Path("cifar-10-batches-py") / "test_batch"
        copy(cifar10 / official, out / "datasets" / official)
    if teacher:
        copy(teacher, out / "teacher.safetensors")
    words = ["download", "-q", "--no-deps", "--only-binary=:all:", "-c", ROOT / "constraints.txt", "-d", out / "wheels"]
    subprocess.run([sys.executable, "-m", "pip", *map(str, words), *wheels], check=True)
    changed = git("status", "--porcelain", "--", "nayer_lib", "notebooks/*.py")
    (out / "commit.txt").write_text(git("rev-parse", "HEAD") + ("+" if changed else ""), encoding="utf-8")
    packed = sorted(path for path in out.rglob("*") if path.is_file())
    sums = [f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.relative_to(out).as_posix()}\n" for p in packed]
    (out / "SHA256SUMS").write_text("".join(sums), encoding="utf-8")


def git(*words: str) -> str:
    return subprocess.run(["git", "-C", ROOT, *words], capture_output=True, text=True, check=True).stdout.strip()


def copy(path: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, target)


def kit(*words: object) -> None:
    """A command of the kit."""
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-m", "nayer_lib", *map(str, words)], check=True, env=env)


def mib(*paths: Path) -> float:
    return sum(path.stat().st_size for path in paths) / 2**20


def numbers(text: str) -> slice:
    first, last = text.split(":")
    return slice(int(first or 0), int(last) if last else None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, required=True, help="the folder of sheets")
    parser.add_argument("--table", type=Path, required=True, help="an .npz file with CIFAR-10's table of CLIP")
    parser.add_argument("--train", type=numbers, default=slice(0), help="which sheets of the training split, as 0:40")
    parser.add_argument("--test", action="store_true", help="the test split too")
    parser.add_argument("--cifar10", type=Path, help="the folder of cifar-10-batches-py: its test file, for sweeps")
    parser.add_argument("--teacher", type=Path, help="of another day, for more seeds")
    parser.add_argument("--wheels", nargs="*", default=WHEELS)
    parser.add_argument("--out", type=Path, default=ROOT / "carried")
    given = vars(parser.parse_args())
    pack(**given)
    for path in sorted(given["out"].iterdir()):
        print(f"{mib(*(p for p in (path, *path.rglob('*')) if p.is_file())):8.2f} MiB  {path.name}")


if __name__ == "__main__":
    main()
