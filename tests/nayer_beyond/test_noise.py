"""The control without a generator: distillation on random numbers."""

import copy

import pytest
import torch
from tiny import run_all, same, through_a_file, tiny_config, tiny_setup
from torch.nn import functional as F

from nayer_beyond.noise import Noise
from nayer_lib.classifiers.teacher import Classifier, load_teacher
from nayer_lib.config import fields_of, make_config
from nayer_lib.distill import distill, prepare
from nayer_lib.errors import UserError
from nayer_lib.methods import CONTROLS
from nayer_lib.runs.run import Run


def noise(**options):
    return tiny_setup(method="noise", **options)


def test_it_is_a_control_with_its_authors_numbers():
    assert CONTROLS["noise"] is Noise
    config = make_config("cifar10-wrn40_2-wrn16_2", method="noise", profile="full", protocol="published")
    assert (config.noise, config.student_batch, config.student_lr) == ("gaussian_unclipped", 256, 1e-3)
    assert config.student_steps == -(-50_000 // 256) and config.total_rounds == 0
    assert not fields_of("noise") & {"rounds", "student_momentum", "generator_lr"}


@pytest.mark.parametrize("name", ["uniform", "gaussian", "gaussian_unclipped"])
def test_what_is_drawn(name):
    method = noise(noise=name).method
    images = method.draw(4000, method.rng)
    normalised = (images - method.teacher.mean[0]) / method.teacher.std[0]
    assert images.shape == (4000, 1, 8, 8)
    if name == "uniform":
        assert images.min() >= 0 and images.max() < 1
        assert images.mean() == pytest.approx(0.5, abs=0.01) and images.var() == pytest.approx(1 / 12, abs=0.002)
    elif name == "gaussian":
        assert images.min() == 0 and 0.8 < images.max() <= 1 and (images == 0).float().mean() > 0.1
    else:
        assert normalised.mean() == pytest.approx(0, abs=0.02) and normalised.std() == pytest.approx(1, abs=0.02)
        assert images.min() < 0
    fresh = method.sample(5)
    assert fresh.images.shape == (5, 1, 8, 8) and (fresh.labels, fresh.source) == (None, "noise")
    assert not torch.equal(fresh.images, method.sample(5).images)


@pytest.mark.parametrize("statistics", ["batch", "running"])
def test_the_students_loss_is_kl_with_the_teachers_answers(statistics):
    """With the statistics of the batch: those of a teacher in train mode."""
    method = noise(teacher_statistics=statistics).method
    batch = method.sample(16)
    teacher = copy.deepcopy(method.teacher).train(statistics == "batch")
    with torch.no_grad():
        log_t, log_s = (F.log_softmax(net(batch.images), 1) for net in (teacher, copy.deepcopy(method.student)))
    expected = (log_t.exp() * (log_t - log_s)).sum(1).mean()
    assert method._student_loss(batch).item() == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("statistics", ["batch", "running"])
def test_the_teacher_is_left_as_it_was_its_counters_too(statistics):
    setup = noise(teacher_statistics=statistics)
    run_all(setup)
    before = load_teacher("digits", "wrn10_1").state_dict()
    assert any(name.endswith("num_batches_tracked") for name in before)
    assert same(before, setup.method.teacher.state_dict())
    assert not any(module.training for module in setup.method.teacher.modules())


def test_scoring_in_both_ways_leaves_the_student_as_it_was():
    setup = noise()
    [*_, last] = run_all(setup)
    before = through_a_file(setup.method.student.state_dict())
    running, transductive = (setup.evaluate(setup.method.student, how) for how in ("running", "batch"))
    assert same(before, setup.method.student.state_dict()) and running.accuracy == last.scores.accuracy
    assert not torch.equal(running.predictions, transductive.predictions)


def test_equal_seeds_give_equal_runs_and_interrupted_is_uninterrupted():
    whole, again, other = noise(), noise(), noise(seed=1)
    states = [through_a_file(whole.method.state_dict()) for _ in distill(whole.method, whole.evaluate)]
    assert [epoch.images for epoch in run_all(again)] == [0, 0]
    run_all(other)
    assert same(whole.method.state_dict(), again.method.state_dict())
    assert not same(whole.method.student.state_dict(), other.method.student.state_dict())
    resumed = noise()
    resumed.method.load_state_dict(states[0])
    run_all(resumed, start=1)
    assert same(resumed.method.state_dict(), whole.method.state_dict())


def test_a_card_states_both_scores_by_their_names(tmp_path):
    run = Run(noise(), tmp_path / "run")
    *_, last = run
    told = run.card["transductive"]
    student, evaluate = run.setup.method.student, run.setup.evaluate
    assert run.card["accuracy_last"] == last.scores.accuracy == evaluate(student).accuracy
    assert told == {"accuracy": evaluate(student, "batch").accuracy, "statistics": "each test batch's own"} | {
        "batch": len(evaluate.split.labels)
    }
    assert "metrics" not in run.card and "problems" not in run.card and (run.folder / "images.png").exists()


def test_looking_at_its_images_changes_nothing():
    method = noise().method
    before = through_a_file(method.state_dict())
    seen = method.examples()
    assert seen.images.shape == (500, 1, 8, 8) and seen.images.dtype == torch.uint8 and seen.rounds is None
    assert len(seen.labels) == 500 and torch.equal(seen.images, method.examples().images)
    assert same(before, method.state_dict())


def test_a_teacher_without_batch_norm_has_running_statistics_alone():
    config = tiny_config(method="noise", student="wrn10_half")
    teacher = load_teacher("digits", "wrn10_1")
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    plain = Classifier(net, teacher.class_names, teacher.mean, teacher.std)
    with pytest.raises(UserError, match="no BatchNorm that could use .* set teacher_statistics=running"):
        prepare(config, plain, device="cpu")
