"""ZSKT: one term, clipped gradients, and attention transfer where it is asked for."""

import pytest
import torch
from tiny import run_all, same, through_a_file, tiny_setup
from torch import nn

from nayer_lib.classifiers.teacher import make_classifier, tapped
from nayer_lib.config import make_config
from nayer_lib.datasets import dataset
from nayer_lib.distill import distill
from nayer_lib.errors import UserError
from nayer_lib.methods.base import Batch
from nayer_lib.methods.zskt import ZSKT


def tiny_zskt(**overrides) -> ZSKT:
    return tiny_setup(method="zskt", **overrides).method


def between(teacher: str, student: str, data: str = "cifar10", **overrides) -> ZSKT:
    """A pair of fresh networks on a data set."""
    facts, names = dataset(data), [str(k) for k in range(10)]
    networks = [
        make_classifier(name, names, facts.mean, facts.std, seed) for seed, name in enumerate((teacher, student))
    ]
    config = make_config(method="zskt", noise_dim=16, generator_width=8, generator_batch=4, **overrides)
    return ZSKT(*networks, config, facts=facts)


def test_its_numbers_are_those_behind_table_1():
    config = make_config("cifar10-wrn40_2-wrn16_2", method="zskt", protocol="published", profile="full")
    assert (config.alpha_adv, config.alpha_cls, config.alpha_bn, config.alpha_at) == (1, 0, 0, 0)
    assert (config.epochs, config.repeats, config.generator_steps, config.student_steps) == (200, 80, 1, 5)
    assert config.generator_batch == config.student_batch == config.noise_dim == 256
    assert (config.generator_lr, config.student_lr, config.temperature) == (1e-3, 0.1, 1)


def test_published_gs_adam_has_torchs_betas_and_its_rate_falls_along_a_cosine():
    rates = {}
    for protocol in ("equal", "published"):
        setup = tiny_setup(method="zskt", protocol=protocol, repeats=1, epochs=4, warmup_epochs=0)
        [group] = setup.method.generator_optimizer.param_groups
        rates[protocol] = [group["lr"] for _ in distill(setup.method, setup.evaluate)]
        assert group["betas"] == {"equal": (0.5, 0.999), "published": (0.9, 0.999)}[protocol]
    assert rates["equal"] == [1e-3] * 4
    assert rates["published"] == pytest.approx([1e-3, 1e-3 * (2 + 2**0.5) / 4, 5e-4, 1e-3 * (2 - 2**0.5) / 4])


def test_l_oh_is_looked_at_and_has_no_weight():
    method = tiny_zskt()
    z = torch.randn(20, 16, generator=torch.Generator().manual_seed(0))
    total, (oh, kl), _ = method._objective(z, None, True)
    assert oh > 0 and kl < 0 and total == kl


# --- clipping


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("optimizer", ["generator_optimizer", "student_optimizer"])
def test_a_gradient_is_cut_as_a_whole_to_norm_5_of_the_authors_kl_over_ten_classes(optimizer, scaled):
    """Where the loss is scaled for 16-bit floats too."""
    method = tiny_zskt()
    method.running.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, enabled=scaled)
    method.scaler.scale(torch.zeros(()))  # makes the scale
    optimizer = getattr(method, optimizer)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for norm, expected in ((400.0, 50.0), (30.0, 30.0)):
        raw = [torch.randn(p.shape) for p in parameters]
        length = torch.cat([g.flatten() for g in raw]).norm()
        for p, g in zip(parameters, raw, strict=True):
            p.grad = g * (norm / length) * (2.0**10 if scaled else 1)
        method.before_update(optimizer)
        for p, g in zip(parameters, raw, strict=True):
            torch.testing.assert_close(p.grad, g * (expected / length))
        method.scaler.update()


def test_both_networks_are_clipped_in_every_step(monkeypatch):
    method = tiny_zskt(generator_steps=3, repeats=1)
    seen, real = [], nn.utils.clip_grad_norm_

    def spy(parameters, largest):
        seen.append((parameters[0].shape, largest))
        return real(parameters, largest)

    monkeypatch.setattr(nn.utils, "clip_grad_norm_", spy)
    method.synthesize(0)
    method.student_step(method.sample(16))
    g, s = (next(network.parameters()).shape for network in (method.generator, method.student))
    assert seen == [(g, 50)] * 3 + [(s, 50)]


# --- attention transfer


def attention(maps: torch.Tensor) -> torch.Tensor:
    mean = maps.pow(2).sum(1).flatten(1) / maps.shape[1]
    return mean / mean.pow(2).sum(1, keepdim=True).sqrt()


def distance(method: ZSKT, images: torch.Tensor) -> float:
    """Of the student's attention from the teacher's, as the student is now."""
    with torch.no_grad(), tapped(method.teacher.stages()) as wanted, tapped(method.student.stages()) as found:
        method.teacher(images), method.student(images)
    assert len(wanted) == len(found) == 3
    return sum((attention(wanted[i]) - attention(found[i])).pow(2).mean().item() for i in range(3))


def noise(count: int) -> torch.Tensor:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def test_attention_transfer_adds_the_distance_of_the_stages_maps():
    method, plain = (tiny_zskt(alpha_at=weight) for weight in (7.0, 0.0))
    apart = distance(method, noise(16))
    assert apart > 1e-3
    told, without = (each.student_step(Batch(noise(16), None, "test")).item() for each in (method, plain))
    assert told == pytest.approx(without + 7 * apart, rel=1e-4)


def test_attention_transfer_teaches_where_to_look():
    near, far = (tiny_zskt(alpha_at=weight) for weight in (1000.0, 0.0))
    for method in (near, far):
        for _ in range(20):
            method.student_step(Batch(noise(64), None, "test"))
    assert distance(near, noise(64)) < distance(far, noise(64)) / 2


def test_attention_transfer_runs_and_resumes_and_leaves_no_hook():
    options = {"method": "zskt", "alpha_at": 2500.0, "epochs": 2}
    whole, first, second = (tiny_setup(**options) for _ in range(3))
    run_all(whole)
    next(distill(first.method, first.evaluate))
    second.method.load_state_dict(through_a_file(first.method.state_dict()))
    run_all(second, start=1)
    assert same(second.method.state_dict(), whole.method.state_dict())
    for network in (whole.method.teacher, whole.method.student):
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())


@pytest.mark.parametrize("pair", [("wrn16_2", "wrn10_1"), ("resnet34", "resnet18"), ("resnet20", "wrn10_1")])
def test_attention_transfer_takes_networks_whose_maps_pair_up(pair):
    method = between(*pair, alpha_at=2500.0)
    assert method.student.training and not method.teacher.training


@pytest.mark.parametrize("pair", [("resnet18", "wrn10_1"), ("vgg11", "resnet18"), ("wrn10_1", "resnet18")])
def test_attention_transfer_across_families_is_refused_with_the_way_out(pair):
    with pytest.raises(UserError, match=r"pairs the feature maps .* one family, or set alpha_at=0"):
        between(*pair, alpha_at=2500.0)
    assert between(*pair).config.alpha_at == 0


def test_checking_the_maps_leaves_the_student_as_it_was():
    plain, asked = (between("wrn16_1", "wrn10_1", alpha_at=weight) for weight in (0.0, 1.0))
    assert same(plain.student.state_dict(), asked.student.state_dict())
