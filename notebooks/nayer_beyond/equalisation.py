"""The three steps of Nagel's DFQ (`dfq_nagel`) on a network whose BatchNorm is folded, and the pairs that they are for.

A layer is known by its name. `known` maps names to mean and deviation (C_out,) of what a layer gives, where a BatchNorm
behind it said so.
"""

import torch
from torch import Tensor, fx, nn

from .moments import KEEPING, RELUS, given_by, operation, through
from .quantised import Quantised

SWEEPS, STILL = 20, 2e-7  # at most so many; the mean |change| of a weight at which they end (jakc4103/DFQ)
LAYERS = (nn.Conv2d, nn.Linear)


def by_input(layer: nn.Module) -> Tensor:
    """A view of a layer's weight by input channel: (groups, C_in / groups, C_out / groups, ...)."""
    return layer.weight.unflatten(0, (getattr(layer, "groups", 1), -1)).transpose(1, 2)


def neighbours(graph: fx.Graph, net: nn.Module) -> list[tuple[str, str]]:
    """Pairs of layers, by name, with nothing between but ReLU and pooling, and no branch.

    Args:
        graph: traced from the network before its BatchNorm was folded.
        net: folded.
    """
    called = [node.target for node in graph.nodes if node.op == "call_module"]
    pairs = []
    for node in (node for node in graph.nodes if operation(node, net) in LAYERS):
        after = node
        while len(after.users) == 1:
            [after] = after.users
            if operation(after, net) in LAYERS:
                one, two = net.get_submodule(node.target), net.get_submodule(after.target)
                once = called.count(node.target) == called.count(after.target) == 1
                if once and len(one.weight) == by_input(two).shape[:2].numel():  # not so behind flattened places
                    pairs.append((node.target, after.target))
                break
            if operation(after, net) not in (*KEEPING, *RELUS):
                break
    return pairs


def given_by_batch_norm(graph: fx.Graph, net: nn.Module, folded: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean beta and deviation |gamma| of what each layer gives that took over a BatchNorm, by the layer's name."""
    known = {}
    for node in graph.nodes:
        if operation(node, net) is nn.BatchNorm2d and operation(node, folded) is nn.Identity:
            known[node.args[0].target] = given_by(net.get_submodule(node.target))
    return known


@torch.no_grad()
def equalise(net: nn.Module, pairs: list[tuple[str, str]], known: dict[str, tuple[Tensor, Tensor]]) -> None:
    """Cross-layer equalisation (their section 4.1), in place. What `known` says of a layer is scaled with it."""
    for _ in range(SWEEPS):
        changes = []
        for first, second in pairs:
            one, two = net.get_submodule(first), net.get_submodule(second)
            before, columns = [one.weight.clone(), two.weight.clone()], by_input(two)
            r1, r2 = one.weight.abs().flatten(1).amax(1), columns.abs().flatten(2).amax(2).flatten()
            s = torch.where((r1 > 0) & (r2 > 0), (r1 * r2).sqrt() / r1, 1.0)
            one.weight.mul_(s.view(-1, *[1] * (one.weight.dim() - 1)))
            one.bias.mul_(s)
            columns.div_(s.view(*columns.shape[:2], *[1] * (columns.dim() - 2)))
            if first in known:
                known[first] = tuple(x * s for x in known[first])
            changes += [(new - old).abs().mean() for new, old in zip((one.weight, two.weight), before, strict=True)]
        if torch.stack(changes).mean() < STILL:
            break


@torch.no_grad()
def absorb(net: nn.Module, pairs: list[tuple[str, str]], known: dict[str, tuple[Tensor, Tensor]]) -> None:
    """High-bias absorption (their section 4.1.3), in place: exact where what layer 1 gives is above c."""
    for first, second in (pair for pair in pairs if pair[0] in known):
        one, two = net.get_submodule(first), net.get_submodule(second)
        mean, std = known[first]
        c = (mean - 3 * std).clamp(min=0)
        one.bias -= c
        known[first] = mean - c, std
        two.bias += through(two, two.weight, c)


@torch.no_grad()
def correct(layer: Quantised, mean: Tensor) -> None:
    """Bias correction (their section 4.2), in place: takes what rounding the weight adds to the mean of the output.

    Args:
        mean: (C_in,) of what the layer reads.
    """
    layer.bias -= through(layer, layer.weight_on_grid() - layer.weight, mean)
