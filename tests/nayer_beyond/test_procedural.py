"""Drawn pictures: patterns by hand, the memory that they fill, and steps against the student."""

import math

import pytest
import torch
from tiny import same, tiny_config

import nayer_lib.distill
from nayer_beyond import procedural
from nayer_beyond.black_box import BlackBox
from nayer_beyond.procedural import Procedural, clouds, dead_leaves, draw_pictures, gratings, lines
from nayer_lib import losses
from nayer_lib.classifiers.teacher import load_teacher, make_classifier
from nayer_lib.distill import distill, prepare
from nayer_lib.errors import UserError
from nayer_lib.methods import CONTROLS, METHODS
from nayer_lib.ranks import Ranks
from nayer_lib.runs.card import read_card
from nayer_lib.runs.forecast import rehearse
from nayer_lib.runs.run import Run

SIZE = [32, 32]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def made(teacher=None, ranks=None, **overrides) -> Procedural:
    config = tiny_config(method="procedural", **{"images": 60, "student_batch": 20, **overrides})
    teacher = teacher or load_teacher(config.dataset, config.teacher)
    student = make_classifier("wrn10_half", teacher.class_names, teacher.mean, teacher.std, 0)
    method = Procedural(teacher, student, config, ranks=ranks)
    method.begin_epoch(0)
    return method


def test_it_is_a_control():
    assert CONTROLS["procedural"] is Procedural and "procedural" not in METHODS


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 12, 16)])
def test_pictures_come_from_their_generator_alone_and_lie_in_0_to_1(shape):
    torch.manual_seed(1)
    one, other = (draw_pictures(200, shape, seeded(seed)) for seed in (0, 1))
    assert torch.equal(one, draw_pictures(200, shape, seeded())) and not torch.equal(one, other)
    assert one.shape == (200, *shape) and one.min() >= 0 and one.max() <= 1
    assert one.flatten(2).std(2).mean() > 0.05  # there is something to see


def test_every_kind_of_pattern_comes_as_often(monkeypatch):
    for k, name in enumerate(("gratings", "clouds", "dead_leaves", "lines")):
        value = (0.0, 0.25, 0.5, 1.0)[k]
        monkeypatch.setattr(procedural, name, lambda n, size, rng, value=value: torch.full((n, *size), value))
    monkeypatch.setattr(torch, "rand", lambda *size, **_: torch.stack([torch.zeros(size[1:]), torch.ones(size[1:])]))
    shown = draw_pictures(4000, (1, 2, 2), seeded())[:, 0, 0, 0]
    shares = [(shown == value).float().mean().item() for value in (0.0, 0.25, 0.5, 1.0)]
    assert shares == pytest.approx([0.25] * 4, abs=0.03)


def test_a_grating_is_constant_across_and_a_cosine_along(monkeypatch):
    drawn = torch.tensor([0.0, 0.5 / 3.5, 0.0]).view(3, 1, 1, 1)  # downwards, one wave, from its top
    monkeypatch.setattr(torch, "rand", lambda *_, **__: drawn)
    [pattern] = gratings(1, [4, 3], seeded())
    expected = [(1 + math.cos(2 * math.pi * y)) / 2 for y in (1 / 8, 3 / 8, 5 / 8, 7 / 8)]
    torch.testing.assert_close(pattern, torch.tensor(expected).unsqueeze(1).expand(4, 3))


def test_clouds_are_smooth():
    pattern = clouds(50, SIZE, seeded())
    rough = pattern.diff(dim=2).abs().mean()
    assert rough < 0.06 and pattern.flatten(1).std(1).mean() > 0.1


def test_dead_leaves_have_few_greys_and_some_are_covered():
    greys = [pattern.unique().numel() for pattern in dead_leaves(50, SIZE, seeded())]
    assert min(greys) > 1 and max(greys) <= procedural.DISCS + 1 and sum(greys) < 50 * (procedural.DISCS + 1)


def test_a_line_is_where_its_strokes_pass_within_its_width(monkeypatch):
    corners = torch.tensor([[0.5, 0.0], [0.5, 0.5], [1.0, 0.5], [1.0, 0.5]]).view(4, 2, 1, 1, 1)  # (y, x): an L
    draws = iter([corners, torch.full((1, 1, 1), 1.0)])
    monkeypatch.setattr(torch, "rand", lambda *_, **__: next(draws))
    [pattern] = lines(1, [20, 20], seeded())
    middle = (torch.arange(20) + 0.5) / 20
    across = ((middle[:, None] - 0.5).abs() < 0.1) & (middle[None] < 0.5)
    down = ((middle[None] - 0.5).abs() < 0.1) & (middle[:, None] > 0.5)
    near = (middle[:, None] - 0.5) ** 2 + (middle[None] - 0.5) ** 2 < 0.1**2
    assert torch.equal(pattern.bool(), across | down | near)


def test_the_memory_is_filled_once_with_what_the_teacher_says_and_no_training_image_is_read(monkeypatch):
    monkeypatch.setattr(procedural, "CHUNK", 25)
    read, load = [], nayer_lib.distill.load_split
    monkeypatch.setattr(nayer_lib.distill, "load_split", lambda name, split: read.append(split) or load(name, split))
    method = prepare(tiny_config(method="procedural", images=60), device="cpu").method
    assert read == ["test"] and method.held == 0
    method.begin_epoch(0)
    images = method.memory.images
    assert len(images) == method.held == 60 and not method.memory.rounds.any()
    assert torch.equal(method.memory.labels, method.teacher(images.float() / 255).argmax(1))
    method.synthesize(0)
    method.begin_epoch(1)
    assert torch.equal(method.memory.images, images) and torch.equal(made().memory.images, images)


def test_two_ranks_share_the_pictures_and_draw_others():
    one, other = (made(images=60, ranks=Ranks(rank, 2)) for rank in (0, 1))
    assert len(one.memory) == len(other.memory) == 30 and one.held == 60
    assert not torch.equal(one.memory.images, other.memory.images)


def test_what_it_will_hold_is_told_without_drawing_it():
    counted = rehearse(tiny_config(method="procedural", images=10_000))
    assert counted.images == 10_000 and counted.bytes["memory"] > 10_000 * 64


def test_a_perturbed_batch_drives_the_networks_apart_and_leaves_the_student_as_it_was():
    method = made(perturb=3)
    images = method.memory.images[:20].float() / 255
    method.student.train()
    before = {name: value.clone() for name, value in method.student.state_dict().items()}
    moved = method.perturbed(images)
    assert all(torch.equal(before[name], value) for name, value in method.student.state_dict().items())
    assert method.student.training and not moved.requires_grad and method.student.net.training
    assert 0 < (moved - images).abs().max() <= 3 * method.config.epsilon + 1e-6 and 0 <= moved.min() <= moved.max() <= 1
    student = method.student.eval()
    loss, later = (losses.distillation(method.teacher(x), student(x), 20.0).item() for x in (images, moved))
    assert later > loss


def test_without_perturbing_a_batch_is_the_memorys(monkeypatch):
    monkeypatch.setattr(Procedural, "perturbed", lambda *_: pytest.fail("perturbed"))
    batch = made().sample(20)
    assert batch.source == "memory" and len(batch.images) == 20


def test_a_run_makes_no_rounds_and_learns():
    setup = prepare(tiny_config(method="procedural", images=100, perturb=1, epochs=2, student_batch=20), device="cpu")
    first, last = distill(setup.method, setup.evaluate)
    assert first.rounds == [] and first.images == last.images == 100 and last.student_loss < first.student_loss


def test_a_black_box_is_asked_but_not_for_a_gradient():
    box = BlackBox(load_teacher("digits", "wrn10_1"))
    assert len(made(box).memory) == 60 and box.asked == 60
    with pytest.raises(UserError, match="gives no gradient to perturb images by: set perturb=0"):
        made(BlackBox(load_teacher("digits", "wrn10_1")), perturb=1)


def test_a_run_in_a_folder_goes_on_exactly(tmp_path):
    config = tiny_config(method="procedural", images=50, perturb=1, epochs=3, student_batch=20)

    def run(folder, **how) -> Run:
        started = Run(prepare(config, device="cpu"), tmp_path / folder, **how)
        list(started)
        return started

    whole = run("whole")
    run("stopped", max_minutes=0.0)
    resumed = run("stopped", resume=True)
    assert read_card(whole.folder)["status"] == read_card(resumed.folder)["status"] == "finished"
    assert same(whole.setup.method.student.state_dict(), resumed.setup.method.student.state_dict())
    assert torch.equal(whole.setup.method.memory.images, resumed.setup.method.memory.images)
