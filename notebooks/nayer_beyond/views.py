"""Colour jitter and boxes (CutMix): CPNet's views, on the batch's device, differentiable."""

import math

import torch
from torch import Tensor


def draw_jitter(batch: int, rate: float, rng: torch.Generator, device: torch.device) -> Tensor:
    """The random part of a colour jitter, for `jitter`: (B, 4, 1, 1, 1) brightness, contrast, saturation, angle of hue.

    With probability `rate` an image has three factors uniform in [0.9, 1.1] and an angle of up to a tenth of a turn
    either way; else factors 1 and angle 0.
    """
    moves = 0.1 * (2 * torch.rand(4, batch, generator=rng, device=device) - 1)
    moves *= torch.rand(batch, generator=rng, device=device) < rate
    return torch.cat([1 + moves[:3], 2 * math.pi * moves[3:]]).T.reshape(batch, 4, 1, 1, 1)


def jitter(images: Tensor, moves: Tensor) -> Tensor:
    """Images (B, C, H, W) in [0, 1] with the moves that `draw_jitter` drew, in [0, 1].

    Contrast is the distance from the image's mean, saturation that from a pixel's mean over channels, and hue turns
    around the grey axis; images of one channel have brightness and contrast alone.
    """
    brightness, contrast, saturation, angle = moves.unbind(1)
    images = (images * brightness).clamp(0, 1)
    mean = images.mean((1, 2, 3), keepdim=True)
    images = (mean + contrast * (images - mean)).clamp(0, 1)
    if images.shape[1] == 1:
        return images
    grey = images.mean(1, keepdim=True)
    colour = images - grey
    turned = angle.cos() * colour + angle.sin() * (colour.roll(1, 1) - colour.roll(-1, 1)) / math.sqrt(3)
    return (grey + saturation * turned).clamp(0, 1)


def draw_box(size: int, rate: float, rng: torch.Generator, device: torch.device) -> Tensor:
    """(H, W) bool: with probability `rate` a square of an area uniform in [0, 1] of the image's around a uniform place,
    cut off at its edges (CutMix, Yun et al. 2019); else nothing."""
    happens, area, *centre = torch.rand(4, generator=rng, device=device)
    places = (torch.arange(size, device=device) + 0.5) / size
    rows, columns = ((places - middle).abs() < area.sqrt() / 2 for middle in centre)
    return (happens < rate) & rows[:, None] & columns
