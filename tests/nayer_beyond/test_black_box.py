"""A teacher of which only the answers are to be had, and what every method does with one."""

import pytest
import torch
from tiny import QUANTISED, over, run_all, same, tiny_config
from torch.nn import functional as F

from nayer_beyond.black_box import BlackBox
from nayer_lib.classifiers.teacher import Classifier, load_teacher, make_classifier
from nayer_lib.compute import folded
from nayer_lib.datasets import load_split
from nayer_lib.distill import Setup, distill, prepare
from nayer_lib.errors import UserError
from nayer_lib.evaluate import Evaluator
from nayer_lib.methods import KINDS


@pytest.fixture
def teacher() -> Classifier:
    return load_teacher("digits", "wrn10_1")


IMAGES = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def test_it_answers_in_three_ways_always_in_the_form_of_logits(teacher):
    logits = teacher(IMAGES)
    given = {answers: BlackBox(teacher, answers)(IMAGES) for answers in ("logits", "probabilities", "labels")}
    assert torch.equal(given["logits"], logits)
    assert torch.allclose(given["probabilities"].exp(), F.softmax(logits, 1))
    for temperature in (1, 20):
        expected = F.softmax(logits / temperature, 1)
        assert torch.allclose(F.softmax(given["probabilities"] / temperature, 1), expected, atol=1e-6)
    rows = given["labels"].exp()
    assert torch.equal(rows.argmax(1), logits.argmax(1)) and torch.allclose(rows.sum(1), torch.ones(5))
    assert torch.allclose(rows.sort(1).values, torch.tensor([0.01 / 9] * 9 + [0.99]).expand(5, 10))
    with pytest.raises(UserError, match="unknown kind of answers 'grades'"):
        BlackBox(teacher, "grades")


def test_it_counts_images_and_stops_at_its_budget_which_a_refused_call_does_not_touch(teacher):
    box = BlackBox(teacher, budget=12)
    box(IMAGES), box(IMAGES)
    assert (box.asked, box.left) == (10, 2)
    with pytest.raises(UserError, match="^2 of 12 images are left to ask about, and these are 5: give a larger"):
        box(IMAGES)
    assert box(IMAGES[:2]).shape == (2, 10) and (box.asked, box.left) == (12, 0)
    assert BlackBox(teacher).left == float("inf")


def test_nothing_but_answers_is_reachable(teacher):
    box = BlackBox(teacher.train().requires_grad_(True))
    assert not teacher.training and not any(p.requires_grad for p in teacher.parameters())
    assert [*box.parameters(), *box.buffers(), *box.children(), *box.state_dict(), *box.batch_norms()] == []
    known = {name: getattr(box, name) for name in dir(box) if not name.startswith("_") and name not in CLOSED}
    assert not any(isinstance(x, torch.nn.Module | torch.Tensor) for x in known.values())
    assert (box.class_names, box.mean, box.std) == (teacher.class_names, teacher.mean, teacher.std)
    assert (box.name, box.accuracy, box.device) == ("", {}, torch.device("cpu"))


CLOSED = {"net"}


@pytest.mark.parametrize(
    "ask",
    [
        lambda box: box.net,
        lambda box: box.head(),
        lambda box: box.stages(),
        lambda box: box.pooled(),
        lambda box: box.ends_in_pooling((1, 8, 8)),
        lambda box: box(IMAGES, return_features=True),
    ],
)
def test_its_inside_is_refused_in_one_sentence(teacher, ask):
    with pytest.raises(UserError, match="^a black box shows no layer, no weight and no feature"):
        ask(BlackBox(teacher))


def test_a_gradient_is_refused_and_not_silently_zero(teacher):
    box, images = BlackBox(teacher), IMAGES.clone().requires_grad_()
    with pytest.raises(UserError, match="^a black box gives no gradient"):
        box(images)
    assert box.asked == 0 and not box(images.detach()).requires_grad


def test_it_is_left_as_it_is_where_a_teacher_is_folded(teacher):
    box = BlackBox(teacher)
    assert folded(box, (1, 8, 8)) is box and box.asked == 0
    assert folded(teacher, (1, 8, 8)) is not teacher


def test_prepare_wants_the_whole_teacher(teacher):
    with pytest.raises(UserError, match="a black box is made by the method stealing.*pass the teacher itself"):
        prepare(tiny_config(method="stealing"), BlackBox(teacher), device="cpu")


ANSWERS_ALONE = {"stealing", "noise", "procedural", "with_data"}


def with_black_box(name: str, answers: str = "logits", **options) -> Setup:
    """A set-up whose method has a black box; evaluated by the teacher itself."""
    bits = QUANTISED if name in ("rounding",) or KINDS[name].needs_bits else {}
    whole = prepare(tiny_config(**over(bits, {"method": name} | options)), device="cpu")
    box, given = BlackBox(whole.evaluate.classifier, answers), whole.method.table
    names, mean, std = box.class_names, box.mean, box.std
    student = make_classifier(whole.config.student, names, mean, std, whole.config.seed)
    student.quantisation = whole.method.student.quantisation
    last = load_split("digits", "train") if KINDS[name].reads_images else given
    return Setup(whole.config, KINDS[name](box, student, whole.config, last), whole.evaluate, whole.pool)


@pytest.mark.parametrize("name", sorted(set(KINDS) - ANSWERS_ALONE))
def test_a_method_that_needs_more_than_answers_refuses_at_construction(name):
    own = {"cmi": "BatchNorm layers; without any, take another method"}
    with pytest.raises(UserError, match=own.get(name, "needs its teacher's gradient or layers.*: take stealing")):
        with_black_box(name)


@pytest.mark.parametrize("answers", ["logits", "labels"])
@pytest.mark.parametrize(
    ("name", "options", "asked"),
    [
        ("stealing", {}, 2 * 2 * 20),  # epochs, rounds, images
        ("noise", {"teacher_statistics": "running"}, 2 * 2 * 16),  # epochs, steps, images
        ("with_data", {}, 2 * 2 * 16),
        ("procedural", {"images": 30}, 30 + 2 * 2 * 16),
    ],
)
def test_a_method_that_needs_answers_alone_runs_and_evaluation_does_not_count(name, options, asked, answers):
    setup = with_black_box(name, answers, **options)
    before = {key: value.clone() for key, value in setup.method.student.state_dict().items()}
    epochs = list(distill(setup.method, setup.evaluate))
    assert epochs[-1].student_loss > 0 and not same(before, setup.method.student.state_dict())
    assert setup.method.teacher.asked == asked


def test_noise_with_a_batchs_statistics_refuses_a_black_box():
    with pytest.raises(UserError, match="shows no BatchNorm that could use a batch's statistics"):
        with_black_box("noise")


def test_an_evaluator_that_is_given_a_black_box_is_counted_as_anybody(teacher):
    """The kit's own evaluation asks the teacher itself."""
    box, split = BlackBox(teacher), load_split("digits", "test")
    Evaluator(box, split)
    assert box.asked == len(split.labels)
    setup = prepare(tiny_config(method="stealing"), device="cpu")
    assert isinstance(setup.method.teacher, BlackBox) and not isinstance(setup.evaluate.classifier, BlackBox)
    run_all(setup)
    assert setup.method.teacher.asked == 2 * 2 * 20
