"""A generator that runs through a teacher's layers backwards, its maps of the same shapes as the teacher's (CPNet)."""

from itertools import pairwise

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
