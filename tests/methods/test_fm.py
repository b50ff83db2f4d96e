"""FM: a round is first-order MAML from a generator that outlives it; what else it draws, optimises and starts over."""

import copy
import math
from dataclasses import dataclass

import pytest
import torch
from test_ranks import connected, whole_run
from tiny import run_all, same, tiny_config, tiny_setup
from torch import Tensor, nn

from nayer_lib.compute import Compute
from nayer_lib.config import PROFILES, make_config
from nayer_lib.distill import prepare
from nayer_lib.generator.latents import Noise
from nayer_lib.methods.fm import FM

WARMUP, AFTER = 0, 1  # the tiny config has one warm-up epoch
PLAIN = {"augment_synthesis": False, "alpha_bn": 0.0, "alpha_adv": 0.0}  # L_CE alone


def tiny_fm(compute: Compute | None = None, **overrides) -> FM:
    return prepare(tiny_config(method="fm", **overrides), device="cpu", compute=compute).method


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def changed(before: dict, after: dict) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


def watch_steps(method: FM) -> list[tuple[dict, dict]]:
    """(G, G') between every backward pass from now on and its update."""
    seen, after_backward = [], method.after_backward

    def spy():
        seen.append((weights(method.meta), weights(method.generator[1:])))
        after_backward()

    method.after_backward = spy
    return seen


# --- the meta step


@dataclass
class AdamByHand:
    rate: float
    t: int = 0
    m: Tensor | float = 0.0
    v: Tensor | float = 0.0

    def __call__(self, value: Tensor, gradient: Tensor) -> Tensor:
        self.t += 1
        self.m = 0.5 * self.m + 0.5 * gradient
        self.v = 0.999 * self.v + 0.001 * gradient**2
        m, v = self.m / (1 - 0.5**self.t), self.v / (1 - 0.999**self.t)
        return (value - self.rate * m / (v.sqrt() + 1e-8)).detach()


class ToyFM(FM):
    """G is one Linear layer and a squashing: no gradient is zero but for rounding."""

    def _new_generator(self) -> nn.Sequential:
        noise = Noise(3, self.config.generator_batch, learned=True)
        return self.build(lambda: nn.Sequential(noise, nn.Linear(3, 64), nn.Sigmoid(), nn.Unflatten(1, (1, 8, 8))))


def test_rounds_are_first_order_maml_written_out_by_hand():
    steps, rate, latent_rate = 3, 0.02, 0.05
    options = PLAIN | {"generator_steps": steps, "generator_lr": rate, "latent_lr": latent_rate, "alpha_cls": 0.7}
    ready = tiny_fm(**options)
    method = ToyFM(ready.teacher, ready.student, ready.config)
    outer = [AdamByHand(steps * rate) for _ in range(2)]  # it persists
    for _ in range(3):
        weight, bias = start = [p.detach().clone() for p in method.meta.parameters()]
        z = torch.empty(20, 3).normal_(generator=method.rng.clone_state())
        method.synthesize(WARMUP)
        labels = method.memory.labels[-20:]

        sums, inner = [0, 0], [AdamByHand(rate), AdamByHand(rate), AdamByHand(latent_rate)]
        for _ in range(steps):
            entering = [x.requires_grad_() for x in (weight, bias, z)]
            images = torch.sigmoid(z @ weight.T + bias).view(-1, 1, 8, 8)
            loss = 0.7 * nn.functional.cross_entropy(method.teacher(images), labels)
            gradients = torch.autograd.grad(loss, entering)
            sums = [total + gradient for total, gradient in zip(sums, gradients, strict=False)]
            weight, bias, z = (adam(x, g) for adam, x, g in zip(inner, entering, gradients, strict=True))
        expected = [adam(x, total) for adam, x, total in zip(outer, start, sums, strict=True)]
        for ours, theirs in zip(method.meta.parameters(), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(method.generator[0].z, z, rtol=1e-3, atol=1e-4)
        assert min((a - b).abs().max() for a, b in zip(expected, start, strict=True)) > rate


def test_a_copy_starts_from_g_which_moves_by_the_meta_step_alone():
    method = tiny_fm(generator_steps=3)
    for epoch in (WARMUP, AFTER, AFTER):
        method.begin_epoch(epoch)
        start, steps = weights(method.meta), watch_steps(method)
        method.synthesize(epoch)
        assert len(steps) == 3 and all(same(meta, start) for meta, _ in steps)
        names = {name for name, _ in method.meta.named_parameters()}
        assert [changed(start, copied) & names for _, copied in steps] == [set(), names, names]
        assert changed(start, weights(method.meta)) == names
        del method.after_backward


def test_the_rate_of_the_meta_step_is_g_times_that_of_the_copy():
    method = tiny_fm(generator_steps=4)
    [group] = method.meta_optimizer.param_groups
    assert (group["lr"], group["betas"]) == (pytest.approx(4 * 2e-3), (0.5, 0.999))
    method.synthesize(WARMUP)
    method.synthesize(WARMUP)
    assert {int(state["step"]) for state in method.meta_optimizer.state.values()} == {2}


def test_everything_stays_in_place_for_compiled_steps():
    setup = tiny_setup(method="fm")
    before = [p.data_ptr() for p in setup.method.generator.parameters()]
    run_all(setup)
    assert [p.data_ptr() for p in setup.method.generator.parameters()] == before


# --- z and the labels


def test_z_is_optimised_at_its_own_rate_and_new_in_every_round():
    method = tiny_fm(generator_steps=1)
    seen, noise = [], method.generator[0]
    for _ in range(2):
        drawn = torch.empty_like(noise.z).normal_(generator=method.rng.clone_state())
        method.synthesize(WARMUP)
        moved = (noise.z - drawn).abs()
        assert moved.median().item() == pytest.approx(0.01, rel=0.01)  # Adam's first step
        seen.append(drawn)
    assert not torch.equal(*seen)


def test_labels_are_random_and_not_balanced():
    method = tiny_fm(generator_batch=200, generator_steps=1)
    for _ in range(2):
        method.synthesize(WARMUP)
    one, other = method.memory.labels.split(200)
    counts = torch.bincount(one, minlength=10)
    assert counts.max() > counts.min() > 0 and not torch.equal(one, other)


# --- the adversarial term and the memory


def test_the_student_is_played_against_after_warm_up_alone():
    method = tiny_fm(adversarial_mask=False)
    assert len(method.memory) == 0  # nothing of another run
    assert method.synthesize(WARMUP).adv == 0 > method.synthesize(AFTER).adv
    assert len(method.memory) == 2 * 20


# --- the reset of the first layers


def first_layers(method: FM) -> tuple[nn.Linear, nn.Module]:
    modules = list(method.meta.modules())
    norms = (nn.BatchNorm1d, nn.BatchNorm2d)
    return tuple(next(m for m in modules if isinstance(m, kind)) for kind in (nn.Linear, norms))


@pytest.mark.parametrize("options", [{}, {"generator_layout": "paper"}, {"nayer_generator": True}], ids=str)
def test_the_first_linear_and_the_first_batchnorm_start_over_once(options):
    method = tiny_fm(warmup_epochs=3, epochs=5, **options)
    method.synthesize(WARMUP)
    linear, norm = first_layers(method)
    expected = {
        f"{name}.{part}"
        for name, m in method.meta.named_modules()
        if m in (linear, norm)
        for part in ("weight", "bias")
    }
    for epoch in range(8):
        before, moments = weights(method.meta), copy.deepcopy(method.meta_optimizer.state_dict()["state"])
        method.begin_epoch(epoch)
        assert changed(before, weights(method.meta)) == (expected if epoch == 3 + 3 else set())
        assert same(moments, method.meta_optimizer.state_dict()["state"])
    bound = 1 / math.sqrt(linear.in_features)
    assert bound * 0.9 < linear.weight.abs().max() <= bound  # as PyTorch initialises it
    assert (norm.weight == 1).all() and not norm.bias.any()


@pytest.mark.parametrize(("epochs", "at"), [(8, 5), (4, 2), (1, 1)])
def test_the_reset_comes_at_the_nearest_epoch(epochs, at):
    method, moved = tiny_fm(warmup_epochs=1, epochs=epochs), []
    for epoch in range(epochs + 2):
        before = weights(method.meta)
        method.begin_epoch(epoch)
        moved += [epoch] if changed(before, weights(method.meta)) else []
    assert moved == [1 + at]


def test_after_all_epochs_is_never():
    method = tiny_fm(epochs=5, reset_after=1.0)
    before = weights(method.meta)
    for epoch in range(6):
        method.begin_epoch(epoch)
    assert same(before, weights(method.meta))


# --- numbers: the published schedule, and NAYER's generator (Table 11)


def test_the_published_schedule_makes_56_thousand_images_in_220_rounds():
    config = make_config(profile="full", method="fm", protocol="published")
    rounds = sum(map(config.synthesis_rounds, range(config.total_epochs)))
    assert (rounds, rounds * config.generator_batch) == (220, 56_320)
    assert config.warmup_epochs + config.reset_after * config.distillation_epochs == 20 + 120
    assert config.generator_lr * config.generator_steps == pytest.approx(0.02)


def test_with_nayers_generator_z_passes_a_linear_to_the_width_that_nayer_has():
    for profile in PROFILES:
        assert make_config(profile=profile, method="fm").nayer_noise_dim == make_config(profile=profile).noise_dim
    method = tiny_fm(nayer_generator=True, nayer_noise_dim=24)
    noise, linear, generator = method.generator
    assert (noise.z.shape, linear.weight.shape) == ((20, 16), (24, 16))
    assert generator.layers[0].in_features == 24
    method.synthesize(WARMUP)
    assert len(list(method.meta.parameters())) == len(list(tiny_fm().meta.parameters())) + 2


# --- 16 bits and several processes


def meta_gradients(compute: Compute) -> Tensor:
    method = tiny_fm(compute, generator_steps=1, **PLAIN)
    method.synthesize(WARMUP)
    return torch.cat([p.grad.flatten() for p in method.meta.parameters()])


def test_gradients_are_summed_without_the_scale_of_float16():
    plain, half = meta_gradients(Compute()), meta_gradients(Compute("fp16"))
    assert not torch.equal(plain, half) and (plain - half).norm() < 0.02 * plain.norm()


def test_a_step_that_overflows_adds_nothing():
    method = tiny_fm(Compute("fp16"), generator_steps=1)
    method.scaler.load_state_dict(method.scaler.state_dict() | {"scale": 2.0**100})
    before = weights(method.meta)
    method.synthesize(WARMUP)
    parameters = list(method.meta.named_parameters())
    assert not any(p.grad.any() for _, p in parameters) and not changed(before, weights(method.meta))
    copied = weights(method.generator[1:])
    assert all(torch.equal(copied[name], p) for name, p in parameters)
    assert method.scaler.get_scale() < 2.0**100


def test_ranks_agree_on_g_and_have_z_of_their_own(tmp_path):
    one, other = connected(lambda: whole_run(method="fm"), tmp_path)
    assert same(one["student"], other["student"]) and one["told"] == other["told"]
    assert {name for name in one["generator"] if not torch.equal(one["generator"][name], other["generator"][name])} == {
        "0.z"
    }
    assert not torch.equal(one["images"], other["images"])
