"""CPNet's generator, which runs through a teacher's layers backwards, its maps of the same shapes as the teacher's, and
the parts of L_X and L_align."""

from itertools import pairwise

import torch
from torch import Tensor, nn


class CoupledGenerator(nn.Module):
    """G: (B, r) -> (B, channels, size, size) in [0, 1], through maps of the given shapes (channels, side).

    Attributes:
        blocks: they give x_1 .. x_n.
    """

    def __init__(self, noise_dim: int, shapes: list[tuple[int, int]], channels: int, size: int):
        super().__init__()
        width, side = shapes[0]
        start = [nn.Linear(noise_dim, width * side**2), nn.Unflatten(1, (width, side, side)), nn.BatchNorm2d(width)]
        self.blocks = nn.ModuleList([nn.Sequential(*start)])
        for (width_in, before), (width, side) in pairwise(shapes):
            convolution = nn.Conv2d(width_in, width, 3, padding=1, bias=False)
            block = [nn.Upsample(scale_factor=side // before), convolution, nn.BatchNorm2d(width), nn.LeakyReLU(0.2)]
            self.blocks.append(nn.Sequential(*block))
        self.end = nn.Sequential(nn.Upsample(scale_factor=size // side), nn.Conv2d(width, channels, 3, padding=1))

    def forward(self, latent: Tensor) -> Tensor:
        """The images; the Sigmoid in 32 bits, as in `Generator`."""
        for block in self.blocks:
            latent = block(latent)
        return self.end(latent).float().sigmoid()


def recoloured(f: Tensor, var: Tensor, mean: Tensor, norm: nn.Module) -> Tensor:
    """f (B, C, H, W) with a BatchNorm layer's running statistics in place of var and mean (C,), without gradient."""
    var, mean, to_var, to_mean = (x.view(-1, 1, 1) for x in (var, mean, norm.running_var, norm.running_mean))
    return ((f.float() - mean) * ((to_var + 1e-5) / (var + 1e-5)).sqrt() + to_mean).detach()


def head_inverse(weight: Tensor) -> Tensor:
    """W+ (K, d): the pseudo-inverse of the transposed head W (K, d), singular values of at least 0.1."""
    u, singular, v = torch.linalg.svd(weight, full_matrices=False)
    return u / singular.clamp(min=0.1) @ v
