"""How rows lie, on tables small enough to be worked out by hand."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from nayer_lib.errors import UserError
from nayer_lib.generator.noisy_layer import NoisyLayer
from nayer_notebooks.geometry import (
    batch_normed,
    class_means,
    cosines,
    distances,
    neighbour_in_group,
    neighbours,
    off_diagonal,
    outlier_dimensions,
    rank_correlation,
    spread,
    tsne,
    weight_magnitude,
)

few = settings(max_examples=40, deadline=None, database=None)

CORNER = torch.tensor([[3.0, 4.0], [4.0, -3.0], [-6.0, -8.0]])  # lengths 5, 5, 10; a right angle, and back


@st.composite
def tables(draw, least: int = 2):
    """(K, e) rows of whole numbers, none of them zero."""
    width, values = draw(st.integers(2, 5)), st.integers(-9, 9)
    row = st.lists(values, min_size=width, max_size=width).filter(any)
    return torch.tensor(draw(st.lists(row, min_size=least, max_size=7)), dtype=torch.float32)


def test_cosines_and_distances_by_hand():
    assert torch.allclose(cosines(CORNER), torch.tensor([[1.0, 0, -1], [0, 1, 0], [-1, 0, 1]]), atol=1e-6)
    expected = torch.tensor([[0, 50**0.5, 15], [50**0.5, 0, 125**0.5], [15, 125**0.5, 0]])
    assert torch.allclose(distances(CORNER), expected)


@few
@given(tables(), st.floats(0.1, 10))
def test_cosines_do_not_ask_for_lengths_and_distances_grow_with_them(table, times):
    assert torch.allclose(cosines(times * table), cosines(table), atol=1e-5)
    assert torch.allclose(distances(times * table), times * distances(table), rtol=1e-4, atol=1e-5)
    assert torch.allclose(cosines(table).diag(), torch.ones(len(table)), atol=1e-5)
    assert distances(table).diag().eq(0).all()
    unit = table / table.norm(dim=1, keepdim=True)
    assert torch.allclose(distances(unit).square(), 2 - 2 * cosines(table), atol=1e-4)


def test_off_diagonal_is_every_pair_once():
    matrix = torch.arange(16).view(4, 4)
    assert off_diagonal(matrix + matrix.T).tolist() == [matrix[i, j] + matrix[j, i] for i, j in pairs(4)]
    assert off_diagonal(torch.tensor([[1, 7], [7, 1]])).tolist() == [7]


def pairs(classes: int):
    return list(itertools.combinations(range(classes), 2))


def test_spread_is_the_mean_over_pairs_in_five_readings():
    told = spread(CORNER)
    l2, unit = (50**0.5 + 15 + 125**0.5) / 3, (2**0.5 + 2 + 2**0.5) / 3
    expected = {"cosine": -1 / 3, "L2": l2, "RMS": l2 / 2**0.5, "unit L2": unit, "unit RMS": unit / 2**0.5}
    assert told == pytest.approx(expected, rel=1e-5)
    assert list(told) == list(expected)


def test_the_spread_of_equal_rows_is_none():
    told = spread(torch.full((4, 3), 2.0))
    assert told.pop("cosine") == pytest.approx(1) and set(told.values()) == {0}


@few
@given(tables())
def test_batch_normed_is_the_formula_of_batchnorm(table):
    """(e - mean) / sqrt(biased variance + 1e-5), over the classes."""
    mean, variance = table.mean(0), table.var(0, correction=0)
    assert torch.allclose(batch_normed(table), (table - mean) / (variance + 1e-5).sqrt(), atol=1e-4)


@few
@given(st.integers(2, 12), st.integers(1, 6), st.integers(0, 1000))
def test_after_batchnorm_the_mean_squared_distance_of_a_pair_is_known(classes, width, seed):
    """2 K / (K - 1) a dimension, whatever the encoder: what BN leaves of an encoder is not how far apart it lies."""
    table = 1e4 * torch.randn(classes, width, generator=torch.Generator().manual_seed(seed))
    squared = off_diagonal(distances(batch_normed(table)).square()).mean().item() / width
    assert squared == pytest.approx(2 * classes / (classes - 1), rel=1e-3)


def test_batch_normed_leaves_no_trace():
    """A fresh layer each time: the same rows, and no gradient."""
    assert torch.equal(batch_normed(CORNER), batch_normed(CORNER)) and not batch_normed(CORNER).requires_grad


def test_outlier_dimensions_hold_more_than_their_share_of_the_squared_length():
    """20 dimensions, an even share 1 / 20: two hold 25 / 59 and 16 / 59, the others 1 / 59."""
    table = torch.ones(3, 20)
    table[:, 4], table[:, 11] = torch.tensor([5.0, -5.0, 5.0]), 4.0
    whole = 18 + 25 + 16
    assert outlier_dimensions(table) == pytest.approx({4: 25 / whole, 11: 16 / whole})
    assert list(outlier_dimensions(table)) == [4, 11]  # the largest first
    assert list(outlier_dimensions(table, times=6)) == [4]  # 6 / 20 lies between 16 / 59 and 25 / 59
    assert outlier_dimensions(table, times=9) == {} == outlier_dimensions(torch.ones(3, 20))


@few
@given(tables(), st.floats(1, 5))
def test_outlier_dimensions_are_few_and_do_not_ask_for_the_scale(table, times):
    told = outlier_dimensions(table, times)
    assert len(told) * times <= table.shape[1] and sum(told.values()) <= 1 + 1e-5
    assert outlier_dimensions(2 * table, times) == pytest.approx(told)


def test_neighbours_are_the_rows_of_highest_cosine_without_oneself():
    angles = torch.tensor([0.0, 10.0, 30.0, 180.0]).deg2rad()
    table = torch.stack([angles.cos(), angles.sin()], 1) * torch.tensor([[1.0], [9.0], [0.1], [5.0]])
    assert neighbours(table).flatten().tolist() == [1, 0, 1, 2]
    assert neighbours(table, 3).tolist() == [[1, 2, 3], [0, 2, 3], [1, 0, 3], [2, 1, 0]]


@few
@given(tables(least=3))
def test_a_rows_neighbours_are_all_others_in_falling_order(table):
    told, matrix = neighbours(table, len(table) - 1), cosines(table)
    for k, row in enumerate(told.tolist()):
        assert sorted([k, *row]) == list(range(len(table)))
        assert all(matrix[k, a] >= matrix[k, b] for a, b in itertools.pairwise(row))


def test_neighbours_in_their_own_group_are_counted_and_so_is_chance():
    """Two groups of two and one of one: (1 + 1 + 1 + 1 + 0) / 4 for each of five rows."""
    angles = torch.tensor([0.0, 5.0, 90.0, 20.0, 180.0]).deg2rad()
    table = torch.stack([angles.cos(), angles.sin()], 1)
    assert neighbours(table).flatten().tolist() == [1, 0, 3, 1, 2]
    assert neighbour_in_group(table, ["a", "a", "b", "b", "c"]) == pytest.approx((3 / 5, 1 / 5))
    assert neighbour_in_group(table, ["a"] * 5) == (1, 1)
    assert neighbour_in_group(table, list("abcde")) == (0, 0)


def test_class_means_are_over_the_images_of_each_class():
    features = torch.tensor([[1.0, 0], [2, 2], [3, 4], [10, 20]])
    means = class_means(features, torch.tensor([1, 0, 1, 2]), 3)
    assert means.tolist() == [[2, 2], [2, 2], [10, 20]]


def test_a_class_without_an_image_has_no_mean():
    with pytest.raises(UserError, match="class 1 has no image: its mean is not defined"):
        class_means(torch.ones(2, 3), torch.tensor([0, 2]), 3)
    with pytest.raises(UserError, match="class 3 has no image"):
        class_means(torch.ones(3, 3), torch.tensor([0, 2, 1]), 4)


# --- rank correlation


def apart(*places: float) -> torch.Tensor:
    """Distances of points on a line."""
    return distances(torch.tensor(places).view(-1, 1))


@few
@given(st.integers(4, 8), st.integers(0, 1000))
def test_rho_is_spearmans_over_the_pairs(classes, seed):
    rng = torch.Generator().manual_seed(seed)
    one, other = (torch.randint(0, 9, (classes, classes), generator=rng).float() for _ in range(2))  # with ties
    one, other = one + one.T, other + other.T
    rho, p = rank_correlation(one, other, permutations=3)
    expected = spearmanr(off_diagonal(one), off_diagonal(other)).statistic
    assert rho == pytest.approx(expected) and p in (1 / 4, 2 / 4, 3 / 4, 1)


def test_a_monotone_transform_has_rho_1_and_the_smallest_p():
    torch.manual_seed(0)
    one = distances(torch.randn(10, 3))
    rho, p = rank_correlation(one, one.exp(), permutations=199)
    assert rho == pytest.approx(1) and p == 1 / 200
    rho, p = rank_correlation(one, -one, permutations=199)
    assert rho == pytest.approx(-1) and p == 1


def test_unrelated_distances_are_as_good_as_chance():
    torch.manual_seed(1)
    one, other = distances(torch.randn(12, 3)), distances(torch.randn(12, 3))
    assert rank_correlation(one, other, permutations=499)[1] > 0.05


def test_p_is_mantels_the_share_of_orders_of_the_classes_that_do_as_well():
    """All 24 orders of four classes, by hand; the pairs are not shuffled on their own: 720 orders would say less."""
    one, other = apart(0.0, 1.0, 3.0, 7.0), apart(0.0, 2.0, 3.0, 9.0) + apart(0.0, 0.5, 0.1, 0.2)
    second = off_diagonal(other)
    rhos = [
        spearmanr(off_diagonal(one[list(order)][:, list(order)]), second).statistic
        for order in itertools.permutations(range(4))
    ]
    exact = sum(value >= rhos[0] - 1e-12 for value in rhos) / 24
    rho, p = rank_correlation(one, other, permutations=1999)
    assert rho == pytest.approx(rhos[0]) and 1 / 24 <= exact < 1
    assert p == pytest.approx(exact, abs=4 * (exact * (1 - exact) / 1999) ** 0.5 + 1 / 2000)


def test_p_is_fixed_by_its_seed_and_leaves_the_global_one_alone():
    one, other = apart(0.0, 1.0, 3.0, 7.0, 8.0), apart(2.0, 1.0, 3.0, 5.0, 0.0)
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    told = [rank_correlation(one, other, permutations=99, seed=seed) for seed in (5, 5, 6)]
    assert torch.equal(torch.rand(2), expected)
    assert told[0] == told[1] and told[0][0] == told[2][0] and told[0][1] != told[2][1]


def test_tsne_keeps_near_what_is_near_and_is_the_same_each_time():
    rows = torch.cat([torch.randn(6, 4, generator=torch.Generator().manual_seed(0)) + shift for shift in (0.0, 50.0)])
    points = tsne(rows, perplexity=3)
    assert points.shape == (12, 2) and torch.equal(points, tsne(rows, perplexity=3))
    nearest = torch.cdist(points, points).fill_diagonal_(float("inf")).argmin(1)
    assert torch.equal(nearest // 6, torch.arange(12) // 6)


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
