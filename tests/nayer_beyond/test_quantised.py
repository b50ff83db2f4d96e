"""Quantised layers against their equations, what moves their ranges, and quantised classifiers in files and runs."""

import copy
import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_ranks import connected
from tiny import same, tiny_config, tiny_setup
from torch import nn
from torch.nn import functional as F

from nayer_beyond import quantised as q
from nayer_beyond.quantised import Quantisation, calibrate, kib, layers, quantise, quantised
from nayer_lib import files
from nayer_lib.base_config import check
from nayer_lib.classifiers.teacher import (
    Classifier,
    foreign_teacher,
    load_classifier,
    load_teacher,
    make_classifier,
    save_classifier,
)
from nayer_lib.config import make_config
from nayer_lib.datasets import load_split
from nayer_lib.distill import distill, prepare, suited
from nayer_lib.errors import UserError
from nayer_lib.methods.base import NonFiniteLoss
from nayer_lib.ranks import Ranks
from nayer_lib.runs.card import card_config, kept_cards

few = settings(max_examples=60, deadline=None, database=None)
bits = st.integers(2, 16)
numbers = st.lists(st.floats(-50, 50, width=32), min_size=2, max_size=24)
SHAPE = (1, 8, 8)


def how(weight_bits=4, activation_bits=4, edge_bits=None, weight_scale="channel", bn="frozen", momentum=0.1):
    return Quantisation(weight_bits, activation_bits, edge_bits, weight_scale, bn, momentum)


def linear(weight: list, **options) -> q.QuantLinear:
    """One quantised linear layer without a bias."""
    layer = nn.Linear(len(weight[0]), len(weight), bias=False)
    layer.weight.data = torch.tensor(weight)
    net = nn.Sequential(layer)
    quantise(net, how(**options))
    return net[0]


def digits_student(**options) -> Classifier:
    return quantised(load_teacher("digits", "wrn10_1"), how(**options), SHAPE, seed=0)


# --- the equations


def test_weights_by_hand():
    """Three bits: three steps to either side of the largest |w| of a row, 3 and 0.5."""
    layer = linear([[3.0, 1.4, -1.6, 0.4], [0.5, 0.1, -0.5, 0.05]], weight_bits=3)
    expected = [[3.0, 1.0, -2.0, 0.0], [0.5, 0.5 / 3, -0.5, 0.0]]
    torch.testing.assert_close(layer.weight_on_grid(), torch.tensor(expected))


def test_one_scale_a_tensor_by_hand():
    layer = linear([[3.0, 1.4, -1.6, 0.4], [0.6, 0.1, -0.5, 0.05]], weight_bits=3, weight_scale="tensor")
    assert layer.weight_on_grid().tolist() == [[3.0, 1.0, -2.0, 0.0], [1.0, 0.0, 0.0, 0.0]]


def test_inputs_by_hand():
    """Two bits: three steps from -1 to 2, so the levels are -1, 0, 1, 2; beyond them the ends."""
    layer = linear([[1.0]], activation_bits=2)
    layer.input_on_grid(torch.tensor([-1.0, 2.0]))
    x = torch.tensor([-9.0, -0.6, -0.4, 0.4, 1.4, 1.6, 9.0])
    assert layer.eval().input_on_grid(x).tolist() == [-1.0, -1.0, 0.0, 0.0, 1.0, 2.0, 2.0]


@few
@given(st.lists(numbers, min_size=1, max_size=4), bits, st.sampled_from(["channel", "tensor"]))
def test_a_row_of_weights_has_at_most_2_to_the_b_minus_1_levels_and_0_is_one(rows, b, scale):
    width = min(map(len, rows))
    layer = linear([[*row[:width], 0.0] for row in rows], weight_bits=b, weight_scale=scale)
    given, rounded = layer.weight.detach(), layer.weight_on_grid().detach()
    assert all(len(row.unique()) <= 2**b - 1 for row in rounded)
    assert not rounded[:, -1].any()  # 0 stays 0
    step = given.abs().amax(1, keepdim=True) if scale == "channel" else given.abs().amax()
    step = step / (2 ** (b - 1) - 1)
    assert ((rounded - given).abs() <= 0.5001 * step + 1e-6).all()


@few
@given(numbers, numbers, bits)
def test_inputs_are_on_their_levels_and_0_is_one(seen, asked, b):
    layer = linear([[1.0]], activation_bits=b)
    layer.input_on_grid(torch.tensor(seen))
    layer.eval()
    many = torch.linspace(-60, 60, 1000)
    assert len(layer.input_on_grid(many).unique()) <= 2**b
    assert layer.input_on_grid(torch.zeros(3)).eq(0).all()
    assert layer.low <= 0 <= layer.high
    low, high = min(0.0, *seen), max(0.0, *seen)
    step = (high - low) / (2**b - 1)
    inside = torch.tensor(asked).clamp(low, high)
    assert ((layer.input_on_grid(inside) - inside).abs() <= 1.0001 * step + 1e-5).all()  # the zero point is rounded too


def test_gradients_pass_straight_through_inside_the_range_and_not_outside():
    layer = linear([[1.0, 0.5]], activation_bits=4)
    layer.input_on_grid(torch.tensor([-1.0, 2.0]))
    x = torch.tensor([[-1.5, 0.3], [0.7, 2.6]], requires_grad=True)
    layer.eval().input_on_grid(x).sum().backward()
    assert x.grad.tolist() == [[0.0, 1.0], [1.0, 0.0]]
    (layer.weight_on_grid() * torch.tensor([2.0, 3.0])).sum().backward()
    assert layer.weight.grad.tolist() == [[2.0, 3.0]]  # the largest weight is the range's end: none is outside


@pytest.mark.parametrize("groups", [1, 2])
def test_a_convolution_computes_with_rounded_input_and_weight(groups):
    net = nn.Sequential(nn.Conv2d(2, 4, 3, stride=2, padding=1, groups=groups))
    quantise(net, how(3, 3))
    x = torch.randn(8, 2, 6, 6)
    net(x)
    layer = net.eval()[0]
    expected = F.conv2d(layer.input_on_grid(x), layer.weight_on_grid(), layer.bias, 2, 1, groups=groups)
    assert torch.equal(layer(x), expected)


# --- ranges


def test_the_first_batch_decides_the_range_and_later_ones_move_it():
    layer = linear([[1.0]], momentum=0.1)
    layer.input_on_grid(torch.tensor([-1.0, 2.0]))
    assert (layer.low.item(), layer.high.item()) == (-1.0, 2.0)
    layer.input_on_grid(torch.tensor([-3.0, 12.0]))
    assert layer.low.item() == pytest.approx(-1.2) and layer.high.item() == pytest.approx(3.0)
    layer.input_on_grid(torch.tensor([5.0, 6.0]))  # 0 stays inside
    assert layer.low.item() == pytest.approx(-1.08) and layer.high.item() == pytest.approx(3.3)


def test_an_evaluation_moves_no_buffer():
    """Public code widens ranges on test images (ZAQ's, executed: 4.97 -> 7.13)."""
    setup = tiny_setup(student="wrn10_1", weight_bits=3, activation_bits=3)
    before = copy.deepcopy(setup.method.student.state_dict())
    for _ in range(2):
        setup.evaluate(setup.method.student)
    assert same(before, setup.method.student.state_dict())
    setup.method.student(torch.rand(4, *SHAPE) * 1)
    assert not same(before, setup.method.student.state_dict())  # in train mode it would


def test_without_d13_a_synthesis_round_moves_no_buffer():
    method = tiny_setup(student="wrn10_1", weight_bits=3, student_trains_in_synthesis=False).method
    before = copy.deepcopy(method.student.state_dict())
    for epoch in (0, method.config.total_epochs - 1):
        method.begin_epoch(epoch)
        method.synthesize(epoch)
        method.synthesize(epoch)
    assert same(before, method.student.state_dict())


def test_calibration_starts_anew_and_leaves_the_modes():
    student = digits_student().train()
    modes = [module.training for module in student.modules()]
    dark = torch.zeros(8, *SHAPE)
    calibrate(student, dark)
    assert [module.training for module in student.modules()] == modes
    first = layers(student.net)[0]
    x = (dark - student._mean) / student._std
    assert first.low.item() == pytest.approx(x.min().item()) and first.high == 0
    learning = digits_student(bn="train")
    before = [norm.running_mean.clone() for norm in learning.batch_norms()]
    calibrate(learning, dark)
    assert same(before, [norm.running_mean for norm in learning.batch_norms()])
    with pytest.raises(UserError, match=r"cannot be set from 7 image\(s\): take 8 or more"):
        calibrate(student, dark[:7])


def test_its_noise_is_the_seeds():
    teacher = load_teacher("digits", "wrn10_1")
    one, again, other = (quantised(teacher, how(), SHAPE, seed).state_dict() for seed in (0, 0, 1))
    assert same(one, again) and not same(one, other)


# --- whole networks


@pytest.mark.parametrize("name", ["wrn10_1", "resnet8", "vgg11", "mobilenetv2", "resnet20_b"])
def test_nothing_is_missed_and_every_input_is_on_its_grid(name):
    teacher = make_classifier(name, list("abc"), [0.5], [0.5], seed=0).freeze()
    student = quantised(teacher, how(3, 3, edge_bits=8), SHAPE, seed=0).eval()
    float_layers = [m for m in teacher.net.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    found = layers(student.net)
    assert len(found) == len(float_layers) > 3
    assert [layer.weight_bits for layer in found] == [8, *[3] * (len(found) - 2), 8]
    assert [layer.activation_bits for layer in found] == [8, *[3] * (len(found) - 2), 8]
    used = []

    def on_its_grid(x, scale, zero, low, high):
        used.append(high + 1)
        return real(x, scale, zero, low, high)

    real = torch.fake_quantize_per_tensor_affine
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "fake_quantize_per_tensor_affine", on_its_grid)
        student(torch.rand(2, *SHAPE))
    assert sorted(used) == sorted([256, *[8] * (len(found) - 2), 256])


def test_16_bits_change_nothing():
    """Within 0.001 of the teacher's logits, which lie between -14 and 21, calibrated on the images asked about."""
    teacher, student = load_teacher("digits", "wrn10_1"), digits_student(weight_bits=16, activation_bits=16).eval()
    images = load_split("digits", "test").images[:64].float() / 255
    calibrate(student, images)
    torch.testing.assert_close(student(images), teacher(images), rtol=0, atol=1e-3)


def test_batch_norm_is_frozen_and_its_scale_and_shift_learn():
    for bn, statistics_move in (("frozen", False), ("train", True)):
        setup = tiny_setup(student="wrn10_1", weight_bits=4, quantised_bn=bn, student_trains_in_synthesis=False)
        before = copy.deepcopy(setup.method.student.state_dict())
        list(distill(setup.method, lambda student: None))
        assert setup.method.student.training
        moved = {key for key, x in setup.method.student.state_dict().items() if not torch.equal(x, before[key])}
        assert any(key.endswith("running_mean") for key in moved) == statistics_move
        assert {"net.bn1.weight", "net.bn1.bias", "net.fc.weight", "net.fc.high"} <= moved


def test_synchronised_batch_norm_is_frozen_too():
    teacher = load_teacher("digits", "wrn10_1")
    teacher.net = nn.SyncBatchNorm.convert_sync_batchnorm(teacher.net)
    student = quantised(teacher.freeze(), how(), SHAPE, seed=0).train()
    norms = [m for m in student.modules() if isinstance(m, nn.SyncBatchNorm)]
    assert norms and not any(norm.training for norm in norms) and student.training
    before = copy.deepcopy([norm.running_mean for norm in norms])
    student(torch.rand(4, *SHAPE))
    assert same(before, [norm.running_mean for norm in norms])


def test_it_computes_in_32_bits_unless_it_is_told_otherwise(monkeypatch):
    from nayer_lib import compute

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    cuda, rounded = torch.device("cuda"), make_config("digits", student="wrn10_1", weight_bits=4)
    assert suited(make_config("digits"), cuda, 1).precision == "bf16"
    assert suited(rounded, cuda, 1).precision == "fp32"
    assert suited(rounded, cuda, 1, precision="fp16").precision == "fp16"
    student = digits_student().eval()
    seen, real = [], torch.fake_quantize_per_tensor_affine

    def watched(x, *rest):
        seen.append(x.dtype)
        return real(x, *rest)

    monkeypatch.setattr(torch, "fake_quantize_per_tensor_affine", watched)
    with compute.Compute("bf16").autocast(torch.device("cpu")):
        student(torch.rand(2, *SHAPE))
    assert set(seen) == {torch.float32}


def test_two_processes_agree_on_ranges(tmp_path):
    """They see other images, and hold the mean of what these said."""

    def work() -> dict:
        options = {"student": "wrn10_1", "weight_bits": 4, "student_lr": 1e-3, "student_trains_in_synthesis": False}
        setup, apart = prepare(tiny_config(**options), device="cpu"), []
        real = Ranks.average_gradients

        def spied(ranks, modules, trained=()):
            modules = list(modules)
            apart.extend(layer.high.clone() for m in modules for layer in layers(m))
            real(ranks, modules, trained)

        Ranks.average_gradients = spied
        list(distill(setup.method, lambda student: None))
        return {"apart": apart, "ends": [end for m in layers(setup.method.student.net) for end in (m.low, m.high)]}

    one, other = connected(work, tmp_path)
    assert same(one["ends"], other["ends"]) and not same(one["apart"], other["apart"])


# --- what is refused


@pytest.mark.parametrize(
    ("net", "sentence"),
    [
        (nn.Sequential(nn.Conv1d(2, 2, 1)), "the weight of '0' is a Conv1d's"),
        (nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))), "can be quantised, and the weight of"),
        (nn.Sequential(nn.ReLU()), "no convolution and no linear layer"),
    ],
)
def test_a_network_that_would_stay_float_in_part_is_refused(net, sentence):
    with pytest.raises(UserError, match=sentence):
        quantise(net, how())


def test_a_quantised_teacher_is_refused():
    with pytest.raises(UserError, match="quantised already: start from its float teacher"):
        quantised(digits_student(), how(), SHAPE, seed=0)


@pytest.mark.parametrize("name", ["weight_bits", "activation_bits", "edge_bits"])
@pytest.mark.parametrize("value", [1, 0, 17, 4.0, True, "4"])
def test_bits_lie_from_2_to_16(name, value):
    with pytest.raises(UserError, match=f"^{name} must be a whole number of bits from 2 to 16, not {value!r}.$"):
        make_config("digits", student="wrn10_1", **{"weight_bits": 4, name: value})


def test_a_student_beside_bits_is_refused():
    with pytest.raises(UserError, match="with weight_bits, student is wrn10_1, not wrn10_half"):
        make_config("digits", weight_bits=4)


@pytest.mark.parametrize("field", ["activation_bits", "edge_bits", "weight_scale", "quantised_bn", "range_momentum"])
def test_a_field_of_quantisation_without_bits_is_refused(field):
    value = {"weight_scale": "tensor", "quantised_bn": "train", "range_momentum": 0.5}.get(field, 4)
    with pytest.raises(UserError, match=f"^{field} is of a quantised student: give weight_bits too.$"):
        make_config("digits", **{field: value})


def test_a_rate_that_diverges_is_told_and_the_epochs_before_it_stand():
    setup = tiny_setup(student="wrn10_1", weight_bits=2, student_lr=1e30, warmup_epochs=1)
    epochs = distill(setup.method, setup.evaluate)
    assert next(epochs).epoch == 0
    with pytest.raises(NonFiniteLoss, match="epoch 1: lower student_lr. What was saved before is whole"):
        next(epochs)


# --- files, hashes, sizes


@pytest.mark.parametrize("folded", [False, True])
def test_saved_and_read_it_gives_the_same_logits(tmp_path, folded):
    options = {"method": "dfq_nagel"} if folded else {"student": "wrn10_1", "weight_bits": 3, "edge_bits": 8}
    student = tiny_setup(**options).method.student.eval()
    save_classifier(tmp_path / "q.safetensors", student)
    read = load_classifier(tmp_path / "q.safetensors")
    images = torch.rand(8, *SHAPE)
    assert read.quantisation == student.quantisation and read.quantisation.folded == folded
    assert torch.equal(read(images), student(images))


def test_a_quantised_file_without_its_bits_is_refused(tmp_path):
    path = tmp_path / "q.safetensors"
    save_classifier(path, digits_student())
    weights, header = files.load_tensors(path)
    told = "holds a quantised network, and how many bits it has stands in the header of a file of this kit alone"
    with pytest.raises(UserError, match=told):
        foreign_teacher(path, "wrn10_1", header["class_names"], header["mean"], header["std"])
    files.save_tensors(path, weights, {key: value for key, value in header.items() if key != "quantisation"})
    with pytest.raises(UserError, match=told):
        load_classifier(path)
    files.save_tensors(path, weights, header | {"quantisation": {"bits": 3}})
    with pytest.raises(UserError, match="says nothing this kit understands about its bits"):
        load_classifier(path)


def test_cards_from_before_quantisation_keep_their_hash():
    """Those that had the hash of their config on the day that these fields came; 37 older ones had lost it before."""
    older = [card for card in kept_cards() + kept_cards("validation") if "weight_bits" not in card["config"]]
    same_hash = [card.get("config_sha256") == card_config(card).hash for card in older]
    assert same_hash.count(False) == 37 and same_hash.count(True) >= 417


def test_a_config_is_checked_again_where_a_run_is_set_up():
    with pytest.raises(UserError, match="weight_bits must be"):
        check(dataclasses.replace(make_config("digits"), weight_bits=40))


def test_its_size_by_hand():
    """Two layers of 3 x 2 and 2 x 3 weights at 4 bits, a BatchNorm of three channels, one bias of 2."""
    net = nn.Sequential(nn.Linear(2, 3, bias=False), nn.BatchNorm1d(3), nn.Linear(3, 2))
    quantise(net, how(4, 4))
    scales, ends, rest = 3 + 2, 2 * 2, 4 * 3 + 2
    assert kib(net) == ((12 * 4 + 32 * (scales + ends + rest)) / 8192, 32 * (12 + rest) / 8192)
