"""CIFAR ResNets: one basic block and one network for two families that differ in their shortcuts, widths and stem.

ResNet-18/34 (the CIFAR form used by DAFL and NAYER): four groups of width 64 to 512, a 1x1 projection where the shape
changes. ResNet-20/44 (He et al. 2016, section 4.2): three groups of width 16 to 64, shortcuts without parameters;
ResNet-20-B has the 1x1 projections there too.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError


def conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    """A 3x3 convolution that keeps height and width at stride 1; no bias, because a BatchNorm follows."""
    return nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)


def init_convs(net: nn.Module) -> None:
    """Draw every convolution of `net` from N(0, sqrt(2 / (k^2 * out_channels))) and set its bias, if any, to 0.

    Source: He et al. 2015, "Delving deep into rectifiers", section 2.2, the backward-propagation case.
    """
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class PadShortcut(nn.Module):
    """Option A: every second pixel when the stride is 2, then zero channels, half in front and half behind.

    Shapes: (B, in, H, W) -> (B, out, ceil(H / stride), ceil(W / stride)); no parameters.
    Source: He et al. 2016, "Deep residual learning", section 3.3 (A); where the zeros go is a choice of the
    published checkpoints this network loads.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.stride = stride
        extra = out_channels - in_channels
        self.front, self.back = extra // 2, extra - extra // 2

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.front, self.back))


class Projection(nn.Sequential):
    """Option B: a strided 1x1 convolution (key `0`) and its BatchNorm (key `1`). Shapes as `PadShortcut`.

    Source: He et al. 2016, "Deep residual learning", section 3.3 (B).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels))


class BasicBlock(nn.Module):
    """relu(shortcut(x) + bn2(conv2(relu(bn1(conv1(x)))))), with `shortcut` the identity where the shape stays.

    Shapes: (B, in, H, W) -> (B, out, ceil(H / stride), ceil(W / stride)).
    Source: He et al. 2016, "Deep residual learning", section 3.2 and figure 2.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, shortcut: type[nn.Module]):
        super().__init__()
        self.conv1 = conv3x3(in_channels, out_channels, stride)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = conv3x3(out_channels, out_channels)
        self.bn2 = nn.BatchNorm2d(out_channels)
        same_shape = stride == 1 and in_channels == out_channels
        self.shortcut = nn.Identity() if same_shape else shortcut(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.shortcut(x) + self.bn2(self.conv2(out)))


class ResNet(nn.Module):
    """A 3x3 stem without max-pool, groups of basic blocks (strides 1, 2, 2, ...), global average pooling, `linear`.

    `blocks` and `widths` give the number of blocks and the channels of each group; the stem has `widths[0]` channels.
    Shapes: (B, channels, H, W) normalised images -> (B, num_classes) logits.
    """

    def __init__(
        self,
        blocks: tuple[int, ...],
        widths: tuple[int, ...],
        shortcut: type[nn.Module],
        num_classes: int,
        channels: int = 3,
    ):
        super().__init__()
        self.conv1 = conv3x3(channels, widths[0])
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.groups = [f"layer{i}" for i in range(1, len(blocks) + 1)]
        in_channels = widths[0]
        for name, count, width in zip(self.groups, blocks, widths, strict=True):
            stride = 1 if name == "layer1" else 2
            first = BasicBlock(in_channels, width, stride, shortcut)
            rest = (BasicBlock(width, width, 1, shortcut) for _ in range(count - 1))
            self.add_module(name, nn.Sequential(first, *rest))
            in_channels = width
        self.linear = nn.Linear(in_channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        for name in self.groups:
            x = getattr(self, name)(x)
        return self.linear(x.mean(dim=(2, 3)))


DAFL_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}


def dafl_resnet(depth: int, num_classes: int, channels: int = 3) -> ResNet:
    """ResNet of depth 18 or 34 for 32 and 64 px images, PyTorch's default initialisation.

    Shapes: (B, channels, H, W) normalised images -> (B, num_classes) logits.
    Source: Chen et al. 2019, "Data-free learning of student networks" (DAFL); block counts: He et al. 2016, table 1.
    """
    return ResNet(DAFL_BLOCKS[depth], (64, 128, 256, 512), Projection, num_classes, channels)


def he_resnet(
    depth: int, num_classes: int, channels: int = 3, shortcut: type[nn.Module] = PadShortcut
) -> ResNet:
    """The CIFAR ResNet of depth 6n+2 (20, 32, 44, ...), with shortcuts that have no parameters, or of another kind.

    Shapes: (B, channels, H, W) normalised images -> (B, num_classes) logits. A depth not 6n+2 raises `UserError`.
    Source: He et al. 2016, "Deep residual learning", section 4.2; `Projection` (3.3, B) in place of `PadShortcut` is
    the form of Liu et al. 2021, "Zero-shot adversarial quantization" (ZAQ).
    """
    n, rest = divmod(depth - 2, 6)
    if n < 1 or rest:
        raise UserError(f"a CIFAR ResNet's depth is 6n+2 (8, 14, 20, ..., 44, ...), not {depth}.")
    net = ResNet((n, n, n), (16, 32, 64), shortcut, num_classes, channels)
    init_convs(net)
    return net


def imagenet_resnet50(num_classes: int, channels: int = 3) -> nn.Module:
    """torchvision's ResNet-50 with random weights; its stem is drawn anew where `channels` is not 3.

    Shapes: (B, channels, H, W) normalised images -> (B, num_classes) logits.
    Source: He et al. 2016, "Deep residual learning", table 1.
    """
    from torchvision.models import resnet50  # only ImageNet needs torchvision

    net = resnet50(weights=None, num_classes=num_classes)
    if channels != 3:
        net.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
    return net
