"""Colour jitter by hand, and boxes of all sizes and places."""

import math

import pytest
import torch

from nayer_beyond.views import draw_box, draw_jitter, jitter


def test_jitter_moves_its_share_of_the_images_within_a_tenth():
    moves = draw_jitter(4000, 0.4, torch.Generator().manual_seed(0), torch.device("cpu")).flatten(1)
    still = (moves == torch.tensor([1.0, 1.0, 1.0, 0.0])).all(1)
    assert still.float().mean() == pytest.approx(0.6, abs=0.03)
    assert (moves[:, :3] - 1).abs().max() <= 0.1001 and moves[:, 3].abs().max() <= 0.2 * math.pi + 1e-4
    assert (moves[~still].std(0) > 0.05).all()


def moved(brightness=1.0, contrast=1.0, saturation=1.0, angle=0.0) -> torch.Tensor:
    return torch.tensor([brightness, contrast, saturation, angle]).view(1, 4, 1, 1, 1)


def test_jitter_by_hand():
    pixels = torch.tensor([[0.2, 0.4], [0.5, 0.3], [0.6, 0.1]]).view(1, 3, 1, 2)
    torch.testing.assert_close(jitter(pixels, moved()), pixels)
    torch.testing.assert_close(jitter(pixels, moved(brightness=1.1)), 1.1 * pixels)
    torch.testing.assert_close(jitter(pixels, moved(contrast=0.9)), 0.35 + 0.9 * (pixels - 0.35))
    grey = pixels.mean(1, keepdim=True)
    torch.testing.assert_close(jitter(pixels, moved(saturation=1.1)), grey + 1.1 * (pixels - grey))
    third = jitter(pixels, moved(angle=2 * math.pi / 3))  # red to green, green to blue, blue to red
    torch.testing.assert_close(third, pixels.roll(1, 1))
    ink = pixels[:, :1]
    torch.testing.assert_close(jitter(ink, moved(1.1, 1.0, 0.9, 1.0)), 1.1 * ink)  # one channel has no colour


def test_jitter_stays_in_0_to_1_and_has_a_gradient():
    images = torch.rand(200, 3, 4, 4, generator=torch.Generator().manual_seed(0)).round(decimals=1).requires_grad_()
    moves = draw_jitter(200, 1.0, torch.Generator().manual_seed(1), torch.device("cpu"))
    seen = jitter(images, moves)
    assert seen.min() >= 0 and seen.max() <= 1
    seen.sum().backward()
    assert images.grad.abs().sum() > 0


def test_a_box_comes_as_often_as_asked_in_all_sizes_and_places():
    rng, device = torch.Generator().manual_seed(0), torch.device("cpu")
    boxes = torch.stack([draw_box(8, 0.5, rng, device) for _ in range(1000)])
    shares = boxes.flatten(1).float().mean(1)
    assert (shares > 0).float().mean() == pytest.approx(0.49, abs=0.05)
    assert shares.max() > 0.8 and (boxes.float().mean(0) > 0.05).all()
    rows, columns = boxes.any(2), boxes.any(1)
    assert torch.equal(boxes, rows[:, :, None] & columns[:, None, :])  # rectangles
    assert not torch.stack([draw_box(8, 0.0, rng, device) for _ in range(50)]).any()
