"""The networks of teachers and students: `build` makes a network from its name."""

import re

from torch import nn

from ..errors import UserError, unknown
from ..lazy import imported
from .resnet import Projection, dafl_resnet, he_resnet, imagenet_resnet50
from .wide_resnet import WideResNet

BUILDERS = {
    "resnet18": lambda *shape: dafl_resnet(18, *shape),
    "resnet34": lambda *shape: dafl_resnet(34, *shape),
    "resnet50": imagenet_resnet50,
    "resnet20_b": lambda *shape: he_resnet(20, *shape, Projection),
    "vgg11": lambda *shape: imported(".vgg:VGG11", "vgg11", __name__)(*shape),
    "vgg19": lambda *shape: imported(".vgg:VGG19", "vgg19", __name__)(*shape),
    "mobilenetv2": lambda *shape: imported("nayer_beyond.mobilenet:MobileNetV2", "mobilenetv2")(*shape),  # Table 9
}
KNOWN = (*BUILDERS, *"resnet8 resnet20 resnet44 wrn10_half wrn10_1 wrn16_1 wrn16_2 wrn40_1 wrn40_2".split())


def build(name: str, num_classes: int, channels: int = 3) -> nn.Module:
    """The freshly initialised network called `name`: one of `KNOWN`, any `resnet{d}` (d = 6n+2) or `wrn{d}_{k}` (6n+4).

    It maps (B, channels, H, W) *normalised* images to (B, num_classes) logits, and its only `nn.Linear` is the head,
    whose input is the pooled features; vgg19 has two more before it. `k` is a whole number or `half`.
    Errors: `UserError` for a name that is not known and for a depth that there is not.
    """
    name = str(name)  # of a file's header
    if name in BUILDERS:
        return BUILDERS[name](num_classes, channels)
    if resnet := re.fullmatch(r"resnet(\d{1,4})", name):
        return he_resnet(int(resnet[1]), num_classes, channels)
    if wrn := re.fullmatch(r"wrn(\d{1,4})_([1-9]\d?|half)", name):
        depth, widen = int(wrn[1]), 0.5 if wrn[2] == "half" else int(wrn[2])
        if depth * widen**2 > 16_000:  # about 16,000 weights for each
            raise UserError(f"{name} would have more than 250 million weights: check its name.")
        return WideResNet(depth, widen, num_classes, channels)
    raise unknown("network", name, KNOWN)
