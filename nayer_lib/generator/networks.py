"""The generator G: from a latent to an image (Eq. 4; Tables 6 and 7).

Two layouts (docs/divergences.md, D1): `released` is what the authors' code builds, `paper` is Tables 6 and 7 in their
order, with the last two layers swapped (BatchNorm, then Sigmoid) so that images stay in [0, 1]. Spectral norm on every
convolution is a separate switch (D2). Table 6 serves images up to 64 px, Table 7 larger ones.
"""

from itertools import pairwise

from torch import Tensor, nn

from ..errors import UserError, unknown

LAYOUTS = ("released", "paper")


class Generator(nn.Module):
    """G: (B, r) -> (B, channels, size, size) in [0, 1].

    Args:
        noise_dim: r, 1000 in the paper.
        size: image side in pixels; a multiple of 4 up to 64 (Table 6), of 16 above (Table 7).
        channels: 1 or 3.
        width: channels of the first feature map, 128 in Tables 6 and 7; the last ones have half of it.
        layout: "released" or "paper".
        spectral_norm: on every convolution.

    Raises:
        UserError: a size, channel count, width or layout that is not possible.
    """

    def __init__(
        self,
        noise_dim: int,
        size: int,
        channels: int,
        width: int = 128,
        layout: str = "released",
        spectral_norm: bool = False,
    ):
        super().__init__()
        if layout not in LAYOUTS:
            raise unknown("generator layout", layout, LAYOUTS)
        if channels not in (1, 3):
            raise UserError(f"the generator makes images of 1 or 3 channels, not {channels}.")
        if width < 2 or width % 2:
            raise UserError(f"the generator's width must be an even number of channels, not {width}.")
        large = size > 64
        shrink = 16 if large else 4  # four or two doublings on the way to the image
        if size < shrink or size % shrink:
            raise UserError(
                f"the generator cannot make {size} px images: the side must be a multiple of 4 up to 64 px "
                "(Table 6), or of 16 above (Table 7). Resize the images."
            )

        def conv(width_in: int, width_out: int, bias: bool = False) -> nn.Module:
            module = nn.Conv2d(width_in, width_out, 3, padding=1, bias=bias)
            return nn.utils.parametrizations.spectral_norm(module) if spectral_norm else module

        half = width // 2
        self.start = start = size // shrink  # side of the first feature map
        widths = {
            ("released", False): [width, width, half],
            ("released", True): [width, width, width, half, half, half],
            ("paper", False): [width, width, half],
            ("paper", True): [width, width, width, half, half],
        }[layout, large]

        layers: list[nn.Module] = [nn.Linear(noise_dim, width * start**2)]
        if layout == "paper":
            layers.append(nn.BatchNorm1d(width * start**2))
        layers.append(nn.Unflatten(1, (width, start, start)))
        if layout == "released" and not large:
            layers.append(nn.BatchNorm2d(width))
        # Table 6 as released doubles before every block; the others start with a block at the smallest size.
        doubles_first = layout == "released" and not large
        for i, (width_in, width_out) in enumerate(pairwise(widths)):
            if i > 0 or doubles_first:
                layers.append(nn.Upsample(scale_factor=2))
            layers += [conv(width_in, width_out), nn.BatchNorm2d(width_out), nn.LeakyReLU(0.2)]
        if layout == "paper":
            layers += [nn.Upsample(scale_factor=2), conv(widths[-1], channels), nn.BatchNorm2d(channels), nn.Sigmoid()]
        else:
            layers += [conv(widths[-1], channels, bias=True), nn.Sigmoid()]
        self.layers = nn.Sequential(*layers)

    def forward(self, latent: Tensor) -> Tensor:
        """(B, r) -> (B, channels, size, size), each value in [0, 1]."""
        return self.decode(latent, 0)

    def decode(self, maps: Tensor, layer: int) -> Tensor:
        """The images (B, channels, size, size) from the input `maps` of layer number `layer`."""
        before = self.layers[layer:-1](maps)
        return self.layers[-1](before.float())  # the Sigmoid, in 32 bits: bfloat16 has too few values in [0.5, 1]
