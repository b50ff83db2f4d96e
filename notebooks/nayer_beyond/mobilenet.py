"""MobileNetV2 for 32 px images, in the form that data-free quantisation uses."""

import torch.nn.functional as F
from torch import Tensor, nn

from nayer_lib.classifiers.resnet import Projection

# Expansion, width, blocks and the stride of the first one, a group of blocks each.
GROUPS = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
STEM, LAST = 32, 1280


class InvertedResidual(nn.Module):
    """1x1 convolution to `expansion` times the width, 3x3 depthwise, 1x1 to the new width, each with BatchNorm; ReLU
    behind the first two; at stride 1 the input is added, through a 1x1 convolution where the width changes.

    Shapes: (B, in, H, W) -> (B, out, ceil(H / stride), ceil(W / stride)).
    Source: Sandler et al. 2018, "MobileNetV2", table 1, with ReLU in place of ReLU6; the convolution of the shortcut is
    that of Liu et al. 2021 (ZAQ).
    """

    def __init__(self, in_channels: int, out_channels: int, expansion: int, stride: int):
        super().__init__()
        wide = expansion * in_channels
        self.conv1 = nn.Conv2d(in_channels, wide, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(wide)
        self.conv2 = nn.Conv2d(wide, wide, 3, stride, padding=1, groups=wide, bias=False)
        self.bn2 = nn.BatchNorm2d(wide)
        self.conv3 = nn.Conv2d(wide, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.shortcut = None
        if stride == 1:
            same_width = in_channels == out_channels
            self.shortcut = nn.Identity() if same_width else Projection(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return out if self.shortcut is None else out + self.shortcut(x)


class MobileNetV2(nn.Module):
    """A 3x3 stem at stride 1, seven groups of inverted residuals, a 1x1 convolution to 1,280, the mean, `linear`.

    Shapes: (B, channels, H, W) normalised images -> (B, num_classes) logits.
    Source: Sandler et al. 2018, table 2, with the strides of stem, second group and pooling changed for 32 px, as in
    Liu et al. 2021, "Zero-shot adversarial quantization" (ZAQ).
    """

    def __init__(self, num_classes: int, channels: int = 3):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, STEM, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM)
        width = STEM
        self.groups = [f"layer{i}" for i in range(1, len(GROUPS) + 1)]
        for name, (expansion, out, count, stride) in zip(self.groups, GROUPS, strict=True):
            first = InvertedResidual(width, out, expansion, stride)
            rest = (InvertedResidual(out, out, expansion, 1) for _ in range(count - 1))
            self.add_module(name, nn.Sequential(first, *rest))
            width = out
        self.conv2 = nn.Conv2d(width, LAST, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(LAST)
        self.linear = nn.Linear(LAST, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        for name in self.groups:
            x = getattr(self, name)(x)
        return self.linear(F.relu(self.bn2(self.conv2(x))).mean(dim=(2, 3)))
