"""VGG with BatchNorm for small images: VGG-11 in the form of RepDistiller, VGG-19 with its three linear layers."""

import torch.nn.functional as F
from torch import Tensor, nn

from .resnet import init_convs


def conv_bn(in_channels: int, out_channels: int) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    """A 3x3 convolution and its BatchNorm; the convolution keeps a bias, as the published checkpoints have it."""
    return nn.Conv2d(in_channels, out_channels, 3, padding=1), nn.BatchNorm2d(out_channels)


class VGG11(nn.Module):
    """Eight convolutions in five blocks, then global average pooling and one linear head, `classifier`.

    The first three blocks end in a 2x2 max-pool; the fourth does only for images of 64 px height, so that 32
    and 64 px images both reach the last block at 4x4. The last ReLU of each block is in `forward`.
    Shapes: (B, channels, H, W) normalised images, H and W at least 8 -> (B, num_classes) logits.
    Source: Simonyan & Zisserman 2015, table 1 (A), as cut down for CIFAR by Tian et al. 2020, "Contrastive
    representation distillation" (RepDistiller).
    """

    def __init__(self, num_classes: int, channels: int = 3):
        super().__init__()
        self.block0 = nn.Sequential(*conv_bn(channels, 64))
        self.block1 = nn.Sequential(*conv_bn(64, 128))
        self.block2 = nn.Sequential(*conv_bn(128, 256), nn.ReLU(), *conv_bn(256, 256))
        self.block3 = nn.Sequential(*conv_bn(256, 512), nn.ReLU(), *conv_bn(512, 512))
        self.block4 = nn.Sequential(*conv_bn(512, 512), nn.ReLU(), *conv_bn(512, 512))
        self.classifier = nn.Linear(512, num_classes)
        init_convs(self)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, x: Tensor) -> Tensor:
        height = x.shape[2]
        for block in (self.block0, self.block1, self.block2):
            x = F.max_pool2d(F.relu(block(x)), 2)
        x = F.relu(self.block3(x))
        if height == 64:
            x = F.max_pool2d(x, 2)
        return self.classifier(F.relu(self.block4(x)).mean(dim=(2, 3)))


VGG19_BLOCKS = ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4))  # width, convolutions
HIDDEN = 4096


class VGG19(nn.Module):
    """Sixteen convolutions in five blocks, each ending in a 2x2 max-pool, the mean over places, three linear layers.

    At 32 px the last map has one place, so that the mean is the map. The head is the last linear layer, `classifier`;
    what it reads are 4,096 numbers without places.
    Shapes: (B, channels, H, W) normalised images, H and W at least 32 -> (B, num_classes) logits.
    Source: Simonyan & Zisserman 2015, table 1 (E), cut down for CIFAR; BatchNorm as in Liu et al. 2021, "Zero-shot
    adversarial quantization" (ZAQ).
    """

    def __init__(self, num_classes: int, channels: int = 3):
        super().__init__()
        self.blocks = [f"block{i}" for i in range(len(VGG19_BLOCKS))]
        width = channels
        for name, (out, count) in zip(self.blocks, VGG19_BLOCKS, strict=True):
            convs = []
            for _ in range(count):
                convs += [*conv_bn(width, out), nn.ReLU()]
                width = out
            self.add_module(name, nn.Sequential(*convs, nn.MaxPool2d(2)))
        self.hidden = nn.Sequential(nn.Linear(width, HIDDEN), nn.ReLU(), nn.Dropout(), nn.Linear(HIDDEN, HIDDEN))
        self.dropout = nn.Dropout()
        self.classifier = nn.Linear(HIDDEN, num_classes)
        init_convs(self)

    def forward(self, x: Tensor) -> Tensor:
        for name in self.blocks:
            x = getattr(self, name)(x)
        return self.classifier(self.dropout(F.relu(self.hidden(x.mean(dim=(2, 3))))))
