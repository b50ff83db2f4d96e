"""MAD: a slow copy of the generator, and a student that learns from both."""

import pytest
import torch
from test_ranks import connected
from tiny import same, tiny_setup

from nayer_lib.config import make_config
from nayer_lib.errors import UserError
from nayer_lib.methods.base import Batch
from nayer_lib.methods.mad import MAD
from nayer_notebooks import paper


def tiny_mad(**overrides) -> MAD:
    return tiny_setup(method="mad", **overrides).method


def copied(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def kl(t: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
    p, q = t.softmax(1), s.softmax(1)
    return (p * (p.log() - q.log())).sum(1)


def test_what_is_known_of_its_numbers_and_what_is_guessed():
    config = make_config("cifar10-wrn40_2-wrn16_2", method="mad", protocol="published", profile="full")
    assert config.ema == 0.95  # the paper's
    assert (config.generator_steps, config.student_steps) == (1, 10)
    assert (config.alpha_ema, config.temperature, config.adversarial_mask) == (1, 1, False)
    dfq = make_config("cifar10-wrn40_2-wrn16_2", method="dfq_choi", protocol="published", profile="full")
    for name in ("alpha_cls", "alpha_ie", "alpha_bn", "alpha_adv", "epochs", "repeats", "generator_batch", "noise_dim"):
        assert getattr(config, name) == getattr(dfq, name)


def test_the_published_accuracies_stand_in_table_1():
    table = paper.table(1)
    rows = table[(table["method"] == "MAD") & table["accuracy"].notna()]
    found = {(row.dataset, row.student): row.accuracy for row in rows.itertuples()}
    assert found[("cifar10", "wrn16_2")] == 92.64 and found[("cifar10", "resnet18")] == 94.90
    assert found[("cifar100", "resnet18")] == 77.31 and set(rows["source"]) == {"c"}


# --- the slow generator


def test_it_is_the_mean_over_time_of_the_generator_step_by_step():
    """Weights and running statistics; a count of batches is the generator's."""
    method = tiny_mad(generator_steps=4, repeats=1, ema=0.9)
    expected, update = copied(method.generator), method.after_update

    def by_hand() -> None:
        for name, new in method.generator.state_dict().items():
            mixed = 0.9 * expected[name] + 0.1 * new if new.is_floating_point() else new
            expected[name] = mixed.clone()
        update()

    method.after_update = by_hand
    start = copied(method.generator)
    method.synthesize(0)
    slow = method.slow.state_dict()
    assert slow.keys() == expected.keys() and any(name.endswith("running_var") for name in slow)
    for name, value in slow.items():
        torch.testing.assert_close(value, expected[name])
    assert not same(slow, start) and not same(slow, method.generator.state_dict())
    assert slow["layers.2.num_batches_tracked"] == 4


def test_without_memory_it_is_the_generator():
    method = tiny_mad(ema=0.0)
    method.synthesize(0)
    assert same(method.slow.state_dict(), method.generator.state_dict())


def test_its_images_move_more_slowly():
    method = tiny_mad(generator_steps=5, repeats=1)
    z = torch.randn(50, 16, generator=torch.Generator().manual_seed(0))

    def images(network: torch.nn.Module) -> torch.Tensor:
        with torch.no_grad():
            return network.eval()(z)

    moved = {"slow": 0.0, "generator": 0.0}
    for _ in range(4):
        before = {name: images(getattr(method, name)) for name in moved}
        method.generator.train()
        method.synthesize(0)
        for name in moved:
            moved[name] += (images(getattr(method, name)) - before[name]).abs().mean().item()
    assert 0 < moved["slow"] < moved["generator"] / 2


def test_it_has_no_gradient_and_drawing_from_it_changes_nothing():
    method = tiny_mad()
    method.synthesize(0)
    before = copied(method.slow)
    method.student_step(method.sample(16))
    assert same(before, method.slow.state_dict()) and not method.slow.training
    assert not any(p.requires_grad or p.grad is not None for p in method.slow.parameters())


# --- the student


def test_a_batch_is_half_of_the_generators_and_half_of_its_slow_copys_images():
    method = tiny_mad()
    method.synthesize(0)
    method.augment = lambda images: images
    rng = method.rng.clone_state()
    batch = method.sample(9)
    z = [torch.randn(n, 16, generator=rng) for n in (5, 4)]
    with torch.no_grad():
        expected = torch.cat([method.generator(z[0]), method.slow(z[1])])
    assert torch.equal(batch.images, expected) and batch.replayed == 4 and batch.labels is None


@pytest.mark.parametrize("weight", [0.0, 1.0, 0.25])
def test_the_students_loss_is_that_of_the_fresh_half_and_weighted_that_of_the_other(weight):
    method = tiny_mad(alpha_ema=weight)
    rng = torch.Generator().manual_seed(0)
    t, s = (torch.randn(9, 10, generator=rng) for _ in range(2))
    loss = method.student_loss(Batch(torch.zeros(9, 1, 8, 8), None, "test", replayed=4), t, s)
    expected = kl(t[:5], s[:5]).mean() + weight * kl(t[5:], s[5:]).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_generators_loss_is_the_weighted_sum_of_its_terms():
    method = tiny_mad(alpha_cls=0.5, alpha_ie=3.0, alpha_bn=0.2, alpha_adv=2.0)
    z = torch.randn(20, 16, generator=torch.Generator().manual_seed(0))
    with method.bn_loss.armed():
        total, terms, images = method._objective(z, None, True)
        with torch.no_grad():
            t, s = method.teacher(images), method.student(images)
            bn = method.bn_loss().item()
    p = t.softmax(1)
    by_hand = [-p.max(1).values.log().mean(), (p.mean(0) * p.mean(0).log()).sum(), bn, -kl(t, s).mean()]
    assert terms.tolist() == pytest.approx([float(x) for x in by_hand], rel=1e-3)
    assert total.item() == pytest.approx(sum(a * x for a, x in zip((0.5, 3, 0.2, 2), terms.tolist(), strict=True)))


def test_a_slow_generator_that_never_moves_is_refused():
    with pytest.raises(UserError, match=r"ema must lie in \[0, 1\), not 1.0"):
        tiny_mad(ema=1.0)


def test_a_batch_that_cannot_be_halved_is_refused():
    with pytest.raises(UserError, match="two halves of a batch: raise student_batch to 2"):
        tiny_mad(student_batch=1)


def slow_run() -> dict:
    method = tiny_mad()
    method.synthesize(0)
    method.student_step(method.sample(16))
    method.synthesize(0)
    return {"slow": method.slow.state_dict(), "student": method.student.state_dict()}


def test_ranks_agree_on_the_slow_generator(tmp_path):
    one, other = connected(slow_run, tmp_path)
    assert same(one["slow"], other["slow"])
