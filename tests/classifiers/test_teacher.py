"""The frame around T and S: normalisation inside, files that cannot run code, teachers that are good enough."""

import copy
import pathlib
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from nayer_lib import files
from nayer_lib.classifiers import build
from nayer_lib.classifiers.check import check_paired
from nayer_lib.classifiers.checkpoints import load_weights, read_checkpoint
from nayer_lib.classifiers.teacher import (
    Classifier,
    load_classifier,
    load_teacher,
    make_classifier,
    save_classifier,
    tapped,
    teacher_path,
)
from nayer_lib.classifiers.training import RECIPES, Recipe
from nayer_lib.datasets import dataset, load_split
from nayer_lib.errors import MissingFile, UserError
from nayer_lib.text.lte_pool import read_pool

NAMES, MEAN, STD = ("a", "b", "c"), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
KEPT = sorted((files.data_dir() / "teachers").glob("*digits-*.safetensors"))


def classifier(seed=0):
    """A small one with BatchNorm statistics of its own."""
    made = make_classifier("wrn10_half", NAMES, MEAN, STD, seed)
    rng = torch.Generator().manual_seed(seed)
    for layer in made.batch_norms():
        layer.running_mean.normal_(generator=rng)
        layer.running_var.uniform_(0.5, 2, generator=rng)
    return made.eval()


def images(count=4):
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(5))


def same_weights(one, other):
    one, other = one.state_dict(), other.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


# --- the frame


def test_the_normalisation_is_inside():
    made, x = classifier(), images()
    by_hand = torch.stack([(x[:, c] - MEAN[c]) / STD[c] for c in range(3)], 1)
    torch.testing.assert_close(made(x), made.net(by_hand))


def test_the_normalisation_is_no_weight():
    """So a network's file fits it with any normalisation, and its header says which it was."""
    assert set(classifier().state_dict()) == {f"net.{key}" for key in build("wrn10_half", 3).state_dict()}


def test_features_are_the_heads_input():
    made, x = classifier(), images()
    logits, features = made(x, return_features=True)
    assert torch.equal(logits, made(x))
    assert features.shape == (4, 32)
    torch.testing.assert_close(logits, features @ made.net.fc.weight.T + made.net.fc.bias)
    assert sum(len(module._forward_pre_hooks) for module in made.modules()) == 0


def test_batch_norms_are_all_there_in_order():
    made = make_classifier("wrn10_1", NAMES, MEAN, STD, 0)
    assert [layer.num_features for layer in made.batch_norms()] == [16, 16, 16, 32, 32, 64, 64]


@pytest.mark.parametrize(
    ("network", "widths", "sides"),
    [
        ("wrn10_half", [8, 16, 32], [32, 16, 8]),
        ("wrn16_1", [16, 32, 64], [32, 16, 8]),
        ("resnet20", [16, 32, 64], [32, 16, 8]),
        ("resnet18", [64, 128, 256, 512], [32, 16, 8, 4]),
        ("resnet50", [256, 512, 1024, 2048], [8, 4, 2, 1]),
        ("vgg11", [64, 128, 256, 512, 512], [32, 16, 8, 4, 4]),
    ],
)
def test_stages_give_one_map_for_each_group_of_blocks_from_large_to_small(network, widths, sides):
    made = make_classifier(network, NAMES, MEAN, STD, 0).eval()
    with torch.no_grad(), tapped(made.stages()) as maps:
        made(torch.rand(2, 3, 32, 32))
    assert sorted(maps) == list(range(len(widths)))
    assert [maps[i].shape for i in sorted(maps)] == [(2, w, s, s) for w, s in zip(widths, sides, strict=True)]


def test_tapped_modules_show_what_they_give_out_and_what_they_are_given():
    made, x = classifier(), images()
    net, normalised = made.net, (x - made._mean) / made._std
    with tapped([net.fc, net.conv1]) as outputs, tapped([net.fc, net.conv1], inputs=True) as inputs:
        logits, features = made(x, return_features=True)
    assert outputs[0] is logits and torch.equal(outputs[1], net.conv1(normalised))
    assert inputs[0] is features and torch.equal(inputs[1], normalised)


def test_a_later_pass_replaces_an_earlier_ones_and_what_comes_after_the_block_does_not_count():
    made, x = classifier(), images()
    with tapped([made.net.fc]) as seen:
        first = made(x)
        assert seen[0] is first
        second = made(x[:1])
    made(x)
    assert seen[0] is second


def test_maps_that_pair_up_are_told_by_their_sizes():
    wide, narrow, other = (make_classifier(name, NAMES, MEAN, STD, 0) for name in ("wrn10_1", "wrn10_half", "resnet18"))
    other.train()
    before = {key: value.clone() for key, value in other.state_dict().items()}
    check_paired(wide, narrow, (3, 32, 32), Classifier.stages, "it", "go away")  # channels may differ
    with pytest.raises(UserError, match=r"it pairs .* of \[\(32, 32\), .*, \(4, 4\)\]: go away\.$"):
        check_paired(wide, other, (3, 32, 32), Classifier.stages, "it", "go away")
    with pytest.raises(UserError, match=r"of \[\] and \[\]"):
        check_paired(wide, narrow, (3, 32, 32), lambda _: [], "it", "go away")
    assert other.training and all(torch.equal(before[key], value) for key, value in other.state_dict().items())
    assert not any(module._forward_hooks for module in other.modules())


def test_gradients_flow_through_what_was_tapped():
    made, x = classifier(), images().requires_grad_()
    with tapped(made.batch_norms(), inputs=True) as seen:
        made(x)
    seen[len(seen) - 1].sum().backward()
    assert x.grad.any()


def test_taps_are_gone_after_the_block_also_when_it_fails():
    made = classifier()
    with pytest.raises(ZeroDivisionError), tapped(made.stages()), tapped(made.batch_norms(), inputs=True):
        raise ZeroDivisionError
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in made.modules())


def test_freezing_is_eval_mode_without_weight_gradients_and_with_image_gradients():
    made, x = classifier().train(), images().requires_grad_()
    frozen = made.freeze()
    assert frozen is made and not any(module.training for module in frozen.modules())
    frozen(x).sum().backward()
    assert x.grad.any() and all(p.grad is None for p in frozen.parameters())


@pytest.mark.parametrize(("mean", "std"), [((0.5,), (0.5, 0.5)), ((0.5, 0.5), (0.5, 0.0)), ((0.5,), (-1.0,))])
def test_a_bad_normalisation_is_refused(mean, std):
    with pytest.raises(UserError, match="one mean and one positive std a channel"):
        Classifier(nn.Flatten(), NAMES, mean, std)


def test_two_classes_of_one_name_are_refused():
    with pytest.raises(UserError, match="two classes are called 'a'"):
        Classifier(nn.Flatten(), ("a", "b", "a"), MEAN, STD)


def test_the_seed_decides_the_weights_and_the_global_seed_is_left_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    first, again, other = (make_classifier("wrn10_half", NAMES, MEAN, STD, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    assert same_weights(first, again) and not same_weights(first, other)


# --- our own files


def test_a_classifier_comes_back_bit_by_bit(tmp_path):
    made, path = classifier(), tmp_path / "s.safetensors"
    save_classifier(path, made, seed=3, recipe={"epochs": 2})
    read = load_classifier(path)
    assert same_weights(read, made) and not read.training
    assert (read.name, read.class_names, read.mean, read.std) == ("wrn10_half", NAMES, MEAN, STD)
    assert torch.equal(read(images()), made(images()))
    header = files.load_tensors(path)[1]
    assert header["seed"] == 3 and header["recipe"] == {"epochs": 2} and header["class_names"] == list(NAMES)


def test_half_precision_halves_the_file_and_comes_back_as_float32(tmp_path):
    made, whole, half = classifier(), tmp_path / "whole.safetensors", tmp_path / "half.safetensors"
    save_classifier(whole, made)
    save_classifier(half, made, half=True)
    assert half.stat().st_size < 0.6 * whole.stat().st_size
    read = load_classifier(half)
    assert {x.dtype for x in read.state_dict().values()} == {torch.float32, torch.int64}
    assert same_weights(read.net, made.net.half().float())


@pytest.mark.parametrize("keep", [0, 100, -1])
def test_a_file_cut_short_is_refused(tmp_path, keep):
    path = tmp_path / "s.safetensors"
    save_classifier(path, classifier())
    path.write_bytes(path.read_bytes()[:keep])
    for read in (load_classifier, read_checkpoint):
        with pytest.raises(UserError, match="not a whole safetensors file" if keep else "is empty: download"):
            read(path)


def test_safetensors_of_another_program_are_no_classifier_of_ours(tmp_path):
    path = tmp_path / "s.safetensors"
    save_file(classifier().net.state_dict(), path)
    with pytest.raises(UserError, match="not a classifier of this kit .no class_names, mean, network, std in its head"):
        load_classifier(path)


def test_weights_of_another_network_are_told_by_their_keys(tmp_path):
    path, made = tmp_path / "s.safetensors", classifier()
    made.name = "wrn16_1"
    save_classifier(path, made)
    sentence = r"of another network \(missing: block1.layer.1.bn1.bias, .* \(\d+\); unexpected: block1.layer.0.convS"
    with pytest.raises(UserError, match=sentence):
        load_classifier(path)


def test_weights_for_another_number_of_classes_are_told_by_their_shape():
    with pytest.raises(UserError, match=r"^teacher.pth holds .*of another shape: fc.bias, fc.weight \(2\)"):
        load_weights(build("wrn10_half", 4), build("wrn10_half", 3).state_dict(), "teacher.pth")


def test_weights_without_batch_counters_are_accepted():
    """As files of before torch 0.4.1 are."""
    made, other = classifier(0), classifier(1)
    weights = {key: value for key, value in made.net.state_dict().items() if "num_batches_tracked" not in key}
    load_weights(other.net, weights, "old.pth")
    assert torch.equal(other(images()), made(images()))


def test_a_refused_file_changes_no_weight():
    made = classifier()
    before, weights = copy.deepcopy(made), classifier(1).net.state_dict()
    del weights["conv1.weight"]
    with pytest.raises(UserError, match=r"missing: conv1.weight \(1\)"):
        load_weights(made.net, weights, "half.pth")
    assert same_weights(made, before)


# --- foreign checkpoints


@pytest.mark.parametrize("old_format", [False, True])
@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("nested", [False, True])
def test_a_torch_checkpoint_is_read_with_and_without_its_wrappings(tmp_path, nested, prefix, old_format):
    """An entry `state_dict`, beside it what the trainer kept; `module.` is from data-parallel training."""
    made, path = classifier(), tmp_path / "c.pth"
    content = {prefix + key: value for key, value in made.net.state_dict().items()}
    if nested:
        content = {"state_dict": content, "epoch": 199, "arch": "wrn", "best_acc1": 94.9, "optimizer": {"lr": [0.1]}}
    torch.save(content, path, _use_new_zipfile_serialization=not old_format)
    weights, other = read_checkpoint(path), classifier(1)
    load_weights(other.net, weights, path)
    assert same_weights(other, made)


def test_foreign_safetensors_are_read_too(tmp_path):
    made = classifier()
    save_file({f"module.{key}": value for key, value in made.net.state_dict().items()}, tmp_path / "c.safetensors")
    weights = read_checkpoint(tmp_path / "c.safetensors")
    assert weights.keys() == made.net.state_dict().keys()
    assert all(torch.equal(weights[key], value) for key, value in made.net.state_dict().items())


class Malicious:
    """Unpickling this creates a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return pathlib.Path.touch, (self.marker,)


@pytest.mark.parametrize("kind", ["torch", "old torch", "pickle"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_malicious_file_is_never_executed(tmp_path, kind, suffix):
    path, marker = tmp_path / f"c{suffix}", tmp_path / "executed"
    content = {"state_dict": {"weight": torch.zeros(1)}, "extra": Malicious(marker)}
    if kind == "pickle":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "torch")
    with pytest.raises(UserError, match="not executed for safety"):
        read_checkpoint(path)
    assert not marker.exists()
    pickle.loads(pickle.dumps(Malicious(marker)))  # it would have worked
    assert marker.exists()


@pytest.mark.parametrize("keep", [0, 50, -100])
def test_a_torch_file_cut_short_is_refused(tmp_path, keep):
    torch.save(classifier().net.state_dict(), tmp_path / "c.pth")
    (tmp_path / "c.pth").write_bytes((tmp_path / "c.pth").read_bytes()[:keep])
    with pytest.raises(UserError, match="cannot be read as weights: it is cut short" if keep else "is empty"):
        read_checkpoint(tmp_path / "c.pth")


@pytest.mark.parametrize(
    "content",
    [
        torch.zeros(3),
        [torch.zeros(3)],
        {},
        {"epoch": 3},
        {"state_dict": {}},
        {"state_dict": 3},
        {"state_dict": [torch.zeros(3)]},
        {"model": {"weight": torch.zeros(3)}},
        {0: torch.zeros(3)},
    ],
    ids=str,
)
def test_a_torch_file_without_a_state_dict_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "c.pth")
    with pytest.raises(UserError, match=r"holds no state_dict: save `model.state_dict\(\)` and pass that"):
        read_checkpoint(tmp_path / "c.pth")


@pytest.mark.parametrize("name", ["none.pth", "none.safetensors"])
def test_a_missing_checkpoint_is_told(tmp_path, name):
    with pytest.raises(MissingFile, match="does not exist"):
        read_checkpoint(tmp_path / name)


# --- the teachers of the kit


def test_a_missing_teacher_says_how_to_train_it(tmp_path):
    command = (
        "no teacher for cifar10/wrn40_2: run `python -m nayer_lib teacher train --dataset cifar10 --network wrn40_2`"
    )
    with pytest.raises(MissingFile, match=command):
        load_teacher("cifar10", "wrn40_2", tmp_path / "none.safetensors")
    with pytest.raises(MissingFile, match="no teacher for digits/wrn10_9: run"):
        load_teacher("digits", "wrn10_9")


def test_a_teacher_of_ones_own_is_loaded_frozen(tmp_path):
    save_classifier(tmp_path / "mine.safetensors", classifier())
    teacher = load_teacher("digits", "wrn10_half", tmp_path / "mine.safetensors")
    assert not teacher.training and not any(p.requires_grad for p in teacher.parameters())
    assert same_weights(teacher, classifier())


def test_both_data_sets_without_download_have_a_teacher():
    assert {teacher_path(name, "wrn10_1") for name in ("digits", "color_digits")} <= set(KEPT)


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.stem)
@torch.no_grad()
def test_a_kept_teacher_is_good_and_says_how_it_was_made(path):
    name, network = path.stem.split("-")
    facts, test, teacher = dataset(name), load_split(name, "test"), load_teacher(name, network)
    assert (teacher.class_names, teacher.mean, teacher.std) == (facts.class_names, facts.mean, facts.std)
    accuracy = (teacher(test.images.float() / 255).argmax(1) == test.labels).float().mean().item()
    assert accuracy >= {"digits": 0.98, "color_digits": 0.97}[name]
    header = files.load_tensors(path)[1]
    assert header["network"] == network and header["dataset"] == name
    assert header["accuracy"]["test"] == pytest.approx(accuracy, abs=0.002)
    assert Recipe(**header["recipe"]) in RECIPES.values()
    assert isinstance(header["seed"], int) and header["split"] in ("fit", "train")
    assert path.stat().st_size < 1_000_000


# --- headers of other makes

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 10**6) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
networks = st.sampled_from(["wrn10_half", "resnet8", "vgg11", "wrn9994_99", "resnet99998", "wrn10", ""]) | json_values
numbers = st.just([0.5]) | json_values
names = st.just(["a", "b"]) | json_values
headers = st.fixed_dictionaries(
    {}, optional={"network": networks, "class_names": names, "mean": numbers, "std": numbers}
)


@settings(max_examples=150, deadline=None)
@given(headers)
def test_a_file_with_any_header_is_refused_in_one_sentence(tmp_path_factory, header):
    path = tmp_path_factory.mktemp("any") / "any.safetensors"
    files.save_tensors(path, {"head.weight": torch.zeros(2)}, header)
    with pytest.raises(UserError) as raised:  # these weights fit no network
        load_classifier(path)
    assert "\n" not in str(raised.value)
    with pytest.raises(UserError):
        read_pool(path)


def test_a_network_of_absurd_size_is_a_sentence():
    for name in ("wrn9994_99", "wrn100_99"):
        with pytest.raises(UserError, match=f"{name} would have more than 250 million weights"):
            build(name, 10)
    for name in ("wrn100000_1", "resnet100000"):
        with pytest.raises(UserError, match="unknown network"):
            build(name, 10)
