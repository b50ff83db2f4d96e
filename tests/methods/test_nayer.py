"""Algorithm 1 as NAYER runs it: what a round draws anew, what it keeps, and what D1-D13 change in that."""

import copy
import math

import numpy as np
import pytest
import torch
from tiny import TINY, run_all, same, tiny_config, tiny_setup
from torch import nn

from nayer_lib import losses
from nayer_lib.classifiers.teacher import Classifier, make_classifier
from nayer_lib.config import make_config
from nayer_lib.datasets import dataset
from nayer_lib.distill import distill, prepare
from nayer_lib.errors import UserError
from nayer_lib.generator.latents import COLUMNS, control_table
from nayer_lib.methods.base import NonFiniteLoss
from nayer_lib.methods.nayer import KEPT, Nayer
from nayer_lib.text.lte_pool import load_pool, pool_path

WARMUP, AFTER = 0, 1  # the tiny config has one warm-up epoch


def tiny_nayer(variant="released", **overrides) -> Nayer:
    return tiny_setup(variant, **overrides).method


def weights(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def changed(before: dict, after: dict) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


def watch_redraws(method: Nayer) -> list[tuple[dict, dict]]:
    """(the generator before, the generator after) of every redraw from now on."""
    seen, redraw = [], method.generator[0].redraw

    def spy(rng):
        before = weights(method.generator)
        redraw(rng)
        seen.append((before, weights(method.generator)))

    method.generator[0].redraw = spy
    return seen


def watch_outputs(module: nn.Module) -> list[torch.Tensor]:
    seen = []
    module.register_forward_hook(lambda _module, _inputs, output: seen.append(output.detach().clone()))
    return seen


def watch_inputs(module: nn.Module) -> list[torch.Tensor]:
    seen = []
    module.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].detach().clone()))
    return seen


def forbid(module: nn.Module) -> None:
    def refuse(*_):
        raise AssertionError("this network should not have been run")

    module.register_forward_pre_hook(refuse)


def script(method: Nayer, monkeypatch, values: list[float]) -> None:
    """Let the loss of a round's steps take these values, with the gradients it really has."""
    terms, left = method.values, list(values)

    def scripted(seen):
        real = torch.stack(terms(seen))
        wanted = real.new_tensor([left.pop(0) / method.config.alpha_cls, 0.0, 0.0])
        return list(real - real.detach() + wanted)

    monkeypatch.setattr(method, "values", scripted)


def floored(images: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(np.floor(images.numpy() * np.float32(255)).astype(np.uint8))


# --- line 5: the noisy layer


def test_a_round_redraws_the_noisy_heads_and_nothing_else():
    method = tiny_nayer()
    seen = watch_redraws(method)
    for expected in range(3):
        end = weights(method.generator)  # of the round before
        method.synthesize(AFTER)
        before, after = seen[expected]
        assert not changed(end, before)  # everything else goes on where it was
        assert changed(before, after) == {"0.layer.weight", "0.layer.bias"} - (
            {"0.layer.bias"} if not expected else set()
        )
        assert not after["0.layer.bias"].any()
    assert not torch.equal(seen[1][1]["0.layer.weight"], seen[2][1]["0.layer.weight"])


def test_fresh_heads_are_standard_normal():
    method = tiny_nayer(noise_dim=64)
    seen = watch_redraws(method)
    method.synthesize(WARMUP)
    heads = seen[0][1]["0.layer.weight"]
    assert heads.shape == (2, method.table.shape[1], 64)
    assert abs(heads.mean()) < 0.02 and abs(heads.std() - 1) < 0.02


@pytest.mark.parametrize("variant", ["released", "paper"])
def test_d10_the_text_redraws_the_batchnorm_too(variant):
    method = tiny_nayer(variant)
    seen = watch_redraws(method)
    method.synthesize(AFTER)
    method.synthesize(AFTER)
    before, after = seen[1]
    norm = {name for name in changed(before, after) if name.startswith("0.layer.norm")}
    if variant == "released":
        assert not norm
    else:
        assert {"0.layer.norm.weight", "0.layer.norm.bias", "0.layer.norm.running_mean"} <= norm
        assert (after["0.layer.norm.weight"] == 1).all() and not after["0.layer.norm.bias"].any()
    assert not any(name.startswith("1.") for name in changed(before, after))  # G itself is never redrawn


def test_all_of_the_generator_is_trained():
    method = tiny_nayer()
    seen = watch_redraws(method)
    method.synthesize(AFTER)
    parameters = {name for name, _ in method.generator.named_parameters()}
    without_effect = {"1.layers.0.bias"}  # a constant before a BatchNorm
    assert changed(seen[0][1], weights(method.generator)) >= parameters - without_effect


# --- lines 7-10: the optimiser and the steps


def test_every_round_has_a_fresh_adam_with_the_rates_of_a2(monkeypatch):
    made = []

    class Recorded(torch.optim.Adam):
        def __init__(self, parameters, *args, **kwargs):
            super().__init__(parameters, *args, **kwargs)
            made.append(self)

    monkeypatch.setattr(torch.optim, "Adam", Recorded)
    method = tiny_nayer(generator_steps=3)
    for _ in range(2):
        method.synthesize(AFTER)
        [optimizer] = made  # fresh in place
        [group] = optimizer.param_groups
        assert (group["lr"], group["betas"], group["weight_decay"]) == (4e-3, (0.5, 0.999), 0)
        assert {id(p) for p in group["params"]} == {id(p) for p in method.generator.parameters()}
        assert {int(state["step"]) for state in optimizer.state.values()} == {3}  # began at 0, one an iteration


def test_the_gradient_is_that_of_eq_5_with_its_weights():
    """One plain gradient step on alpha_cls L_CE + alpha_bn L_BN + alpha_adv L_adv, beside the round's own."""
    method = tiny_nayer(generator_steps=1, augment_synthesis=False, adversarial_mask=False)
    seen = watch_redraws(method)
    grads = {}
    step = torch.optim.Adam.step
    with pytest.MonkeyPatch.context() as patch:

        def recording(optimizer, *args):
            grads.update({name: p.grad.clone() for name, p in method.generator.named_parameters()})
            return step(optimizer, *args)

        patch.setattr(torch.optim.Adam, "step", recording)
        method.synthesize(AFTER)

    generator = copy.deepcopy(method.generator)
    generator.load_state_dict(seen[0][1])
    bn = losses.BatchNormLoss(method.teacher, 0.9)
    method.student.eval()
    with bn.armed():
        images = generator(method.memory.labels)
        t, s = method.teacher(images), method.student(images)
        c = method.config
        loss = c.alpha_cls * nn.functional.cross_entropy(t, method.memory.labels) + c.alpha_bn * bn()
        loss = loss - c.alpha_adv * nn.functional.kl_div(s.log_softmax(1), t.softmax(1), reduction="batchmean")
        loss.backward()
    for name, parameter in generator.named_parameters():
        torch.testing.assert_close(grads[name], parameter.grad, rtol=1e-3, atol=1e-5)


def test_the_report_has_the_terms_of_the_steps_unweighted(monkeypatch):
    method, parts = tiny_nayer(generator_steps=3, adversarial_mask=False), []
    terms = method.values
    monkeypatch.setattr(method, "values", lambda seen: parts.append(torch.stack(terms(seen))) or list(parts[-1]))
    report = method.synthesize(AFTER)
    ce, bn, adv = torch.stack(parts).T.tolist()
    assert report.ce_per_step == ce and len(set(bn)) == len(set(adv)) == 3
    assert (report.bn, report.adv) == (bn[-1], adv[-1])  # of the last step


# --- D5: the generator's life


@pytest.mark.parametrize(("life", "expected"), [(None, []), (2, [1, 3, 5]), (3, [3, 6]), (10, [3])])
def test_the_generator_is_rebuilt_every_life_epochs_counted_from_the_end_of_warm_up(life, expected):
    method = tiny_nayer(warmup_epochs=3, epochs=4, generator_life=life)
    rebuilt = []
    for epoch in range(7):
        before = weights(method.generator)
        method.begin_epoch(epoch)
        if moved := changed(before, weights(method.generator)):
            rebuilt.append(epoch)
            assert moved >= {"0.layer.weight", "1.layers.0.weight"}
    assert rebuilt == expected


def test_a_rebuilt_generator_is_initialised_as_pytorch_does():
    method = tiny_nayer(noise_dim=64, generator_life=1)
    method.synthesize(WARMUP)
    method.begin_epoch(1)
    linear = method.generator[1].layers[0]
    bound = 1 / math.sqrt(linear.in_features)
    assert bound * 0.95 < linear.weight.abs().max() <= bound
    norms = [m for m in method.generator.modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d))]
    assert norms and all((m.weight == 1).all() and not m.running_mean.any() for m in norms)


def test_the_batchnorm_memory_outlives_a_rebuild():
    method = tiny_nayer(generator_life=1)
    method.synthesize(WARMUP)
    memory = method.bn_loss.memory
    method.begin_epoch(1)
    assert memory[0][0].any() and method.bn_loss.memory is memory


# --- heads that persist (the columns of Table 3 without redrawn layers)


def test_the_kept_latents_are_the_columns_that_are_never_redrawn():
    assert set(COLUMNS) - set(KEPT) == {"noisy", "noisy_1to1", "noisy_one"}


@pytest.mark.parametrize("name", KEPT)
def test_kept_heads_outlive_the_generator(name):
    method = tiny_nayer(latent=name, generator_life=1)
    fresh = weights(method.generator)
    method.synthesize(WARMUP)
    before = weights(method.generator)
    assert "0.layer.weight" in changed(fresh, before)  # learned, so not the fresh ones
    method.begin_epoch(1)
    moved = changed(before, weights(method.generator))
    assert not {key for key in moved if key.startswith("0.")} and "1.layers.0.weight" in moved
    method.synthesize(AFTER)
    assert {"0.layer.weight", "1.layers.0.weight"} <= changed(before, weights(method.generator))  # both still learn


@pytest.mark.parametrize("name", sorted({*COLUMNS, "noise"} - set(KEPT)))
def test_other_latents_are_as_new_as_the_generator(name):
    method = tiny_nayer(latent=name, generator_life=1)
    method.synthesize(WARMUP)
    before = weights(method.generator)
    method.begin_epoch(1)
    moved = changed(before, weights(method.generator))
    assert ("0.z" if name == "noise" else "0.layer.weight") in moved and "1.layers.0.weight" in moved


def test_a_resumed_run_has_its_kept_heads_again():
    options = {"latent": "cat_lte", "generator_life": 1, "epochs": 3}
    whole, first, second = (tiny_setup(**options) for _ in range(3))
    run_all(whole)
    epochs = distill(first.method, first.evaluate)
    next(epochs), next(epochs)
    second.method.load_state_dict(first.method.state_dict())
    run_all(second, start=2)
    assert torch.equal(second.method.memory.images, whole.method.memory.images)
    assert not changed(weights(whole.method.generator), weights(second.method.generator))


# --- what enters the latent


def test_the_latents_settings_are_those_of_the_config():
    method = tiny_nayer(latent="sum_lte", latent_beta=0.25)
    assert method.generator[0].beta == 0.25
    method = tiny_nayer(latent="cat_lte", latent_concat=7)
    assert method.generator[0].z.shape == (20, 7)
    assert method.generator[0].layer.weight.shape == (1, method.table.shape[1] + 7, 16)


@pytest.mark.parametrize("embedding", ["text", "orthogonal", "permuted"])
def test_a_control_stands_in_place_of_the_text(embedding):
    method = tiny_nayer(embedding=embedding, seed=2)
    pool = load_pool(pool_path("digits", "sbert", "a"), method.teacher.class_names).table
    assert torch.equal(method.generator[0].table, method.table)
    assert torch.equal(method.table, control_table(embedding, pool, None, 2))
    assert torch.equal(method.table, pool) == (embedding == "text")


def test_two_hot_classes_reach_the_latent():
    method = prepare(make_config("color_digits", **TINY | {"embedding": "two_hot"}), device="cpu").method
    assert method.generator[0].table.shape == (50, 15) and (method.generator[0].table.sum(1) == 2).all()
    assert torch.equal(method.table, control_table("two_hot", torch.empty(50, 1), dataset("color_digits").factors, 0))
    assert method.synthesize(WARMUP).images == 20


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"embedding": "two_hot"}, "no factors for a two-hot code"),
        ({"embedding": "txt"}, "unknown embedding 'txt'. Did you mean 'text'"),
        ({"latent": "onehott"}, "unknown latent 'onehott'. Did you mean 'onehot'"),
    ],
    ids=str,
)
def test_an_input_that_does_not_exist_is_told(wrong, sentence):
    with pytest.raises(UserError, match=sentence):
        tiny_nayer(**wrong)


# --- lines 6 and 8: labels


def test_each_head_sees_each_class_once_and_the_remainder_is_random():
    method = tiny_nayer(generator_batch=27)
    for _ in range(4):
        method.synthesize(WARMUP)
    assert method.generator[0].layer.per_head == 10 and len(method.generator[0].layer.weight) == 3
    batches = [method.memory.labels[method.memory.rounds == r] for r in range(4)]
    assert all(len(batch) == 27 for batch in batches)
    for batch in batches:
        for head in (batch[:10], batch[10:20]):
            assert sorted(head.tolist()) == list(range(10))
    assert len({tuple(batch[20:].tolist()) for batch in batches}) == 4


def test_a_batch_smaller_than_the_classes_has_random_labels():
    method = tiny_nayer(generator_batch=4)
    method.synthesize(WARMUP)
    method.synthesize(WARMUP)
    first, second = method.memory.labels.split(4)
    assert not torch.equal(first, second)


# --- Eq. 5's adversarial term


def test_the_adversarial_term_is_off_in_warm_up_and_on_after():
    masked, unmasked = tiny_nayer(), tiny_nayer(adversarial_mask=False)
    assert masked.synthesize(WARMUP).adv == unmasked.synthesize(WARMUP).adv == 0
    assert masked.synthesize(AFTER).adv <= 0  # minus a divergence; no image at all may be left by the mask
    assert unmasked.synthesize(AFTER).adv < 0


def test_the_student_is_not_run_in_warm_up():
    method = tiny_nayer()
    forbid(method.student)
    method.synthesize(WARMUP)
    with pytest.raises(AssertionError, match="should not have been run"):
        method.synthesize(AFTER)


def test_without_adversarial_weight_the_student_is_never_run():
    method = tiny_nayer(alpha_adv=0.0)
    forbid(method.student)
    assert method.synthesize(WARMUP).adv == method.synthesize(AFTER).adv == 0


@pytest.mark.parametrize("mask", [True, False])
def test_d7_the_mask_reaches_the_loss(mask, monkeypatch):
    asked = []
    real = losses.adversarial
    monkeypatch.setattr(losses, "adversarial", lambda t, s, mask: asked.append(mask) or real(t, s, mask))
    tiny_nayer(adversarial_mask=mask).synthesize(AFTER)
    assert asked == [mask, mask]


def test_d8_the_momentum_reaches_the_loss_and_its_memory_is_kept_once_a_round():
    released, text = tiny_nayer(), tiny_nayer("paper")
    assert (released.bn_loss.momentum, text.bn_loss.momentum) == (0.9, 0)
    memories = []
    for _ in range(2):
        released.synthesize(WARMUP)
        memories.append([var.clone() for var, _ in released.bn_loss.memory])
        text.synthesize(WARMUP)
    assert len(memories[0]) == len(released.teacher.batch_norms()) and not same(*memories)
    assert not text.state_dict()["bn_loss"]["memory"]


# --- D13 and the student


@pytest.mark.parametrize(("variant", "modes"), [("released", [False, True, True]), ("paper", [False, False, False])])
def test_d13_the_students_mode_in_synthesis(variant, modes):
    """Released: eval in an epoch's first round, train in the others, and so again in the next epoch."""
    method = tiny_nayer(variant, rounds=3, generator_steps=2)
    seen = []
    method.student.register_forward_hook(lambda module, *_: seen.append(module.training))
    for epoch in (1, 2):
        seen.clear()
        method.begin_epoch(epoch)
        for _ in range(3):
            method.synthesize(epoch)
            assert method.student.training and all(p.requires_grad for p in method.student.parameters())
        assert seen == [mode for mode in modes for _ in range(2)]


@pytest.mark.parametrize("variant", ["released", "paper"])
def test_synthesis_trains_no_student(variant):
    method = tiny_nayer(variant)
    before = weights(method.student)
    for _ in range(2):
        method.synthesize(AFTER)
    moved = changed(before, weights(method.student))
    assert all(p.grad is None for p in method.student.parameters())
    assert not moved & {name for name, _ in method.student.named_parameters()}
    assert bool(moved) == (variant == "released")  # D13: the released side effect moves BatchNorm's statistics


# --- line 11 and D11: which images are kept


@pytest.mark.parametrize(
    ("keep", "script_of_losses", "kept"),
    [
        ("best", [3.0, 1.0, 2.0], 1),
        ("best", [1.0, 2.0, 3.0], 0),
        ("best", [3.0, 2.0, 1.0], 2),
        ("best", [2.0, 1.0, 1.0], 1),  # the first of equals
        ("last", [1.0, 2.0, 3.0], 2),
    ],
)
def test_d11_the_images_of_the_lowest_loss_or_of_the_last_step(keep, script_of_losses, kept, monkeypatch):
    method = tiny_nayer(keep=keep, generator_steps=3)
    made = watch_outputs(method.generator)
    script(method, monkeypatch, script_of_losses)
    method.synthesize(AFTER)
    assert len(made) == 3 and not torch.equal(floored(made[0]), floored(made[2]))
    assert torch.equal(method.memory.images, floored(made[kept]))


def test_a_trace_holds_every_steps_images_and_the_rounds_labels(monkeypatch):
    method = tiny_nayer(generator_steps=3)
    script(method, monkeypatch, [1.0, 2.0, 3.0] * 2)  # the first is the best
    made, method.trace = watch_outputs(method.generator), []
    for _ in range(2):
        method.synthesize(AFTER)
    assert len(method.trace) == 2
    for r, (images, labels) in enumerate(method.trace):
        assert torch.equal(images, torch.stack([floored(x) for x in made[3 * r : 3 * r + 3]]))
        assert torch.equal(labels, method.memory.labels[method.memory.rounds == r])


def test_d11_the_lowest_loss_is_that_of_eq_5_with_its_weights(monkeypatch):
    method = tiny_nayer(generator_steps=6, generator_lr=0.05)
    made, parts, terms = watch_outputs(method.generator), [], method.values
    monkeypatch.setattr(method, "values", lambda seen: parts.append(torch.stack(terms(seen))) or list(parts[-1]))
    best = []
    for _ in range(4):
        made.clear(), parts.clear()
        method.synthesize(AFTER)
        c = method.config
        totals = [c.alpha_cls * ce + c.alpha_bn * bn + c.alpha_adv * adv for ce, bn, adv in torch.stack(parts).tolist()]
        best.append(int(np.argmin(totals)))
        assert torch.equal(method.memory.images[-20:], floored(made[best[-1]]))
    assert set(best) != {0} and len(made) == 6


# --- D12: augmentation before the teacher


@pytest.mark.parametrize("augment", [True, False])
def test_d12_the_teacher_sees_crops_or_the_images_themselves(augment):
    method = tiny_nayer(augment_synthesis=augment, generator_steps=3)
    made, taught = watch_outputs(method.generator), watch_inputs(method.teacher)
    learned = watch_inputs(method.student)
    method.synthesize(AFTER)
    assert len(made) == len(taught) == len(learned) == 3
    for images, seen_by_teacher, seen_by_student in zip(made, taught, learned, strict=True):
        assert torch.equal(images, seen_by_teacher) != augment
        assert torch.equal(seen_by_teacher, seen_by_student)
    assert any(torch.equal(method.memory.images, floored(images)) for images in made)  # kept as made, not cropped


# --- lines 12-14: the student


def test_the_student_learns_from_crops_of_the_memory():
    method = tiny_nayer()
    for _ in range(3):
        method.synthesize(WARMUP)
    batch = method.sample(60)
    windows = {}  # every crop that can be made of an image of the memory -> the labels of such images
    padded = nn.functional.pad(method.memory.images, [method.facts.crop_padding] * 4)
    size = method.facts.size
    for row in range(2 * method.facts.crop_padding + 1):
        for column in range(2 * method.facts.crop_padding + 1):
            crops = padded[:, :, row : row + size, column : column + size]
            for crop, label in zip(crops.flatten(1).tolist(), method.memory.labels.tolist(), strict=True):
                windows.setdefault(tuple(crop), set()).add(label)
    drawn = (batch.images.flatten(1) * 255).round().long().tolist()
    assert all(label in windows[tuple(image)] for image, label in zip(drawn, batch.labels.tolist(), strict=True))
    as_stored = {tuple(image) for image in method.memory.images.flatten(1).tolist()}
    assert 0 < sum(tuple(image) in as_stored for image in drawn) < 30  # one offset in nine leaves it as it is


def test_a_student_step_is_one_step_of_sgd_on_eq_6():
    method = tiny_nayer(temperature=5.0, student_momentum=0.0, student_weight_decay=0.01, student_lr=0.3)
    method.synthesize(WARMUP)
    batch = method.sample(16)
    twin = copy.deepcopy(method.student).train()
    with torch.no_grad():
        target = (method.teacher(batch.images) / 5).softmax(1)
    loss = nn.functional.kl_div((twin(batch.images) / 5).log_softmax(1), target, reduction="batchmean") * 25
    loss.backward()
    told = method.student_step(batch)
    assert told.item() == pytest.approx(loss.item(), rel=1e-5) and not told.requires_grad
    for mine, other in zip(method.student.parameters(), twin.parameters(), strict=True):
        expected = other - 0.3 * (other.grad + 0.01 * other)
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(method.student.buffers(), twin.buffers(), strict=True))


def test_the_students_optimiser_is_that_of_a2():
    [group] = tiny_nayer().student_optimizer.param_groups
    rates = {name: group[name] for name in ("lr", "momentum", "weight_decay", "nesterov", "dampening")}
    assert rates == {"lr": 0.2, "momentum": 0.9, "weight_decay": 1e-4, "nesterov": False, "dampening": 0}


# --- teachers without BatchNorm, wrong pools, broken losses


def plain_classifier() -> Classifier:
    names = tiny_nayer().teacher.class_names
    return Classifier(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), names, (0.3,), (0.4,))


def fresh_student(teacher) -> Classifier:
    return make_classifier("wrn10_half", teacher.class_names, teacher.mean, teacher.std, 0)


def test_a_teacher_without_batchnorm_needs_alpha_bn_0():
    teacher, table = plain_classifier(), torch.randn(10, 16)
    with pytest.raises(UserError, match="no BatchNorm layer .* set alpha_bn=0"):
        Nayer(teacher, fresh_student(teacher), tiny_config(), table)
    method = Nayer(teacher, fresh_student(teacher), tiny_config(alpha_bn=0.0), table)
    report = method.synthesize(AFTER)
    assert report.bn == 0 and report.images == len(method.memory) == 20
    assert not method.state_dict()["bn_loss"]


def test_a_pool_of_another_number_of_classes_is_refused():
    method = tiny_nayer()
    with pytest.raises(UserError, match="the pool has 9 classes, the teacher 10"):
        Nayer(method.teacher, method.student, method.config, method.table[:9])


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(
    ("term", "name"), [("L_CE", "classification"), ("L_BN", "BatchNormLoss.__call__"), ("L_KL", "adversarial")]
)
def test_a_loss_that_is_not_finite_is_told_by_its_name_and_keeps_out_of_the_memory(term, name, value, monkeypatch):
    setup = tiny_setup()
    epochs = distill(setup.method, setup.evaluate)
    next(epochs)
    before = setup.method.memory.state_dict()
    holder, _, attribute = name.rpartition(".")
    holder = getattr(losses, holder) if holder else losses
    real = getattr(holder, attribute)
    monkeypatch.setattr(holder, attribute, lambda *args: real(*args) + value)
    with pytest.raises(NonFiniteLoss, match=f"^{term} became NaN or infinite in synthesis round 1 .epoch 1."):
        next(epochs)
    after = setup.method.memory.state_dict()
    assert torch.equal(before["rows"][0], after["rows"][0])
    assert all(torch.equal(before[key], after[key]) for key in ("labels", "rounds"))


# --- the two variants and other latents, end to end


@pytest.mark.parametrize(
    "options",
    [
        {"variant": "paper"},
        {"generator_layout": "paper"},
        {"latent": "noise"},
        {"latent": "noisy_1to1"},
        {"latent": "sum_onehot"},
        {"latent": "cat_lte", "generator_life": 1},
        {"embedding": "orthogonal"},
    ],
    ids=str,
)
def test_it_runs_end_to_end(options):
    setup = tiny_setup(**options)
    epochs = run_all(setup)
    assert [e.epoch for e in epochs] == list(range(setup.method.config.total_epochs))
    assert epochs[-1].scores is not None and math.isfinite(epochs[-1].student_loss)
    rounds = sum(setup.method.config.synthesis_rounds(e.epoch) for e in epochs)
    assert epochs[-1].images == 20 * rounds == len(setup.method.memory)
    assert setup.method.memory.images.float().std() > 1


def test_noise_ignores_the_labels_and_is_drawn_anew_each_round():
    method = tiny_nayer(latent="noise")
    seen = watch_redraws(method)
    method.synthesize(WARMUP)
    method.synthesize(WARMUP)
    assert all(changed(before, after) == {"0.z"} for before, after in seen)
    assert "0.z" not in dict(method.generator.named_parameters())  # drawn, not optimised
