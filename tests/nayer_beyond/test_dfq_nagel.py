"""Nagel's DFQ: two layers by hand, functions that stay as they are, means that come back, and whole networks."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import run_all, tiny_setup
from torch import fx, nn

from nayer_beyond.dfq_nagel import DFQNagel, without_data
from nayer_beyond.equalisation import absorb, by_input, correct, equalise, given_by_batch_norm, neighbours
from nayer_beyond.quantised import Quantisation, give_biases, layers, quantise, quantised
from nayer_lib.classifiers.folding import fold_batch_norms
from nayer_lib.classifiers.teacher import load_teacher, make_classifier
from nayer_lib.config import make_config
from nayer_lib.errors import UserError

few = settings(max_examples=20, deadline=None, database=None)
HOW = Quantisation(4, 4, None, "tensor", "frozen", 0.1)


def two_layers() -> nn.Sequential:
    net = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1))
    net[0].weight.data, net[0].bias.data = torch.tensor([[8.0], [0.5]]), torch.tensor([1.0, 1.0])
    net[2].weight.data, net[2].bias.data = torch.tensor([[2.0, 2.0]]), torch.tensor([0.0])
    return net


def test_equalisation_by_hand():
    """r1 = 8, 0.5 and r2 = 2, 2: s = sqrt(16) / 8 = 1/2 and sqrt(1) / 0.5 = 2."""
    net, known = two_layers(), {"0": (torch.tensor([1.0, 1.0]), torch.tensor([2.0, 2.0]))}
    equalise(net, [("0", "2")], known)
    assert net[0].weight.flatten().tolist() == [4.0, 1.0] and net[0].bias.tolist() == [0.5, 2.0]
    assert net[2].weight.flatten().tolist() == [4.0, 1.0]
    assert [x.tolist() for x in known["0"]] == [[0.5, 2.0], [1.0, 4.0]]


def test_absorption_by_hand():
    """beta 5 and 1, gamma 1: c = 2 and 0 leave the first bias and enter the second one through 2."""
    net, known = two_layers(), {"0": (torch.tensor([5.0, 1.0]), torch.tensor([1.0, 1.0]))}
    before = copy.deepcopy(net)
    absorb(net, [("0", "2")], known)
    assert net[0].bias.tolist() == [-1.0, 1.0] and net[2].bias.tolist() == [4.0]
    assert known["0"][0].tolist() == [3.0, 1.0]
    above = torch.linspace(0.2, 3, 20).unsqueeze(1)  # 8 x + 1 is above c = 2
    torch.testing.assert_close(net(above), before(above))


def prepared(net: nn.Module) -> tuple[nn.Module, list, dict]:
    net.eval()
    graph, folded = fx.symbolic_trace(net).graph, fold_batch_norms(net)
    give_biases(folded)
    return folded, neighbours(graph, folded), given_by_batch_norm(graph, net, folded)


def shaken(name: str, seed: int) -> nn.Module:
    """A network of random weights, with BatchNorm that does something."""
    net = make_classifier(name, list("abc"), [0.5], [0.5], seed).net
    rng = torch.Generator().manual_seed(seed)
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            for x in (m.weight.data, m.running_var):
                x.uniform_(0.3, 2.0, generator=rng)
            m.bias.data.normal_(generator=rng)
    return net


PAIRS = {"wrn10_1": 3, "resnet8": 3, "resnet20_b": 9, "mobilenetv2": 35, "vgg19": 18}


@pytest.mark.parametrize(("name", "count"), PAIRS.items())
def test_its_pairs_are_the_neighbours_without_a_branch(name, count):
    """A block's convolutions; of MobileNetV2 1x1, depthwise, 1x1; of VGG all neighbours, through pooling and mean."""
    net = make_classifier(name, list("abc"), [0.5], [0.5], 0).net
    _, pairs, known = prepared(net)
    assert len(pairs) == count
    assert ("conv1", "block1.layer.0.conv1") not in pairs and ("conv1", "layer1.0.conv1") not in pairs
    norms = sum(isinstance(m, nn.BatchNorm2d) for m in net.modules())
    assert len(known) == (3 if name == "wrn10_1" else norms)  # there four BatchNorms come before their convolution


@few
@given(st.sampled_from(["wrn10_1", "resnet8", "mobilenetv2"]), st.integers(0, 1000))
@torch.no_grad()
def test_equalisation_leaves_the_function_and_makes_ranges_equal(name, seed):
    """1e-4 of the largest logit, in 32 bits; r1 = r2 on every pair."""
    net = shaken(name, seed)
    folded, pairs, known = prepared(net)
    images = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(seed))
    expected = net(images)
    equalise(folded, pairs, known)
    torch.testing.assert_close(folded(images), expected, rtol=0, atol=1e-4 * expected.abs().max().item())
    for first, second in pairs:
        r1 = folded.get_submodule(first).weight.abs().flatten(1).amax(1)
        r2 = by_input(folded.get_submodule(second)).abs().flatten(2).amax(2).flatten()
        torch.testing.assert_close(r1, r2, rtol=0.02, atol=1e-5)


def test_bias_correction_brings_the_mean_error_of_rounding_to_nothing():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(20, 5))
    mean = torch.randn(20).abs()
    x = mean + 0.1 * torch.randn(20_000, 20)
    exact = net(x).mean(0)
    quantise(net, Quantisation(2, 16, None, "tensor", "frozen", 0.1))
    net(x)  # sets the range
    net.eval()
    before = (net(x).mean(0) - exact).abs().max()
    correct(net[0], mean)
    assert (net(x).mean(0) - exact).abs().max() < 0.01 < 10 * 0.01 < before


def test_8_bits_and_more_are_the_teacher():
    setup = tiny_setup(method="dfq_nagel", weight_bits=16, activation_bits=16)
    images = setup.evaluate.split.images[:64].float() / 255
    method = setup.method
    assert method.pairs == 3 and len(layers(method.student.net)) == 10 and method.student.quantisation.folded
    assert method.student.training and all(p.requires_grad for p in method.student.parameters())
    method.student.eval()
    t, s = method.teacher(images), method.student(images)
    assert (t - s).abs().max() < 0.1  # six deviations cut off a little
    [epoch] = run_all(tiny_setup(method="dfq_nagel", weight_bits=8, activation_bits=8))
    assert epoch.scores.accuracy > setup.evaluate.teacher.accuracy - 0.01


def test_its_steps_help_where_a_tensor_has_one_scale():
    """A teacher whose channels differ by factors up to 1,000 without a change of its function."""
    teacher = load_teacher("digits", "wrn10_1")
    for block in (teacher.net.block1.layer[0], teacher.net.block3.layer[0]):
        norm, conv = block.bn2, block.conv2
        s = torch.logspace(-1.5, 1.5, len(norm.weight))
        norm.weight.data *= s
        norm.bias.data *= s
        conv.weight.data /= s.view(1, -1, 1, 1)
    setup = tiny_setup(method="rounding", weight_scale="tensor", weight_bits=6, activation_bits=8)
    rounded = quantised(teacher, Quantisation(6, 8, None, "tensor", "frozen", 0.1), (1, 8, 8), 0)
    equalised, _ = without_data(teacher, Quantisation(6, 8, None, "tensor", "frozen", 0.1))
    assert setup.evaluate(teacher).accuracy == setup.evaluate.teacher.accuracy
    assert setup.evaluate(rounded).accuracy < 0.9 < 0.97 < setup.evaluate(equalised).accuracy


def test_what_it_cannot_do_is_told():
    teacher = load_teacher("digits", "wrn10_1")
    teacher.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with pytest.raises(UserError, match=r"^DFQ \(Nagel\) found 0 pairs of layers in this teacher"):
        without_data(teacher, HOW)
    untraceable = make_classifier("vgg11", teacher.class_names, [0.5], [0.5], 0).freeze()  # asks for an image's height
    with pytest.raises(UserError, match="needs a teacher that torch.fx can trace"):
        without_data(untraceable, HOW)
    with pytest.raises(UserError, match=r"^DFQ \(Nagel\) makes a quantised student: give weight_bits"):
        method = tiny_setup(method="dfq_nagel").method
        method.student.quantisation = None
        DFQNagel(method.teacher, method.student, method.config)
    assert make_config("digits", method="dfq_nagel", student="wrn10_1", weight_bits=4).weight_scale == "tensor"
