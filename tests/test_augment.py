"""Crop and flip: each image its own, equal to slicing a padded image, and differentiable. Windows: inside the image,
as large as asked for, and equal to an interpolation written out."""

from collections import Counter
from itertools import product

import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nayer_lib.augment import crop_and_flip, draw_windows, enlarge


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def possible(padding, flip):
    """Every (row, column, mirrored) that a crop may have."""
    return list(product(range(2 * padding + 1), range(2 * padding + 1), (False, True) if flip else (False,)))


def places(images, augmented, padding, flip):
    """Which crop each image became, by comparing with all of them; each must be one, and only one."""
    found = []
    for image, result in zip(images, augmented, strict=True):
        matching = [
            (row, column, mirrored)
            for row, column, mirrored in possible(padding, flip)
            if torch.equal(result, reference.crop_and_flip([image], padding, [row], [column], [mirrored])[0])
        ]
        assert len(matching) == 1
        found += matching
    return found


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("padding", [1, 2])
def test_every_image_is_a_slice_of_its_padded_self_and_every_slice_occurs(padding, flip):
    """No two crops of a random image are equal, so the places are known; in 600 images each of them comes up."""
    images = torch.rand(600, 1, 3, 4, generator=seeded()) + 0.01
    found = places(images, crop_and_flip(images, padding, flip, seeded(1)), padding, flip)
    assert set(found) == set(possible(padding, flip))


@given(
    shape=st.tuples(st.integers(1, 4), st.sampled_from([1, 3]), st.integers(2, 6), st.integers(2, 6)),
    padding=st.integers(0, 3),
    flip=st.booleans(),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=25, deadline=None)
def test_any_shape(shape, padding, flip, seed):
    images = torch.rand(shape, generator=seeded(seed))
    augmented = crop_and_flip(images, padding, flip, seeded(seed))
    assert augmented.shape == images.shape and augmented.dtype == images.dtype
    for image, result in zip(images, augmented, strict=True):
        assert any(
            torch.equal(result, reference.crop_and_flip([image], padding, [row], [column], [mirrored])[0])
            for row, column, mirrored in possible(padding, flip)
        )


def test_each_image_has_a_crop_of_its_own():
    """All 81 places of CIFAR's padding, drawn evenly, rows and columns apart from each other."""
    images = torch.zeros(4000, 1, 9, 9)
    images[:, :, 4, 4] = 1  # with padding 4 the one bright pixel never leaves
    augmented = crop_and_flip(images, 4, False, seeded())
    at = Counter(augmented.flatten(1).argmax(1).tolist())
    assert len(at) == 81 and all(20 < count < 90 for count in at.values())  # 49 on average


def test_each_image_is_mirrored_or_not_by_itself_half_of_them():
    images = torch.tensor([0.0, 1.0]).expand(4000, 1, 1, 2)
    mirrored = crop_and_flip(images, 0, True, seeded())[:, 0, 0, 0] == 1
    assert abs(mirrored.float().mean().item() - 0.5) < 4 * 0.5 / 4000**0.5


def test_bytes_are_moved_as_numbers_in_0_1_are():
    """The student's images come out of the memory as bytes and are cropped before they become numbers."""
    stored = torch.randint(256, (20, 3, 6, 5), generator=seeded(), dtype=torch.uint8)
    cropped = crop_and_flip(stored, 2, True, seeded(1))
    assert cropped.dtype == torch.uint8
    assert torch.equal(cropped.float() / 255, crop_and_flip(stored.float() / 255, 2, True, seeded(1)))


def test_all_channels_of_an_image_move_together():
    grey = torch.rand(50, 1, 5, 5, generator=seeded())
    augmented = crop_and_flip(grey.expand(-1, 3, -1, -1), 2, True, seeded(1))
    assert torch.equal(augmented[:, 0], augmented[:, 1]) and torch.equal(augmented[:, 0], augmented[:, 2])


def test_what_comes_in_is_black():
    augmented = crop_and_flip(torch.ones(200, 1, 4, 4), 2, True, seeded())
    assert set(augmented.unique().tolist()) == {0.0, 1.0}
    # A shift by (r, c) leaves (4 - |r|) (4 - |c|) white pixels.
    assert set(augmented.sum((1, 2, 3)).tolist()) == {4.0, 6.0, 8.0, 9.0, 12.0, 16.0}


def test_without_padding_and_flip_nothing_happens():
    images = torch.rand(5, 3, 4, 4)
    assert torch.equal(crop_and_flip(images, 0, False, seeded()), images)


def test_without_flip_nothing_is_mirrored():
    """A mirrored 2 is no 2."""
    images = torch.rand(100, 1, 3, 3, generator=seeded()) + 0.01
    augmented = crop_and_flip(images, 1, False, seeded(1))
    assert not any(mirrored for _, _, mirrored in places(images, augmented, 1, True))


def test_the_gradient_goes_back_to_the_pixel_it_came_from():
    images = (torch.rand(20, 3, 4, 5, generator=seeded()) + 0.01).requires_grad_()
    augmented = crop_and_flip(images, 2, True, seeded(1))
    upstream = torch.rand(augmented.shape, generator=seeded(2))
    (ours,) = torch.autograd.grad((augmented * upstream).sum(), images)
    rows, columns, mirrored = zip(*places(images, augmented, 2, True), strict=True)
    plain = reference.crop_and_flip(images, 2, rows, columns, mirrored)
    (expected,) = torch.autograd.grad((plain * upstream).sum(), images)
    assert torch.equal(ours, expected)
    assert (ours == 0).any()  # pixels that were cut off


def test_the_images_given_are_left_alone():
    images = torch.rand(5, 1, 4, 4)
    before = images.clone()
    crop_and_flip(images, 1, True, seeded())
    assert torch.equal(images, before)


def test_the_same_generator_gives_the_same_crops():
    images = torch.rand(30, 1, 4, 4)

    def augmented(seed):
        torch.manual_seed(seed + 1)  # the global seed has no say
        return crop_and_flip(images, 2, True, seeded(seed))

    assert torch.equal(augmented(3), augmented(3))
    assert not torch.equal(augmented(3), augmented(4))
    rng = seeded(3)
    assert not torch.equal(crop_and_flip(images, 2, True, rng), crop_and_flip(images, 2, True, rng))


# --- windows of an image, enlarged


def windows_of(count, smallest=0.25, flip=True, seed=0):
    """(width, height, across, down) of each: sides as shares of the image's, signed; centres from -1 to 1."""
    drawn = draw_windows(count, smallest, flip, seeded(seed), torch.device("cpu"))
    assert drawn.shape == (count, 2, 3) and not drawn[:, 0, 1].any() and not drawn[:, 1, 0].any()
    return drawn[:, 0, 0], drawn[:, 1, 1], drawn[:, 0, 2], drawn[:, 1, 2]


@pytest.mark.parametrize("smallest", [0.25, 0.6])
def test_a_window_lies_in_the_image_and_has_the_area_and_the_shape_asked_for(smallest):
    width, height, across, down = windows_of(4000, smallest, flip=False)
    area, ratio = width * height, width / height
    assert area.min() >= smallest and area.max() <= 1 and area.min() < smallest + 0.01
    assert ratio.min() >= 3 / 4 - 1e-6 and ratio.max() <= 4 / 3 + 1e-6
    assert (across.abs() + width).max() <= 1 + 1e-6 and (down.abs() + height).max() <= 1 + 1e-6


def test_windows_are_drawn_evenly():
    width, height, across, down = windows_of(8000, flip=False)
    whole = width * height < 0.7  # never cut at the image's border
    area, ratio = (width * height)[whole], (width / height)[whole]
    assert area.mean().item() == pytest.approx((0.25 + 0.7) / 2, abs=0.01)
    assert (ratio > 1).float().mean().item() == pytest.approx(0.5, abs=0.03)
    for place, side in ((across, width), (down, height)):
        free = (place / (1 - side))[side < 0.9]
        assert free.min() < -0.99 and free.max() > 0.99 and abs(free.mean()) < 0.03
    assert abs(torch.corrcoef(torch.stack([across, down]))[0, 1]) < 0.04


def test_half_of_the_windows_are_mirrored_where_that_is_allowed():
    width, height, _, _ = windows_of(4000)
    assert abs((width < 0).float().mean().item() - 0.5) < 0.04 and height.min() > 0
    assert windows_of(4000, flip=False)[0].min() > 0
    assert torch.equal(width.abs(), windows_of(4000, flip=False)[0])


def test_the_whole_image_as_its_own_window_is_the_image():
    images = torch.rand(3, 2, 5, 6, generator=seeded())
    whole = torch.eye(2, 3).expand(3, -1, -1)
    torch.testing.assert_close(enlarge(images, whole), images, rtol=0, atol=1e-5)
    mirrored = whole * torch.tensor([[[-1.0], [1.0]]])
    torch.testing.assert_close(enlarge(images, mirrored), images.flip(-1), rtol=0, atol=1e-5)


def test_a_window_of_whole_pixels_is_enlarged_as_libraries_do():
    images = torch.rand(1, 3, 8, 8, generator=seeded())
    quarter = torch.tensor([[[0.5, 0.0, 0.25], [0.0, 0.5, -0.5]]])  # columns 3 to 6, rows 0 to 3
    inner = enlarge(images, quarter)[:, :, 1:-1, 1:-1]  # at its border it sees the pixels beside the window, too
    plain = torch.nn.functional.interpolate(images[:, :, 0:4, 3:7], scale_factor=2, mode="bilinear")
    torch.testing.assert_close(inner, plain[:, :, 1:-1, 1:-1], rtol=0, atol=1e-5)


def test_every_pixel_of_a_window_is_a_mixture_of_four_of_the_image():
    """Written out for one pixel after the other."""
    images = torch.rand(6, 1, 5, 7, generator=seeded(), dtype=torch.float64)
    drawn = draw_windows(6, 0.25, True, seeded(1), torch.device("cpu")).double()
    got = enlarge(images, drawn)
    for b, row, column in product(range(6), range(5), range(7)):
        x = drawn[b, 0, 0] * ((2 * column + 1) / 7 - 1) + drawn[b, 0, 2]
        y = drawn[b, 1, 1] * ((2 * row + 1) / 5 - 1) + drawn[b, 1, 2]
        at_x, at_y = ((x + 1) * 7 - 1) / 2, ((y + 1) * 5 - 1) / 2  # in pixels
        at_x, at_y = min(max(at_x.item(), 0), 6), min(max(at_y.item(), 0), 4)
        expected = sum(
            images[b, 0, i, j] * max(0, 1 - abs(at_y - i)) * max(0, 1 - abs(at_x - j))
            for i, j in product(range(5), range(7))
        )
        assert got[b, 0, row, column].item() == pytest.approx(expected.item(), abs=1e-9)


def test_a_window_brings_nothing_in_from_outside():
    grey = torch.full((200, 3, 6, 6), 0.4)
    torch.testing.assert_close(enlarge(grey, draw_windows(200, 0.25, True, seeded(), grey.device)), grey)


def test_the_gradient_of_a_window_goes_back_to_its_image_alone():
    images = torch.rand(4, 1, 6, 6, generator=seeded()).requires_grad_()
    seen = enlarge(images, draw_windows(4, 0.25, True, seeded(1), images.device))
    (gradient,) = torch.autograd.grad(seen[2].sum(), images)
    assert gradient[2].sum().item() == pytest.approx(36, rel=1e-5)  # each pixel seen is a mixture of weight 1
    assert not gradient[[0, 1, 3]].any()


def test_windows_come_from_their_generator_alone():
    def drawn(seed):
        torch.manual_seed(seed + 1)
        return draw_windows(9, 0.25, True, seeded(seed), torch.device("cpu"))

    assert torch.equal(drawn(3), drawn(3)) and not torch.equal(drawn(3), drawn(4))
