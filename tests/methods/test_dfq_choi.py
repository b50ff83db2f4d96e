"""DFQ of Choi et al.: four terms, and a generator that rests while the student learns."""

import pytest
import torch
from tiny import tiny_setup

from nayer_lib.config import make_config
from nayer_lib.distill import distill
from nayer_lib.losses import BatchNormLoss
from nayer_lib.methods.dfq_choi import DFQChoi


def tiny_dfq(**overrides) -> DFQChoi:
    return tiny_setup(method="dfq_choi", **overrides).method


def test_its_numbers_are_those_behind_table_1():
    config = make_config("cifar10-wrn40_2-wrn16_2", method="dfq_choi", protocol="published", profile="full")
    assert (config.alpha_adv, config.alpha_cls, config.alpha_bn, config.alpha_ie) == (1, 1, 1, 20)
    assert (config.epochs, config.repeats, config.generator_steps, config.student_steps) == (200, 40, 1, 10)
    assert config.generator_batch == config.student_batch == config.noise_dim == 256
    assert (config.generator_lr, config.student_lr, config.temperature) == (1e-3, 0.1, 1)


def test_the_report_has_the_four_terms():
    method = tiny_dfq(generator_steps=1, repeats=1, warmup_epochs=0)
    seen = []
    method.generator.register_forward_hook(lambda _module, _inputs, images: seen.append(images.detach().clone()))
    student = method.student
    report = method.synthesize(0)
    bn = BatchNormLoss(method.teacher, 0.0)
    with torch.no_grad(), bn.armed():
        t, s = method.teacher(seen[0]), student.eval()(seen[0])
        assert report.bn == pytest.approx(bn().item(), rel=1e-4)
    p, q = t.softmax(1), s.softmax(1)
    mean = p.mean(0)
    assert report.ce_per_step == [pytest.approx(-p.max(1).values.log().mean().item(), rel=1e-4)]
    assert report.extra == {"L_IE": pytest.approx((mean * mean.log()).sum().item(), rel=1e-4)}
    assert report.adv == pytest.approx(-(p * (p.log() - q.log())).sum(1).mean().item(), rel=1e-3)


def test_the_generator_is_in_eval_mode_for_the_student_and_trains_on():
    method = tiny_dfq(generator_steps=2, repeats=1)
    modes = []
    method.generator.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    method.synthesize(0)
    before = {key: value.clone() for key, value in method.generator.state_dict().items()}
    method.sample(16)
    method.synthesize(0)
    assert modes == [True, True, False, True, True]
    method.sample(16)
    after_round = {key: value.clone() for key, value in method.generator.state_dict().items()}
    method.sample(16)
    assert all(torch.equal(value, method.generator.state_dict()[key]) for key, value in after_round.items())
    assert not torch.equal(before["layers.2.running_mean"], after_round["layers.2.running_mean"])


def test_warm_up_trains_the_generator_without_the_student():
    """As Choi et al. start; the published schedule takes it as an override."""
    counts = {"warmup_epochs": 1, "epochs": 1, "repeats": 2, "generator_steps": 2, "student_steps": 1}
    setup = tiny_setup(method="dfq_choi", protocol="published", **counts)
    method, student = setup.method, []
    method.student.register_forward_pre_hook(lambda *_: student.append(1))
    epochs = distill(method, setup.evaluate)
    before = method.generator.layers[0].weight.clone()
    warmup = next(epochs)
    assert not student and warmup.scores is None and [r.adv for r in warmup.rounds] == [0, 0]
    assert not torch.equal(before, method.generator.layers[0].weight)
    assert all(report.adv < 0 for report in next(epochs).rounds)
