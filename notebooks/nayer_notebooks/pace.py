"""How long a run takes, by the pace that a short trial has on this machine."""

import time
from collections.abc import Callable

import torch

from nayer_lib.config import Config
from nayer_lib.distill import Setup


def measured(setup: Setup) -> dict[str, float]:
    """The pace here: seconds of a round of the warm-up, a round after it, a student step and an epoch's evaluation.

    The set-up is used up by this: prepare it again for the run. First calls, which load, compile and record, do not
    count.
    """
    method, config = setup.method, setup.method.config

    def took(call: Callable, times: int) -> float:
        for _ in range(2):
            start = time.perf_counter()
            for _ in range(times):
                call()
            if method.device.type == "cuda":
                torch.cuda.synchronize(method.device)
        return (time.perf_counter() - start) / times

    def round_of(epoch: int) -> float:
        method.begin_epoch(epoch)
        return took(lambda: method.synthesize(epoch), 2)

    return {
        "warm-up round": round_of(0) if config.warmup_epochs else 0.0,
        "round": round_of(config.total_epochs - 1),
        "student step": took(lambda: method.student_step(method.sample(config.student_batch)), 10),
        "evaluation": took(lambda: setup.evaluate(method.student), 1) / setup.score_every,
    }


def epoch_seconds(config: Config, epoch: int, pace: dict[str, float]) -> float:
    """How long an epoch takes at a pace, as `measured` has it."""
    if epoch < config.warmup_epochs:
        return config.repeats * config.synthesis_rounds(epoch) * pace["warm-up round"]
    turn = config.synthesis_rounds(epoch) * pace["round"] + config.student_steps * pace["student step"]
    return config.repeats * turn + pace["evaluation"]


def run_seconds(config: Config, pace: dict[str, float]) -> float:
    """How long a whole run takes at a pace."""
    return sum(epoch_seconds(config, epoch, pace) for epoch in range(config.total_epochs))
