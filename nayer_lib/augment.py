"""Random crops and flips on the batch's device, differentiable.

One gather does a crop and a flip. Library transforms draw one crop for a whole batch, or leave the device.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def crop_and_flip(images: Tensor, padding: int, flip: bool, rng: torch.Generator) -> Tensor:
    """Shift each image by a whole number of pixels, up to `padding` a side, filled with zeros; mirror half of them.

    Args:
        images: (B, C, H, W) in [0, 1], or uint8 from the memory; zero is black in both, before any normalisation.
        padding: pixels; 4 for CIFAR, as in the released code.
        flip: mirror each image with probability 1/2.
        rng: on the images' device.

    Returns:
        (B, C, H, W); the gradient of each pixel goes back to the pixel it came from.
    """
    return take(images, draw_pixels(images.shape, padding, flip, rng, images.device), padding)


def draw_pixels(shape: torch.Size, padding: int, flip: bool, rng: torch.Generator, device: torch.device) -> Tensor:
    """The random part, for `take`: (B, H * W) the place in the padded image of each pixel of the crop."""
    batch, _, height, width = shape

    def offsets() -> Tensor:
        return torch.randint(2 * padding + 1, (batch, 1), generator=rng, device=device)

    rows = offsets() + torch.arange(height, device=device)
    columns = torch.arange(width, device=device).expand(batch, -1)
    if flip:
        mirrored = torch.rand(batch, 1, generator=rng, device=device) < 0.5
        columns = torch.where(mirrored, width - 1 - columns, columns)
    columns = offsets() + columns
    return (rows.unsqueeze(2) * (width + 2 * padding) + columns.unsqueeze(1)).flatten(1)


def take(images: Tensor, pixels: Tensor, padding: int) -> Tensor:
    """The crops that `draw_pixels` drew. `take` draws no random number, so a step that calls it can be captured."""
    padded = F.pad(images, [padding] * 4).flatten(2)
    return padded.gather(2, pixels.unsqueeze(1).expand(-1, images.shape[1], -1)).view_as(images)
