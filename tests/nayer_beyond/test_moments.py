"""What reaches a layer without an image: against many random draws, and through whole networks against real digits."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx, nn

from nayer_beyond.equalisation import given_by_batch_norm
from nayer_beyond.moments import Moments, inputs_of_layers, through
from nayer_beyond.quantised import give_biases
from nayer_lib.classifiers.folding import fold_batch_norms
from nayer_lib.classifiers.teacher import load_teacher, make_classifier, tapped
from nayer_lib.datasets import load_split
from nayer_lib.errors import UserError

few = settings(max_examples=40, deadline=None, database=None)


def normal(mean: float, std: float) -> Moments:
    return Moments.normal(torch.tensor([mean]), torch.tensor([std]))


@few
@given(st.floats(-3, 3), st.floats(0.1, 3))
def test_a_rectified_normal_is_what_draws_say(mean, std):
    found = normal(mean, std).rectified()
    even = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    drawn = (mean + std * torch.special.ndtri(even)).clamp(min=0)
    assert found.mean.item() == pytest.approx(drawn.mean().item(), abs=1e-3)
    assert found.std.item() == pytest.approx(drawn.std().item(), abs=1e-2)
    for end, sign in ((found.low, -1), (found.high, 1)):
        assert end.item() == pytest.approx(max(0, mean + sign * 6 * std), rel=1e-4, abs=1e-4)


def test_a_channel_without_spread_stays_finite():
    for mean in (-1.0, 0.0, 2.0):
        found = normal(mean, 0.0).rectified()
        assert found.mean.item() == pytest.approx(max(mean, 0)) and found.std.item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_a_constant_through_a_layer(groups):
    layer, x = nn.Conv2d(4, 8, 3, groups=groups, bias=False), torch.randn(4)
    whole = layer(x.view(1, 4, 1, 1).expand(1, 4, 3, 3)).flatten()
    torch.testing.assert_close(through(layer, layer.weight, x), whole)
    linear = nn.Linear(4, 3, bias=False)
    torch.testing.assert_close(through(linear, linear.weight, x), linear(x))


def traced(net: nn.Module, image: Moments | None = None) -> dict[str, Moments]:
    net.eval()
    graph, folded = fx.symbolic_trace(net).graph, fold_batch_norms(net)
    give_biases(folded)
    image = image or Moments(torch.zeros(1), torch.ones(1), -torch.ones(1), torch.ones(1))
    return inputs_of_layers(graph, folded, image, given_by_batch_norm(graph, net, folded))


class Sum(nn.Module):
    """Two normal branches are added, and a linear layer reads the positive part of the sum."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(1, 2, 1), nn.Conv2d(1, 2, 1)
        self.bn_one, self.bn_two = nn.BatchNorm2d(2), nn.BatchNorm2d(2)
        self.last = nn.Linear(2, 2)

    def forward(self, x):
        return self.last((self.bn_one(self.one(x)) + self.bn_two(self.two(x))).mean(dim=(2, 3)))


def test_a_sum_adds_means_and_variances():
    net = Sum()
    net.bn_one.weight.data, net.bn_one.bias.data = torch.tensor([3.0, -1.0]), torch.tensor([1.0, 2.0])
    net.bn_two.weight.data, net.bn_two.bias.data = torch.tensor([4.0, 0.0]), torch.tensor([0.5, -1.0])
    read = traced(net)
    assert read["last"].mean.tolist() == [1.5, 1.0]
    torch.testing.assert_close(read["last"].std, torch.tensor([5.0, 1.0]))
    torch.testing.assert_close(read["last"].high, torch.tensor([31.5, 7.0]))
    assert read["one"].low.item() == -1


def test_a_layer_without_batch_norm_passes_mean_and_variance_on():
    net = nn.Sequential(nn.Linear(2, 1), nn.Linear(1, 1))
    net[0].weight.data, net[0].bias.data = torch.tensor([[3.0, -4.0]]), torch.tensor([0.5])
    mean, std = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 1.0])
    read = traced(net, Moments.normal(mean, std))
    assert (read["1"].mean.item(), read["1"].std.item()) == (-4.5, 5.0)


def test_zero_channels_are_known():
    """The shortcut of ResNet-20 puts channels of zeros before and behind."""
    padded = normal(2.0, 1.0).padded(1, 2)
    assert padded.mean.tolist() == [0, 2, 0, 0] and padded.high.tolist() == [0, 8, 0, 0]
    net = make_classifier("resnet8", list("ab"), [0.5], [0.5], 0).net
    assert set(traced(net)) == {name for name, m in net.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}


@pytest.mark.parametrize("name", ["wrn10_1", "resnet8"])
@torch.no_grad()
def test_the_digits_are_about_what_batch_norm_remembers(name):
    """Each channel's mean is found without an image up to an eighth; no number leaves the range."""
    teacher = load_teacher("digits", name)
    mean, std = torch.tensor(teacher.mean), torch.tensor(teacher.std)
    read = traced(teacher.net, Moments(0 * mean, 1 + 0 * mean, -mean / std, (1 - mean) / std))
    places = list(read)
    with tapped([teacher.net.get_submodule(place) for place in places], inputs=True) as maps:
        teacher(load_split("digits", "test").images.float() / 255)
    for i, place in enumerate(places[1:], 1):
        found = maps[i].transpose(0, 1).flatten(1).mean(1)
        assert (found - read[place].mean).abs().mean() < found.mean() / 8, place
        assert (maps[i] <= read[place].high.max()).all() and (maps[i] >= 0).all()


def test_an_operation_without_a_rule_is_told():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(1, 1)

        def forward(self, x):
            return self.fc(torch.tanh(x))

    with pytest.raises(UserError, match=r"nothing is known of what tanh \(call_function\) does"):
        traced(Odd())


def test_a_linear_layer_behind_flattened_places_reads_each_channel_at_each_place():
    net = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))  # 2 x 2 places
    net[1].weight.data, net[1].bias.data = torch.tensor([1.0, 2.0]), torch.tensor([3.0, -4.0])
    assert traced(net)["3"].mean.tolist() == [3.0] * 4 + [-4.0] * 4


def test_a_batch_norm_without_weights_gives_mean_0_and_deviation_1():
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2, affine=False), nn.ReLU(), nn.Conv2d(2, 2, 1))
    for front in (net, nn.Sequential(nn.BatchNorm2d(1, affine=False), nn.Conv2d(1, 2, 1))):  # folded, and not
        read = [*traced(front).values()][-1]
        assert read.mean.tolist() == pytest.approx([0.3989] * 2 if front is net else [0.0], abs=1e-4)
