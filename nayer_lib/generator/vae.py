"""A variational autoencoder around the generator: PREKD's memory of earlier images (Binici et al. 2022).

The encoder has three convolutions, as the authors' (3-64-128-128 channels at full width), each with a BatchNorm and a
LeakyReLU behind it; the second and the third halve the image. The authors' encoder (kuluhan/PRE-DFKD) scales each
column of pixels to length 1 first, drops every other pixel behind the second and the third convolution, of which the
third also halves, so that 4 px are left of 32 (here 8), and has no LeakyReLU behind the third. Images above 64 px are
halved twice more here, to the size from which the decoder starts.
"""

from torch import Tensor, nn

from .networks import Generator


class VAE(nn.Module):
    """Images to z and back.

    Args:
        decoder: z (B, r) -> images (B, channels, size, size) in [0, 1].
        noise_dim: r.
        size, channels: of an image.
        width: channels of the smallest feature map, even.
    """

    def __init__(self, decoder: Generator, noise_dim: int, size: int, channels: int, width: int):
        super().__init__()

        def block(width_in: int, width_out: int, stride: int) -> list[nn.Module]:
            conv = nn.Conv2d(width_in, width_out, 3, stride, padding=1, bias=False)
            return [conv, nn.BatchNorm2d(width_out), nn.LeakyReLU(0.2)]

        layers = block(channels, width // 2, stride=1)
        width_in = width // 2
        while size > decoder.start:
            layers += block(width_in, width, stride=2)
            width_in, size = width, size // 2
        self.encoder = nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * size**2, 2 * noise_dim))
        self.decoder = decoder

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Encode, draw z = mean + sd * noise, decode.

        Args:
            images: (B, C, H, W) in [0, 1].
            noise: (B, r), standard normal.

        Returns:
            The images again (B, C, H, W), and mean and log-variance (B, r) of the posterior of z.
        """
        mean, log_var = self.encoder(images).float().chunk(2, 1)
        return self.decoder(mean + (log_var / 2).exp() * noise), mean, log_var
