"""DeepInversion: pixels that are optimised themselves, their jitter, and the five terms."""

import dataclasses

import pytest
import reference
import torch
from test_ranks import connected, whole_run
from tiny import same, tiny_setup

from nayer_lib.compute import Compute
from nayer_lib.config import make_config
from nayer_lib.methods.deepinv import DeepInversion

WARMUP, AFTER = 0, 1  # the tiny config has one warm-up epoch
WEIGHTS = {"alpha_cls": 0.5, "alpha_bn": 3.0, "alpha_adv": 2.0, "alpha_tv": 0.1, "alpha_l2": 0.01}


def tiny(compute: Compute | None = None, **overrides) -> DeepInversion:
    method = tiny_setup(method="deepinv", **overrides).method
    if compute:
        return DeepInversion(method.teacher, method.student, method.config, compute=compute)
    return method


def watch_starts(method: DeepInversion) -> list[torch.Tensor]:
    """The normalised pixels that each round from now on starts from."""
    seen, redraw = [], method.generator.redraw

    def spy(rng):
        redraw(rng)
        seen.append(method.generator.x.detach().clone())

    method.generator.redraw = spy
    return seen


def watch_inputs(module: torch.nn.Module) -> list[torch.Tensor]:
    seen = []
    module.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].detach().clone()))
    return seen


def objective(method: DeepInversion, view=None) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss and its terms on fresh pixels, against the student."""
    method.begin_round()
    method.student.eval()
    with method.bn_loss.armed():
        return method._objective(method.pseudo_labels(), view, True)[:2]


# --- pixels


def test_a_round_starts_from_standard_normal_pixels_in_the_teachers_space():
    method = tiny(generator_batch=200, generator_steps=1, augment_synthesis=False)
    starts, seen = watch_starts(method), watch_inputs(method.teacher.net)
    method.synthesize(WARMUP)
    method.synthesize(WARMUP)
    for start, normalised in zip(starts, seen, strict=True):
        assert abs(start.mean()) < 0.03 and abs(start.std() - 1) < 0.03
        torch.testing.assert_close(normalised, start, atol=1e-6, rtol=1e-5)
    assert not torch.equal(*starts)


def test_labels_are_balanced():
    method = tiny()
    method.synthesize(WARMUP)
    assert method.memory.labels.tolist() == [*range(10), *range(10)]


def test_every_round_has_a_fresh_adam_in_the_normalised_space():
    """Adam's first step is as long as its rate, whatever the gradient."""
    method = tiny(generator_steps=1, generator_lr=0.25)
    starts = watch_starts(method)
    for _ in range(3):
        method.synthesize(WARMUP)
        moved = (method.generator.x - starts[-1]).abs()
        torch.testing.assert_close(moved, torch.full_like(moved, 0.25), rtol=0.01, atol=0)
    method.begin_round()
    (optimizer,) = method.optimizers
    assert optimizer.defaults["betas"] == (0.5, 0.99)
    assert not any(moment.any() for state in optimizer.state.values() for moment in state.values())


def test_each_term_moves_each_image():
    method = tiny()
    _, terms = objective(method)
    for term, value in zip(method.terms, terms, strict=True):
        (gradient,) = torch.autograd.grad(value, method.generator.x, retain_graph=True)
        assert (gradient.abs().amax((1, 2, 3)) > 0).all(), term


def test_what_lies_outside_the_range_of_images_is_cut_by_the_memory_alone():
    method = tiny(generator_steps=1, augment_synthesis=False)
    starts, seen = watch_starts(method), watch_inputs(method.teacher)
    method.synthesize(WARMUP)
    assert seen[0].min() < 0 and seen[0].max() > 1
    images = starts[0] * method.generator.std + method.generator.mean
    assert torch.equal(method.memory.images, (images.clamp(0, 1) * 255).byte())
    assert {0, 255} <= set(method.memory.images.flatten().tolist())


# --- the jitter


def jittered(images: torch.Tensor, down: int, right: int, mirrored: bool) -> torch.Tensor:
    rolled = torch.roll(images, (down, right), (2, 3))
    return rolled.flip(3) if mirrored else rolled


@pytest.mark.parametrize(("size", "flip"), [(8, False), (16, True)])
def test_the_jitter_is_one_roll_and_flip_for_the_whole_batch(size, flip):
    """By up to an eighth of the side, and each of these happens."""
    method = tiny()
    method.facts = dataclasses.replace(method.facts, size=size, flip=flip)
    images = torch.rand(3, 1, size, size)
    reach = range(-size // 8, size // 8 + 1)
    flips = (False, True) if flip else (False,)
    possible = {(d, r, m): jittered(images, d, r, m) for d in reach for r in reach for m in flips}
    seen = set()
    for _ in range(1000):
        view = method.view(images, method.draw_view(3))
        (found,) = (key for key, expected in possible.items() if torch.equal(view, expected))
        seen.add(found)
    assert seen == set(possible)


def test_the_jitter_is_before_the_teacher_and_nothing_undoes_it():
    """The teacher sees rolled pixels, the memory gets them as they are."""
    method = tiny(generator_steps=1)
    method.draw_view = lambda batch: torch.arange(64).view(8, 8).roll((1, -1), (0, 1)).flatten()
    starts, seen = watch_starts(method), watch_inputs(method.teacher)
    method.synthesize(WARMUP)
    images = starts[0] * method.generator.std + method.generator.mean
    assert torch.equal(seen[0], torch.roll(images, (1, -1), (2, 3)))
    assert torch.equal(method.memory.images, (images.clamp(0, 1) * 255).byte())


def test_every_step_is_jittered_anew():
    method, drawn = tiny(generator_steps=12), []
    draw = method.draw_view
    method.draw_view = lambda batch: drawn.append(draw(batch)) or drawn[-1]
    method.synthesize(WARMUP)
    assert len(drawn) == 12 and len({tuple(view.tolist()) for view in drawn}) > 2


# --- the terms


def test_the_loss_is_the_weighted_sum_of_the_five_terms_by_hand():
    method = tiny(**WEIGHTS)
    loss, terms = objective(method)
    x, y, teacher = method.generator.x, method.pseudo_labels(), method.teacher
    images = x * method.generator.std + method.generator.mean
    t, inputs = reference.run_and_record(teacher, teacher.batch_norms(), images)
    differences = [
        x[:, :, a : 7 + a, b : 7 + b] - x[:, :, c : 7 + c, d : 7 + d] for a, b, c, d in ((0, 0, 1, 1), (0, 1, 1, 0))
    ] + [x[:, :, :7] - x[:, :, 1:], x[:, :, :, :7] - x[:, :, :, 1:]]
    expected = {
        "alpha_cls": reference.classification(t, y),
        "alpha_bn": reference.BatchNormTerm(teacher.batch_norms(), 0)(inputs),
        "alpha_adv": 1 - reference.jensen_shannon(t, method.student(images), 3),
        "alpha_tv": sum((difference**2).sum() ** 0.5 for difference in differences),
        "alpha_l2": (x**2).sum() ** 0.5,
    }
    assert list(method.terms.values()) == list(expected)
    torch.testing.assert_close(terms, torch.stack(list(expected.values())), rtol=1e-4, atol=1e-5)
    total = sum(alpha * expected[name] for name, alpha in WEIGHTS.items())
    torch.testing.assert_close(loss, total, rtol=1e-4, atol=1e-5)


def test_the_report_has_its_terms():
    report = tiny().synthesize(AFTER)
    assert set(report.extra) == {"L_TV", "L_2"} and all(value > 0 for value in report.extra.values())
    assert 1 - torch.tensor(2.0).log() <= report.adv < 1


def test_a_round_lowers_the_batchnorm_term():
    one, many = (tiny(generator_steps=steps).synthesize(WARMUP) for steps in (1, 30))
    assert one.ce_per_step[0] == many.ce_per_step[0]  # the same start
    assert many.bn < 0.7 * one.bn


def test_total_variation_smooths():
    rough, smooth = (tiny(generator_steps=30, alpha_tv=alpha).synthesize(WARMUP) for alpha in (0.0, 1.0))
    assert smooth.extra["L_TV"] < 0.8 * rough.extra["L_TV"]


# --- DeepInversion without its adversarial term


@pytest.mark.parametrize("options", [{"alpha_adv": 0.0}, {"alpha_adv": 0.0, "alpha_bn": 0.0}], ids=["no adv", "no bn"])
def test_without_the_adversarial_term_the_student_is_never_asked(options):
    """The port behind the printed numbers crashes there."""
    method = tiny(**options)

    def refuse(*_):
        raise AssertionError("the student should not have been run")

    method.student.register_forward_pre_hook(refuse)
    for epoch in (WARMUP, AFTER):
        method.begin_epoch(epoch)
        assert method.synthesize(epoch).adv == 0


def test_against_a_student_the_term_changes_the_images():
    images = []
    for alpha in (0.0, 10.0):
        method = tiny(alpha_adv=alpha)
        method.synthesize(AFTER)
        images.append(method.memory.images)
    assert not torch.equal(*images)


# --- the rest


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_it_works_in_16_bits(precision):
    method = tiny(Compute(precision), generator_steps=4)
    method.synthesize(AFTER)
    assert method.generator.x.dtype == torch.float32 and method.memory.images.float().std() > 1


def test_each_rank_has_pixels_of_its_own(tmp_path):
    one, other = connected(lambda: whole_run(method="deepinv"), tmp_path)
    assert len(one["generator"]["x"]) == 10 and not torch.equal(one["generator"]["x"], other["generator"]["x"])
    assert same(one["student"], other["student"]) and one["told"] == other["told"]
    assert len(one["images"]) == len(other["images"]) and not torch.equal(one["images"], other["images"])


def test_the_published_schedule_is_the_ports_with_the_steps_of_the_printed_row():
    config = make_config("cifar10-wrn40_2-wrn16_2", profile="full", method="deepinv", protocol="published")
    assert (config.generator_batch, config.generator_steps, config.generator_lr) == (256, 2000, 0.1)
    assert (config.alpha_cls, config.alpha_bn, config.alpha_adv, config.alpha_tv, config.alpha_l2) == (1, 10, 1, 0, 0)
    assert (config.warmup_epochs, config.total_epochs, config.student_batch) == (0, 200, 256)
