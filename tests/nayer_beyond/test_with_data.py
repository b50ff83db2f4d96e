"""Distillation with the data: the memory is the training images themselves, and nothing is synthesised."""

import pytest
import torch
from tiny import tiny_config

from nayer_beyond.with_data import WithData
from nayer_lib.classifiers.teacher import load_teacher, make_classifier
from nayer_lib.datasets import Split, load_split
from nayer_lib.distill import distill, prepare
from nayer_lib.evaluate import Evaluator
from nayer_lib.methods import METHODS


@pytest.fixture(scope="module")
def split() -> Split:
    return load_split("digits", "train")


def with_data(split: Split, **overrides) -> WithData:
    """On the digits, with the kit's teacher; no warm-up, because there is nothing to warm up."""
    config = tiny_config(**{"warmup_epochs": 0, "student_batch": 100, **overrides})
    teacher = load_teacher(config.dataset, config.teacher)
    student = make_classifier(config.student, teacher.class_names, teacher.mean, teacher.std, config.seed)
    return WithData(teacher, student, config, split)


def weights(module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def test_it_is_no_data_free_method():
    assert WithData not in METHODS.values() and WithData.citation == "Hinton et al. 2015"


@pytest.mark.parametrize(("scored", "read"), [("test", "train"), ("validation", "fit")])
def test_as_a_control_it_never_learns_from_the_images_that_it_is_scored_on(scored, read):
    config = tiny_config(method="with_data", student="wrn10_1", weight_bits=3, student_lr=1e-3, epochs=1)
    setup = prepare(config, test=load_split("digits", scored), device="cpu")
    assert torch.equal(setup.method.memory.images, load_split("digits", read).images)
    assert config.total_rounds == 0 and config.total_epochs == 1
    [epoch] = list(distill(setup.method, setup.evaluate))
    assert epoch.rounds == [] and epoch.student_loss > 0


def test_its_memory_is_the_split_byte_for_byte(split):
    memory = with_data(split).memory
    assert torch.equal(memory.images, split.images) and torch.equal(memory.labels, split.labels)
    assert not memory.rounds.any()


def test_every_byte_comes_through():
    levels = torch.arange(256, dtype=torch.uint8).repeat_interleave(64).view(256, 1, 8, 8)
    assert torch.equal(with_data(Split(levels, torch.zeros(256, dtype=torch.long))).memory.images, levels)


def test_nothing_is_synthesised(split):
    method = with_data(split)
    before = method.rng.get_state()
    report = method.synthesize(0)
    assert (report.images, report.steps, report.ce_per_step) == (0, 0, [])
    assert len(method.memory) == len(split.labels) and torch.equal(method.rng.get_state(), before)


def test_the_labels_are_not_used(split):
    """The student learns the teacher's outputs, so wrong labels change nothing."""
    students = []
    for labels in (split.labels, (split.labels + 1) % 10):
        method = with_data(Split(split.images, labels))
        for _ in range(3):
            method.student_step(method.sample(50))
        students.append(weights(method.student))
    assert all(torch.equal(students[0][name], students[1][name]) for name in students[0])


def test_the_student_learns_and_the_teacher_does_not(split):
    method = with_data(split, epochs=3, student_steps=15)
    teacher = weights(method.teacher)
    epochs = list(distill(method, Evaluator(method.teacher, load_split("digits", "test"))))
    losses = [epoch.student_loss for epoch in epochs]
    assert losses[2] < losses[1] < losses[0] and losses[2] < losses[0] / 2
    assert epochs[-1].scores.accuracy > 0.5  # chance is 0.1
    assert {epoch.images for epoch in epochs} == {len(split.labels)}
    after = method.teacher.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in teacher.items())
    assert not method.teacher.training


def test_images_are_cropped_as_in_any_method_of_the_kit(split):
    batch = with_data(split).sample(200)
    as_stored = {tuple(image) for image in split.images.flatten(1).tolist()}
    drawn = (batch.images.flatten(1) * 255).round().long().tolist()
    assert 0 < sum(tuple(image) in as_stored for image in drawn) < 100  # one offset in nine leaves it as it is
