"""Random crops and flips, and enlarged random windows, on the batch's device, differentiable.

One gather does a crop and a flip, one interpolation a window. Library transforms draw one crop for a whole batch, or
leave the device.
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
