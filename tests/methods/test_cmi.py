"""CMI: a round that starts over, two views and what they are compared with, a head and a bank that outlive rounds."""

import copy
import dataclasses
import math
from itertools import product

import pytest
import reference
import torch
from test_ranks import connected
from tiny import run_all, tiny_config, tiny_setup
from torch import nn

from nayer_lib import losses
from nayer_lib.classifiers.teacher import Classifier, make_classifier
from nayer_lib.compute import Compute
from nayer_lib.config import make_config
from nayer_lib.distill import prepare
from nayer_lib.errors import UserError
from nayer_lib.generator.networks import Generator
from nayer_lib.methods import terms
from nayer_lib.methods.cmi import CMI, draw_windows, enlarge, redraw_weights

WARMUP, AFTER = 0, 1  # the tiny config has one warm-up epoch
FEATURES = 16 + 16 + 16 + 32 + 32 + 64 + 64  # what enters the seven BatchNorm layers of the digits' teacher


def tiny_cmi(**overrides) -> CMI:
    return tiny_setup(**{"method": "cmi", "bank_size": 50, "bank_draw": 30, **overrides}).method


def seeded(seed=0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def weights(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def changed(before: dict, after: dict) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


def watch_starts(method: CMI) -> list[tuple[dict, dict]]:
    """(the generator before, the generator after) of every begin of a round from now on."""
    seen, begin = [], method.begin_round

    def spy():
        before = weights(method.generator)
        optimizers = begin()
        seen.append((before, weights(method.generator)))
        return optimizers

    method.begin_round = spy
    return seen


def watch_steps(method: CMI) -> list:
    """What the terms of every step from now on are computed from, with the head's weights then."""
    seen, values = [], method.values

    def spy(now):
        seen.append((now, weights(method.head)))
        return values(now)

    method.values = spy
    return seen


def inputs_of(teacher: Classifier, images: torch.Tensor) -> list[torch.Tensor]:
    """What enters the BatchNorm layers, by hooks of another kind than the library's."""
    return reference.run_and_record(teacher, teacher.batch_norms(), images.detach())[1]


def features_of(teacher: Classifier, images: torch.Tensor) -> torch.Tensor:
    return torch.cat([maps.flatten(2).mean(2) for maps in inputs_of(teacher, images)], 1)


# --- the round starts over


def test_z_and_all_of_g_are_new_in_each_round_in_place():
    method = tiny_cmi()
    parameters = dict(method.generator.named_parameters())
    seen = watch_starts(method)
    for _ in range(3):
        method.synthesize(AFTER)
    for before, after in seen[1:]:
        without_effect = {"1.layers.0.bias"}  # a constant before a BatchNorm gets no gradient, and starts at 0 again
        assert changed(before, after) >= parameters.keys() - without_effect
    assert all(p is parameters[name] for name, p in method.generator.named_parameters())
    for (_, one), (_, other) in zip(seen, seen[1:], strict=False):
        drawn = {name for name in parameters if not name.endswith("bias")}
        assert changed(one, other) >= drawn


def test_nothing_of_an_earlier_round_enters_the_next_ones_images():
    """The same random numbers give the same first images, whatever the generator did before."""
    used, fresh = tiny_cmi(), tiny_cmi()
    for _ in range(2):
        used.synthesize(WARMUP)
    made = []
    for method in (used, fresh):
        method.rng.manual_seed(4)
        seen = watch_steps(method)
        method.synthesize(WARMUP)
        made.append(seen[0][0].generated)
    assert torch.equal(*made)


def test_a_round_begins_with_normal_z_and_small_weights():
    method = tiny_cmi(noise_dim=256)
    seen = watch_starts(method)
    method.synthesize(AFTER)
    fresh = seen[0][1]
    assert fresh["0.z"].shape == (20, 256)
    assert abs(fresh["0.z"].mean()) < 0.05 and abs(fresh["0.z"].std() - 1) < 0.05
    assert fresh["1.layers.0.weight"].std().item() == pytest.approx(0.02, rel=0.05)
    assert not fresh["1.layers.0.bias"].any()


def test_z_and_g_are_optimised_at_one_rate_with_a_fresh_adam_and_the_head_with_its_own():
    method = tiny_cmi(generator_steps=3)
    first, head = method.optimizers
    for _ in range(2):
        method.synthesize(AFTER)
    assert method.optimizers == [first, head] and head is method.head_optimizer  # fresh in place: counted 3 and 3 steps
    assert {id(p) for p in first.param_groups[0]["params"]} == {id(p) for p in method.generator.parameters()}
    for optimizer, steps, rate in ((first, 3, 1e-3), (head, 6, 1e-3)):
        assert {int(state["step"]) for state in optimizer.state.values()} == {steps}
        assert optimizer.param_groups[0]["lr"] == rate
    assert first.param_groups[0]["betas"] == (0.5, 0.999) and head.param_groups[0]["betas"] == (0.9, 0.999)


@pytest.mark.parametrize("alone", ["alpha_cls", "alpha_bn", "alpha_cr"])
def test_each_term_by_itself_moves_z_and_g(alone):
    others = {name: 0.0 for name in ("alpha_cls", "alpha_bn", "alpha_adv", "alpha_cr") if name != alone}
    method = tiny_cmi(generator_steps=1, **others)
    seen = watch_starts(method)
    method.synthesize(AFTER)
    moved = changed(seen[0][1], weights(method.generator))
    assert moved >= {"0.z", "1.layers.0.weight"}
    assert (method.generator[0].z - seen[0][1]["0.z"]).abs().max() < 1.01e-3  # a first step of Adam


def test_labels_are_drawn_at_random():
    method = tiny_cmi(generator_batch=50)
    for _ in range(2):
        method.synthesize(WARMUP)
    first, second = method.memory.labels.split(50)
    counts = first.bincount(minlength=10)
    assert counts.max() > 5 > counts.min() and not torch.equal(first, second)


# --- L_cr


def contrast_by_hand(method: CMI, seen, head: dict) -> float:
    """The formula of the file's header, one image after the other."""
    pixels, windows, banked = seen.view
    torch.testing.assert_close(seen.images, method.view(seen.generated, (pixels, windows, banked)))
    twin = copy.deepcopy(method.head)
    twin.load_state_dict(head)

    def project(features):
        lower, upper = twin[0], twin[2]
        out = (features @ lower.weight.T + lower.bias).clamp(min=0) @ upper.weight.T + upper.bias
        return out / out.square().sum(1, keepdim=True).sqrt()

    old_global, old_local = banked[:, :FEATURES], banked[:, FEATURES:]
    local = project(torch.cat([features_of(method.teacher, enlarge(seen.generated, windows)), old_local]))
    whole = project(torch.cat([features_of(method.teacher, seen.images), old_global]))
    found = []
    for i, query in enumerate(local):
        scores = [(query @ key / method.config.temperature_cr).exp() for key in whole]
        found.append(-(scores[i] / sum(scores)).log().item())
    current, cached = found[: len(seen.generated)], found[len(seen.generated) :]
    assert len(cached) in (0, method.config.bank_draw)
    return sum(current) / len(current) + (sum(cached) / len(cached) if cached else 0)


@torch.no_grad()
def test_the_contrast_is_the_formula_written_out():
    """In the first rounds without the bank, which holds fewer than are drawn of it, then with it."""
    method = tiny_cmi(temperature_cr=0.2)
    seen, told = watch_steps(method), []
    for _ in range(3):
        with torch.enable_grad():
            told.append(method.synthesize(WARMUP).extra["L_cr"])
    assert [len(now.view[2]) for now, _ in seen] == [0, 0, 0, 0, 30, 30]
    expected = [contrast_by_hand(method, *step) for step in seen[1::2]]  # a report tells the last step's
    assert told == [pytest.approx(value, rel=1e-3) for value in expected]


def test_images_that_all_look_the_same_are_not_told_apart():
    """Then every key is as good as any other: log B of the batch, and more than nothing to gain."""
    method = tiny_cmi(generator_steps=1)
    assert method.synthesize(WARMUP).extra["L_cr"] == pytest.approx(math.log(20), abs=0.05)


def test_the_first_three_terms_see_the_global_view_alone():
    method = tiny_cmi(bn_momentum=0.9, adversarial_mask=False)
    seen = watch_steps(method)
    plain = reference.BatchNormTerm(method.teacher.batch_norms(), 0.9)
    for _ in range(2):
        report = method.synthesize(AFTER)
        now = seen[-1][0]
        maps = inputs_of(method.teacher, now.images)
        assert report.bn == pytest.approx(plain(maps).item(), rel=1e-4)
        plain.end_round(maps)
        t = method.teacher(now.images.detach())
        torch.testing.assert_close(t, now.t.detach())
        assert report.ce_per_step[-1] == pytest.approx(losses.classification(t, now.labels).item(), rel=1e-4)
    for ours, expected in zip(method.bn_loss.memory, plain.memory, strict=True):
        torch.testing.assert_close(ours, expected)


def test_the_local_view_is_a_window_and_is_mirrored_where_the_data_set_allows_it():
    method = tiny_cmi()
    windows = method.draw_view(400)[1]
    areas = windows[:, 0, 0] * windows[:, 1, 1]
    assert 0.25 <= areas.min() < 0.3  # and never negative: a mirrored 2 is no 2
    method.facts = dataclasses.replace(method.facts, flip=True)
    assert 100 < (method.draw_view(400)[1][:, 0, 0] < 0).sum() < 300


def test_the_onlooker_is_the_teacher_with_the_same_weights_and_watched_by_nobody_else():
    method = tiny_cmi()
    pairs = zip(method.teacher.state_dict().values(), method.onlooker.state_dict().values(), strict=True)
    assert all(mine.data_ptr() == other.data_ptr() for mine, other in pairs)
    with method.bn_loss.armed():
        assert not any(module._forward_pre_hooks for module in method.onlooker.modules())


def test_hooks_are_gone_after_a_round_also_when_it_fails(monkeypatch):
    method = tiny_cmi()
    method.synthesize(AFTER)

    def hooks():
        return [m for one in (method.teacher, method.onlooker) for m in one.modules() if m._forward_pre_hooks]

    assert not hooks() and not method.caught
    monkeypatch.setattr(terms, "info_nce", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        method.synthesize(AFTER)
    assert not hooks()


# --- the head


def test_the_head_learns_and_goes_on_from_round_to_round():
    method = tiny_cmi()
    before, seen = weights(method.head), watch_steps(method)
    for _ in range(2):
        method.synthesize(AFTER)
    ends = [head for _, head in seen]
    assert not changed(before, ends[0])
    assert all(changed(one, other) == before.keys() for one, other in zip(ends, ends[1:], strict=False))
    # The second round goes on where the first one ended: a step away, as any two steps are.
    assert max((ends[2][name] - ends[1][name]).abs().max() for name in before) < 2e-3


def test_the_head_learns_from_the_contrast_alone():
    method = tiny_cmi(alpha_cr=0.0)
    before = weights(method.head)
    method.synthesize(AFTER)
    assert not changed(before, weights(method.head))


# --- the bank


def test_the_bank_holds_the_features_of_both_views_of_the_images_that_are_kept(monkeypatch):
    method = tiny_cmi()
    pixels, windows, _ = method.draw_view(20)
    untouched = torch.eye(2, 3).expand(20, -1, -1)
    monkeypatch.setattr(method, "draw_view", lambda batch: (pixels, untouched, method.bank.choose(30, method.rng)))
    kept, remember = [], method.remember
    monkeypatch.setattr(method, "remember", lambda made, labels: kept.append(made[0]) or remember(made, labels))
    method.synthesize(WARMUP)
    (held,) = method.bank.rows
    assert held.shape == (20, 2 * FEATURES)
    expected = [features_of(method.teacher, images) for images in (method.view(kept[0], (pixels,)), kept[0])]
    torch.testing.assert_close(held, torch.cat(expected, 1), rtol=1e-3, atol=1e-4)
    assert torch.equal(method.memory.images, method.memory.as_bytes(kept[0]))


def test_the_bank_never_exceeds_its_size():
    method = tiny_cmi()
    held = []
    for _ in range(4):
        method.synthesize(WARMUP)
        held.append(len(method.bank))
    assert held == [20, 40, 50, 50] and len(method.memory) == 80


def test_a_new_run_starts_with_an_empty_bank_and_a_loaded_one_with_the_states(tmp_path, monkeypatch):
    """Published code reads whatever images lie in its folder, those of earlier runs among them."""
    monkeypatch.setenv("NAYER_RUNS", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    first, used = tiny_cmi(), tiny_cmi(seed=1)
    for method in (first, used, used):
        method.synthesize(WARMUP)
    assert not list(tmp_path.iterdir())  # nothing lies anywhere
    assert len(tiny_cmi().bank) == len(tiny_cmi().memory) == 0
    used.load_state_dict(first.state_dict())
    assert len(used.bank) == len(used.memory) == 20
    assert torch.equal(used.bank.rows[0], first.bank.rows[0])


# --- how it is computed


def test_it_learns_in_half_precision_too():
    reports = [
        prepare(tiny_config(method="cmi"), device="cpu", compute=Compute(precision)).method.synthesize(AFTER)
        for precision in ("fp32", "fp16")
    ]
    assert reports[0].extra["L_cr"] == pytest.approx(reports[1].extra["L_cr"], rel=0.01)


@pytest.mark.slow
def test_its_step_is_compiled_without_a_break(monkeypatch):
    """Once without the student, once with it, and with the bank: what was tapped comes out of the same graph."""
    plain = tiny_cmi()
    expected = [plain.synthesize(epoch) for epoch in (WARMUP, AFTER, AFTER)]
    original = torch.compile
    monkeypatch.setattr(
        torch,
        "compile",
        lambda function, mode=None, dynamic=None: original(
            function, backend="aot_eager", fullgraph=True, dynamic=False
        ),
    )
    config = plain.config
    method = prepare(config, device="cpu", compute=Compute(steps="compiled")).method
    for mine in expected:
        told = method.synthesize(WARMUP if mine is expected[0] else AFTER)
        assert told.ce_per_step == pytest.approx(mine.ce_per_step, rel=1e-3)
        assert told.extra == pytest.approx(mine.extra, rel=1e-3)


def three_rounds() -> dict:
    method = tiny_cmi(generator_batch=40, bank_draw=20)
    reports = [method.synthesize(AFTER) for _ in range(3)]
    return {
        "head": method.head.state_dict(),
        "generator": method.generator.state_dict(),
        "told": torch.tensor([[r.bn, r.adv, r.extra["L_cr"], *r.ce_per_step] for r in reports]),
        "bank": method.bank.rows[0],
    }


def test_two_processes_agree_on_weights_and_each_has_a_bank_of_its_own_images(tmp_path):
    one, other = connected(three_rounds, tmp_path)
    assert not changed(one["head"], other["head"]) and changed(one["generator"], other["generator"])
    assert torch.equal(one["told"], other["told"])
    assert len(one["bank"]) == len(other["bank"]) == 25 and not torch.equal(one["bank"], other["bank"])


# --- what is refused


def test_a_teacher_without_batchnorm_is_refused():
    method = tiny_cmi()
    names = method.teacher.class_names
    plain = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), names, (0.3,), (0.4,))
    student = make_classifier("wrn10_half", names, (0.3,), (0.4,), 0)
    with pytest.raises(UserError, match="compares what enters a teacher's BatchNorm layers; .* take another method"):
        CMI(plain, student, method.config)


def test_views_without_augmentation_are_refused():
    with pytest.raises(UserError, match="two random views of each image: leave augment_synthesis on"):
        tiny_cmi(augment_synthesis=False)


def test_a_bank_that_can_never_give_enough_is_refused():
    with pytest.raises(UserError, match="a bank of 50 features cannot give 51: lower bank_draw or raise bank_size"):
        tiny_cmi(bank_draw=51)


def test_a_run_in_its_own_schedule_has_its_published_numbers():
    config = tiny_config(method="cmi", protocol="published")
    assert config.rounds == 1 and config.warmup_epochs == 1
    run_all(tiny_setup(method="cmi", protocol="published"))


def test_published_has_the_printed_rows_500_steps_a_round():
    config = make_config("cifar10-wrn40_2-wrn16_2", method="cmi", protocol="published", profile="full")
    assert (config.generator_steps, config.generator_batch, config.student_batch) == (500, 256, 128)


# --- windows of an image, enlarged


def windows_of(count, smallest=0.25, flip=True, seed=0):
    """(width, height, across, down) of each: sides as shares of the image's, signed; centres from -1 to 1."""
    drawn = draw_windows(count, smallest, flip, seeded(seed), torch.device("cpu"))
    assert drawn.shape == (count, 2, 3) and not drawn[:, 0, 1].any() and not drawn[:, 1, 0].any()
    return drawn[:, 0, 0], drawn[:, 1, 1], drawn[:, 0, 2], drawn[:, 1, 2]


@pytest.mark.parametrize("smallest", [0.25, 0.6])
def test_a_window_lies_in_the_image_and_has_the_area_and_the_shape_asked_for(smallest):
    width, height, across, down = windows_of(4000, smallest, flip=False)
    area, ratio = width * height, width / height
    assert area.min() >= smallest and area.max() <= 1 and area.min() < smallest + 0.01
    assert ratio.min() >= 3 / 4 - 1e-6 and ratio.max() <= 4 / 3 + 1e-6
    assert (across.abs() + width).max() <= 1 + 1e-6 and (down.abs() + height).max() <= 1 + 1e-6


def test_windows_are_drawn_evenly():
    width, height, across, down = windows_of(8000, flip=False)
    whole = width * height < 0.7  # never cut at the image's border
    area, ratio = (width * height)[whole], (width / height)[whole]
    assert area.mean().item() == pytest.approx((0.25 + 0.7) / 2, abs=0.01)
    assert (ratio > 1).float().mean().item() == pytest.approx(0.5, abs=0.03)
    for place, side in ((across, width), (down, height)):
        free = (place / (1 - side))[side < 0.9]
        assert free.min() < -0.99 and free.max() > 0.99 and abs(free.mean()) < 0.03
    assert abs(torch.corrcoef(torch.stack([across, down]))[0, 1]) < 0.04


def test_half_of_the_windows_are_mirrored_where_that_is_allowed():
    width, height, _, _ = windows_of(4000)
    assert abs((width < 0).float().mean().item() - 0.5) < 0.04 and height.min() > 0
    assert windows_of(4000, flip=False)[0].min() > 0
    assert torch.equal(width.abs(), windows_of(4000, flip=False)[0])


def test_the_whole_image_as_its_own_window_is_the_image():
    images = torch.rand(3, 2, 5, 6, generator=seeded())
    whole = torch.eye(2, 3).expand(3, -1, -1)
    torch.testing.assert_close(enlarge(images, whole), images, rtol=0, atol=1e-5)
    mirrored = whole * torch.tensor([[[-1.0], [1.0]]])
    torch.testing.assert_close(enlarge(images, mirrored), images.flip(-1), rtol=0, atol=1e-5)


def test_a_window_of_whole_pixels_is_enlarged_as_libraries_do():
    images = torch.rand(1, 3, 8, 8, generator=seeded())
    quarter = torch.tensor([[[0.5, 0.0, 0.25], [0.0, 0.5, -0.5]]])  # columns 3 to 6, rows 0 to 3
    inner = enlarge(images, quarter)[:, :, 1:-1, 1:-1]  # at its border it sees the pixels beside the window, too
    plain = torch.nn.functional.interpolate(images[:, :, 0:4, 3:7], scale_factor=2, mode="bilinear")
    torch.testing.assert_close(inner, plain[:, :, 1:-1, 1:-1], rtol=0, atol=1e-5)


def test_every_pixel_of_a_window_is_a_mixture_of_four_of_the_image():
    """Written out for one pixel after the other."""
    images = torch.rand(6, 1, 5, 7, generator=seeded(), dtype=torch.float64)
    drawn = draw_windows(6, 0.25, True, seeded(1), torch.device("cpu")).double()
    got = enlarge(images, drawn)
    for b, row, column in product(range(6), range(5), range(7)):
        x = drawn[b, 0, 0] * ((2 * column + 1) / 7 - 1) + drawn[b, 0, 2]
        y = drawn[b, 1, 1] * ((2 * row + 1) / 5 - 1) + drawn[b, 1, 2]
        at_x, at_y = ((x + 1) * 7 - 1) / 2, ((y + 1) * 5 - 1) / 2  # in pixels
        at_x, at_y = min(max(at_x.item(), 0), 6), min(max(at_y.item(), 0), 4)
        expected = sum(
            images[b, 0, i, j] * max(0, 1 - abs(at_y - i)) * max(0, 1 - abs(at_x - j))
            for i, j in product(range(5), range(7))
        )
        assert got[b, 0, row, column].item() == pytest.approx(expected.item(), abs=1e-9)


def test_a_window_brings_nothing_in_from_outside():
    grey = torch.full((200, 3, 6, 6), 0.4)
    torch.testing.assert_close(enlarge(grey, draw_windows(200, 0.25, True, seeded(), grey.device)), grey)


def test_the_gradient_of_a_window_goes_back_to_its_image_alone():
    images = torch.rand(4, 1, 6, 6, generator=seeded()).requires_grad_()
    seen = enlarge(images, draw_windows(4, 0.25, True, seeded(1), images.device))
    (gradient,) = torch.autograd.grad(seen[2].sum(), images)
    assert gradient[2].sum().item() == pytest.approx(36, rel=1e-5)  # each pixel seen is a mixture of weight 1
    assert not gradient[[0, 1, 3]].any()


def test_windows_come_from_their_generator_alone():
    def drawn(seed):
        torch.manual_seed(seed + 1)
        return draw_windows(9, 0.25, True, seeded(seed), torch.device("cpu"))

    assert torch.equal(drawn(3), drawn(3)) and not torch.equal(drawn(3), drawn(4))


# --- G's start in every round


@pytest.mark.parametrize("spectral_norm", [False, True])
def test_redrawn_weights_are_small_and_normal_biases_zero_and_norms_near_one(spectral_norm):
    generator = Generator(40, 16, 3, width=64, spectral_norm=spectral_norm)
    before = {name: (p, p.clone()) for name, p in generator.named_parameters()}
    redraw_weights(generator, seeded())
    assert before.keys() == dict(generator.named_parameters()).keys()
    for name, p in generator.named_parameters():
        assert p is before[name][0]  # in place
        if p.dim() == 1 and name.endswith("bias"):
            assert not p.any()
        else:
            assert not torch.equal(p, before[name][1])
            assert p.mean().item() == pytest.approx(0 if p.dim() > 1 else 1, abs=4 * 0.02 / p.numel() ** 0.5)
            assert p.std().item() == pytest.approx(0.02, rel=4 / (2 * p.numel()) ** 0.5)
    assert sum(p.dim() > 1 for p in generator.parameters()) == 1 + 3  # the linear layer and all convolutions


def test_weights_are_redrawn_by_the_generator_of_random_numbers_alone():
    def redrawn(seed):
        torch.manual_seed(seed + 1)
        generator = Generator(4, 8, 1, width=8)
        redraw_weights(generator, seeded(seed))
        return generator.state_dict()

    one, again, other = redrawn(0), redrawn(0), redrawn(1)
    assert all(map(torch.equal, one.values(), again.values()))
    assert not torch.equal(one["layers.0.weight"], other["layers.0.weight"])
