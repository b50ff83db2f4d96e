"""BatchNorm at evaluation: folded into the convolution before it, or with each batch's statistics in place of the
running ones."""

import copy

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def fold_batch_norms(net: nn.Module) -> nn.Module:
    """A copy of a network in eval mode in which each BatchNorm behind a convolution is folded into it.

    The convolution then has a bias, and an `nn.Identity` stands in the BatchNorm's place. A BatchNorm behind anything
    else, as at the start of a pre-activation block, stays.

    Errors: torch.fx raises many kinds for a network that it cannot trace.
    """
    from torch.fx.experimental.optimization import fuse

    fused, result = dict(fuse(net).named_modules()), copy.deepcopy(net)
    for name, module in list(result.named_modules()):
        # Not fx's GraphModule: it has a class of its own, and would be compiled anew in each run.
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d):
            result.set_submodule(name, fused.get(name) or nn.Identity())
    return result


def with_batch_statistics(network: nn.Module) -> nn.Module:
    """A copy of a network in eval mode in which torch's BatchNorm takes mean and variance from the batch before it.

    It has no running statistics, so a pass moves no buffer, neither of the copy nor of the network.
    """
    result = copy.deepcopy(network).eval()
    for layer in result.modules():
        if isinstance(layer, _BatchNorm):
            layer.running_mean = layer.running_var = None  # without them torch normalises by the batch, also in eval
    return result
