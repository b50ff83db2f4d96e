"""The VAE around G: its layers, what it draws, and that it can learn an image by heart."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nayer_lib.generator.networks import Generator
from nayer_lib.generator.vae import VAE


def vae(size=8, channels=1, width=8, r=6) -> VAE:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return VAE(Generator(r, size, channels, width), r, size, channels, width)


@pytest.mark.parametrize(
    ("size", "channels", "widths"),
    [(8, 1, [64, 128, 128]), (32, 3, [64, 128, 128]), (224, 3, [64, 128, 128, 128, 128])],
)
def test_its_encoder_halves_down_to_the_decoders_first_map(size, channels, widths):
    made = vae(size, channels, width=128, r=10)
    convolutions = [module for module in made.encoder if isinstance(module, nn.Conv2d)]
    assert [module.out_channels for module in convolutions] == widths
    assert made.encoder[-1].in_features == 128 * made.decoder.start**2 and made.encoder[-1].out_features == 20
    again, mean, log_var = made(torch.rand(2, channels, size, size), torch.zeros(2, 10))
    assert again.shape == (2, channels, size, size) and mean.shape == log_var.shape == (2, 10)
    assert again.min() >= 0 and again.max() <= 1


def test_what_is_decoded_is_the_mean_and_the_noise_at_its_standard_deviation():
    made, images, noise = vae().eval(), torch.rand(3, 1, 8, 8), torch.randn(3, 6)
    again, mean, log_var = made(images, noise)
    torch.testing.assert_close(again, made.decoder(mean + log_var.exp().sqrt() * noise))
    assert not torch.equal(again, made(images, -noise)[0])


def test_it_can_learn_images_by_heart():
    made = vae(width=32, r=16)
    images = F.interpolate(torch.rand(16, 1, 2, 2, generator=torch.Generator().manual_seed(0)), scale_factor=4)
    adam, told = torch.optim.Adam(made.parameters(), 0.01), []
    for _ in range(60):
        adam.zero_grad()
        told.append((made(images, torch.zeros(16, 16))[0] - images).abs().mean())
        told[-1].backward()
        adam.step()
    assert told[-1] < told[0] / 2
