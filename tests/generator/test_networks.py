"""The generator G: its counts, its layers in the order of Tables 6 and 7, and its images."""

import csv
import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nayer_lib.errors import UserError
from nayer_lib.files import data_dir
from nayer_lib.generator.latents import build_latent
from nayer_lib.generator.networks import LAYOUTS, Generator


def parameters(*modules):
    return sum(p.numel() for module in modules for p in module.parameters())


def kind(module):
    """The name of its class, before spectral norm changed it."""
    return nn.utils.parametrize.type_before_parametrizations(module).__name__


def kinds(generator):
    return [kind(module) for module in generator.layers]


def convolutions(generator):
    return [module for module in generator.layers if isinstance(module, nn.Conv2d)]


# --- counts, for e = 512 and r = 1000


# classes, images of a round, image size; parameters in all and in the heads
COUNTS = {
    "CIFAR-10": (10, 400, 32, 28_944_771, 20_520_000),
    "CIFAR-100": (100, 400, 32, 10_476_771, 4 * 513_000),
    "Tiny-ImageNet": (200, 200, 64, 33_538_347, 513_000),
    "ImageNet": (1000, 50, 224, 26_072_107, 513_000),
}


@pytest.mark.parametrize("name", COUNTS)
def test_the_released_generator_has_the_published_count(name):
    classes, batch, size, whole, heads = COUNTS[name]
    with torch.device("meta"):
        latent = build_latent("noisy", torch.empty(classes, 512), 1000, batch)
        generator = Generator(1000, size, 3)
    assert parameters(latent, generator) == whole
    assert latent.layer.weight.numel() + latent.layer.bias.numel() == heads
    assert parameters(latent.layer.norm) == 1024


@pytest.mark.parametrize(("size", "linear"), [(32, 8_200_192), (64, 32_800_768)])
def test_the_convolutions_of_the_released_generator(size, linear):
    with torch.device("meta"):
        generator = Generator(1000, size, 3)
    assert parameters(generator.layers[0]) == linear
    assert parameters(*generator.layers[1:]) == 223_555


# --- layers


BLOCK = ["Conv2d", "BatchNorm2d", "LeakyReLU"]


@pytest.mark.parametrize("size", [8, 32, 64])
def test_layers_of_the_released_small_generator(size):
    """As the authors' code builds it (D1): BatchNorm after the reshape, then a doubling before each block."""
    generator = Generator(10, size, 3, width=4)
    expected = ["Linear", "Unflatten", "BatchNorm2d", "Upsample", *BLOCK, "Upsample", *BLOCK, "Conv2d", "Sigmoid"]
    assert kinds(generator) == expected


def test_layers_of_the_released_large_generator():
    """D1: no BatchNorm after the reshape, five blocks, a doubling before all but the first."""
    with torch.device("meta"):
        generator = Generator(1000, 224, 3)
    expected = ["Linear", "Unflatten", *BLOCK, *(["Upsample", *BLOCK] * 4), "Conv2d", "Sigmoid"]
    assert kinds(generator) == expected
    widths = [(conv.in_channels, conv.out_channels) for conv in convolutions(generator)]
    assert widths == [(128, 128), (128, 128), (128, 64), (64, 64), (64, 64), (64, 3)]


PRINTED = {
    "Input": [],
    "Linear": ["Linear"],
    "BatchNorm1D": ["BatchNorm1d"],
    "Reshape": ["Unflatten"],
    "SpectralNorm (Conv (3×3))": ["Conv2d"],
    "BatchNorm2D": ["BatchNorm2d"],
    "LeakyReLU": ["LeakyReLU"],
    "UpSample (2×)": ["Upsample"],
    "Sigmoid": ["Sigmoid"],
}


def printed_rows(number):
    """The rows of Table 6 or 7: the output's text and the kinds of layers."""
    with open(data_dir() / "paper" / f"table{number}.csv", newline="", encoding="utf-8") as file:
        rows = [(row["output"], row["layers"].split(", ")) for row in csv.DictReader(file)]
    return [(output, [layer for name in names for layer in PRINTED[name]]) for output, names in rows]


def printed_shape(output, size):
    """ "128 × h/4 × w/4" for 32 px -> (128, 8, 8)."""
    sides = [1 if not (side := re.search(r"/(\d+)", part)) else int(side[1]) for part in output.split(" × ")[1:]]
    return (int(output.split(" × ")[0]), *(size // side for side in sides))


@pytest.mark.parametrize(("number", "size"), [(6, 32), (6, 64), (7, 224)])
def test_the_paper_layout_is_table_6_and_7_in_order_with_the_last_two_swapped(number, size):
    rows = printed_rows(number)
    assert rows[-1][1] == ["Conv2d", "Sigmoid", "BatchNorm2d"]  # as printed: images outside [0, 1]
    rows[-1] = (rows[-1][0], ["Conv2d", "BatchNorm2d", "Sigmoid"])
    with torch.device("meta"):
        generator = Generator(1000, size, 3, layout="paper")
        assert kinds(generator) == [layer for _, layers in rows for layer in layers]
        x, rest = torch.empty(2, 1000), list(generator.layers)
        for output, layers in rows:
            for _ in layers:
                x = rest.pop(0)(x)
            assert tuple(x.shape[1:]) == printed_shape(output, size)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [32, 224])
def test_what_all_layers_of_a_kind_have_in_common(layout, size):
    with torch.device("meta"):
        generator = Generator(1000, size, 3, layout=layout)
    for conv in convolutions(generator):
        assert (conv.kernel_size, conv.padding, conv.stride) == ((3, 3), (1, 1), (1, 1))
    for layer in generator.layers:
        if isinstance(layer, nn.LeakyReLU):
            assert layer.negative_slope == 0.2
        if isinstance(layer, nn.Upsample):
            assert (layer.mode, layer.scale_factor) == ("nearest", 2)
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            assert (layer.eps, layer.momentum, layer.affine) == (1e-5, 0.1, True)


def test_only_a_convolution_without_batchnorm_after_it_has_a_bias():
    for size in (32, 224):
        with torch.device("meta"):
            biases = [conv.bias is not None for conv in convolutions(Generator(1000, size, 3))]
        assert biases == [False] * (len(biases) - 1) + [True]
        with torch.device("meta"):
            assert all(conv.bias is None for conv in convolutions(Generator(1000, size, 3, layout="paper")))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("size", "count"), [(16, {"released": 3, "paper": 3}), (80, {"released": 6, "paper": 5})])
def test_spectral_norm_is_on_every_convolution_or_on_none(layout, size, count):
    """D2."""
    for spectral_norm in (False, True):
        generator = Generator(10, size, 3, width=4, layout=layout, spectral_norm=spectral_norm)
        parametrized = [module for module in generator.layers if nn.utils.parametrize.is_parametrized(module)]
        assert parametrized == (convolutions(generator) if spectral_norm else [])
        assert len(convolutions(generator)) == count[layout]


def test_spectral_norm_brings_the_largest_singular_value_to_one():
    torch.manual_seed(0)
    generator = Generator(10, 16, 3, width=16, spectral_norm=True)
    for _ in range(20):
        generator(torch.randn(2, 10))  # each pass improves the estimate
    for conv in convolutions(generator):
        assert torch.linalg.matrix_norm(conv.weight.flatten(1), 2).item() == pytest.approx(1, abs=0.02)


# --- images


def test_the_released_generator_written_out_by_hand():
    torch.manual_seed(0)
    generator = Generator(5, 8, 3, width=4)
    with torch.no_grad():
        for layer in generator.layers:
            if isinstance(layer, nn.BatchNorm2d):
                layer.weight.uniform_(0.5, 2)
                layer.bias.normal_()
    linear, norm, (first, second, last) = generator.layers[0], generator.layers[2], convolutions(generator)
    norms = [layer for layer in generator.layers if isinstance(layer, nn.BatchNorm2d)]

    def normed(x, layer):
        mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
        weight, bias = layer.weight[:, None, None], layer.bias[:, None, None]
        return (x - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt() * weight + bias

    def doubled(x):
        return x.repeat_interleave(2, 2).repeat_interleave(2, 3)

    def leaky(x):
        return torch.where(x > 0, x, 0.2 * x)

    z = torch.randn(6, 5)
    x = normed((z @ linear.weight.T + linear.bias).view(6, 4, 2, 2), norm)
    x = leaky(normed(F.conv2d(doubled(x), first.weight, padding=1), norms[1]))
    x = leaky(normed(F.conv2d(doubled(x), second.weight, padding=1), norms[2]))
    x = 1 / (1 + (-F.conv2d(x, last.weight, last.bias, padding=1)).exp())
    torch.testing.assert_close(generator(z), x)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [4, 8, 20, 32, 64, 80, 224])
@torch.no_grad()
def test_images_have_the_size_and_stay_in_0_1(size, channels, layout):
    torch.manual_seed(0)
    images = Generator(6, size, channels, width=2, layout=layout)(100 * torch.randn(3, 6))
    assert images.shape == (3, channels, size, size)
    assert 0 <= images.min() < images.max() <= 1


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_reach_every_parameter_and_the_latent(layout):
    torch.manual_seed(0)
    generator, z = Generator(6, 8, 3, width=4, layout=layout), torch.randn(4, 6, requires_grad=True)
    generator(z).square().sum().backward()
    without = [name for name, p in generator.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == [] and z.grad.any()


def test_the_seed_decides_the_weights():
    def weights(seed):
        torch.manual_seed(seed)
        return Generator(6, 8, 3, width=4).state_dict()

    first, again, other = weights(1), weights(1), weights(2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["layers.0.weight"], other["layers.0.weight"])


# --- what it cannot make


@pytest.mark.parametrize("size", [-4, 0, 2, 30, 63, 66, 72, 100])
def test_bad_sizes(size):
    with pytest.raises(UserError, match=f"cannot make {size} px images: the side must be a multiple of 4 up to 64"):
        Generator(10, size, 3)


@pytest.mark.parametrize("channels", [0, 2, 4])
def test_bad_channels(channels):
    with pytest.raises(UserError, match=f"images of 1 or 3 channels, not {channels}"):
        Generator(10, 8, channels)


@pytest.mark.parametrize("width", [-2, 0, 1, 7])
def test_bad_widths(width):
    with pytest.raises(UserError, match=f"width must be an even number of channels, not {width}"):
        Generator(10, 8, 3, width=width)


@pytest.mark.parametrize(("typed", "meant"), [("realeased", "released"), ("Paper", "paper"), ("table6", "paper")])
def test_an_unknown_layout_names_the_nearest(typed, meant):
    with pytest.raises(UserError, match=f"unknown generator layout '{typed}'. Did you mean '{meant}'"):
        Generator(10, 8, 3, layout=typed)
