"""The terms of Eq. 5 and Eq. 6 against the plain reference, and what the paper says of their signs and gradients."""

import copy
import math

import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nayer_lib.classifiers.teacher import Classifier, make_classifier
from nayer_lib.errors import UserError
from nayer_lib.generator.latents import build_latent
from nayer_lib.generator.networks import Generator
from nayer_lib.losses import (
    BatchNormLoss,
    activation,
    adversarial,
    adversarial_js,
    attention_transfer,
    classification,
    distillation,
    from_standard_normal,
    info_nce,
    information_entropy,
    jensen_shannon,
    kl_per_image,
    logit_distance,
    posterior_divergence,
    statistics,
    total_variation,
)

few = settings(max_examples=25, deadline=None)


@st.composite
def logits(draw):
    """t and s (B, K) with gradients, and labels y (B,); from flat to very peaked."""
    rng = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    shape = draw(st.integers(1, 6)), draw(st.integers(2, 7))
    scale = draw(st.sampled_from([0.1, 1.0, 10.0]))
    t, s = ((scale * torch.randn(shape, generator=rng, dtype=torch.float64)).requires_grad_() for _ in range(2))
    return t, s, torch.randint(shape[1], shape[:1], generator=rng)


def gradients(loss, *inputs):
    return torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True)


def assert_same_with_gradients(ours, plain, *inputs):
    torch.testing.assert_close(ours, plain)
    for mine, theirs in zip(gradients(ours, *inputs), gradients(plain, *inputs), strict=True):
        torch.testing.assert_close(mine, theirs)


# Two classes, worked by hand: softmax(t) = (1/4, 3/4) and softmax(s) = (1/2, 1/2).
T, S = torch.tensor([[0.0, math.log(3)]]), torch.zeros(1, 2)
KL = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)


# --- L_CE


@given(logits())
@few
def test_classification_is_the_mean_cross_entropy_with_the_pseudo_labels(drawn):
    t, _, y = drawn
    assert_same_with_gradients(classification(t, y), reference.classification(t, y), t)


def test_classification_by_hand():
    assert classification(T, torch.tensor([1])).item() == pytest.approx(-math.log(3 / 4))
    assert classification(torch.zeros(4, 10), torch.arange(4)).item() == pytest.approx(math.log(10))


# --- KL


@given(logits())
@few
def test_kl_per_image_is_one_divergence_an_image_and_never_negative(drawn):
    t, s, _ = drawn
    plain = torch.stack([reference.kl_divergence(*rows) for rows in zip(t, s, strict=True)])
    torch.testing.assert_close(kl_per_image(t, s), plain)
    assert (kl_per_image(t, s) > -1e-12).all()


def test_kl_by_hand_with_the_teacher_first():
    assert kl_per_image(T, S).tolist() == pytest.approx([KL])
    assert kl_per_image(S, T).tolist() == pytest.approx([math.log(2 / math.sqrt(3))])  # not symmetric


def test_kl_is_finite_where_a_probability_rounds_to_zero():
    t = torch.tensor([[200.0, 0.0], [0.0, 200.0]])
    assert kl_per_image(t, t.flip(0)).tolist() == [200, 200] and kl_per_image(t, t).tolist() == [0, 0]


# --- -L_KL of Eq. 5


@pytest.mark.parametrize("mask", [False, True])
@given(logits())
@few
def test_adversarial_is_minus_the_mean_kl(mask, drawn):
    t, s, _ = drawn
    plain = reference.adversarial(t, s, mask) + 0 * (t.sum() + s.sum())  # no image may be left to count
    assert_same_with_gradients(adversarial(t, s, mask), plain, t, s)


@pytest.mark.parametrize("mask", [False, True])
@given(logits())
@few
def test_adversarial_is_never_positive_and_zero_for_equal_logits(mask, drawn):
    t, s, _ = drawn
    assert adversarial(t, s, mask) <= 1e-12
    assert abs(adversarial(t, t + 3, mask)) < 1e-12  # softmax does not see the 3


def test_adversarial_rewards_a_teacher_and_a_student_that_disagree():
    near, far = torch.tensor([[0.1, 0.0]]), torch.tensor([[5.0, 0.0]])
    assert adversarial(T, far, mask=False) < adversarial(T, near, mask=False) < 0


def test_the_mask_counts_agreeing_images_only_and_divides_by_all():
    """D7: three images of which one agrees, so a third of its divergence."""
    t, s = T.repeat(3, 1), torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 3.0]])
    agreeing = reference.kl_divergence(t[2], s[2])
    assert adversarial(t, s, mask=True).item() == pytest.approx(-agreeing.item() / 3)
    assert adversarial(t, s, mask=False) < adversarial(t, s, mask=True)


def test_the_mask_stops_the_gradient_of_disagreeing_images():
    t, s = T.repeat(2, 1).requires_grad_(), torch.tensor([[1.0, 0.0], [0.0, 1.0]], requires_grad=True)
    for gradient in gradients(adversarial(t, s, mask=True), t, s):
        assert not gradient[0].any() and gradient[1].all()


def test_the_adversarial_gradient_flows_through_teacher_and_student():
    """Neither side is detached: the generator moves both predictions apart."""
    t, s = torch.randn(4, 5, requires_grad=True), torch.randn(4, 5, requires_grad=True)
    for gradient in gradients(adversarial(t, s, mask=False), t, s):
        assert gradient.abs().sum(1).min() > 0


# --- 1 - JS


@given(logits(), st.sampled_from([1.0, 3.0]))
@few
def test_jensen_shannon_is_the_mean_over_images_of_clamped_probabilities(drawn, temperature):
    t, s, _ = drawn
    plain = reference.jensen_shannon(t, s, temperature)
    assert_same_with_gradients(jensen_shannon(t, s, temperature), plain, t, s)
    assert adversarial_js(t, s).item() == pytest.approx(1 - reference.jensen_shannon(t, s, 3).item())


def test_jensen_shannon_by_hand():
    """p = (1/4, 3/4) and q = (1/2, 1/2), so m = (3/8, 5/8); the logits of p are tripled, for T = 3."""
    kl_p = 0.25 * math.log(2 / 3) + 0.75 * math.log(6 / 5)
    kl_q = 0.5 * math.log(4 / 3) + 0.5 * math.log(4 / 5)
    assert jensen_shannon(3 * T, S).item() == pytest.approx((kl_p + kl_q) / 2, rel=1e-5)
    assert adversarial_js(3 * T, S).item() == pytest.approx(1 - (kl_p + kl_q) / 2)
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
    step = [-0.1 * gradient for gradient in gradients(adversarial_js(t, s), t, s)]
    assert all(each.abs().sum(1).min() > 0 for each in step)
    assert jensen_shannon(t + step[0], s + step[1]) > jensen_shannon(t, s)


# --- L_TV


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


# --- L_IE and L_act of DAFL


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


# --- attention transfer


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


# --- L_S, Eq. 6


@given(logits(), st.sampled_from([1.0, 4.0, 20.0]))
@few
def test_distillation_is_equation_6(drawn, temperature):
    t, s, _ = drawn
    plain = reference.distillation(t, s, temperature)
    assert_same_with_gradients(distillation(t, s, temperature), plain, t, s)


def test_distillation_by_hand():
    assert distillation(T, S, 1).item() == pytest.approx(KL)
    assert distillation(20 * T, S, 20).item() == pytest.approx(400 * KL)


@given(logits(), st.sampled_from([1.0, 4.0, 20.0]))
@few
def test_the_students_gradient_is_t_times_q_minus_p(drawn, temperature):
    """d/ds of T^2 KL(p || q) is T (q - p), for each of B images."""
    t, s, _ = drawn
    p, q = (torch.stack([reference.log_softmax(row / temperature).exp() for row in x]) for x in (t, s))
    (gradient,) = gradients(distillation(t, s, temperature), s)
    torch.testing.assert_close(gradient, temperature * (q - p) / len(s))


def test_t_squared_keeps_the_size_of_the_gradient():
    t, s = torch.randn(4, 10, dtype=torch.float64), torch.randn(4, 10, dtype=torch.float64, requires_grad=True)
    hot, hotter = (gradients(distillation(t, s, temperature), s)[0] for temperature in (1e3, 1e4))
    torch.testing.assert_close(hot, hotter, rtol=1e-2, atol=1e-4)
    assert hot.norm() > 0.05


# --- the distance of the logits


def test_the_distance_of_logits_by_hand_and_its_gradient_where_a_kl_has_none():
    t, s = torch.tensor([[100.0, 0.0], [0.0, 50.0]]), torch.tensor([[90.0, 0.0], [4.0, 50.0]], requires_grad=True)
    assert logit_distance(t, s) == (10 + 0 + 4 + 0) / 4
    assert gradients(logit_distance(t, s), s)[0].tolist() == [[-0.25, 0], [0.25, 0]]
    assert gradients(kl_per_image(t, s).mean(), s)[0].abs().max() < 1e-12  # both are sure of the same


# --- the terms of a VAE and of what is replayed


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


# --- InfoNCE


def directions(seed, count=5, width=7):
    rng = torch.Generator().manual_seed(seed)
    return nn.functional.normalize(torch.randn(count, width, generator=rng, dtype=torch.float64)).requires_grad_()


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


# --- L_BN


def small_teacher(seed=0):
    """A frozen teacher of two BatchNorm layers with statistics of their own."""
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 3),
    )
    teacher = Classifier(net, ("a", "b", "c"), (0.4,), (0.3,))
    with torch.no_grad():
        for layer in teacher.batch_norms():
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
    return teacher.freeze()


def wide_resnet():
    return make_classifier("wrn10_half", "abc", (0.4,), (0.3,), seed=0).freeze()


def same_memory(ours, theirs):
    """Whether two memories hold the same numbers, layer by layer."""
    return all(torch.equal(torch.stack(a), torch.stack(b)) for a, b in zip(ours, theirs, strict=True))


def batches(count):
    rng = torch.Generator().manual_seed(1)
    return [torch.rand(5, 1, 6, 6, generator=rng, requires_grad=True) for _ in range(count)]


def hooks(teacher):
    return [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in teacher.modules()]


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("build", [small_teacher, wide_resnet])
def test_batchnorm_loss_equals_the_reference_over_rounds(momentum, build):
    """Three rounds of two steps: no memory in the first, then (1 - m) of the batch; updated from the last step."""
    teacher, twin = build(), build()
    loss, plain = BatchNormLoss(teacher, momentum), reference.BatchNormTerm(twin.batch_norms(), momentum)
    for first, last in zip(batches(6)[::2], batches(6)[1::2], strict=True):
        with loss.armed():
            for images in (first, last):
                teacher(images)
                _, seen = reference.run_and_record(twin, twin.batch_norms(), images)
                assert_same_with_gradients(loss(), plain(seen), images)
            loss.end_round()
        plain.end_round(seen)


def test_without_momentum_every_round_is_like_the_first():
    """The paper's text has no momentum (D8)."""
    teacher, (images, other) = small_teacher(), batches(2)
    loss = BatchNormLoss(teacher, 0)
    values = []
    for batch in (images, other, images):
        with loss.armed():
            teacher(batch)
            values.append(loss().item())
            loss.end_round()
    assert values[0] == values[2] != values[1] and not loss.state_dict()["memory"]


def test_the_memory_is_a_copy_first_and_a_moving_average_then():
    teacher, rounds = small_teacher(), batches(3)
    loss, expected = BatchNormLoss(teacher, 0.9), None
    for number, images in enumerate(rounds):
        with loss.armed():
            teacher(images)
            loss.end_round()
        normalised = (images - 0.4) / 0.3
        maps = teacher.net[0](normalised)  # what the first BatchNorm sees
        new = torch.stack([maps.var((0, 2, 3), unbiased=False), maps.mean((0, 2, 3))]).detach()
        expected = new if number == 0 else 0.9 * expected + 0.1 * new
        torch.testing.assert_close(torch.stack(loss.memory[0]), expected)
    assert len(loss.memory) == 2 and not any(x.requires_grad for pair in loss.memory for x in pair)


def test_momentum_makes_the_gradient_one_minus_m_of_what_it_was():
    """The same batch again: v' = v, so only the batch's share (1 - m) is between the two gradients (D8)."""
    teacher, (images,) = small_teacher(), batches(1)
    loss, found = BatchNormLoss(teacher, 0.9), []
    for _ in range(2):
        with loss.armed():
            teacher(images)
            value = loss()
            found.append((value.item(), *gradients(value, images)))
            loss.end_round()
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    torch.testing.assert_close(found[1][1], 0.1 * found[0][1], rtol=1e-3, atol=1e-7)


def test_batches_like_the_running_statistics_cost_nothing():
    """And the norm's corner at zero gives no NaN."""
    teacher, (images,) = small_teacher(), batches(1)
    _, seen = reference.run_and_record(teacher, teacher.batch_norms(), images)
    with torch.no_grad():
        teacher.batch_norms()[0].running_mean.copy_(seen[0].mean((0, 2, 3)))
        teacher.batch_norms()[0].running_var.copy_(seen[0].var((0, 2, 3), unbiased=False))
    loss = BatchNormLoss(teacher, 0)
    loss.layers = loss.layers[:1]
    with loss.armed():
        teacher(images)
        value = loss()
    assert value.item() < 1e-5 and gradients(value, images)[0].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_statistics_of_16_bits_are_those_of_the_same_numbers_in_32_with_their_gradient(dtype):
    """A mean of many deviations among the maps too."""
    means = torch.tensor([0.0, 1.0, 5.0, 20.0]).view(4, 1, 1)
    given = (torch.randn(6, 4, 5, 5, generator=torch.Generator().manual_seed(0)) + means).to(dtype)
    found = []
    for maps in (given.clone().requires_grad_(), given.float().requires_grad_()):
        var, mean = statistics(maps)
        (var.square().sum() + mean.square().sum()).backward()
        assert var.dtype == mean.dtype == torch.float32
        found.append((var, mean, maps.grad.float()))
    for half, full, tolerance in zip(*found, (1e-3, 1e-5, 2e-2), strict=True):
        torch.testing.assert_close(half, full, rtol=tolerance, atol=tolerance * full.detach().abs().max().item())


def test_a_step_keeps_no_graph_of_what_was_seen():
    teacher, (images,) = small_teacher(), batches(1)
    loss = BatchNormLoss(teacher, 0.9)
    with loss.armed():
        teacher(images)
        loss()
        loss.settle()
        assert not loss._batch and not any(x.requires_grad for pair in loss.last for x in pair)


def test_the_memory_changes_in_place_and_comes_back_on_the_teachers_device():
    """On "meta", which has no numbers, as a GPU: what a file gives is on the CPU."""
    teacher, (images,) = small_teacher(), batches(1)
    loss = BatchNormLoss(teacher, 0.9)
    places = [x.data_ptr() for pair in loss.memory for x in pair]
    with loss.armed():
        teacher(images)
        loss.end_round()
    assert places == [x.data_ptr() for pair in loss.memory for x in pair]
    far = BatchNormLoss(copy.deepcopy(teacher).to("meta"), 0.9)
    far.load_state_dict(loss.state_dict())
    assert {x.device.type for pair in far.state_dict()["memory"] for x in pair} == {"meta"}


def test_the_teacher_is_hooked_only_inside_the_block():
    teacher, (images,) = small_teacher(), batches(1)
    loss, none = BatchNormLoss(teacher, 0.9), hooks(teacher)
    assert sum(none) == 0
    for _ in range(3):
        with loss.armed():
            assert sum(hooks(teacher)) == len(teacher.batch_norms()) == 2
            teacher(images)
        assert hooks(teacher) == none
    with pytest.raises(ZeroDivisionError), loss.armed():
        raise ZeroDivisionError
    assert hooks(teacher) == none


def test_what_the_teacher_sees_outside_the_block_does_not_count():
    teacher, (images, other) = small_teacher(), batches(2)
    loss = BatchNormLoss(teacher, 0.9)
    with loss.armed():
        teacher(images)
        loss.end_round()
    memory = copy.deepcopy(loss.memory)
    teacher(other)
    assert same_memory(loss.memory, memory)


def test_the_teacher_is_left_as_it_was():
    """No BatchNorm buffer moves and no weight collects a gradient."""
    teacher, (images,) = small_teacher(), batches(1)
    before = copy.deepcopy(teacher.state_dict())
    loss = BatchNormLoss(teacher, 0.9)
    with loss.armed():
        teacher(images)
        loss().backward()
        loss.end_round()
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())
    assert all(p.grad is None for p in teacher.parameters()) and images.grad.any()


def test_a_teacher_can_be_copied_after_use():
    teacher, (images,) = small_teacher(), batches(1)
    loss = BatchNormLoss(teacher, 0.9)
    with loss.armed():
        teacher(images)
        loss().backward()
        loss.end_round()
    assert torch.equal(copy.deepcopy(teacher)(images), teacher(images))


def test_a_teacher_without_batchnorm_is_told_how_to_go_on():
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    with pytest.raises(UserError, match="no BatchNorm2d layer for L_BN .*: set alpha_bn=0 to drop the term"):
        BatchNormLoss(Classifier(net, ("a", "b", "c"), (0.5,), (0.5,)), 0.9)


def test_a_resumed_loss_goes_on_as_if_it_had_never_stopped():
    teacher, (first, second) = small_teacher(), batches(2)
    loss = BatchNormLoss(teacher, 0.9)
    with loss.armed():
        teacher(first)
        loss.end_round()
    resumed = BatchNormLoss(teacher, 0.9)
    resumed.load_state_dict(copy.deepcopy(loss.state_dict()))
    values = []
    for each in (loss, resumed):
        with each.armed():
            teacher(second)
            values.append(each().item())
            each.end_round()
    assert values[0] == values[1] and same_memory(loss.memory, resumed.memory)


# --- Eq. 5 as a whole


def test_freezing_teacher_and_student_changes_no_bit_of_the_generators_gradient():
    """The released code computes their weight gradients too, and never uses them."""

    def generator_gradients(frozen):
        torch.manual_seed(0)
        generator = nn.Sequential(build_latent("noisy", torch.randn(3, 8), 10, 6), Generator(10, 8, 1, width=4))
        teacher = small_teacher()
        student = make_classifier("wrn10_half", "abc", (0.4,), (0.3,), 1).eval()
        for classifier in (teacher, student):
            classifier.requires_grad_(not frozen)
        y, bn = torch.arange(6) % 3, BatchNormLoss(teacher, 0.9)
        with bn.armed():
            images = generator(y)
            t, s = teacher(images), student(images)
            (0.5 * classification(t, y) + 10 * bn() + 1.33 * adversarial(t, s, mask=False)).backward()
        assert all((p.grad is None) == frozen for net in (teacher, student) for p in net.parameters())
        return [p.grad for p in generator.parameters()]

    for with_frozen, without in zip(generator_gradients(True), generator_gradients(False), strict=True):
        assert torch.equal(with_frozen, without) and with_frozen.any()
