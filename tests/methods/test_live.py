"""The generator that plays on: what every method shares that keeps no images (`Live`), and the budget it gets."""

import copy

import pytest
import torch
from tiny import QUANTISED, TINY, over, run_all, tiny_setup
from torch import nn

from nayer_lib.config import make_config
from nayer_lib.distill import prepare
from nayer_lib.losses import BatchNormLoss
from nayer_lib.methods import METHODS
from nayer_lib.methods.live import Live, LiveConfig

LIVE = [name for name, method in METHODS.items() if issubclass(method, Live)]
HOLDING = [name for name in LIVE if METHODS[name].holds_z]
SIZES = {name: TINY[name] for name in ("noise_dim", "generator_width", "generator_batch", "student_batch")}


@pytest.fixture(params=LIVE)
def name(request):
    return request.param


def tiny_live(name: str, **overrides) -> Live:
    return tiny_setup(method=name, **overrides).method


def weights(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def parameters(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in module.named_parameters()}


def changed(before: dict, after: dict) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


def watch_z(method: Live) -> list[torch.Tensor]:
    """What enters the generator from now on."""
    seen = []
    method.generator.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].clone()))
    return seen


def watch_steps(optimizer: torch.optim.Optimizer) -> list[int]:
    """Grows by one with every step of the optimiser."""
    seen = []
    optimizer.register_step_post_hook(lambda *_: seen.append(1))
    return seen


# --- what enters the generator


@pytest.mark.parametrize("batch", [10, 30])
@pytest.mark.parametrize("name", HOLDING)
def test_a_held_z_serves_a_whole_round_and_the_student_after_it(name, batch):
    """Also where the student's batch (20) is larger or smaller than the generator's."""
    method = tiny_live(name, generator_steps=3, generator_batch=batch, student_batch=20, repeats=1)
    rounds, seen = [], watch_z(method)
    for _ in range(2):
        seen.clear()
        method.synthesize(0)
        for _ in range(2):
            method.sample(20)
        *steps, first, second = seen
        assert len(steps) == 3 and {len(z) for z in steps} == {batch} and len(first) == 20
        shared = min(batch, 20)
        assert all(torch.equal(z, steps[0]) for z in steps) and torch.equal(first, second)
        assert torch.equal(first[:shared], steps[0][:shared])
        rounds.append(first)
    assert not (rounds[0] == rounds[1]).any()


@pytest.mark.parametrize("name", [name for name in LIVE if name not in HOLDING])
def test_z_is_fresh_in_every_step_otherwise(name):
    plain = {"select": False} if name == "ta_dfkd" else {}  # which draws a batch several times
    method = tiny_live(name, generator_steps=3, repeats=1, **plain)
    seen = watch_z(method)
    method.synthesize(0)
    method.sample(16)
    method.sample(16)
    vectors = torch.cat(seen)
    assert len(seen) == 5 and len(vectors.unique(dim=0)) == len(vectors)


def test_z_is_standard_normal(name):
    method = tiny_live(name, noise_dim=64, generator_batch=500, repeats=1)
    seen = watch_z(method)
    method.synthesize(0)
    assert abs(seen[0].mean()) < 0.02 and abs(seen[0].std() - 1) < 0.02


# --- who learns when


def test_the_generator_learns_in_its_own_steps_and_the_student_in_its_own(name):
    method = tiny_live(name)
    g, s = parameters(method.generator), weights(method.student)
    method.synthesize(0)
    without_effect = {"layers.0.bias"}  # a constant before a BatchNorm
    assert changed(g, parameters(method.generator)) >= set(g) - without_effect
    assert not changed(s, weights(method.student))

    g, s = parameters(method.generator), parameters(method.student)
    method.student_step(method.sample(16))
    assert not changed(g, parameters(method.generator))
    assert changed(s, parameters(method.student))


def test_its_images_for_the_student_carry_no_gradient_back(name):
    method = tiny_live(name)
    method.synthesize(0)
    method.generator.zero_grad()
    method.student_step(method.sample(16))
    assert all(p.grad is None for p in method.generator.parameters())


@pytest.mark.parametrize("protocol", ["equal", pytest.param("published", marks=pytest.mark.slow)])
def test_the_documented_steps_really_happen(name, protocol):
    equal = {"student_steps": 6, "generator_steps": 2}  # in turns: two of three steps each
    counts = {"epochs": 2} | (equal if protocol == "equal" else {"repeats": 2})
    if METHODS[name].needs_bits:  # at its authors' rate, 0.1, so small a run diverges
        counts |= over(QUANTISED, {"student_lr": 1e-3})
    config = make_config("digits", method=name, protocol=protocol, profile="quick", **SIZES, **counts)
    setup = prepare(config, device="cpu")
    of_generator, of_student = map(watch_steps, (setup.method.generator_optimizer, setup.method.student_optimizer))
    epochs = run_all(setup)
    assert len(of_student) == sum(config.repeats * config.student_steps for epoch in epochs if epoch.scores)
    rounds = sum(config.repeats * config.synthesis_rounds(epoch.epoch) for epoch in epochs)
    assert len(of_generator) == rounds * config.generator_steps == sum(r.steps for e in epochs for r in e.rounds)
    if protocol == "equal":
        assert len(of_generator) == len(of_student) == 12


# --- what stays of a round


def test_nothing_is_kept_but_the_generator_and_its_optimiser(name):
    method = tiny_live(name, generator_steps=2, repeats=1)
    for rounds in (1, 2, 3):
        report = method.synthesize(0)
        assert report.images == 2 * method.config.generator_batch and len(method.memory) == 0
        taken = {int(state["step"]) for state in method.generator_optimizer.state.values()}
        assert taken == {2 * rounds}  # one Adam for the whole run


# --- looking at it


def test_examples_are_what_the_generator_makes_now(name):
    method = tiny_live(name)
    method.synthesize(0)
    one = method.examples()
    assert one.images.shape == (500, 1, 8, 8) and one.images.dtype == torch.uint8 and one.rounds is None
    with torch.no_grad():
        seen = method.teacher(one.images.float() / 255).argmax(1)
    assert (seen == one.labels).float().mean() > 0.95  # the teacher's answer, up to rounding to bytes
    method.synthesize(0)
    assert not torch.equal(method.examples().images, one.images)


def test_a_run_with_a_look_at_every_epoch_is_the_run_without(name):
    """Also inside a turn, between synthesis and student."""
    looked, plain = (tiny_live(name) for _ in range(2))
    for _ in range(2):
        for method in (looked, plain):
            method.synthesize(0)
            if method is looked:
                method.examples()
            method.student_step(method.sample(16))
    assert not changed(weights(looked.generator), weights(plain.generator))
    assert not changed(weights(looked.student), weights(plain.student))
    assert torch.equal(looked.rng.get_state(), plain.rng.get_state())


# --- playing against the student


@pytest.mark.parametrize("name", ["zskt", "dfq_choi"])
def test_a_student_that_is_the_teacher_leaves_nothing_to_play_for(name):
    method = tiny_live(name)
    twin = copy.deepcopy(method.teacher).requires_grad_(True)
    equal = METHODS[name](method.teacher, twin, method.config)
    assert abs(equal.synthesize(0).adv) < 1e-6
    assert method.synthesize(0).adv < -1e-3  # against a fresh one


# --- L_BN's memory


@pytest.mark.parametrize("name", ["nayer", "dfq_choi"])
def test_l_bns_memory_takes_one_batch_a_round_the_last_one(name):
    """First its statistics, then a mixture: nine parts of the memory, one of the batch."""
    method = tiny_setup(method=name, bn_momentum=0.9, generator_steps=3, repeats=1).method
    seen = []
    method.teacher.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].detach().clone()))
    expected = BatchNormLoss(method.teacher, 0.9)
    for rounds in (1, 2):
        method.synthesize(0)
        assert len(seen) == 3 * rounds
        with expected.armed():
            method.teacher(seen[-1])
            seen.pop()
            expected.end_round()
        for mine, own in zip(method.bn_loss.memory, expected.memory, strict=True):
            torch.testing.assert_close(mine, own)


# --- crop and flip


@pytest.mark.parametrize("protocol", ["equal", "published"])
def test_published_students_see_what_the_generator_made(name, protocol, monkeypatch):
    """White images: a shift brings a black edge in, also in TA-DFKD's program."""
    method = tiny_setup(method=name, protocol=protocol, repeats=1).method
    monkeypatch.setattr(type(method), "generate", lambda _self, n, generator=None: torch.ones(n, 1, 8, 8))
    new = method.sample(90).images[:40]
    assert set(new.unique().tolist()) == ({0, 1} if protocol == "equal" or name == "ta_dfkd" else {1})


# --- the budget of "equal"

BUDGETS = [
    ("digits", "quick"),
    ("color_digits", "quick"),
    ("cifar10-wrn40_2-wrn16_2", "lab"),
    ("cifar10-wrn40_2-wrn16_2", "full"),
    ("cifar100-wrn40_2-wrn16_2", "full"),
    ("tiny_imagenet-resnet34-resnet18", "full"),
]


@pytest.mark.parametrize(("preset", "profile"), BUDGETS)
def test_equal_is_table_8s_budget_in_turns(name, preset, profile):
    nayer, live = (make_config(preset, profile=profile, method=method) for method in ("nayer", name))
    assert live.distillation_epochs == nayer.distillation_epochs == live.total_epochs  # no warm-up
    assert live.repeats * live.student_steps == nayer.student_steps
    assert live.student_batch == nayer.student_batch
    assert live.synthesis_passes == pytest.approx(nayer.synthesis_passes, rel=0.01)
    assert live.rounds == 1 and live.generator_steps == live.student_steps <= 5


def test_whoever_sets_repeats_sets_all_counts(name):
    config = make_config(method=name, repeats=3, student_steps=7, generator_steps=2, generator_batch=11)
    assert (config.repeats, config.student_steps, config.generator_steps, config.generator_batch) == (3, 7, 2, 11)


def test_every_one_of_them_has_a_config_of_their_kind_and_a_schedule_without_warm_up(name):
    config = make_config("cifar10-wrn40_2-wrn16_2", method=name, protocol="published", profile="full")
    assert isinstance(config, LiveConfig)
    assert config.warmup_epochs == 0 and config.repeats > 1
