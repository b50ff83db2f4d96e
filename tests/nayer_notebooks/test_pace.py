"""A run's time is its counts at the pace that was measured."""

import dataclasses

import pytest
import torch
from tiny import tiny_config

from nayer_lib import distill
from nayer_lib.datasets import Split
from nayer_notebooks import pace

TWO = Split(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.arange(2))  # images


def test_a_run_takes_its_epochs_at_the_pace_that_was_measured():
    """Three epochs, one of them warm-up with one round; two rounds and two student steps in the others."""
    config = tiny_config()
    told = {"warm-up round": 100.0, "round": 10.0, "student step": 1.0, "evaluation": 0.25}
    assert [pace.epoch_seconds(config, epoch, told) for epoch in range(3)] == [100.0, 22.25, 22.25]
    assert pace.run_seconds(config, told) == 144.5


def test_an_epoch_that_repeats_takes_so_many_turns():
    config = tiny_config(method="zskt", repeats=3)
    told = {"warm-up round": 0.0, "round": 10.0, "student step": 1.0, "evaluation": 0.25}
    turn = 10 * config.synthesis_rounds(config.total_epochs - 1) + config.student_steps
    assert pace.epoch_seconds(config, config.total_epochs - 1, told) == 3 * turn + 0.25


@pytest.mark.filterwarnings("ignore:the teacher scores")  # on two images
def test_the_pace_is_that_of_the_calls_after_the_first(monkeypatch):
    """Each first call loads something, which takes a second."""
    clock, slow = [0.0], set()
    setup = distill.prepare(tiny_config(), test=TWO, device="cpu")

    def lasting(name, seconds):
        def call(*_):
            clock[0] += seconds + (1.0 if name not in slow else 0.0)
            slow.add(name)

        return call

    monkeypatch.setattr(pace.time, "perf_counter", lambda: clock[0])
    setup.method.synthesize = lambda epoch: lasting(f"round {epoch}", 3.0 if epoch else 2.0)()
    setup.method.student_step, setup.method.sample = lasting("step", 0.5), lambda n: None
    setup = dataclasses.replace(setup, evaluate=lasting("evaluation", 0.1), score_every=5)
    assert pace.measured(setup) == pytest.approx(
        {"warm-up round": 2.0, "round": 3.0, "student step": 0.5, "evaluation": 0.02}
    )
