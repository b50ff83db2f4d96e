"""Crop and flip: each image its own, equal to slicing a padded image, and differentiable."""

from collections import Counter
from itertools import product

import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nayer_lib.augment import crop_and_flip


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
