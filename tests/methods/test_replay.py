"""What PREKD, MBDFKD and both KAKR share: the terms of L_G, the student's loss, and a ninth of each batch replayed."""

import math

import pytest
import torch
from tiny import tiny_setup

from nayer_lib.config import make_config
from nayer_lib.methods import METHODS, terms
from nayer_lib.methods.base import Batch
from nayer_lib.methods.dafl import DAFL
from nayer_lib.methods.replay import Replay, one_minus_js, replayed_of

REPLAYING = [name for name, method in METHODS.items() if issubclass(method, Replay)]


@pytest.fixture(params=REPLAYING)
def name(request):
    return request.param


def tiny_replay(name: str, **overrides) -> Replay:
    return tiny_setup(method=name, **overrides).method


def test_they_are_four():
    assert REPLAYING == ["prekd", "mbdfkd", "kakr_mb", "kakr_gr"]


def test_their_numbers_for_cifar10(name):
    config = make_config("cifar10-wrn40_2-wrn16_2", method=name, protocol="published", profile="full")
    dafl = make_config("cifar10-wrn40_2-wrn16_2", method="dafl")
    assert (config.alpha_cls, config.alpha_act, config.alpha_adv, config.alpha_bn) == (1, 0.1, 1, 0)
    assert config.alpha_ie == dafl.alpha_ie  # 5 in logarithms to base 10
    assert (config.generator_lr, config.student_lr, config.student_weight_decay) == (0.02, 0.1, 5e-4)
    assert (config.epochs, config.generator_steps, config.student_steps, config.noise_dim) == (400, 1, 10, 1000)
    fresh, replayed, turns = (512, 64, 72) if "kakr" in name else (1024, 128, 36)
    assert (config.generator_batch, config.repeats) == (fresh, turns)
    assert (replayed_of(config.student_batch), config.student_batch) == (replayed, fresh + replayed)


@pytest.mark.parametrize(("n", "replayed"), [(2, 0), (3, 0), (4, 2), (16, 2), (27, 3), (128, 14), (512, 56)])
def test_a_ninth_is_replayed_or_two_or_none(n, replayed):
    assert replayed_of(n) == replayed


# --- L_G


def js_by_hand(t: torch.Tensor, s: torch.Tensor) -> float:
    """One number at a time, in 64 bits."""
    total, clamped = 0.0, lambda x: min(max(x, 0.01), 0.99)
    for p_row, q_row in zip(*((x.double() / 3).softmax(1).tolist() for x in (t, s)), strict=True):
        for p, q in zip(p_row, q_row, strict=True):
            m = clamped((p + q) / 2)
            total += m * (math.log(m / clamped(p)) + math.log(m / clamped(q))) / 2
    return total / t.numel()


@pytest.mark.parametrize(("classes", "times"), [(10, 5.96), (100, 54.3)])
def test_their_js_is_a_mean_over_classes_too_and_leaves_the_teacher_alone(classes, times):
    rng = torch.Generator().manual_seed(0)
    t, s = (3 * torch.randn(256, classes, generator=rng) for _ in range(2))
    t.requires_grad_(), s.requires_grad_()
    term = one_minus_js(t, s)
    assert 1 - term.item() == pytest.approx(js_by_hand(t.detach(), s.detach()), rel=1e-3)
    of_teacher, of_student = torch.autograd.grad(term, (t, s), allow_unused=True)
    assert of_teacher is None
    (of_text,) = torch.autograd.grad(terms.jensen_shannon(t, s), s)
    assert (of_text.norm() / of_student.norm()).item() == pytest.approx(times, rel=0.01)


def test_where_they_agree_the_term_is_one():
    t = torch.tensor([[30.0, 0.0, 0.0]])
    assert one_minus_js(t, t) == 1


@pytest.mark.parametrize("count", ["first", "later"])
def test_the_student_is_in_train_mode_in_gs_step_but_for_an_epochs_first_turn(name, count):
    method, modes = tiny_replay(name, repeats=2, warmup_epochs=0, epochs_include_warmup=False), []
    if count == "later":
        method.synthesize(0)
    method.student.register_forward_pre_hook(lambda module, _inputs: modes.append(module.training))
    method.synthesize(0)
    assert set(modes) == {count == "later"}


def test_adam_has_torchs_betas(name):
    method = tiny_replay(name)
    optimizers = [method.generator_optimizer, *([method.vae_optimizer] if hasattr(method, "vae") else [])]
    assert {group["betas"] for optimizer in optimizers for group in optimizer.param_groups} == {(0.9, 0.999)}


def test_the_report_has_dafls_terms_and_one_minus_js(name):
    method, seen = tiny_replay(name, generator_steps=1, repeats=1, warmup_epochs=0), []
    method.generator.register_forward_hook(lambda _module, _inputs, images: seen.append(images.detach().clone()))
    report = method.synthesize(0)
    with torch.no_grad():
        t, features = method.teacher(seen[0], return_features=True)
        s = method.student.eval()(seen[0])
    assert report.adv == pytest.approx(1 - js_by_hand(t, s), rel=1e-4)
    mean = t.softmax(1).mean(0)
    assert report.ce_per_step == [pytest.approx(-t.softmax(1).max(1).values.log().mean().item(), rel=1e-4)]
    assert report.extra == {
        "L_IE": pytest.approx((mean * mean.log()).sum().item(), rel=1e-4),
        "L_act": pytest.approx(-features.abs().mean().item(), rel=1e-4),
    }


def test_the_loss_is_their_weighted_sum_and_dafls_without_the_student(name):
    method, dafl = (tiny_replay(name, alpha_adv=3.0), tiny_setup(method="dafl").method)
    assert isinstance(method, DAFL)
    dafl.generator.load_state_dict(method.generator.state_dict())
    z = torch.randn(20, 16, generator=torch.Generator().manual_seed(0))
    plain, _, _ = dafl._objective(z, None, False)
    total, terms, _ = method._objective(z, None, True)
    assert total.item() == pytest.approx((plain + 3 * terms[3]).item(), rel=1e-5) and terms[3] > 0.5
    assert method._objective(z, None, False)[0].item() == pytest.approx(plain.item(), rel=1e-5)


def test_the_generator_moves_the_student_away_from_where_the_teacher_is(name):
    """JS alone, a short way along its gradient: the term falls as long as the teacher's answer is the old one."""
    method = tiny_replay(name, alpha_cls=0.0, alpha_ie=0.0, alpha_act=0.0)
    z = torch.randn(50, 16, generator=torch.Generator().manual_seed(0))
    method.student.eval()
    loss, _, images = method._objective(z, None, True)
    parameters = list(method.generator.parameters())
    gradients = torch.autograd.grad(loss, parameters)
    steepness = torch.cat([gradient.flatten() for gradient in gradients]).norm()
    with torch.no_grad():
        t = method.teacher(images)
        for p, gradient in zip(parameters, gradients, strict=True):
            p -= 0.03 * gradient / steepness
        moved = one_minus_js(t, method.student(method.generator(z)))
    assert (loss - moved).item() == pytest.approx(0.03 * steepness.item(), rel=0.3)


# --- the student's batch and loss


def test_the_plain_student_loss_is_the_mean_distance_of_logits(name):
    method, images = tiny_replay(name), torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        t, s = method.teacher(images), method.student(images)
    told = method.student_step(Batch(images, None, "test"))
    assert told.item() == pytest.approx((t - s).abs().mean().item(), rel=1e-4)


def test_the_end_of_a_batch_comes_from_the_memory(name, monkeypatch):
    method = tiny_replay(name)
    monkeypatch.setattr(type(method), "replay", lambda _self, n: torch.full((n, 1, 8, 8), 0.5))
    monkeypatch.setattr(type(method), "augment", lambda _self, images: images)
    batch = method.sample(27)
    assert batch.images.shape == (27, 1, 8, 8) and batch.replayed == 3 and "memory" in batch.source
    assert (batch.images[24:] == 0.5).all() and not (batch.images[:24] == 0.5).flatten(1).all(1).any()
    monkeypatch.setattr(type(method), "replay", lambda _self, n: torch.empty(0, 1, 8, 8))
    batch = method.sample(27)
    assert batch.images.shape == (27, 1, 8, 8) and batch.replayed == 0 and batch.source == "generator"
