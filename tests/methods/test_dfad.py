"""DFAD: the distance of the logits on both sides, and a student that moves first."""

import pytest
import torch
from tiny import tiny_setup

from nayer_lib.config import make_config
from nayer_lib.distill import distill
from nayer_lib.methods.base import Batch
from nayer_lib.methods.dfad import DFAD


def tiny_dfad(**overrides) -> DFAD:
    return tiny_setup(method="dfad", **overrides).method


def test_its_numbers_are_the_papers():
    config = make_config("cifar10-wrn40_2-wrn16_2", method="dfad", protocol="published", profile="full")
    assert (config.epochs, config.repeats, config.student_steps, config.generator_steps) == (500, 50, 5, 1)
    assert config.generator_batch == config.student_batch == config.noise_dim == 256
    assert (config.generator_lr, config.student_lr, config.student_weight_decay) == (1e-3, 0.1, 5e-4)
    assert config.generator_betas == (0.9, 0.999) and config.student_trains_in_synthesis
    assert tiny_dfad(generator_betas=(0.9, 0.999)).generator_optimizer.defaults["betas"] == (0.9, 0.999)


def test_generator_and_student_play_for_the_same_distance():
    method = tiny_dfad()
    z = torch.randn(20, 16, generator=torch.Generator().manual_seed(0))
    total, (_, adversarial), images = method._objective(z, None, True)
    with torch.no_grad():
        t, s = method.teacher(images), method.student(images)
    apart = sum(abs(a - b) for a, b in zip(t.flatten().tolist(), s.flatten().tolist(), strict=True)) / t.numel()
    assert total == adversarial and adversarial.item() == pytest.approx(-apart, rel=1e-4)
    assert method.student_loss(Batch(images, None, "test"), t, s).item() == pytest.approx(apart, rel=1e-4)


def test_the_student_is_in_train_mode_in_gs_step_but_for_an_epochs_first_turn():
    method, modes = tiny_dfad(student_trains_in_synthesis=True), []
    method.student.register_forward_pre_hook(lambda module, _inputs: modes.append(module.training))
    for _ in range(2):
        method.synthesize(method.config.total_epochs - 1)
    steps = method.config.generator_steps
    assert modes == [False] * steps + [True] * steps


def test_the_student_moves_first(monkeypatch):
    setup = tiny_setup(method="dfad", warmup_epochs=0, epochs=1, repeats=2, rounds=1, student_steps=3)
    moves = []
    for name in ("synthesize", "student_step"):
        monkeypatch.setattr(setup.method, name, spy(moves, name, getattr(setup.method, name)))
    list(distill(setup.method, setup.evaluate))
    assert moves == ["student_step"] * 3 + ["synthesize"] + ["student_step"] * 3 + ["synthesize"]


def spy(moves: list[str], name: str, real):
    def called(*arguments):
        moves.append(name)
        return real(*arguments)

    return called
