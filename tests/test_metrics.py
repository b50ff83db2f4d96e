"""Convergence, diversity and weight magnitude, on cases small enough to be worked out by hand."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nayer_lib.errors import UserError
from nayer_lib.generator.noisy_layer import NoisyLayer
from nayer_lib.metrics import (
    Convergence,
    Diversity,
    convergence,
    diversity,
    weight_magnitude,
)

few = settings(max_examples=40, deadline=None, database=None)

# --- convergence


@pytest.mark.parametrize(
    ("rounds", "success", "mean", "restricted"),
    [
        ([[0.05, 0.5]], 1, 1, 1),  # before any update
        ([[2.0, 0.5, 0.09]], 1, 3, 3),
        ([[2.0, 0.05, 3.0, 0.01]], 1, 2, 2),  # the first time counts
        ([[2.0, 1.0, 0.05], [0.01, 1.0, 1.0], [2.0, 2.0, 2.0], [9.0, 0.0, 0.0]], 3 / 4, 2, (3 + 1 + 4 + 2) / 4),
        ([[1.0], [0.05, 1.0]], 1 / 2, 1, (2 + 1) / 2),  # each round by its own number of steps
    ],
    ids=["at step 1", "at the last step", "for a while", "mixed", "rounds of two lengths"],
)
def test_convergence_is_the_first_step_below_the_threshold(rounds, success, mean, restricted):
    assert convergence(rounds) == Convergence(success, mean, restricted)


def test_rounds_that_never_reach_it_have_no_mean_and_count_one_step_more_than_they_have():
    told = convergence([[1.0, 0.5, 0.2], [0.3] * 3])
    assert (told.success, told.restricted) == (0, 4) and math.isnan(told.mean)


def test_the_threshold_itself_is_not_below_it():
    rounds = [[0.1, 0.5, 0.25]]
    assert convergence(rounds).success == 0
    assert convergence(rounds, threshold=0.5) == Convergence(1, 1, 1)
    assert convergence(rounds, threshold=0.1000001) == Convergence(1, 1, 1)


def test_no_round_at_all_is_refused():
    with pytest.raises(UserError, match="at least one synthesis round"):
        convergence([])


@few
@given(st.lists(st.lists(st.floats(0, 3), min_size=5, max_size=5), min_size=1, max_size=6), st.floats(0.01, 3))
def test_convergence_is_bounded_and_a_higher_threshold_is_reached_no_later(rounds, threshold):
    told, easier = convergence(rounds, threshold), convergence(rounds, 2 * threshold)
    assert 0 <= told.success <= easier.success <= 1
    assert 1 <= easier.restricted <= told.restricted <= 6
    assert math.isnan(told.mean) if told.success == 0 else 1 <= told.mean <= 5


# --- diversity


def grey(*values: float) -> torch.Tensor:
    """Images of two by two pixels, each of one grey."""
    return torch.tensor(values).view(-1, 1, 1, 1).expand(-1, 1, 2, 2)


def measure(values, labels, rounds, **options) -> Diversity:
    return diversity(grey(*values), torch.tensor(labels), torch.tensor(rounds), **options)


def close(told: Diversity, within: float, across: float) -> bool:
    return told.within == pytest.approx(within, nan_ok=True) and told.across == pytest.approx(across, nan_ok=True)


def test_black_and_white_are_1_apart_and_equal_images_0():
    assert close(measure([0.0, 1.0], [0, 0], [0, 0]), 1, math.nan)
    assert close(measure([0.0, 1.0], [0, 0], [0, 1]), math.nan, 1)
    assert measure([0.3, 0.3, 0.3], [0, 0, 0], [0, 0, 1]) == Diversity(0, 0)


def test_the_distance_is_the_root_mean_square_over_pixels_and_channels():
    images = torch.zeros(2, 3, 2, 2)
    images[1, 0, 0, 0], images[1, 2, 1, 1] = 0.6, 0.8
    told = diversity(images, torch.zeros(2), torch.zeros(2))
    assert told.within == pytest.approx(math.sqrt((0.6**2 + 0.8**2) / 12))


def test_within_is_between_images_of_a_round_and_across_between_rounds():
    """Class 0: greys 0, 0.2 in round 0 and 1 in round 1: one pair within, two across."""
    assert close(measure([0.0, 0.2, 1.0], [0, 0, 0], [0, 0, 1]), 0.2, (1 + 0.8) / 2)


def test_every_class_counts_alike_however_many_pairs_it_has():
    values, labels = [0.0, 0.3, 0.6, 0.0, 0.1], [0, 0, 0, 1, 1]  # pairs of class 0: 0.3, 0.3, 0.6
    assert close(measure(values, labels, [0] * 5), (0.4 + 0.1) / 2, math.nan)


def test_a_class_without_a_pair_is_left_out():
    assert close(measure([0.0, 0.4, 0.9], [0, 0, 1], [0, 0, 0]), 0.4, math.nan)
    assert close(measure([0.0, 0.4, 0.9], [0, 1, 2], [0, 0, 1]), math.nan, math.nan)


def test_images_of_different_classes_are_never_compared():
    assert measure([0.0, 1.0, 0.0, 1.0], [0, 1, 0, 1], [0, 0, 1, 0]) == Diversity(0, 0)


def test_only_the_newest_images_of_each_class_count():
    """The memory has the oldest first."""
    values, labels = [0.0, 0.5, 0.5, 0.9, 0.6, 0.6], [0, 0, 1, 0, 1, 1]
    assert close(measure(values, labels, [0] * 6, per_class=2), (0.4 + 0.0) / 2, math.nan)
    assert close(measure(values, labels, [0] * 6, per_class=1), math.nan, math.nan)


def test_bytes_are_measured_as_their_share_of_255():
    bytes_ = torch.randint(0, 256, (12, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels, rounds = torch.arange(12) % 2, torch.arange(12) // 4
    assert diversity(bytes_, labels, rounds) == diversity(bytes_.float() / 255, labels, rounds)


greys = st.lists(st.tuples(st.floats(0, 1, width=32), st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=12)


@few
@given(greys, st.randoms(use_true_random=False))
def test_diversity_lies_in_0_to_1_and_does_not_ask_for_an_order(rows, random):
    """So long as `per_class` leaves no image out."""
    told = measure(*zip(*rows, strict=True))
    assert all(math.isnan(value) or 0 <= value <= 1 + 1e-6 for value in (told.within, told.across))
    random.shuffle(rows)
    again = measure(*zip(*rows, strict=True))
    assert close(again, told.within, told.across)


# --- weight magnitude


def test_weight_magnitude_is_the_mean_absolute_weight_of_each_part():
    layer = NoisyLayer(2, 3, 4, 2, concat_dim=1)
    layer.weight.data = torch.tensor([[[1.0, -1, 1], [-2, 2, 2], [5, -5, 5]], [[3.0, 3, 3], [-4, 4, -4], [0, 0, 6]]])
    assert weight_magnitude(layer) == ((1 + 2 + 3 + 4) / 4, (15 + 6) / 6)


def test_fresh_weights_have_the_magnitude_of_a_standard_normal():
    torch.manual_seed(0)
    told = weight_magnitude(NoisyLayer(100, 200, 4, 4, concat_dim=100))
    assert told == pytest.approx((math.sqrt(2 / math.pi),) * 2, abs=0.02)


def test_a_layer_without_concatenated_noise_is_refused():
    with pytest.raises(UserError, match="reads no concatenated noise: take a 'cat' latent"):
        weight_magnitude(NoisyLayer(2, 3, 4, 2))
