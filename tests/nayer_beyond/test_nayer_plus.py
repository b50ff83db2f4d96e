"""NAYER+: exchange, retention and momentum on NAYER, each off at 0."""

import copy

import pytest
import torch
from tiny import run_all, same, through_a_file, tiny_config, tiny_setup
from torch import nn

from nayer_beyond.nayer_plus import NayerPlus
from nayer_lib.compute import Compute
from nayer_lib.config import TABLE8, make_config
from nayer_lib.distill import distill, prepare
from nayer_lib.errors import UserError
from nayer_lib.memory import Memory
from nayer_lib.methods.base import Batch

OFF = {"exchange": 0.0, "retention": 0.0, "ema": 0.0}


def setup(**overrides):
    return tiny_setup(method="nayer_plus", **(OFF | overrides))


def made(**overrides) -> NayerPlus:
    return setup(**overrides).method


def rounds_of(method: NayerPlus) -> list[list[torch.Tensor]]:
    """What each round kept: images, v, maps."""
    kept, remember = [], method.remember
    method.remember = lambda tensors, labels: kept.append([t.clone() for t in tensors]) or remember(tensors, labels)
    return kept


def test_each_at_0_leaves_nayer_bit_for_bit():
    options = {"generator_life": 1, "epochs": 3, "generator_batch": 23}
    one, other = tiny_setup(**options), setup(**options)
    told, expected = run_all(other), run_all(one)
    assert same(other.method.state_dict(), one.method.state_dict() | {"slow": None})
    assert [e.student_loss for e in told] == [e.student_loss for e in expected]
    assert other.method.slow is None and other.method.beside == 0 and other.method.compilable


def test_its_numbers_are_nayers_on_every_data_set_and_those_of_its_sources():
    for preset in ("digits", "tiny_imagenet-resnet34-resnet18", "imagenet-resnet50-resnet50"):
        plus, nayer = (make_config(preset, profile="full", method=m) for m in ("nayer_plus", "nayer"))
        assert all(getattr(plus, name) == getattr(nayer, name) for name in TABLE8["imagenet"])
        assert (plus.alpha_cls, plus.student_lr) == (nayer.alpha_cls, nayer.student_lr)
    fields = ("exchange_rate", "spaceship"), ("inner_lr", "kakr_mb"), ("ema", "mad")
    sources = [getattr(make_config(method=method), name) for name, method in fields]
    assert sources == [plus.exchange, plus.retention, plus.ema] == [0.7, 0.9, 0.95]


# --- exchange


def test_exchanged_rows_have_whole_channels_of_two_rows_and_their_own_label(monkeypatch):
    method, decoded = made(exchange=1.0, generator_steps=3), []
    kept, decode = rounds_of(method), method.decode
    monkeypatch.setattr(method, "decode", lambda maps, depth: decoded.append((maps, depth)) or decode(maps, depth))
    for _ in range(8):
        method.synthesize(0)
    assert {depth for _, depth in decoded} == {0, 1, 2}
    for (mixed, depth), (_, _, *maps) in zip(decoded, kept, strict=True):
        own = (mixed == maps[depth]).flatten(2).all(2)
        other = (mixed == maps[depth].flip(0)).flatten(2).all(2)
        assert (own | other).all()
        half = mixed.shape[1] // 2
        assert all(half <= count <= half + 1 for count in own.sum(1).tolist())  # a dead channel may be in both
    assert method.memory.labels.tolist() == 8 * 2 * list(range(10))  # a round's own order
    images = torch.cat([decode(*pair) for pair in decoded[-1:]])
    assert torch.equal(method.memory.images[-20:], Memory.as_bytes(images))


def test_it_happens_in_that_share_of_the_rounds_and_the_others_keep_their_images():
    method = made(exchange=0.5, generator_steps=1)
    kept = rounds_of(method)
    for _ in range(60):
        method.synthesize(0)
    own = [
        torch.equal(Memory.as_bytes(images), stored)
        for (images, *_), stored in zip(kept, method.memory.images.split(20), strict=True)
    ]
    assert 18 < sum(own) < 42


@pytest.mark.parametrize("generator_layout", ["paper"])
def test_another_generator_cannot_exchange(generator_layout):
    with pytest.raises(UserError, match="take generator_layout=released and images of at most 64 px"):
        made(exchange=0.7, generator_layout=generator_layout)
    assert made(ema=0.9, generator_layout=generator_layout).slow is not None


# --- momentum


def weights(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def test_the_slow_generator_is_the_mean_over_time_of_g_without_the_noisy_layer():
    method = made(ema=0.9, generator_steps=3)
    expected, update = weights(method.generator[1]), method.after_update
    start = weights(method.slow)

    def by_hand() -> None:
        for name, new in method.generator[1].state_dict().items():
            expected[name] = 0.9 * expected[name] + 0.1 * new if new.is_floating_point() else new.clone()
        update()

    method.after_update = by_hand
    method.synthesize(0)
    slow = method.slow.state_dict()
    assert slow.keys() == method.generator[1].state_dict().keys() and not same(slow, start)
    for name, value in slow.items():
        torch.testing.assert_close(value, expected[name])
    assert not any(p.requires_grad for p in method.slow.parameters()) and not method.slow.training
    assert method.beside == sum(p.nbytes for p in method.generator[1].parameters())


def test_without_memory_the_slow_generator_is_g():
    method = made(ema=1e-9)
    method.synthesize(0)
    for name, value in method.generator[1].state_dict().items():
        torch.testing.assert_close(method.slow.state_dict()[name], value)


def test_the_second_half_of_a_rounds_images_is_the_slow_generators_on_the_best_steps_v():
    method = made(ema=0.9, generator_steps=3, generator_batch=21)
    kept, slow = rounds_of(method), []
    method.slow.register_forward_hook(lambda module, inputs, output: slow.append((inputs[0], output)))
    method.synthesize(0)
    (images, v), [(entered, answered)] = kept[0], slow
    assert torch.equal(entered, v[11:]) and v.shape == (21, 16)
    assert torch.equal(method.memory.images, Memory.as_bytes(torch.cat([images[:11], answered])))


def test_the_slow_generator_starts_over_with_g():
    method = made(ema=0.9, generator_life=1)
    method.synthesize(0)
    assert not same(method.slow.state_dict(), method.generator[1].state_dict())
    method.begin_epoch(1)
    assert same(method.slow.state_dict(), method.generator[1].state_dict())


def test_a_momentum_of_one_and_a_share_above_one_are_refused():
    with pytest.raises(UserError, match=r"ema must lie in \[0, 1\), not 1.0"):
        make_config(method="nayer_plus", ema=1.0)
    with pytest.raises(UserError, match=r"exchange must lie in \[0, 1\], not 1.5"):
        make_config(method="nayer_plus", exchange=1.5)


# --- retention


def filled(rounds: int, **overrides) -> NayerPlus:
    method = made(**overrides)
    for _ in range(rounds):
        method.synthesize(0)
    return method


def test_a_batch_is_nayers_with_the_oldest_ninth_last():
    plus, plain = filled(5, retention=0.9), filled(5)
    for method in (plus, plain):
        method.augment = lambda images: images
    batch, expected = plus.sample(36), plain.sample(36)
    assert (batch.replayed, expected.replayed) == (4, 0)

    def rows(images: torch.Tensor) -> list:
        return sorted(images.flatten(1).tolist())

    assert rows(batch.images) == rows(expected.images) and not torch.equal(batch.images, expected.images)
    stored = {tuple(i): r for i, r in zip(rows_of(plus), plus.memory.rounds.tolist(), strict=True)}
    ages = [stored[tuple(image)] for image in (batch.images * 255).round().flatten(1).tolist()]
    assert ages == sorted(ages, reverse=True) and len(set(ages)) > 2


def rows_of(method: NayerPlus) -> list:
    return method.memory.images.float().flatten(1).tolist()


def test_with_nothing_old_it_is_the_plain_step():
    plus, plain = filled(1, retention=0.9), filled(1)
    batch = plus.sample(16)
    assert batch.replayed == 0 and filled(2, retention=0.9).sample(16).replayed == 2
    assert filled(3, retention=0.9, memory_size=20).sample(16).replayed == 0  # M holds the newest round alone
    assert plus.student_step(batch).item() == plain.student_step(batch).item()
    assert same(plus.student.state_dict(), plain.student.state_dict())


def test_its_loss_is_eq_6_and_eq_6_of_the_old_after_a_step_towards_the_new():
    method = made(retention=0.3, temperature=5.0)
    images = torch.rand(18, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    batch = Batch(images, None, "test", 2)

    def eq_6(student, part) -> torch.Tensor:
        p = (method.teacher(part) / 5).softmax(1)
        return 25 * (p * (p.log() - (student(part) / 5).log_softmax(1))).sum(1).mean()

    stepped, joint = copy.deepcopy(method.student), copy.deepcopy(method.student)
    eq_6(stepped, images[:16]).backward()
    torch.optim.SGD(stepped.parameters(), 0.3).step()
    expected = eq_6(joint, images) + eq_6(stepped, images[16:])
    assert method._student_loss(batch).item() == pytest.approx(expected.item(), rel=1e-4)


def test_only_its_student_step_is_not_compiled():
    for rate in (0.9, 0.0):
        config = tiny_config(method="nayer_plus", **(OFF | {"retention": rate}))
        method = prepare(config, device="cpu", compute=Compute(steps="compiled")).method
        assert (method._learn.forward is method._learn.plain) == bool(rate)
        assert method._synthesis.forward is not method._synthesis.plain


# --- all three


def test_a_run_with_all_on_is_resumed_exactly_and_keeps_the_budget_of_nayer():
    options = {"method": "nayer_plus", "epochs": 4, "generator_life": 2, "seed": 3}
    whole, states = tiny_setup(**options), []
    for _ in distill(whole.method, whole.evaluate):
        states.append(through_a_file(whole.method.state_dict()))
    assert len(whole.method.memory) == whole.method.config.total_rounds * whole.method.config.generator_batch
    for done in (1, 2, 3):
        second = tiny_setup(**options)
        second.method.load_state_dict(states[done - 1])
        run_all(second, start=done)
        assert same(second.method.state_dict(), whole.method.state_dict())
    assert "slow" in states[0] and whole.method.sample(16).replayed
