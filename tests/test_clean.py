"""Tests write outside the clone, and the clone holds nothing that does not belong into it."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from nayer_lib import files

ROOT = Path(__file__).resolve().parents[1]
PICKLES = {".pkl", ".pickle", ".pth", ".pt", ".npy", ".npz", ".ckpt", ".th", ".joblib", ".bin"}


@pytest.fixture(scope="module")
def tracked() -> list[Path]:
    """The files that git knows here."""
    try:
        done = subprocess.run(["git", "-C", ROOT, "ls-files", "-z"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no git, or no clone")
    return [path for name in done.stdout.split("\0") if name and (path := ROOT / name).is_file()]


@pytest.mark.parametrize("name", ["NAYER_RUNS", "NAYER_DATASETS"])
def test_tests_write_outside_the_clone(name):
    assert ROOT not in Path(os.environ[name]).resolve().parents
    assert ROOT not in files.runs_dir().resolve().parents and ROOT not in files.datasets_dir().resolve().parents


def test_nothing_that_is_kept_can_run_code_when_it_is_read(tracked):
    assert not [path for path in tracked if path.suffix.lower() in PICKLES]


def test_no_file_is_large(tracked):
    assert not [path for path in tracked if path.stat().st_size > 5_000_000]


def test_no_list_of_packages_names_where_it_was_made(tracked):
    address = re.compile(rb"https?://" + rb"files\.|--(extra-)?index-url|--find-links")
    lists = [path for path in tracked if path.suffix in {".txt", ".toml", ".yml", ".lock", ".cfg"}]
    assert lists and not [path for path in lists if address.search(path.read_bytes())]
    assert not [path for path in tracked if b"https://" + b"files." in path.read_bytes()]


def test_git_ignores_runs_but_not_the_kept_ones(tracked):
    ignored = [
        subprocess.run(["git", "-C", ROOT, "check-ignore", "-q", name]).returncode for name in ("runs/x", "data/runs/x")
    ]
    assert ignored == [0, 1]  # 1: git would take it
