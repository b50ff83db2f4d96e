"""What reaches each layer of a network, known without any image: BatchNorm keeps mean and deviation of what it saw.

Behind a BatchNorm a channel is taken for normal with mean beta and deviation |gamma|, within six deviations; a ReLU, a
sum, a layer without BatchNorm change mean and deviation as below, where what is added is taken for independent (Nagel
et al. 2019, "Data-free quantization through weight equalization and bias correction", section 4.2 and appendix C). The
rule for a layer without BatchNorm, whose weights pass mean and variance on, is ours. Pooling keeps a channel's numbers:
the mean of a maximum is larger.
"""

import operator
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from nayer_lib.errors import UserError

DEVIATIONS = 6.0  # of the range around a mean
RELUS = (nn.ReLU, F.relu, torch.relu, "relu")
# What keeps the channels as they are, up to how they are spread over places.
KEEPING = (nn.Identity, nn.Dropout, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Flatten)
KEEPING += (F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, torch.flatten, "mean", "flatten")
ADDING = (operator.add, operator.iadd, torch.add)


@dataclass(frozen=True)
class Moments:
    """A tensor's channels, each number (C,): mean, standard deviation, and the two ends within which it is taken."""

    mean: Tensor
    std: Tensor
    low: Tensor
    high: Tensor

    @classmethod
    def normal(cls, mean: Tensor, std: Tensor) -> "Moments":
        """Those of a normal distribution."""
        return cls(mean, std, mean - DEVIATIONS * std, mean + DEVIATIONS * std)

    def rectified(self) -> "Moments":
        """Those of x+, the positive part of a normal x: with a = mean / std, E[x+] = mean Phi(a) + std phi(a) and
        E[x+^2] = (mean^2 + std^2) Phi(a) + mean std phi(a)."""
        std = self.std.clamp(min=torch.finfo(self.std.dtype).tiny)
        standard = torch.distributions.Normal(torch.zeros_like(std), torch.ones_like(std))
        share, density = standard.cdf(self.mean / std), standard.log_prob(self.mean / std).exp()
        mean = self.mean * share + std * density
        square = (self.mean.square() + std.square()) * share + self.mean * std * density
        spread = (square - mean.square()).clamp(min=0).sqrt()
        return Moments(mean, spread, self.low.clamp(min=0), self.high.clamp(min=0))

    def padded(self, front: int, back: int) -> "Moments":
        """Those with so many channels of zeros before and behind."""
        return Moments(*(F.pad(x, (front, back)) for x in (self.mean, self.std, self.low, self.high)))


def given_by(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """(C,) mean beta and deviation |gamma| of what a BatchNorm gives: 0 and 1 where it has no weights."""
    if not norm.affine:
        return torch.zeros_like(norm.running_mean), torch.ones_like(norm.running_var)
    return norm.bias.clone(), norm.weight.abs()


def through(layer: nn.Module, weight: Tensor, x: Tensor) -> Tensor:
    """(C_in,) constant channels through a convolution or linear layer with another weight, no bias: (C_out,)."""
    if weight.dim() == 2:
        return weight @ x
    sums = weight.sum((2, 3), keepdim=True)
    return F.conv2d(x.view(1, -1, 1, 1), sums, groups=layer.groups).flatten()


def operation(node: fx.Node, net: nn.Module) -> object:
    """What a node of a traced network does: the class of its module, its function, or the name of its method."""
    return type(net.get_submodule(node.target)) if node.op == "call_module" else node.target


@torch.no_grad()
def inputs_of_layers(
    graph: fx.Graph, net: nn.Module, image: Moments, known: dict[str, tuple[Tensor, Tensor]]
) -> dict[str, Moments]:
    """The moments of what each convolution and linear layer reads, by the layer's name.

    Args:
        graph: traced from the network, or from one with the same modules that are not folded yet.
        image: of the network's input.
        known: mean and deviation of what a layer gives, where a BatchNorm behind it said so.

    Raises:
        UserError: an operation that this file has no rule for.
    """
    of, read = {}, {}
    for node in graph.nodes:
        kind, entering = operation(node, net), [of.get(x) for x in node.args if isinstance(x, fx.Node)]
        first = entering[0] if entering else None
        if node.op == "placeholder":
            of[node] = image
        elif node.op == "output":
            break
        elif kind in (nn.Conv2d, nn.Linear):
            layer = net.get_submodule(node.target)
            if kind is nn.Linear:  # behind flattened places a channel's numbers stand once for each of its places
                places = layer.in_features // len(first.mean)
                first = Moments(*(x.repeat_interleave(places) for x in vars(first).values()))
            read[node.target] = first
            mean, std = known.get(node.target) or (
                through(layer, layer.weight, first.mean) + layer.bias,
                through(layer, layer.weight.square(), first.std.square()).sqrt(),
            )
            of[node] = Moments.normal(mean, std)
        elif kind is nn.BatchNorm2d:  # one that stood behind no convolution
            of[node] = Moments.normal(*given_by(net.get_submodule(node.target)))
        elif kind in ADDING and len(entering) == 2:
            mean = sum(x.mean for x in entering)
            of[node] = Moments.normal(mean, torch.hypot(*(x.std for x in entering)))
        elif kind in RELUS:
            of[node] = first.rectified()
        elif kind in KEEPING or kind is operator.getitem:
            of[node] = first
        elif kind is F.pad and len(node.args[1]) == 6:
            of[node] = first.padded(*node.args[1][4:])
        else:
            what = f"{node.name} ({node.op})"
            raise UserError(f"nothing is known of what {what} does to means and deviations: take another method.")
    return read
