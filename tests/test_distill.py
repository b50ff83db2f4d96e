"""Algorithm 1's outer loop with a method that only writes down what it is asked, and the set-up of a run."""

import dataclasses
import math
import re
import time
from pathlib import Path

import pytest
import torch
from tiny import run_all, tiny_config, tiny_setup
from torch import nn

from nayer_lib import datasets, distill, files
from nayer_lib.classifiers.teacher import Classifier, load_teacher, make_classifier, save_classifier
from nayer_lib.config import make_config
from nayer_lib.datasets import DATASETS, Split
from nayer_lib.errors import MissingFile, UserError
from nayer_lib.evaluate import Scores
from nayer_lib.methods.base import Batch, Method, NonFiniteLoss, SynthesisReport
from nayer_lib.text.lte_pool import build_pool, load_pool, pool_path
from nayer_lib.text.prompts import template

SCORES = Scores(0.5, 0.6, 0.7, 0.8, torch.zeros(10), torch.zeros(500))


class Diary(Method):
    """Does nothing and notes who called it."""

    name, citation = "diary", "Nobody 2024"

    def __init__(self, losses=(), **overrides):
        def linear():
            names = DATASETS["digits"].class_names
            return Classifier(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), names, (0.3,), (0.4,))

        super().__init__(linear(), linear(), tiny_config(**overrides))
        self.losses, self.calls, self.rates = list(losses), [], []

    def begin_epoch(self, epoch):
        self.calls.append(f"begin {epoch}")

    def synthesize(self, epoch):
        self.calls.append(f"synthesize {epoch}")
        self.memory.add(torch.rand(5, 1, 8, 8), torch.zeros(5, dtype=torch.long), 0)
        return SynthesisReport(1, 5, [1.0], 0.0, 0.0, 0.0)

    def sample(self, n):
        self.calls.append(f"sample {n}")
        return Batch(torch.zeros(n, 1, 8, 8), torch.zeros(n, dtype=torch.long), "nowhere")

    def student_step(self, batch):
        self.calls.append("step")
        self.rates.append(self.student_optimizer.param_groups[0]["lr"])
        return torch.tensor(self.losses.pop(0) if self.losses else 1.0)

    def score(self, student):
        assert student is self.student
        self.calls.append("score")
        return SCORES

    def run(self, start=0):
        return list(distill.distill(self, self.score, start))


# --- Algorithm 1


def test_the_order_of_calls_is_that_of_algorithm_1():
    method = Diary(rounds=2, warmup_rounds=3, student_steps=2, epochs=1)
    method.run()
    step = ["sample 16", "step"]
    assert method.calls == ["begin 0", *3 * ["synthesize 0"], "begin 1", *2 * ["synthesize 1"], *step, *step, "score"]


def test_a_method_may_ask_for_short_rounds_many_times_an_epoch():
    method = Diary(repeats=3, rounds=1, student_steps=2, epochs=1)
    [warmup, epoch] = method.run()
    step = ["sample 16", "step"]
    assert method.calls[4:] == ["begin 1", *3 * ["synthesize 1", *step, *step], "score"]
    assert (len(warmup.rounds), len(epoch.rounds)) == (3, 3)


def test_a_method_may_ask_for_the_student_first():
    method = Diary(repeats=2, rounds=1, student_steps=1, epochs=1, warmup_epochs=0)
    method.student_first = True
    method.run()
    assert method.calls == ["begin 0", *2 * ["sample 16", "step", "synthesize 0"], "score"]


def test_a_warm_up_epoch_has_no_student_steps_and_no_scores():
    warmup, *rest = Diary(warmup_epochs=1, epochs=2).run()
    assert (warmup.student_loss, warmup.scores, warmup.images) == (None, None, 5)
    assert all(epoch.scores is SCORES for epoch in rest)
    assert not any(epoch.scores is None for epoch in Diary(warmup_epochs=0).run())


def test_every_so_many_epochs_are_scored_and_the_last_always():
    method = Diary(warmup_epochs=1, epochs=5)
    epochs = list(distill.distill(method, method.score, score_every=2))
    assert [epoch.scores is not None for epoch in epochs] == [False, True, False, True, False, True]
    assert all(epoch.student_loss is not None for epoch in epochs[1:]) and method.calls.count("score") == 3


def test_scoring_takes_at_most_a_twentieth_of_the_work():
    config = make_config("cifar10-resnet20-wrn16_1", student_steps=30)  # 2 rounds x 20 steps x 100 images; 30 x 128
    passes = 2 * 20 * 100 * 6 + 30 * 128 * 4
    assert distill.scoring_interval(config, 10_000) == math.ceil(10_000 / (passes / 20)) == 6
    assert distill.scoring_interval(config, passes // 20) == 1
    for preset, profile, images in [("digits", "quick", 500), ("color_digits", "quick", 2500), (None, "hour", 10_000)]:
        assert distill.scoring_interval(make_config(preset, profile=profile), images) == 1


def test_a_setup_knows_how_often_to_score():
    split = Split(torch.zeros(300, 1, 8, 8, dtype=torch.uint8), torch.zeros(300, dtype=torch.long))
    with pytest.warns(UserWarning, match="chance"):
        setup = distill.prepare(tiny_config(), test=split, device="cpu")
    assert setup.score_every == distill.scoring_interval(setup.method.config, 300) > 1


@pytest.mark.parametrize(("variant", "total"), [("released", 5), ("paper", 3)])
def test_d6_warm_up_epochs_are_extra_or_included(variant, total):
    method = Diary(variant=variant, warmup_epochs=2, epochs=3)
    assert [epoch.epoch for epoch in method.run()] == list(range(total))
    assert len(method.rates) == 2 * (total - 2)


def test_the_students_rate_follows_the_config():
    method = Diary(epochs=3, student_steps=2)
    method.run()
    assert method.rates == [method.config.lr(epoch) for epoch in (1, 1, 2, 2, 3, 3)]
    assert method.rates[0] == method.config.student_lr and method.rates[-1] < method.rates[2] < method.rates[0]


def test_start_skips_epochs_and_keeps_their_numbers_and_rates():
    whole, late = Diary(epochs=4), Diary(epochs=4)
    expected = whole.run()[3:]
    assert [epoch.epoch for epoch in late.run(start=3)] == [epoch.epoch for epoch in expected] == [3, 4]
    assert late.rates == whole.rates[-4:] and late.calls[0] == "begin 3"


def test_the_student_loss_is_the_mean_over_the_steps_of_the_epoch():
    epochs = Diary(losses=[1.0, 2.0, 3.0, 5.0], epochs=2, student_steps=2).run()
    assert [epoch.student_loss for epoch in epochs] == [None, 1.5, 4.0]


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_student_loss_that_is_not_finite_is_named_and_the_epochs_before_were_yielded(broken):
    method, seen = Diary(losses=[1.0, 1.0, 1.0, broken], epochs=3), []
    with pytest.raises(NonFiniteLoss, match="^L_S became NaN or infinite in epoch 2: lower student_lr") as raised:
        for epoch in distill.distill(method, method.score):
            seen.append(epoch)
    assert isinstance(raised.value, UserError)
    assert [epoch.epoch for epoch in seen] == [0, 1]
    assert method.calls.count("score") == 1  # nothing is scored with a broken student


def test_it_waits_for_its_caller_after_every_epoch():
    method = Diary()
    epochs = distill.distill(method, method.score)
    assert method.calls == []
    assert next(epochs).epoch == 0 and "begin 1" not in method.calls


def test_the_clock_is_split_into_synthesis_student_and_evaluation():
    class Slow(Diary):
        def synthesize(self, epoch):
            time.sleep(0.02)
            return super().synthesize(epoch)

        def score(self, student):
            time.sleep(0.05)
            return super().score(student)

    warmup, epoch, _ = Slow(rounds=2, warmup_rounds=1).run()
    assert set(warmup.seconds) == {"synthesis", "student", "evaluation"} and min(warmup.seconds.values()) >= 0
    assert warmup.seconds["synthesis"] >= 0.02 and warmup.seconds["evaluation"] == 0
    assert epoch.seconds["synthesis"] >= 0.04 and epoch.seconds["evaluation"] >= 0.05
    assert epoch.seconds["student"] < 0.04


def test_it_says_nothing(capsys):
    run_all(tiny_setup(epochs=1))
    assert capsys.readouterr() == ("", "")


def test_students_of_the_same_seed_begin_alike_and_learn():
    setup = tiny_setup(epochs=3, student_steps=10)
    begin = [p.clone() for p in setup.method.student.parameters()]
    assert all(map(torch.equal, begin, tiny_setup().method.student.parameters()))
    losses = [epoch.student_loss for epoch in run_all(setup)[1:]]
    assert losses[-1] < losses[0]


def test_another_seed_begins_with_another_student():
    seeds = (0, 1)
    begins = [next(tiny_setup(seed=seed).method.student.parameters()) for seed in seeds]
    assert not torch.equal(*begins)


# --- prepare


@pytest.mark.parametrize("prompt", ["a", "p2"])
def test_the_pool_is_of_the_configs_prompt(prompt):
    """Table 5 and D9 hang on it."""
    setup = tiny_setup(prompt=prompt)
    kept = load_pool(pool_path("digits", "sbert", prompt), setup.method.teacher.class_names)
    assert setup.pool.header["prompt"] == template(prompt) and torch.equal(setup.method.table, kept.table)


def test_prepare_gives_a_frozen_teacher_a_fresh_student_and_the_same_ruler_for_both():
    setup = tiny_setup()
    method, facts = setup.method, DATASETS["digits"]
    assert not method.teacher.training and method.student.training
    assert method.student.class_names == method.teacher.class_names == facts.class_names
    assert (method.student.mean, method.student.std) == (facts.mean, facts.std)
    assert torch.equal(method.table, setup.pool.table)
    assert setup.evaluate(method.teacher).agreement == 1
    assert setup.evaluate(method.teacher).accuracy == setup.evaluate.teacher.accuracy > 0.98


@pytest.mark.filterwarnings("ignore:the teacher scores")
@pytest.mark.parametrize("name", DATASETS)
def test_a_run_reads_the_test_split_and_no_other(name, monkeypatch):
    facts, asked = DATASETS[name], []

    def read(*words):
        asked.append(words[-1])
        images = torch.randint(256, (4, facts.channels, facts.size, facts.size), dtype=torch.uint8)
        return datasets.Split(images, torch.arange(4))

    for reader in ("_digits", "_color_digits", "_cifar", "_tiny_imagenet", "_imagenet"):
        monkeypatch.setattr(datasets, reader, read)
    teacher = make_classifier("wrn10_half", facts.class_names, facts.mean, facts.std, seed=0)
    least = {"generator_batch": 2, "student_batch": 2, "generator_steps": 1, "student_steps": 1, "epochs": 1}
    config = tiny_config(dataset=name, warmup_epochs=0, warmup_rounds=None, **least)
    run_all(distill.prepare(config, teacher, build_pool(facts.class_names, "random", "a"), device="cpu"))
    assert asked == ["test"]


def cifar10_teacher(folder: Path) -> Path:
    names, facts = DATASETS["cifar10"].class_names, DATASETS["cifar10"]
    save_classifier(folder / "teacher.safetensors", make_classifier("wrn10_1", names, facts.mean, facts.std, 0))
    return folder / "teacher.safetensors"


def renamed_teacher(folder: Path) -> Path:
    teacher = load_teacher("digits", "wrn10_1")
    teacher.class_names = teacher.class_names[::-1]
    save_classifier(folder / "teacher.safetensors", teacher)
    return folder / "teacher.safetensors"


@pytest.mark.parametrize(
    ("overrides", "checkpoint", "kind", "message"),
    [
        ({"method": "nayr"}, None, UserError, "unknown method 'nayr'. Did you mean 'nayer'"),
        ({"dataset": "digit"}, None, UserError, "unknown data set 'digit'. Did you mean 'digits'"),
        ({"student": "wrn10_hlf"}, None, UserError, "unknown network 'wrn10_hlf'. Did you mean 'wrn10_half'"),
        ({"teacher": "wrn40_2"}, None, MissingFile, "no teacher for digits/wrn40_2: run `python -m nayer_lib teacher"),
        ({"dataset": "cifar10"}, None, MissingFile, "no teacher for cifar10/wrn10_1: run `python -m nayer_lib teacher"),
        (
            {"dataset": "cifar10", "encoder": "clip"},
            cifar10_teacher,
            MissingFile,
            "no weights of timm/vit_base_patch32_clip_224.openai on this machine",
        ),
        ({"encoder": "sbrt"}, None, UserError, "unknown text encoder 'sbrt'. Did you mean 'sbert'"),
        ({}, renamed_teacher, UserError, "the teacher's class names are not those of digits, in its order"),
        ({"generator_batch": 1}, None, UserError, "a synthesis batch needs at least 2 images"),
        ({"latent": "noisi"}, None, UserError, "unknown latent 'noisi'. Did you mean 'noisy'"),
    ],
)
def test_what_does_not_fit_is_told_in_one_sentence(overrides, checkpoint, kind, message, tmp_path):
    config = dataclasses.replace(tiny_config(), **overrides)
    with pytest.raises(UserError, match=re.escape(message)) as raised:
        distill.prepare(config, checkpoint and checkpoint(tmp_path), device="cpu")
    assert type(raised.value) is kind
    assert "\n" not in str(raised.value) and str(raised.value).endswith(".")


@pytest.mark.parametrize(("there", "expected"), [(True, "cuda"), (False, "cpu")])
def test_the_device_is_the_gpu_where_there_is_one(there, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert distill.choose_device(None) == torch.device(expected) and distill.choose_device("cpu") == torch.device("cpu")
    if not there:
        with pytest.raises(UserError, match="no CUDA device that torch can use"):
            distill.choose_device("cuda")


def test_prepare_checks_a_config_that_was_not_made_by_make_config():
    with pytest.raises(UserError, match="student_steps must be a whole number"):
        distill.prepare(dataclasses.replace(tiny_config(), student_steps=0))


def test_a_teacher_of_ones_own_is_taken_from_its_file(tmp_path):
    facts = DATASETS["digits"]
    other = make_classifier("wrn10_half", facts.class_names, facts.mean, facts.std, seed=7)
    save_classifier(tmp_path / "mine.safetensors", other)
    with pytest.warns(UserWarning, match="the teacher scores .* about chance"):  # it was never trained
        teacher = distill.prepare(tiny_config(), tmp_path / "mine.safetensors", device="cpu").method.teacher
    assert teacher.name == "wrn10_half"
    assert files.tensors_hash(teacher.net.state_dict()) == files.tensors_hash(other.net.state_dict())
