"""Random crops and flips, enlarged random windows, colour jitter and boxes, on the batch's device, differentiable.

One gather does a crop and a flip, one interpolation a window. Library transforms draw one crop for a whole batch, or
leave the device.
"""

import math

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


def draw_windows(batch: int, smallest: float, flip: bool, rng: torch.Generator, device: torch.device) -> Tensor:
    """The random part of a random resized crop, for `enlarge`: (B, 2, 3), one affine map an image.

    A window's share of the image's area is uniform in [smallest, 1], its width over its height log-uniform in
    [3/4, 4/3] and its place uniform; windows are cut off at the image's edges. With `flip` half of the windows are
    mirrored. The map takes (x, y, 1), with x and y from -1 to 1 over the crop, to the place in the image.
    """
    area, ratio, across, down = torch.rand(4, batch, generator=rng, device=device)
    area = smallest + (1 - smallest) * area
    ratio = (3 / 4) * (16 / 9) ** ratio
    width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    windows = torch.zeros(batch, 2, 3, device=device)
    windows[:, 0, 0], windows[:, 0, 2] = width, (1 - width) * (2 * across - 1)
    windows[:, 1, 1], windows[:, 1, 2] = height, (1 - height) * (2 * down - 1)
    if flip:
        windows[:, 0, 0] *= torch.where(torch.rand(batch, generator=rng, device=device) < 0.5, -1, 1)
    return windows


def enlarge(images: Tensor, windows: Tensor) -> Tensor:
    """The windows that `draw_windows` drew, each enlarged to the image's size, (B, C, H, W); bilinear."""
    grid = F.affine_grid(windows, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


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
