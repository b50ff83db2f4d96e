"""What PREKD, MBDFKD and both KAKR share: the terms of L_G, the student's loss, and a ninth of each batch replayed."""

import pytest
import torch
from tiny import tiny_setup

from nayer_lib.config import make_config
from nayer_lib.methods import METHODS
from nayer_lib.methods.base import Batch
from nayer_lib.methods.dafl import DAFL
from nayer_lib.methods.replay import Replay, replayed_of

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


def test_the_report_has_dafls_terms_and_one_minus_js(name):
    method, seen = tiny_replay(name, generator_steps=1, repeats=1, warmup_epochs=0), []
    method.generator.register_forward_hook(lambda _module, _inputs, images: seen.append(images.detach().clone()))
    report = method.synthesize(0)
    with torch.no_grad():
        t, features = method.teacher(seen[0], return_features=True)
        s = method.student.eval()(seen[0])
    p, q = ((x / 3).softmax(1).clamp(0.01, 0.99) for x in (t, s))
    m = (p + q) / 2
    js = ((p * (p / m).log()).sum(1) + (q * (q / m).log()).sum(1)).mean() / 2
    assert report.adv == pytest.approx(1 - js.item(), rel=1e-4)
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


def test_the_generator_learns_to_set_student_and_teacher_apart(name):
    """JS alone: the term falls."""
    weights = {"alpha_cls": 0.0, "alpha_ie": 0.0, "alpha_act": 0.0}
    counts = {"generator_batch": 50, "generator_steps": 1, "repeats": 1, "warmup_epochs": 0}
    method = tiny_replay(name, **counts, **weights)
    told = [method.synthesize(0).adv for _ in range(20)]
    assert told[-1] < told[0] - 0.1


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


def test_what_is_replayed_is_cropped_too(name, monkeypatch):
    """White images: a shift brings a black edge in."""
    method = tiny_replay(name)
    monkeypatch.setattr(type(method), "replay", lambda _self, n: torch.ones(n, 1, 8, 8))
    replayed = method.sample(90).images[80:]
    assert set(replayed.unique().tolist()) == {0, 1} and len(replayed.unique(dim=0)) > 2
