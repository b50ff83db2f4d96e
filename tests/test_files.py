"""Files: where they lie, and that none is ever left half written."""

import errno
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import save_file

from nayer_lib import files
from nayer_lib.errors import MissingFile, UserError

TENSORS = {"a": torch.arange(6.0).view(2, 3), "b.c": torch.tensor([1, 2], dtype=torch.int64)}


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


# --- where


def test_data_is_found_in_the_clone(monkeypatch):
    monkeypatch.delenv("NAYER_DATA", raising=False)
    clone = Path(__file__).resolve().parents[1]
    assert files.data_dir().resolve() == clone / "data"
    monkeypatch.delenv("NAYER_RUNS")
    assert files.runs_dir().resolve() == clone / "runs"


def test_the_environment_names_other_folders(monkeypatch, tmp_path):
    (tmp_path / "paper").mkdir()
    monkeypatch.setenv("NAYER_DATA", str(tmp_path))
    monkeypatch.setenv("NAYER_RUNS", str(tmp_path / "mine"))
    monkeypatch.setenv("NAYER_DATASETS", str(tmp_path / "sets"))
    assert files.data_dir() == tmp_path
    assert files.runs_dir() == tmp_path / "mine" and files.datasets_dir() == tmp_path / "sets"
    monkeypatch.delenv("NAYER_DATASETS")
    assert files.datasets_dir() == Path.home() / ".cache" / "nayer-kit"


def test_another_folder_is_not_taken_for_the_data(monkeypatch, tmp_path):
    monkeypatch.setenv("NAYER_DATA", str(tmp_path))
    with pytest.raises(MissingFile, match=r"not the kit's data folder: install from a clone with `pip install -e \.`"):
        files.data_dir()


# --- whole or not at all


def test_writing_makes_the_folder_and_leaves_one_file(tmp_path):
    files.write_text(tmp_path / "new" / "folder" / "text.txt", "größer\n")
    assert (tmp_path / "new" / "folder" / "text.txt").read_text(encoding="utf-8") == "größer\n"
    assert names_in(tmp_path / "new" / "folder") == ["text.txt"]


def test_the_file_is_replaced_only_when_the_block_ends_well(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("old")
    with files.replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old" and temporary.parent == tmp_path
    assert path.read_text() == "new" and names_in(tmp_path) == ["text.txt"]


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_file_and_no_temporary_one(tmp_path, kind):
    path = tmp_path / "text.txt"
    path.write_text("old")
    with pytest.raises(kind), files.replacing(path) as temporary:
        temporary.write_text("half of the n")
        raise kind
    assert path.read_text() == "old" and names_in(tmp_path) == ["text.txt"]


def test_others_may_read_what_was_written(tmp_path):
    """The temporary file is private; the result is not."""
    files.write_text(tmp_path / "text.txt", "")
    assert (tmp_path / "text.txt").stat().st_mode & 0o777 == 0o644


def test_a_folder_that_cannot_be_made_is_told_in_a_sentence(tmp_path):
    """Also for root, whom permissions do not stop: the folder would lie below a file."""
    (tmp_path / "file").write_text("")
    for write in (
        lambda path: files.write_text(path, "text"),
        lambda path: files.save_tensors(path, TENSORS, {}),
    ):
        with pytest.raises(UserError, match=r"cannot write .*file.*: .*\. Choose a folder you can write to"):
            write(tmp_path / "file" / "below.txt")
    assert names_in(tmp_path) == ["file"]


def test_a_folder_in_the_files_place_is_told_in_a_sentence(tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(UserError, match="cannot write .*taken: Is a directory"):
        files.write_text(tmp_path / "taken", "text")
    assert names_in(tmp_path) == ["taken"]


FULL = [
    OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    OSError("encoder error -2: No space left on device"),  # as image libraries say it, without a number
    SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
]


@pytest.mark.parametrize("error", FULL, ids=["OSError", "OSError without a number", "SafetensorError"])
def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch, error):
    path = tmp_path / "weights.safetensors"
    files.save_tensors(path, TENSORS, {"seed": 0})
    before = path.read_bytes()

    def full(tensors, temporary, metadata):
        Path(temporary).write_bytes(before[:40])
        raise error

    monkeypatch.setattr(files, "save_file", full)
    with pytest.raises(UserError, match="cannot write .*No space left on device.* What stood there before is untouc"):
        files.save_tensors(path, {"a": torch.zeros(1)}, {})
    assert path.read_bytes() == before and names_in(tmp_path) == ["weights.safetensors"]


# --- safetensors and their header


def test_tensors_and_header_come_back_as_they_were(tmp_path):
    header = {"seed": 3, "recipe": {"lr": 0.1, "nesterov": True}, "class_names": ["größer", "b"], "none": None}
    files.save_tensors(tmp_path / "weights.safetensors", TENSORS, header)
    tensors, read = files.load_tensors(tmp_path / "weights.safetensors")
    assert read == header and set(tensors) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert torch.equal(tensors[name], tensor) and tensors[name].dtype == tensor.dtype


def test_views_and_parameters_can_be_saved(tmp_path):
    parameter = torch.nn.Parameter(torch.randn(3, 4))
    files.save_tensors(tmp_path / "weights.safetensors", {"turned": parameter.T, "whole": parameter}, {})
    tensors, _ = files.load_tensors(tmp_path / "weights.safetensors")
    assert torch.equal(tensors["turned"], parameter.T) and torch.equal(tensors["whole"], parameter)
    assert not tensors["whole"].requires_grad


def test_the_same_content_is_the_same_file(tmp_path):
    files.save_tensors(tmp_path / "one", TENSORS, {"a": 1, "b": 2})
    files.save_tensors(tmp_path / "two", TENSORS, {"b": 2, "a": 1})
    assert files.file_hash(tmp_path / "one") == files.file_hash(tmp_path / "two")


def test_a_file_of_another_program_has_an_empty_header(tmp_path):
    save_file(TENSORS, tmp_path / "plain", metadata=None)
    save_file(TENSORS, tmp_path / "other", metadata={"format": "pt"})
    assert files.load_tensors(tmp_path / "plain")[1] == files.load_tensors(tmp_path / "other")[1] == {}


def test_a_missing_file_is_told(tmp_path):
    for path in (tmp_path / "none.safetensors", tmp_path):  # a folder is no file either
        with pytest.raises(MissingFile, match="does not exist"):
            files.load_tensors(path)
    assert issubclass(MissingFile, FileNotFoundError) and issubclass(MissingFile, UserError)


@given(st.data())
@settings(max_examples=20, deadline=None)
def test_a_file_cut_short_anywhere_is_told(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("cut") / "weights.safetensors"
    files.save_tensors(path, TENSORS, {"seed": 0})
    whole = path.read_bytes()
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(UserError, match="not a whole safetensors file .*: make or download it again"):
        files.load_tensors(path)


@pytest.mark.parametrize("content", [b"\x80\x04\x95 a pickle", b"<html>404</html>" * 9, b"\xff" * 64])
def test_something_else_is_told(tmp_path, content):
    (tmp_path / "weights.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="not a whole safetensors file"):
        files.load_tensors(tmp_path / "weights.safetensors")


def test_a_damaged_header_is_told(tmp_path):
    save_file(TENSORS, tmp_path / "weights.safetensors", metadata={files.HEADER: json.dumps({"seed": 0})[:-1]})
    with pytest.raises(UserError, match="not a whole safetensors file"):
        files.load_tensors(tmp_path / "weights.safetensors")


# --- arrays


def test_arrays_of_an_npz_file_come_back_by_name(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", rows=np.arange(6).reshape(2, 3), names=np.array(["x", "y"]))
    read = files.load_arrays(tmp_path / "a.npz")
    assert list(read) == ["rows", "names"] and read["rows"].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_what_is_no_npz_file_of_plain_arrays_is_told_and_never_unpickled(tmp_path):
    whole, path = tmp_path / "whole.npz", tmp_path / "a.npz"
    np.savez(whole, rows=np.arange(600))
    np.save(tmp_path / "rows.npy", np.arange(3))
    spoilt = bytearray(whole.read_bytes())
    spoilt[400] ^= 1  # its checksum tells
    for content in (
        b"",
        b"text",
        pickle.dumps(Loud()),
        whole.read_bytes()[:-30],
        (tmp_path / "rows.npy").read_bytes(),
        spoilt,
    ):
        path.write_bytes(content)
        with pytest.raises(
            UserError, match="a.npz is not a whole .npz file of plain arrays: make or download it again"
        ):
            files.load_arrays(path)
    np.savez(path, rows=np.array([Loud()]))
    with pytest.raises(UserError, match="of plain arrays.* Nothing in it was executed"):
        files.load_arrays(path)
    with pytest.raises(MissingFile, match="nowhere.npz does not exist"):
        files.load_arrays(tmp_path / "nowhere.npz")


class Loud:
    """Unpickled, it would end the tests."""

    def __reduce__(self):
        return pytest.exit, ("a file was unpickled",)


# --- hashes


def test_hashes_are_sha256(tmp_path):
    (tmp_path / "abc").write_text("abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, the first example
    assert files.text_hash("abc") == files.file_hash(tmp_path / "abc") == known


def test_tensors_hash_does_not_see_order_device_copy_or_layout():
    turned = {"b.c": TENSORS["b.c"].clone(), "a": TENSORS["a"].T.contiguous().T}
    assert files.tensors_hash(turned) == files.tensors_hash(TENSORS)
    assert files.tensors_hash({"half": torch.ones(2, dtype=torch.bfloat16), "one": torch.tensor(1.0)})


@pytest.mark.parametrize(
    "other",
    [
        {"a": TENSORS["a"]},
        {"a": TENSORS["a"], "b.d": TENSORS["b.c"]},
        {"a": TENSORS["a"].view(3, 2), "b.c": TENSORS["b.c"]},
        {"a": TENSORS["a"], "b.c": TENSORS["b.c"].flip(0)},
        {"a": TENSORS["a"] + torch.tensor([0, 0, 1e-6]), "b.c": TENSORS["b.c"]},
        {"a": TENSORS["a"].view(torch.int32), "b.c": TENSORS["b.c"]},
        {"b.c": TENSORS["a"], "a": TENSORS["b.c"]},
    ],
    ids=["fewer", "name", "shape", "order", "value", "type", "swapped"],
)
def test_tensors_hash_sees_every_other_change(other):
    assert files.tensors_hash(other) != files.tensors_hash(TENSORS)
