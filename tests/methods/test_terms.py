"""The terms of the other methods' losses, each against its formula by hand."""

import math

import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_losses import S, T, assert_same_with_gradients, few, gradients, logits
from torch.nn import functional

from nayer_lib.losses import kl_per_image
from nayer_lib.methods.terms import (
    activation,
    attention_transfer,
    from_standard_normal,
    info_nce,
    information_entropy,
    jensen_shannon,
    logit_distance,
    posterior_divergence,
    total_variation,
)


@given(logits(), st.sampled_from([1.0, 3.0]))
@few
def test_jensen_shannon_is_the_mean_over_images_of_clamped_probabilities(drawn, temperature):
    t, s, _ = drawn
    plain = reference.jensen_shannon(t, s, temperature)
    assert_same_with_gradients(jensen_shannon(t, s, temperature), plain, t, s)


def test_jensen_shannon_by_hand():
    """p = (1/4, 3/4) and q = (1/2, 1/2), so m = (3/8, 5/8); the logits of p are tripled, for T = 3."""
    kl_p = 0.25 * math.log(2 / 3) + 0.75 * math.log(6 / 5)
    kl_q = 0.5 * math.log(4 / 3) + 0.5 * math.log(4 / 5)
    assert jensen_shannon(3 * T, S).item() == pytest.approx((kl_p + kl_q) / 2, rel=1e-5)
    assert jensen_shannon(T, S, 1).item() == pytest.approx((kl_p + kl_q) / 2, rel=1e-5)


@given(logits())
@few
def test_jensen_shannon_is_symmetric_zero_for_equal_logits_and_at_most_ln_2(drawn):
    t, s, _ = drawn
    js = jensen_shannon(t, s)
    torch.testing.assert_close(js, jensen_shannon(s, t))
    assert -1e-12 < js <= math.log(2) and abs(jensen_shannon(t, t + 3)) < 1e-12


def test_jensen_shannon_has_no_gradient_where_both_are_sure_of_different_classes():
    """p = (1, 0) and q = (0, 1) count as (0.99, 0.01) and the other way round."""
    t, s = (torch.tensor([row], requires_grad=True) for row in ([50.0, 0.0], [0.0, 50.0]))
    js = jensen_shannon(t, s)
    assert js.item() == pytest.approx(0.99 * math.log(0.99 / 0.5) + 0.01 * math.log(0.01 / 0.5))
    assert not any(gradient.any() for gradient in gradients(js, t, s))


def test_the_js_term_moves_teacher_and_student_apart():
    t, s = torch.randn(4, 5, requires_grad=True), torch.randn(4, 5, requires_grad=True)
    step = [-0.1 * gradient for gradient in gradients(1 - jensen_shannon(t, s), t, s)]
    assert all(each.abs().sum(1).min() > 0 for each in step)
    assert jensen_shannon(t + step[0], s + step[1]) > jensen_shannon(t, s)


def test_total_variation_by_hand():
    """Two images of two by two; each of the four norms is over both."""
    x = torch.tensor([[[[1.0, 3.0], [6.0, 10.0]]], [[[0.0, 0.0], [0.0, 1.0]]]], requires_grad=True)
    down = math.sqrt(5**2 + 7**2 + 0**2 + 1**2)
    right = math.sqrt(2**2 + 4**2 + 0**2 + 1**2)
    falling, rising = math.sqrt(9**2 + 1**2), math.sqrt(3**2 + 0**2)
    assert total_variation(x).item() == pytest.approx(down + right + falling + rising)
    assert gradients(total_variation(x), x)[0].any()


def test_a_grey_image_has_no_variation_and_a_finite_gradient():
    x = torch.full((2, 3, 4, 4), 0.3, requires_grad=True)
    assert total_variation(x) == 0 and not gradients(total_variation(x), x)[0].any()


@given(logits())
@few
def test_information_entropy_is_minus_the_entropy_of_the_mean_prediction(drawn):
    t, _, _ = drawn
    mean = torch.stack([reference.log_softmax(row).exp() for row in t]).sum(0) / len(t)
    assert_same_with_gradients(information_entropy(t), sum(p * p.log() for p in mean), t)


@given(logits())
@few
def test_information_entropy_is_lowest_for_balanced_predictions(drawn):
    t, _, _ = drawn
    classes = t.shape[1]
    lowest = information_entropy(50.0 * torch.eye(classes)).item()  # each class once, and surely
    assert lowest == pytest.approx(-math.log(classes))
    assert lowest - 1e-6 <= information_entropy(t) <= 1e-12


def test_information_entropy_is_0_for_a_single_class_and_finite_where_a_probability_rounds_to_zero():
    t = torch.tensor([[300.0, 0.0, 0.0]]).repeat(4, 1).requires_grad_()
    value = information_entropy(t)
    assert value == 0 and gradients(value, t)[0].isfinite().all()


def test_activation_is_minus_the_mean_size_of_a_feature():
    features = torch.tensor([[1.0, -2.0], [0.0, 5.0]])
    assert activation(features) == -2


def test_attention_transfer_by_hand():
    """Two channels against one, on 1x2 maps: attention (3, 4) / 5 and (1, 1) / sqrt 2; a stage adds the mean square."""
    t = torch.tensor([[[[math.sqrt(6), 0.0]], [[0.0, math.sqrt(8)]]]])  # channel means of squares: 3 and 4
    s = torch.tensor([[[[1.0, -1.0]]]])
    stage = ((0.6 - math.sqrt(0.5)) ** 2 + (0.8 - math.sqrt(0.5)) ** 2) / 2
    assert attention_transfer([t], [s]).item() == pytest.approx(stage, rel=1e-5)
    assert attention_transfer([t, s], [s, s]).item() == pytest.approx(stage, rel=1e-5)  # equal maps add nothing
    assert attention_transfer([t, t], [s, s]).item() == pytest.approx(2 * stage, rel=1e-5)


def test_attention_transfer_sees_neither_scale_nor_sign_nor_number_of_channels():
    t = torch.randn(3, 4, 5, 5)
    assert attention_transfer([t], [-3 * t.repeat(1, 2, 1, 1)]).item() == pytest.approx(0, abs=1e-12)
    assert attention_transfer([t], [t.flip(0)]) > 1e-4  # image by image


def test_attention_transfer_needs_as_many_stages():
    with pytest.raises(ValueError, match="zip"):
        attention_transfer([torch.ones(1, 1, 2, 2)] * 2, [torch.ones(1, 1, 2, 2)])


def test_the_distance_of_logits_by_hand_and_its_gradient_where_a_kl_has_none():
    t, s = torch.tensor([[100.0, 0.0], [0.0, 50.0]]), torch.tensor([[90.0, 0.0], [4.0, 50.0]], requires_grad=True)
    assert logit_distance(t, s) == (10 + 0 + 4 + 0) / 4
    assert gradients(logit_distance(t, s), s)[0].tolist() == [[-0.25, 0], [0.25, 0]]
    assert gradients(kl_per_image(t, s).mean(), s)[0].abs().max() < 1e-12  # both are sure of the same


def test_from_standard_normal_by_hand():
    """Columns of mean 2 and variance 2, and of mean 0 and variance 8: (1 + 4 + 49 + 0) / 2."""
    assert from_standard_normal(torch.tensor([[1.0, -2.0], [3.0, 2.0]])).item() == pytest.approx(27)
    z = torch.randn(20_000, 3, generator=torch.Generator().manual_seed(0))
    assert from_standard_normal(z) < 1e-3 < from_standard_normal(z + 0.1)


def test_posterior_divergence_is_kl_to_the_standard_normal():
    mean, log_var = torch.randn(2, 5, 4, dtype=torch.float64)
    ours = torch.distributions.Normal(mean, (log_var / 2).exp())
    plain = torch.distributions.kl_divergence(ours, torch.distributions.Normal(0.0, 1.0)).sum(1).mean()
    torch.testing.assert_close(posterior_divergence(mean, log_var), plain)
    assert posterior_divergence(torch.zeros(3, 2), torch.zeros(3, 2)) == 0


def directions(seed, count=5, width=7):
    rng = torch.Generator().manual_seed(seed)
    return functional.normalize(torch.randn(count, width, generator=rng, dtype=torch.float64)).requires_grad_()


@pytest.mark.parametrize("temperature", [0.1, 1.0])
@pytest.mark.parametrize("count", [1, 5])
def test_info_nce_is_the_formula_written_out(count, temperature):
    query, key = directions(0, count), directions(1, count)
    plain = []
    for i in range(count):
        scores = [(query[i] * key[j].detach()).sum().div(temperature).exp() for j in range(count)]
        plain.append(-(scores[i] / sum(scores)).log())
    weights = torch.arange(1.0, count + 1, dtype=torch.float64)
    ours = info_nce(query, key, temperature)
    assert ours.shape == (count,)
    torch.testing.assert_close(ours, torch.stack(plain))
    assert_same_with_gradients((ours * weights).sum(), (torch.stack(plain) * weights).sum(), query)


def test_info_nce_by_hand():
    """Two queries and two orthogonal keys: e / (e + 1) when each finds its own, 1 / (e + 1) when they are swapped."""
    same = torch.eye(2)
    assert info_nce(same, same, 1.0).tolist() == pytest.approx([math.log(1 + 1 / math.e)] * 2)
    assert info_nce(same, same.flip(0), 1.0).tolist() == pytest.approx([math.log(1 + math.e)] * 2)
    assert info_nce(same, same, 0.1).tolist() == pytest.approx([math.log(1 + math.exp(-10))] * 2, rel=1e-3)
    alike = torch.ones(4, 1)
    assert info_nce(alike, alike, 0.3).tolist() == pytest.approx([math.log(4)] * 4)


def test_info_nce_moves_the_queries_and_not_the_keys():
    query, key = directions(0), directions(1)
    to_query, to_key = gradients(info_nce(query, key, 0.5).sum(), query, key)
    assert to_query.any() and not to_key.any()
