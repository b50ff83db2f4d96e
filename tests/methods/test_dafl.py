"""DAFL: three terms that ask the teacher alone."""

import math

import pytest
import torch
from tiny import tiny_setup

from nayer_lib.config import make_config
from nayer_lib.methods.dafl import DAFL


def tiny_dafl(**overrides) -> DAFL:
    return tiny_setup(method="dafl", **overrides).method


def watch_images(method: DAFL) -> list[torch.Tensor]:
    seen = []
    method.generator.register_forward_hook(lambda _module, _inputs, images: seen.append(images.detach().clone()))
    return seen


def test_its_numbers_for_cifar10():
    config = make_config("cifar10-wrn40_2-wrn16_2", method="dafl", protocol="published", profile="full")
    assert (config.alpha_cls, config.alpha_act, config.alpha_adv, config.alpha_bn) == (1, 0.1, 0, 0)
    assert (config.epochs, config.repeats, config.generator_steps, config.student_steps) == (2000, 120, 1, 1)
    assert config.generator_batch == config.student_batch == 1024 and config.noise_dim == 1000
    assert (config.student_lr, config.student_weight_decay, config.temperature) == (0.1, 5e-4, 1)


def test_the_weight_of_l_ie_is_5_in_logarithms_to_base_10():
    p = torch.tensor([0.1, 0.2, 0.7], dtype=torch.float64)
    weight = make_config(method="dafl").alpha_ie
    assert weight * (p * p.log()).sum().item() == pytest.approx(5 * (p * p.log10()).sum().item())


def test_the_report_has_the_three_terms_of_what_the_teacher_sees():
    method = tiny_dafl(generator_steps=1, repeats=1)
    seen = watch_images(method)
    report = method.synthesize(0)
    with torch.no_grad():
        t, features = method.teacher(seen[0], return_features=True)
    p = t.softmax(1)
    assert report.ce_per_step == [pytest.approx(-p.max(1).values.log().mean().item(), rel=1e-4)]
    mean = p.mean(0)
    assert report.extra == {
        "L_IE": pytest.approx((mean * mean.log()).sum().item(), rel=1e-4),
        "L_act": pytest.approx(-features.abs().mean().item(), rel=1e-4),
    }
    assert report.adv == report.bn == 0


def test_the_loss_is_their_weighted_sum():
    method = tiny_dafl(alpha_cls=0.5, alpha_ie=3.0, alpha_act=0.25)
    z = torch.randn(20, 16, generator=torch.Generator().manual_seed(0))
    total, terms, _ = method._objective(z, None, False)
    assert total.item() == pytest.approx(sum(a * x for a, x in zip((0.5, 3, 0.25), terms.tolist(), strict=True)))


def test_it_does_not_ask_the_student():
    method = tiny_dafl()

    def refuse(*_):
        raise AssertionError("the student should not have been run")

    method.student.register_forward_pre_hook(refuse)
    assert math.isfinite(method.synthesize(0).ce_per_step[-1])


def test_its_generator_learns_to_make_all_classes():
    method = tiny_dafl(generator_batch=50, generator_steps=10, repeats=1)
    balance = [method.synthesize(0).extra["L_IE"] for _ in range(3)]
    assert balance[-1] < balance[0] and balance[-1] < -2  # lowest: -log 10 = -2.30
    assert len(method.examples().labels.unique()) >= 8
