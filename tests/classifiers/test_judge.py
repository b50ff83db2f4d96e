"""Judges: of another architecture and seed than the teacher that they judge."""

import pytest
import torch

from nayer_lib import files
from nayer_lib.classifiers.judge import JUDGES, check_judge, load_judge
from nayer_lib.classifiers.teacher import load_teacher, make_classifier, save_classifier, teacher_path
from nayer_lib.config import PRESETS, Config
from nayer_lib.errors import MissingFile, UserError

NAMES, MEAN, STD = ("a", "b", "c"), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)


@pytest.fixture
def empty(tmp_path, monkeypatch):
    """A kit without teachers."""
    (tmp_path / "paper").mkdir()
    monkeypatch.setenv("NAYER_DATA", str(tmp_path))


def classifier(seed=0):
    return make_classifier("wrn10_half", NAMES, MEAN, STD, seed).eval()



@pytest.mark.parametrize("name", ["digits", "color_digits"])
def test_a_kept_judge_is_of_another_architecture_and_seed_than_the_teacher(name):
    teacher, judge = load_teacher(name, "wrn10_1"), load_judge(name, load_teacher(name, "wrn10_1"))
    assert judge.name == JUDGES[name] != teacher.name and judge.class_names == teacher.class_names
    assert not judge.training and not any(p.requires_grad for p in judge.parameters())
    seeds = {files.load_tensors(teacher_path(name, network))[1]["seed"] for network in ("wrn10_1", JUDGES[name])}
    assert len(seeds) == 2
    assert {x.dtype for x in files.load_tensors(teacher_path(name, JUDGES[name]))[0].values()} >= {torch.float16}
    assert teacher_path(name, JUDGES[name]).stat().st_size < 200_000


def test_no_preset_distils_from_a_judges_network():
    """Every data set of the presets has a judge, but ImageNet."""
    teachers = {(row["dataset"], row.get("teacher", Config.teacher)) for row in PRESETS.values()}
    assert {dataset for dataset, _ in teachers} == set(JUDGES) | {"imagenet"}
    assert not teachers & set(JUDGES.items())


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "tiny_imagenet"])
def test_a_missing_judge_says_how_to_train_it(name, empty):
    command = f"teacher train --dataset {name} --network {JUDGES[name]} --seed 1`, or convert"
    with pytest.raises(MissingFile, match=f"no judge for {name}: run `python -m nayer_lib {command}"):
        load_judge(name, classifier())


def test_a_data_set_without_a_judge_is_told():
    with pytest.raises(UserError, match="no judge is named for imagenet, only for digits, .*tiny_imagenet"):
        load_judge("imagenet", classifier())


def test_the_distilled_teacher_is_no_judge_of_its_images(empty):
    """Who distils from resnet44, and has no other."""
    made = make_classifier("resnet44", NAMES, MEAN, STD, seed=0)
    save_classifier(teacher_path("cifar10", "resnet44"), made)
    with pytest.raises(UserError, match="the weights of the distilled teacher, .*: take a classifier of another arch"):
        load_judge("cifar10", load_teacher("cifar10", "resnet44"))
    other = make_classifier("resnet44", NAMES, MEAN, STD, seed=1)
    loaded, saved = load_judge("cifar10", other).state_dict(), made.state_dict()
    assert all(torch.equal(loaded[key], x) for key, x in saved.items())


@pytest.mark.parametrize("rounded", [torch.float16, torch.bfloat16])
def test_a_rounded_teacher_is_still_the_teacher(rounded):
    teacher, judge = classifier(), classifier()
    judge.net.to(rounded)
    for name, count in judge.named_buffers():
        if name.endswith("num_batches_tracked"):
            count += 1  # or one whose batches were not counted
    with pytest.raises(UserError, match="the judge has the weights of the distilled teacher"):
        check_judge(judge, teacher)


def test_other_weights_another_number_of_classes_or_another_network_make_a_judge():
    check_judge(classifier(1), classifier(0))
    check_judge(make_classifier("wrn10_half", tuple("abcd"), MEAN, STD, 0), classifier())
    check_judge(make_classifier("wrn10_1", NAMES, MEAN, STD, 0), classifier())
