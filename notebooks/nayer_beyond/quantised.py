"""Quantised networks: weights and layer inputs on few levels, computed in floating point ("fake quantisation").

A quantised network is made from a float one and has its parameters under the same names. Each convolution and linear
layer rounds its input and its weight before it computes; biases, sums and BatchNorm stay float.

    input:   n = 2^b - 1 steps between low <= 0 and high >= 0: s = (high - low) / n, z = round(-low / s),
             x -> s (clamp(round(x / s) + z, 0, n) - z)
    weight:  m = 2^(b-1) - 1 steps to either side: s = max |w| / m, w -> s round(w / s)

The weight has a scale for each output channel, or one in all, and 2^b - 1 levels; the input has 2^b. 0 is always a
level. Scales are constants to the gradient, which passes straight through the rounding and is 0 outside the range
(Jacob et al. 2018, "Quantization and training of neural networks for efficient integer-arithmetic-only inference").

low and high follow the smallest and the largest number of a batch, in train mode alone: an evaluation that widened
ranges would let test images decide what the network computes. Nothing here is faster or smaller than a float network;
`kib` says how large the stored one would be.
"""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nayer_lib.base_config import QUANTISATION, Config
from nayer_lib.classifiers.folding import fold_batch_norms
from nayer_lib.classifiers.teacher import Classifier
from nayer_lib.datasets import DataSet
from nayer_lib.errors import UserError

TINY = 1e-12  # the smallest scale: of weights that are all 0, or of an input that was never seen
FLOAT_BITS = 32
CALIBRATION_IMAGES = 512
FEWEST_IMAGES = 8  # whose extremes say something about those of others


@dataclass(frozen=True)
class Quantisation:
    """How a network is quantised: the fields of that name in `Config`, and whether its BatchNorm was folded before."""

    weight_bits: int
    activation_bits: int
    edge_bits: int | None
    weight_scale: str
    quantised_bn: str
    range_momentum: float
    folded: bool = False


def quantisation_of(config: Config) -> Quantisation:
    """How a config with `weight_bits` quantises its student."""
    return Quantisation(**{name: getattr(config, name) for name in QUANTISATION})


# --- layers -----------------------------------------------------------------------------------------------------------


class Quantised:
    """What quantised layers share: the range of the input, and the rounding of input and weight.

    Attributes:
        weight_bits, activation_bits: bits of the weight and of the input.
        per_channel: whether each output channel of the weight has a scale.
        range_momentum: how far a batch moves the range; the first one decides it.
        low, high: scalars, buffers; both 0 as long as no batch was seen.
    """

    def input_on_grid(self, x: Tensor) -> Tensor:
        """The input on its levels, in 32 bits; in train mode the range moves first."""
        x = x.float()
        if self.training:
            low, high = torch.aminmax(x.detach())
            # No `if` on a tensor's value: a captured step cannot wait for one.
            share = torch.where(self.high > self.low, self.range_momentum, 1.0)
            self.low.lerp_(low.clamp(max=0), share)
            self.high.lerp_(high.clamp(min=0), share)
        steps = 2**self.activation_bits - 1
        scale = ((self.high - self.low) / steps).clamp(min=TINY)
        zero = (-self.low / scale).round().clamp(0, steps).int()
        return torch.fake_quantize_per_tensor_affine(x, scale, zero, 0, steps)

    def weight_on_grid(self) -> Tensor:
        """The weight on its levels, in 32 bits."""
        weight, steps = self.weight.float(), 2 ** (self.weight_bits - 1) - 1
        largest = weight.detach().abs().flatten(1).amax(1)
        if not self.per_channel:
            largest = largest.amax().repeat(len(weight))
        scale = (largest / steps).clamp(min=TINY)
        return torch.fake_quantize_per_channel_affine(weight, scale, torch.zeros_like(scale).int(), 0, -steps, steps)


class QuantConv2d(Quantised, nn.Conv2d):
    """A convolution of its rounded input with its rounded weight."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(self.input_on_grid(x), self.weight_on_grid(), self.bias)


class QuantLinear(Quantised, nn.Linear):
    """A linear layer of its rounded input and its rounded weight."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.input_on_grid(x), self.weight_on_grid(), self.bias)


QUANTISED_FORM: dict[type[nn.Module], type[nn.Module]] = {nn.Conv2d: QuantConv2d, nn.Linear: QuantLinear}


def layers(net: nn.Module) -> list[Quantised]:
    """The quantised layers of a network, in the order of definition."""
    return [module for module in net.modules() if isinstance(module, Quantised)]


# --- networks ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def give_biases(net: nn.Module) -> None:
    """Give each convolution and linear layer without a bias one of zeros."""
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear) and layer.bias is None:
            layer.bias = nn.Parameter(layer.weight.new_zeros(len(layer.weight)))


def quantise(net: nn.Module, how: Quantisation) -> None:
    """Make every convolution and linear layer of a float network a quantised one, in place.

    Raises:
        UserError: a weight of another kind of layer, which would stay float; no layer at all; a network that is
            quantised already.
    """
    if layers(net):
        raise UserError("this network is quantised already: start from its float teacher.")
    for name, module in net.named_modules():
        if type(module) not in QUANTISED_FORM and any(p.dim() > 1 for p in module.parameters(recurse=False)):
            raise UserError(
                f"only nn.Conv2d and nn.Linear can be quantised, and the weight of {name!r} is a "
                f"{type(module).__name__}'s: put plain layers in its place."
            )
    found = [module for module in net.modules() if type(module) in QUANTISED_FORM]
    if not found:
        raise UserError("this network has no convolution and no linear layer to quantise: take one that has.")
    for module in found:
        edge = how.edge_bits if module in (found[0], found[-1]) else None
        module.__class__ = QUANTISED_FORM[type(module)]
        module.weight_bits = edge or how.weight_bits
        module.activation_bits = edge or how.activation_bits
        module.per_channel = how.weight_scale == "channel"
        module.range_momentum = how.range_momentum
        for end in ("low", "high"):
            module.register_buffer(end, torch.zeros((), device=module.weight.device))


@torch.no_grad()
def calibrate(network: nn.Module, images: Tensor) -> None:
    """Set the ranges of a quantised network anew from one pass of images (B, C, H, W), all else in eval mode.

    Raises:
        UserError: too few images.
    """
    if len(images) < FEWEST_IMAGES:
        raise UserError(
            f"the ranges of a quantised network cannot be set from {len(images)} image(s): take {FEWEST_IMAGES} or "
            "more."
        )
    modes = {module: module.training for module in network.modules()}
    network.eval()
    for layer in layers(network):
        layer.low.zero_()
        layer.high.zero_()
        layer.training = True
    network(images)
    for module, mode in modes.items():
        module.training = mode


def quantised(teacher: Classifier, how: Quantisation, image_shape: tuple[int, int, int], seed: int) -> nn.Module:
    """A copy of a teacher on few levels and ready to learn.

    Its ranges are set on images (C, H, W) of uniform noise from a seed: no data, and no learning.

    Raises:
        UserError: as `quantise`.
    """
    student = copy.deepcopy(teacher).requires_grad_(True)
    quantise(student.net, how)
    student.quantisation, student.accuracy = how, {}
    noise = torch.rand(CALIBRATION_IMAGES, *image_shape, generator=torch.Generator().manual_seed(seed))
    calibrate(student, noise.to(teacher.device))
    return student.train()


def student_of(teacher: Classifier, config: Config, facts: DataSet) -> nn.Module:
    """The student of a config with `weight_bits`: `quantised`, its ranges set by the config's seed."""
    return quantised(teacher, quantisation_of(config), facts.image_shape, config.seed)


def as_saved(net: nn.Module, how: object, source: object) -> tuple[nn.Module, Quantisation]:
    """A network of fresh weights in the form of a quantised one, as the header of its file says, and how it is.

    Raises:
        UserError: the header says nothing that this kit understands.
    """
    try:
        quantisation = Quantisation(**how)
    except TypeError as error:
        told = f"{source} says nothing this kit understands about its bits ({error}): copy it anew."
        raise UserError(told) from error
    if quantisation.folded:
        net = fold_batch_norms(net.eval())
        give_biases(net)
    quantise(net, quantisation)
    return net, quantisation


def kib(net: nn.Module) -> tuple[float, float]:
    """Size of a quantised network as it would be stored, and of its float form, in KiB (1,024 bytes).

    Weights at their bits, a scale of 32 bits for each; inputs' two ends, biases and BatchNorm in 32 bits.
    """
    found = layers(net)
    weights = sum(layer.weight.numel() for layer in found)
    at_bits = sum(layer.weight.numel() * layer.weight_bits for layer in found)
    scales = sum(len(layer.weight) if layer.per_channel else 1 for layer in found)
    statistics = [x for name, x in net.named_buffers() if name.endswith(("running_mean", "running_var"))]
    rest = sum(x.numel() for x in (*net.parameters(), *statistics)) - weights
    quantised_bits = at_bits + FLOAT_BITS * (scales + 2 * len(found) + rest)
    return quantised_bits / 8 / 1024, FLOAT_BITS * (weights + rest) / 8 / 1024
