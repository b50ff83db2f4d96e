"""The measures of Table 3 and Figures 3d and 5, with definitions where the paper gives none.

Convergence: the paper counts "epochs" to CE < 0.1 with 30 generation steps; all its values lie below 30, so the unit
must be generator steps within a round. Diversity: the paper has no formula; its values fit a distance a pixel in [0,
1]. "IS Score": of Inception-v3, trained on ImageNet; `classifier_score` asks a judge of the data set itself instead.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .classifiers.judge import check_judge
from .classifiers.teacher import Classifier
from .errors import UserError
from .evaluate import features, in_batches, in_unit_range


@dataclass(frozen=True)
class Convergence:
    """How soon rounds reach a cross-entropy, in generator steps; step 1 is before any update.

    Attributes:
        success: the share of rounds that reach the threshold.
        mean: over the rounds that reach the threshold; nan if none does (the paper's "-").
        restricted: over all rounds, those that never reach it counted as g + 1: the fair number to compare.
    """

    success: float
    mean: float
    restricted: float


def convergence(ce_per_step: Sequence[Sequence[float]], threshold: float = 0.1) -> Convergence:
    """Table 3's first row, from each round's L_CE before each step (`SynthesisReport.ce_per_step`).

    Raises:
        UserError: no rounds, or one without L_CE.
    """
    if not ce_per_step or not all(ce_per_step):
        raise UserError("convergence needs at least one synthesis round, and L_CE at its steps.")
    firsts = [next((t for t, ce in enumerate(ces, 1) if ce < threshold), None) for ces in ce_per_step]
    reached = [t for t in firsts if t is not None]
    restricted = [len(ces) + 1 if t is None else t for t, ces in zip(firsts, ce_per_step, strict=True)]
    return Convergence(
        success=len(reached) / len(firsts),
        mean=sum(reached) / len(reached) if reached else math.nan,
        restricted=sum(restricted) / len(restricted),
    )


@dataclass(frozen=True)
class Diversity:
    """How far apart images of one class lie.

    Attributes:
        within: between images of the same round: the effect of several heads, or noise. nan if no class has two in one.
        across: between images of different rounds: the effect of redrawing. nan with one round.
    """

    within: float
    across: float


def diversity(images: Tensor, labels: Tensor | None, rounds: Tensor | None, per_class: int = 50) -> Diversity:
    """Table 3's second row on a memory's newest images: the root mean square over pixels of two images' difference.

    Images are in [0, 1]; the mean is over the pairs of a class, then over classes.

    Args:
        images: (N, C, H, W) uint8 or in [0, 1]; labels, rounds: (N,).
        per_class: at most so many of the newest images of each class.

    Raises:
        UserError: no images, labels or rounds.
    """

    def apart(same_class: Tensor) -> Tensor:
        pixels = in_unit_range(same_class).flatten(1)
        return distances(pixels) / math.sqrt(pixels.shape[1])

    return _over_pairs(apart, images, labels, rounds, per_class)


def feature_diversity(
    images: Tensor, labels: Tensor | None, rounds: Tensor | None, teacher: Classifier, per_class: int = 50
) -> Diversity:
    """`diversity` with the distance 1 - cosine of the teacher's pooled features, in [0, 1] behind a ReLU.

    Arguments and errors as of `diversity`.
    """

    def apart(same_class: Tensor) -> Tensor:
        return (1 - cosines(features(teacher, same_class))).clamp(min=0)  # rounding puts equal images below 0

    return _over_pairs(apart, images, labels, rounds, per_class)


NO_LABELS = "diversity is within a class and needs labels: for a method without labels take the teacher's predictions."


def _over_pairs(
    apart: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor | None, rounds: Tensor | None, per_class: int
) -> Diversity:
    """The mean over classes of the mean over pairs of `apart`, which maps n images to (n, n)."""
    for needed, present in (("images", len(images)), ("the round that made each image", rounds is not None)):
        if not present:
            raise UserError(f"diversity needs {needed}: methods that keep no memory (DAFL, DFQ, ZSKT) have none.")
    if labels is None:
        raise UserError(NO_LABELS)
    within, across = [], []
    for chosen in _newest(labels, per_class):
        distance, r = apart(images[chosen]), rounds[chosen]  # a class at a time: a whole memory's distances fill a GPU
        same = r[:, None] == r[None, :]
        pair = torch.ones_like(same).triu(1)
        within += distance[pair & same].mean()[None].tolist() if (pair & same).any() else []
        across += distance[pair & ~same].mean()[None].tolist() if (pair & ~same).any() else []
    return Diversity(*(sum(values) / len(values) if values else math.nan for values in (within, across)))


def _newest(labels: Tensor, per_class: int) -> list[Tensor]:
    """For each class the indices of its newest images; the oldest images come first."""
    return [(labels == k).nonzero().flatten()[-per_class:] for k in labels.unique()]


def classifier_score(logits: Tensor) -> float:
    """The inception score's formula for any judge: exp(mean_i KL(p(y|x_i) || mean_j p(y|x_j))), from 1 to K.

    The score is high if the judge is sure of each image and predicts all classes equally often. Few images score too
    low; 500 are usual. The distilled teacher is no judge: see `load_judge`. Source: Salimans et al. 2016, "Improved
    techniques for training GANs", section 4, without its splits.

    Args:
        logits: (N, K) of the judge.

    Raises:
        UserError: no logits, or of another shape.
    """
    if logits.ndim != 2 or not len(logits):
        raise UserError(f"a classifier's score needs logits (N, K), a row an image, not {tuple(logits.shape)}.")
    p = logits.double().softmax(1)
    # The mean KL is the entropy of the mean answer less the mean entropy of the answers.
    information = torch.special.entr(p.mean(0)).sum() - torch.special.entr(p).sum(1).mean()
    return information.exp().item()


def by_step(
    traces: Sequence[Tensor], labels: Sequence[Tensor] | None, judge: Classifier, teacher: Classifier
) -> dict[str, list[float | None]]:
    """Figure 5's curves over the generator steps, from rounds whose images were kept at each step.

    The newest 50 images of each class count, as in `diversity`; all tensors and both classifiers are on one device.

    Args:
        traces: of each round (g, B, C, H, W) uint8.
        labels: of each round (B,).
        judge: of `load_judge`.

    Returns:
        A value a step, or None where there is none, of the judge's "score", pixel diversity "within" and "across"
        rounds, and "feature" diversity across rounds.

    Raises:
        UserError: no rounds or labels, or a judge that is the teacher.
    """
    check_judge(judge, teacher)
    if not traces:
        raise UserError("metrics by step need at least one round whose images were kept at each step.")
    if labels is None:
        raise UserError(NO_LABELS)
    rounds = torch.cat([torch.full_like(y, r) for r, y in enumerate(labels)])
    y = torch.cat(list(labels))
    chosen = torch.cat(_newest(y, per_class=50))
    y, rounds = y[chosen], rounds[chosen]
    curves = {"score": [], "within": [], "across": [], "feature": []}
    for step in zip(*traces, strict=True):
        images = torch.cat(step)[chosen]
        by_pixels, by_features = diversity(images, y, rounds), feature_diversity(images, y, rounds, teacher)
        score = classifier_score(in_batches(judge, images))
        values = score, by_pixels.within, by_pixels.across, by_features.across
        for name, value in zip(curves, values, strict=True):
            curves[name].append(None if math.isnan(value) else value)
    return curves


def cosines(table: Tensor) -> Tensor:
    """(K, K) cosine of every two rows."""
    unit = nn.functional.normalize(table)
    return unit @ unit.T


def distances(table: Tensor) -> Tensor:
    """(K, K) L2 distance of every two rows."""
    return torch.cdist(table, table, compute_mode="donot_use_mm_for_euclid_dist")
