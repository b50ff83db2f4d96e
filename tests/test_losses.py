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
    adversarial,
    classification,
    distillation,
    kl_per_image,
    statistics,
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
    return make_classifier("wrn10_half", tuple("abc"), (0.4,), (0.3,), seed=0).freeze()


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
    with pytest.raises(UserError, match="no BatchNorm layer for L_BN .*: set alpha_bn=0 to drop the term"):
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
        student = make_classifier("wrn10_half", tuple("abc"), (0.4,), (0.3,), 1).eval()
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
