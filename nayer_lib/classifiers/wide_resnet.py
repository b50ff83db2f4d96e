"""Wide ResNets: the pre-activation WRN-d-k that most of the data-free literature distils from and into."""

import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError
from .resnet import conv3x3, init_convs


class PreactBlock(nn.Module):
    """a = relu(bn1(x)); output = shortcut + conv2(relu(bn2(conv1(a)))).

    The shortcut is x itself where the width stays, and `convShortcut(a)` where it changes: a block that changes the
    width feeds the *activated* tensor to both paths. Stride 2 needs a change of width.
    Shapes: (B, in, H, W) -> (B, out, ceil(H / stride), ceil(W / stride)).
    Source: Zagoruyko & Komodakis 2016, "Wide residual networks", section 2; pre-activation: He et al. 2016, "Identity
    mappings in deep residual networks", section 4.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = conv3x3(in_channels, out_channels, stride)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = conv3x3(out_channels, out_channels)
        self.convShortcut = None  # the camel case is the published checkpoints'
        if in_channels != out_channels:
            self.convShortcut = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.bn1(x))
        shortcut = x if self.convShortcut is None else self.convShortcut(a)
        return shortcut + self.conv2(F.relu(self.bn2(self.conv1(a))))


class Group(nn.Module):
    """`count` blocks under the name `layer`; the first changes width and resolution. Shapes as `PreactBlock`."""

    def __init__(self, count: int, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        first = PreactBlock(in_channels, out_channels, stride)
        self.layer = nn.Sequential(first, *(PreactBlock(out_channels, out_channels) for _ in range(count - 1)))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class WideResNet(nn.Module):
    """WRN-`depth`-`widen`: a stem of 16 channels, three groups of (depth - 4) / 6 blocks, global average pooling, `fc`.

    The groups have 16, 32 and 64 channels times `widen`, which may be 0.5; the stem keeps its 16.
    Shapes: (B, channels, H, W) normalised images -> (B, num_classes) logits.
    Errors: a depth not 6n+4, or a `widen` that gives no whole number of channels, raises `UserError`.
    Source: Zagoruyko & Komodakis 2016, "Wide residual networks", table 1; names and initialisation as in Micaelli &
    Storkey 2019, "Zero-shot knowledge transfer via adversarial belief matching" (ZSKT).
    """

    def __init__(self, depth: int, widen: float, num_classes: int, channels: int = 3):
        super().__init__()
        n, rest = divmod(depth - 4, 6)
        if n < 1 or rest:
            raise UserError(f"a wide ResNet's depth is 6n+4 (10, 16, 22, 28, 34, 40, ...), not {depth}.")
        if widen <= 0 or 16 * widen % 1:
            raise UserError(f"a wide ResNet's widening factor is a whole number or 0.5, not {widen}.")
        narrow, middle, wide = (int(width * widen) for width in (16, 32, 64))
        self.conv1 = conv3x3(channels, 16)
        self.block1 = Group(n, 16, narrow, stride=1)
        self.block2 = Group(n, narrow, middle, stride=2)
        self.block3 = Group(n, middle, wide, stride=2)
        self.bn1 = nn.BatchNorm2d(wide)
        self.fc = nn.Linear(wide, num_classes)
        init_convs(self)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        return self.fc(F.relu(self.bn1(x)).mean(dim=(2, 3)))
