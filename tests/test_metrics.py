"""Convergence, diversity and scores, on cases small enough to be worked out by hand."""

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nayer_lib.classifiers.judge import load_judge
from nayer_lib.classifiers.teacher import Classifier, load_teacher
from nayer_lib.datasets import load_split
from nayer_lib.errors import UserError
from nayer_lib.evaluate import in_batches
from nayer_lib.metrics import (
    Convergence,
    Diversity,
    by_step,
    classifier_score,
    convergence,
    diversity,
    feature_diversity,
)

few = settings(max_examples=40, deadline=None, database=None)

# --- convergence


@pytest.mark.parametrize(
    ("rounds", "success", "mean", "restricted"),
    [
        ([[0.05, 0.5]], 1, 1, 1),  # before any update
        ([[2.0, 0.5, 0.09]], 1, 3, 3),
        ([[2.0, 0.05, 3.0, 0.01]], 1, 2, 2),  # the first time counts
        ([[2.0, 1.0, 0.05], [0.01, 1.0, 1.0], [2.0, 2.0, 2.0], [9.0, 0.0, 0.0]], 3 / 4, 2, (3 + 1 + 4 + 2) / 4),
        ([[1.0], [0.05, 1.0]], 1 / 2, 1, (2 + 1) / 2),  # each round by its own number of steps
    ],
    ids=["at step 1", "at the last step", "for a while", "mixed", "rounds of two lengths"],
)
def test_convergence_is_the_first_step_below_the_threshold(rounds, success, mean, restricted):
    assert convergence(rounds) == Convergence(success, mean, restricted)


def test_rounds_that_never_reach_it_have_no_mean_and_count_one_step_more_than_they_have():
    told = convergence([[1.0, 0.5, 0.2], [0.3] * 3])
    assert (told.success, told.restricted) == (0, 4) and math.isnan(told.mean)


def test_the_threshold_itself_is_not_below_it():
    rounds = [[0.1, 0.5, 0.25]]
    assert convergence(rounds).success == 0
    assert convergence(rounds, threshold=0.5) == Convergence(1, 1, 1)
    assert convergence(rounds, threshold=0.1000001) == Convergence(1, 1, 1)


@pytest.mark.parametrize("rounds", [[], [[]], [[0.5], []]], ids=["none", "without steps", "one without steps"])
def test_rounds_without_a_cross_entropy_are_refused(rounds):
    with pytest.raises(UserError, match="at least one synthesis round, and L_CE at its steps"):
        convergence(rounds)


def test_a_loss_that_is_not_a_number_has_not_converged():
    assert convergence([[math.nan, 0.05], [math.nan, math.nan]]) == Convergence(1 / 2, 2, (2 + 3) / 2)


@few
@given(st.lists(st.lists(st.floats(0, 3), min_size=5, max_size=5), min_size=1, max_size=6), st.floats(0.01, 3))
def test_convergence_is_bounded_and_a_higher_threshold_is_reached_no_later(rounds, threshold):
    told, easier = convergence(rounds, threshold), convergence(rounds, 2 * threshold)
    assert 0 <= told.success <= easier.success <= 1
    assert 1 <= easier.restricted <= told.restricted <= 6
    assert math.isnan(told.mean) if told.success == 0 else 1 <= told.mean <= 5


# --- diversity


def grey(*values: float) -> torch.Tensor:
    """Images of two by two pixels, each of one grey."""
    return torch.tensor(values).view(-1, 1, 1, 1).expand(-1, 1, 2, 2)


def measure(values, labels, rounds, **options) -> Diversity:
    return diversity(grey(*values), torch.tensor(labels), torch.tensor(rounds), **options)


def close(told: Diversity, within: float, across: float) -> bool:
    return told.within == pytest.approx(within, nan_ok=True) and told.across == pytest.approx(across, nan_ok=True)


def test_black_and_white_are_1_apart_and_equal_images_0():
    assert close(measure([0.0, 1.0], [0, 0], [0, 0]), 1, math.nan)
    assert close(measure([0.0, 1.0], [0, 0], [0, 1]), math.nan, 1)
    assert measure([0.3, 0.3, 0.3], [0, 0, 0], [0, 0, 1]) == Diversity(0, 0)


def test_equal_images_are_0_apart_however_many_there_are():
    images = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0)).repeat_interleave(40, 0)
    told = diversity(images, torch.arange(8).repeat_interleave(40), torch.arange(320) % 2)
    assert (told.within, told.across) == (0, 0)  # exactly: a matrix product would leave rounding


def test_the_distance_is_the_root_mean_square_over_pixels_and_channels():
    images = torch.zeros(2, 3, 2, 2)
    images[1, 0, 0, 0], images[1, 2, 1, 1] = 0.6, 0.8
    told = diversity(images, torch.zeros(2), torch.zeros(2))
    assert told.within == pytest.approx(math.sqrt((0.6**2 + 0.8**2) / 12))


def test_within_is_between_images_of_a_round_and_across_between_rounds():
    """Class 0: greys 0, 0.2 in round 0 and 1 in round 1: one pair within, two across."""
    assert close(measure([0.0, 0.2, 1.0], [0, 0, 0], [0, 0, 1]), 0.2, (1 + 0.8) / 2)


def test_every_class_counts_alike_however_many_pairs_it_has():
    values, labels = [0.0, 0.3, 0.6, 0.0, 0.1], [0, 0, 0, 1, 1]  # pairs of class 0: 0.3, 0.3, 0.6
    assert close(measure(values, labels, [0] * 5), (0.4 + 0.1) / 2, math.nan)


def test_a_class_without_a_pair_is_left_out():
    assert close(measure([0.0, 0.4, 0.9], [0, 0, 1], [0, 0, 0]), 0.4, math.nan)
    assert close(measure([0.0, 0.4, 0.9], [0, 1, 2], [0, 0, 1]), math.nan, math.nan)


def test_images_of_different_classes_are_never_compared():
    assert measure([0.0, 1.0, 0.0, 1.0], [0, 1, 0, 1], [0, 0, 1, 0]) == Diversity(0, 0)


def test_only_the_newest_images_of_each_class_count():
    """The memory has the oldest first."""
    values, labels = [0.0, 0.5, 0.5, 0.9, 0.6, 0.6], [0, 0, 1, 0, 1, 1]
    assert close(measure(values, labels, [0] * 6, per_class=2), (0.4 + 0.0) / 2, math.nan)
    assert close(measure(values, labels, [0] * 6, per_class=1), math.nan, math.nan)


def test_bytes_are_measured_as_their_share_of_255():
    bytes_ = torch.randint(0, 256, (12, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels, rounds = torch.arange(12) % 2, torch.arange(12) // 4
    assert diversity(bytes_, labels, rounds) == diversity(bytes_.float() / 255, labels, rounds)


greys = st.lists(st.tuples(st.floats(0, 1, width=32), st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=12)


@few
@given(greys, st.randoms(use_true_random=False))
def test_diversity_lies_in_0_to_1_and_does_not_ask_for_an_order(rows, random):
    """So long as `per_class` leaves no image out."""
    told = measure(*zip(*rows, strict=True))
    assert all(math.isnan(value) or 0 <= value <= 1 + 1e-6 for value in (told.within, told.across))
    random.shuffle(rows)
    again = measure(*zip(*rows, strict=True))
    assert close(again, told.within, told.across)


@pytest.mark.parametrize("measured", [diversity, lambda *seen: feature_diversity(*seen, looking())])
def test_what_diversity_lacks_is_told_and_which_methods_lack_it(measured):
    images, whole = grey(0.0, 1.0), torch.zeros(2)
    with pytest.raises(UserError, match=r"needs labels: for a method without labels"):
        measured(images, None, whole)
    memoryless = r"methods that keep no memory \(DAFL, DFQ, ZSKT\) have none"
    with pytest.raises(UserError, match=f"needs the round that made each image: {memoryless}"):
        measured(images, whole, None)
    with pytest.raises(UserError, match=f"needs images: {memoryless}"):
        measured(images[:0], whole[:0], whole[:0])


# --- feature diversity


def looking(pixels: int = 2, classes: int = 2, seed: int = 0) -> Classifier:
    """A classifier whose pooled features are the image itself."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Flatten(), nn.Linear(pixels, classes))
    return Classifier(net, [str(k) for k in range(classes)], (0.0,), (1.0,)).eval()


def arrows(*angles: float) -> torch.Tensor:
    """Images (N, 1, 1, 2) that point so many degrees away from the first pixel, of different lengths."""
    radians = torch.tensor(angles).deg2rad()
    lengths = torch.linspace(0.3, 1, len(angles))[:, None]
    return (lengths * torch.stack([radians.cos(), radians.sin()], 1)).view(-1, 1, 1, 2)


def apart(*degrees: float) -> float:
    """The mean of 1 - cos."""
    return sum(1 - math.cos(math.radians(d)) for d in degrees) / len(degrees)


def test_feature_diversity_is_one_less_the_cosine_whatever_the_lengths():
    """Class 0: 0 and 30 degrees in round 0, 90 in round 1; class 1: 45 and 90 in two rounds."""
    images, labels, rounds = arrows(0, 30, 45, 90, 90), torch.tensor([0, 0, 1, 0, 1]), torch.tensor([0, 0, 0, 1, 1])
    told = feature_diversity(images, labels, rounds, looking())
    assert close(told, apart(30), (apart(90, 60) + apart(45)) / 2)


def test_what_looks_alike_to_the_teacher_has_no_feature_diversity():
    told = feature_diversity(arrows(20, 20, 20), torch.zeros(3), torch.tensor([0, 0, 1]), looking())
    assert close(told, 0, 0) and told.within >= 0 and told.across >= 0
    images = arrows(20, 20)
    assert diversity(images, torch.zeros(2), torch.zeros(2)).within > 0.1


def test_only_the_newest_images_of_each_class_are_shown_to_the_teacher():
    teacher, shown = looking(), []
    teacher.register_forward_pre_hook(lambda _, args: shown.append(len(args[0])))
    images, labels = arrows(*range(0, 90, 6)), torch.arange(15) % 2
    told = feature_diversity(images, labels, torch.zeros(15), teacher, per_class=2)
    assert shown == [2, 2] and close(told, apart(12), math.nan)


@few
@given(st.integers(0, 1000))
def test_feature_diversity_takes_bytes_and_lies_in_0_to_1(seed):
    rng = torch.Generator().manual_seed(seed)
    bytes_ = torch.randint(0, 256, (9, 1, 1, 2), dtype=torch.uint8, generator=rng)
    seen = torch.arange(9) % 2, torch.arange(9) // 4, looking()
    told = feature_diversity(bytes_, *seen)
    assert 0 <= told.within <= 1 and 0 <= told.across <= 1
    assert told == feature_diversity(bytes_.float() / 255, *seen)


# --- classifier score


def answers(*rows: tuple[float, ...]) -> torch.Tensor:
    """The logits of these probabilities."""
    return torch.tensor(rows, dtype=torch.float64).log()


def by_hand(p: torch.Tensor) -> float:
    """exp(mean_i sum_k p_ik log(p_ik / mean_j p_jk))."""
    mean = p.mean(0)
    terms = [sum(x * math.log(x / m) for x, m in zip(row.tolist(), mean.tolist(), strict=True) if x) for row in p]
    return math.exp(sum(terms) / len(terms))


def test_a_judge_that_is_sure_of_every_class_gives_as_many_as_there_are():
    assert classifier_score(torch.eye(7) * 1000) == pytest.approx(7)
    assert classifier_score(answers(*torch.eye(7).tolist())) == pytest.approx(7)  # log 0
    two = torch.eye(7)[[0, 0, 3, 3]]  # of seven classes it sees two
    assert classifier_score(two * 1000) == pytest.approx(2)


def test_a_judge_that_answers_the_same_to_every_image_gives_1_be_it_sure_or_not():
    for row in ((1.0, 0.0, 0.0), (0.2, 0.3, 0.5), (1 / 3, 1 / 3, 1 / 3)):
        assert classifier_score(answers(*[row] * 4)) == pytest.approx(1)
    assert classifier_score(torch.eye(2)[:1]) == 1  # one image has no other to differ from


def test_the_score_of_two_images_by_hand():
    """Both are log 2 - H(1/4) from their mean, (1/2, 1/2)."""
    information = math.log(2) + 0.75 * math.log(0.75) + 0.25 * math.log(0.25)
    assert classifier_score(answers((0.75, 0.25), (0.25, 0.75))) == pytest.approx(math.exp(information))


tables = st.tuples(st.integers(3, 12), st.integers(2, 6), st.integers(0, 1000), st.floats(0.1, 20))


def drawn(images: int, classes: int, seed: int, scale: float) -> torch.Tensor:
    return scale * torch.randn(images, classes, generator=torch.Generator().manual_seed(seed))


@few
@given(tables)
def test_the_score_is_the_formula_and_lies_between_1_and_the_number_of_classes(table):
    logits = drawn(*table)
    score = classifier_score(logits)
    assert score == pytest.approx(by_hand(logits.double().softmax(1)))
    assert 1 - 1e-9 <= score <= table[1] + 1e-9


@few
@given(tables, st.integers(0, 1000))
def test_the_score_does_not_ask_for_names_of_classes_order_of_images_or_a_constant(table, seed):
    logits, rng = drawn(*table), torch.Generator().manual_seed(seed)
    images, classes = (torch.randperm(n, generator=rng) for n in logits.shape)
    other = logits[images][:, classes] + torch.randn(len(logits), 1, generator=rng)
    assert classifier_score(other) == pytest.approx(classifier_score(logits), rel=1e-4)


@pytest.mark.parametrize("shape", [(20,), (20, 3, 1), (), (0, 3)], ids=str)
def test_no_logits_and_those_of_another_shape_are_refused(shape):
    with pytest.raises(UserError, match=r"needs logits \(N, K\), a row an image, not \("):
        classifier_score(torch.zeros(shape))


@pytest.mark.parametrize("name", ["digits", "color_digits"])
def test_a_kept_judge_tells_real_images_from_noise(name):
    judge, images = load_judge(name, load_teacher(name, "wrn10_1")), load_split(name, "test").images[:500]
    noise = torch.randint(0, 256, images.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    real, chance = (classifier_score(in_batches(judge, some)) for some in (images, noise))
    assert chance < 2 and real > 0.8 * 10  # the first 500 of color_digits are in one ink


# --- metrics by step


def trace(*steps) -> torch.Tensor:
    """(g, B, 1, 1, 2) bytes from each step's pairs of pixels."""
    return torch.tensor(steps, dtype=torch.uint8).view(len(steps), -1, 1, 1, 2)


def seeing(sure: float) -> Classifier:
    """A judge that looks which of two pixels is brighter."""
    judge = looking()
    judge.net[1].weight.data, judge.net[1].bias.data = sure * torch.eye(2), torch.zeros(2)
    return judge


def test_metrics_by_step_by_hand():
    """Classes 0 and 1 in two rounds; at first all are alike, then each class points its own way, in round 1 aslant."""
    alike = [(255, 255)] * 2
    traces = [trace(alike, [(255, 0), (0, 255)]), trace(alike, [(255, 51), (102, 255)])]
    labels = [torch.tensor([0, 1]), torch.tensor([0, 1])]
    told = by_step(traces, labels, seeing(1000), looking())
    pixels = (0.2 / 2**0.5 + 0.4 / 2**0.5) / 2
    feature = 1 - (1 / (1 + 0.2**2) ** 0.5 + 1 / (1 + 0.4**2) ** 0.5) / 2
    assert told["score"] == pytest.approx([1, 2])
    assert told["within"] == [None, None]  # no class has two images in one round
    assert told["across"] == pytest.approx([0, pixels]) and told["feature"] == pytest.approx([0, feature], abs=1e-6)
    assert list(told) == ["score", "within", "across", "feature"]


def test_one_round_has_no_diversity_across_and_what_is_undefined_can_be_kept_as_json():
    told = by_step([trace([(255, 0), (0, 0)])], [torch.tensor([0, 0])], seeing(1), looking())
    assert told["within"] == pytest.approx([1 / 2**0.5]) and told["across"] == told["feature"] == [None]
    assert json.loads(json.dumps(told, allow_nan=False)) == told


@few
@given(st.integers(1, 4), st.integers(1, 3), st.integers(0, 1000))
def test_a_step_of_the_curves_is_the_metric_of_its_images(rounds, steps, seed):
    rng = torch.Generator().manual_seed(seed)
    sizes = torch.randint(1, 7, (rounds,), generator=rng).tolist()  # rounds may differ in size
    traces = [torch.randint(0, 256, (steps, n, 1, 1, 2), dtype=torch.uint8, generator=rng) for n in sizes]
    labels = [torch.randint(0, 3, (n,), generator=rng) for n in sizes]
    told = by_step(traces, labels, seeing(5), looking())
    made_in = torch.arange(rounds).repeat_interleave(torch.tensor(sizes))
    for t in range(steps):
        images, y = torch.cat([kept[t] for kept in traces]), torch.cat(labels)
        pixels, features = diversity(images, y, made_in), feature_diversity(images, y, made_in, looking())
        score = classifier_score(in_batches(seeing(5), images))
        expected = score, pixels.within, pixels.across, features.across
        at = [math.nan if curve[t] is None else curve[t] for curve in told.values()]
        assert at == pytest.approx(expected, nan_ok=True, rel=1e-5, abs=1e-6)


def test_the_newest_fifty_of_each_class_are_enough():
    judge, shown = seeing(1), []
    judge.register_forward_pre_hook(lambda _, args: shown.append(len(args[0])))
    older, newer = torch.zeros(2, 80, 1, 1, 2, dtype=torch.uint8), torch.full((2, 60, 1, 1, 2), 255, dtype=torch.uint8)
    labels = [torch.arange(80) % 2, (torch.arange(60) >= 55).long()]  # 40 + 55 of class 0, 40 + 5 of class 1
    told = by_step([older, newer], labels, judge, looking())
    assert shown == [95, 95]
    assert told["across"] == [1, 1]  # of class 1 alone: the newest fifty of class 0 are of one round
    assert told["within"] == [0, 0]


def test_metrics_by_step_need_rounds_labels_and_a_judge_that_is_not_the_teacher():
    kept, labels = [trace([(255, 0), (0, 0)])], [torch.tensor([0, 0])]
    with pytest.raises(UserError, match="need at least one round whose images were kept at each step"):
        by_step([], [], seeing(1), looking())
    with pytest.raises(UserError, match="needs labels: for a method without labels"):
        by_step(kept, None, seeing(1), looking())
    with pytest.raises(UserError, match="the judge has the weights of the distilled teacher"):
        by_step(kept, labels, looking(), looking())
