"""Scores, worked by hand on six images and three classes."""

import math
import warnings

import pytest
import reference
import torch
from torch import nn

from nayer_lib import evaluate
from nayer_lib.classifiers.teacher import Classifier
from nayer_lib.datasets import Split
from nayer_lib.errors import UserError
from nayer_lib.evaluate import Evaluator, features

NAMES = ("a", "b", "c")
SPLIT = Split(torch.arange(6, dtype=torch.uint8).view(6, 1, 1, 1), torch.tensor([0, 0, 0, 0, 1, 1]))


class Lookup(nn.Module):
    """Image k, which is the number k, gets row k of a table of logits; notes how it was called."""

    def __init__(self, logits):
        super().__init__()
        self.register_buffer("logits", logits)
        self.calls = []

    def forward(self, images):
        self.calls.append((len(images), self.training, torch.is_grad_enabled()))
        return self.logits[images.flatten().round().long()]


def predicting(*classes, sure=2.0):
    """A classifier with the logit `sure` for these classes of the six images, and 0 else."""
    logits = torch.zeros(len(classes), 3)
    logits[torch.arange(len(classes)), torch.tensor(classes)] = sure
    return Classifier(Lookup(logits), NAMES, (0.0,), (1 / 255,))


TEACHER = predicting(0, 0, 0, 1, 1, 1)  # five of six


def test_accuracy_and_per_class_by_hand():
    evaluate = Evaluator(TEACHER, SPLIT)
    scores = evaluate(predicting(0, 0, 2, 1, 1, 0))
    assert scores.accuracy == pytest.approx(3 / 6)
    assert scores.per_class.tolist()[:2] == pytest.approx([2 / 4, 1 / 2])
    assert scores.predictions.tolist() == [0, 0, 2, 1, 1, 0]
    assert evaluate.teacher.accuracy == pytest.approx(5 / 6)


def test_a_class_without_a_test_image_has_no_accuracy():
    assert math.isnan(Evaluator(TEACHER, SPLIT)(TEACHER).per_class[2])


def test_agreement_is_with_the_teacher_not_with_the_labels():
    scores = Evaluator(TEACHER, SPLIT)(predicting(0, 0, 2, 1, 1, 0))
    assert scores.agreement == pytest.approx(4 / 6)
    assert Evaluator(TEACHER, SPLIT)(predicting(2, 2, 2, 2, 2, 2)).agreement == 0


def test_kl_is_of_the_teacher_to_the_classifier_in_nats():
    student = predicting(0, 0, 2, 1, 1, 0, sure=1.0)
    rows = zip(TEACHER.net.logits, student.net.logits, strict=True)
    expected = sum(reference.kl_divergence(*pair).item() for pair in rows) / 6
    assert Evaluator(TEACHER, SPLIT)(student).kl == pytest.approx(expected, rel=1e-5)


def test_nll_is_of_the_labels_in_nats():
    """Logit 2 for the predicted class of three: log(e^2 + 2) an image, and 2 less where it is the right one."""
    scores = Evaluator(TEACHER, SPLIT)(predicting(0, 0, 2, 1, 1, 0))
    assert scores.nll == pytest.approx(math.log(math.exp(2) + 2) - 2 * 3 / 6)


def test_the_teacher_is_scored_with_the_same_ruler_and_agrees_with_itself():
    evaluate = Evaluator(TEACHER, SPLIT)
    again = evaluate(TEACHER)
    assert (evaluate.teacher.agreement, evaluate.teacher.kl) == (again.agreement, again.kl) == (1, 0)
    assert again.accuracy == evaluate.teacher.accuracy


def test_scores_do_not_depend_on_the_batch():
    student = predicting(0, 0, 2, 1, 1, 0)
    whole, parts = (Evaluator(TEACHER, SPLIT, batch)(student) for batch in (1000, 4))
    for name in ("accuracy", "agreement", "kl", "nll"):
        assert getattr(whole, name) == getattr(parts, name)
    assert [size for size, *_ in student.net.calls] == [6, 4, 2]


def test_a_split_of_numpys_arrays_is_scored_as_one_of_tensors():
    evaluate = Evaluator(TEACHER, Split(SPLIT.images.numpy(), SPLIT.labels.numpy()))
    assert evaluate.teacher.accuracy == Evaluator(TEACHER, SPLIT).teacher.accuracy and evaluate.batch == 6


@pytest.mark.parametrize("training", [True, False])
def test_scoring_is_in_eval_mode_without_gradients_and_puts_the_mode_back(training):
    student = predicting(0, 0, 0, 0, 0, 0).train(training)
    Evaluator(TEACHER, SPLIT)(student)
    assert student.net.calls == [(6, False, False)]
    assert student.training == student.net.training == training


def test_the_teacher_is_asked_once():
    teacher = predicting(0, 0, 0, 1, 1, 1)
    evaluate = Evaluator(teacher, SPLIT)
    for _ in range(3):
        evaluate(predicting(0, 0, 0, 0, 0, 0))
    assert len(teacher.net.calls) == 1


def test_a_label_beyond_the_teachers_classes_is_refused():
    split = Split(SPLIT.images, torch.tensor([0, 0, 0, 0, 1, 3]))
    with pytest.raises(UserError, match="labels go up to 3, and there are 3 classes"):
        Evaluator(TEACHER, split)


def test_images_are_given_in_0_1():
    """255 is white."""
    seen = []
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    classifier = Classifier(net, NAMES, (0.0,), (1.0,))
    net.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    Evaluator(classifier, Split(torch.tensor([0, 255] * 2, dtype=torch.uint8).view(1, 1, 2, 2), torch.tensor([0])))
    assert seen[0].flatten().tolist() == [0, 1] * 2


@pytest.mark.parametrize(
    ("predictions", "at_chance"), [((0, 0, 0, 1, 1, 1), False), ((0, 0, 0, 2, 2, 2), False), ((0, 0, 2, 2, 2, 2), True)]
)
def test_a_teacher_within_ten_points_of_chance_is_noticed(predictions, at_chance):
    """Three classes: below 43.3 %."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Evaluator(predicting(*predictions), SPLIT)
    assert bool(caught) == at_chance


@pytest.mark.parametrize(("stated", "told"), [(0.9, False), (1.0, True)])
def test_a_teacher_far_below_what_its_file_states_is_noticed(stated, told):
    """Five of six, 83 %, is more than five points below 100 %; below 90 % it may be by chance, of so few images."""
    teacher = predicting(0, 0, 0, 0, 1, 0)
    teacher.accuracy = {"test": stated}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Evaluator(teacher, SPLIT)
    assert [str(w.message).partition(":")[0] for w in caught] == (
        ["the teacher scores 83.3 %, and its file states 100.0 %"] if told else []
    )


@pytest.mark.parametrize("batch", [1000, 2])
def test_features_are_what_the_head_reads(batch, monkeypatch):
    """Of bytes as 0..1, normalised by the classifier itself; no gradients, whatever the batch."""
    monkeypatch.setattr(evaluate, "at_once", lambda images: batch)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3)).eval()
    images = torch.randint(0, 256, (5, 1, 1, 2), dtype=torch.uint8)
    told = features(Classifier(net, NAMES, (0.5,), (0.25,)), images)
    assert told.shape == (5, 4) and not told.requires_grad
    assert torch.allclose(told, net[:3]((images.float() / 255 - 0.5) / 0.25), atol=1e-6)
    assert torch.equal(features(Classifier(net, NAMES, (0.5,), (0.25,)), images.float() / 255), told)


# --- the second way to score: with the statistics of the test batch


def with_batch_norm() -> tuple[Classifier, Split]:
    """A classifier whose running statistics are not those of the images, and 40 images, labelled by it."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 4, 3))
    images = torch.randint(0, 256, (40, 1, 4, 4), dtype=torch.uint8)
    classifier = Classifier(net, NAMES, (0.5,), (0.25,)).eval()
    return classifier, Split(images, classifier(images / 255).argmax(1))


def shuffled(split: Split) -> tuple[Split, torch.Tensor]:
    order = torch.randperm(len(split.labels), generator=torch.Generator().manual_seed(1))
    return Split(split.images[order], split.labels[order]), order


def test_a_batchs_statistics_are_those_of_its_own_images():
    classifier, split = with_batch_norm()
    logits = Evaluator(classifier, split, 40).logits(classifier, "batch")
    conv, _, *rest = classifier.net
    maps = conv((split.images / 255 - 0.5) / 0.25)
    var, mean = torch.var_mean(maps, (0, 2, 3), correction=0, keepdim=True)
    assert torch.allclose(logits, nn.Sequential(*rest)((maps - mean) / (var + 1e-5).sqrt()), atol=1e-5)


def test_scored_by_batch_an_answer_depends_on_the_other_images_and_with_running_statistics_it_does_not():
    classifier, split = with_batch_norm()
    other, order = shuffled(split)
    logits = {
        statistics: [Evaluator(classifier, part, 10).logits(classifier, statistics) for part in (split, other)]
        for statistics in ("running", "batch")
    }
    assert torch.allclose(logits["running"][0][order], logits["running"][1], atol=1e-6)
    assert (logits["batch"][0][order] - logits["batch"][1]).abs().max() > 0.1
    by_size = [Evaluator(classifier, split, batch).logits(classifier, "batch") for batch in (10, 20)]
    assert (by_size[0] - by_size[1]).abs().max() > 0.1


@pytest.mark.parametrize("statistics", ["running", "batch"])
@pytest.mark.parametrize("training", [True, False])
def test_scoring_moves_no_buffer_and_no_mode(statistics, training):
    classifier, split = with_batch_norm()
    classifier.train(training)
    before = {name: value.clone() for name, value in classifier.state_dict().items()}
    assert "net.1.num_batches_tracked" in before
    Evaluator(classifier, split, 10)(classifier, statistics)
    assert all(torch.equal(before[name], value) for name, value in classifier.state_dict().items())
    assert {module.training for module in classifier.modules()} == {training}
    assert classifier.net[1].running_mean is not None


def test_without_batch_norm_both_scores_are_equal():
    student = predicting(0, 0, 2, 1, 1, 0)
    evaluate = Evaluator(TEACHER, SPLIT, 4)
    assert torch.equal(evaluate.logits(student, "running"), evaluate.logits(student, "batch"))


def test_an_unknown_way_to_score_is_refused():
    with pytest.raises(UserError, match="unknown choice of statistics 'test'.*running, batch"):
        Evaluator(TEACHER, SPLIT)(TEACHER, "test")
