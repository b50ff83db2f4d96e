"""Checkpoints as people have them: wrapped, prefixed, of another kind than their name says."""

import gzip
import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from nayer_lib.classifiers import build
from nayer_lib.classifiers.checkpoints import check_content, load_weights, read_checkpoint
from nayer_lib.classifiers.teacher import load_classifier
from nayer_lib.errors import MissingFile, UserError

STATE = {key: value for key, value in build("wrn10_half", 3).state_dict().items()}


def prefixed(prefix, state=STATE):
    return {prefix + key: value for key, value in state.items()}


def read(tmp_path, content, key=None):
    torch.save(content, tmp_path / "c.pth")
    return read_checkpoint(tmp_path / "c.pth", key)


def same(weights):
    return weights.keys() == STATE.keys() and all(torch.equal(weights[key], STATE[key]) for key in STATE)


@pytest.mark.parametrize(
    "content",
    [
        {"net": prefixed("module."), "acc": 95.1, "epoch": 199},
        {"model": STATE, "epoch": 9, "metrics": {"loss": torch.tensor(1.0), "curve": torch.rand(3)}},
        {"model_state_dict": STATE, "optimizer": {"state": {0: {"exp_avg": torch.rand(3, 3)}}, "param_groups": []}},
        {"state_dict": prefixed("model."), "hyper_parameters": {"lr": 0.1}},
        {"checkpoint": {"model": {"weights": STATE}}},
        {"model": STATE, "optimizer": {"state": {"conv1.weight": {"exp_avg": torch.rand(3, 3)}}}},
    ],
)
def test_the_one_state_dict_in_a_file_is_found(content, tmp_path):
    assert same(read(tmp_path, content))


@settings(deadline=None, max_examples=20)
@given(parts=st.lists(st.sampled_from(("module", "_orig_mod", "model", "net", "backbone")), max_size=4))
def test_prefixes_of_all_keys_are_dropped_however_many(parts, tmp_path_factory):
    prefix = "".join(f"{part}." for part in parts)
    assert same(read(tmp_path_factory.mktemp("c"), prefixed(prefix)))


def test_several_state_dicts_are_listed_and_chosen_by_key(tmp_path):
    content = {"model": {k: torch.zeros_like(v) for k, v in STATE.items()}, "model_ema": STATE}
    with pytest.raises(UserError, match=r"several state_dicts \(model, model_ema\): choose one with --key"):
        read(tmp_path, content)
    assert same(read(tmp_path, content, "model_ema"))
    with pytest.raises(UserError, match="Did you mean 'model_ema'"):
        read(tmp_path, content, "ema")


def test_safetensors_are_known_by_their_content_and_so_are_torch_files(tmp_path):
    save_file(STATE, tmp_path / "a.pth")
    torch.save(STATE, tmp_path / "b.safetensors")
    assert same(read_checkpoint(tmp_path / "a.pth")) and same(read_checkpoint(tmp_path / "b.safetensors"))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is empty: download"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n", "pointer of Git LFS"),
        (b"\n<!DOCTYPE html><html>sign in</html>", "is a web page"),
        (b"\x89HDF\r\n\x1a\n", "HDF5 file"),
        (gzip.compress(b"weights", mtime=0), "packed by gzip"),
        (b"no weights at all", "cannot be read as weights"),
    ],
)
def test_what_is_wrong_with_a_file_is_told(content, sentence, tmp_path):
    for name in ("c.pth", "c.safetensors"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=sentence):
            read_checkpoint(tmp_path / name)
        with pytest.raises(UserError):
            load_classifier(tmp_path / name)


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(MissingFile, match="is no file"):
        check_content(tmp_path)


def test_a_whole_module_and_a_class_are_named_with_the_way_out(tmp_path):
    for content, named in ((nn.Linear(2, 3), "torch.nn.modules.linear.Linear"), ({"acc": np.float64(3)}, "numpy")):
        with pytest.raises(UserError, match=rf"a {named}.*not executed for safety: save `model.state_dict"):
            read(tmp_path, content)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_torchscript_program_is_told(tmp_path):
    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(nn.Linear(2, 3), torch.rand(1, 2)), file)
    (tmp_path / "c.pt").write_bytes(file.getvalue())
    with pytest.raises(UserError, match="TorchScript program"):
        read_checkpoint(tmp_path / "c.pt")


def test_a_forgotten_network_is_told(tmp_path):
    torch.save(STATE, tmp_path / "a.pth")
    save_file(STATE, tmp_path / "b.safetensors")
    for name in ("a.pth", "b.safetensors"):
        with pytest.raises(UserError, match="not a classifier of this kit.*wants --network"):
            load_classifier(tmp_path / name)


def test_a_layout_that_does_not_fit_points_to_python():
    with pytest.raises(UserError, match=r"network of your own in Python \(docs/your_own_model.md\)"):
        load_weights(build("resnet8", 3), STATE, "c.pth")


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("block2.layer.0.bn1.running_var", float("nan"), "not finite"),
        ("block2.layer.0.bn1.running_var", -1.0, "variances below 0"),
        ("fc.bias", float("inf"), "not finite"),
    ],
)
def test_damaged_weights_are_told_when_they_are_read(key, value, told):
    weights = {name: x.clone() for name, x in STATE.items()}
    weights[key][0] = value
    with pytest.raises(UserError, match=rf"^c.pth holds damaged weights \({told}: {key} \(1\)\)"):
        load_weights(build("wrn10_half", 3), weights, "c.pth")


@pytest.mark.parametrize("depth", [14, 32, 56, 110])
def test_he_resnets_of_every_depth_are_built_by_their_name(depth):
    blocks = sum(type(m).__name__ == "BasicBlock" for m in build(f"resnet{depth}", 3).modules())
    assert blocks == (depth - 2) // 2


@pytest.mark.parametrize("name", ["resnet21", "resnet100000", "wrn100000_1", "wrn16_999999", ["a"], None])
def test_a_network_that_there_is_not_is_a_sentence(name):
    with pytest.raises(UserError, match="depth is 6n|unknown network"):
        build(name, 3)
