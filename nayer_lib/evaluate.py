"""Scores on real test images, for teacher and student alike, in the same run.

There are two ways to score. With running statistics an image's answer depends on that image alone: every accuracy of
this kit, unless it says otherwise. With the statistics of the test batch the score is transductive: an answer depends
on the other test images in its batch, and so on their order and on the batch's size. The two are never compared.
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from .classifiers.folding import with_batch_statistics
from .classifiers.teacher import Classifier
from .datasets import Split
from .errors import unknown
from .losses import kl_per_image

STATISTICS = ("running", "batch")


@dataclass(frozen=True)
class Scores:
    """What a classifier does on a test split.

    Attributes:
        accuracy: in [0, 1].
        agreement: the share of images on which classifier and teacher predict the same class, in [0, 1].
        kl: mean KL(teacher || classifier) at temperature 1, in nats.
        nll: negative log-likelihood of the labels, the mean over the images, in nats.
        per_class: (K,) accuracy of each class; nan for a class without a test image.
        predictions: (N,) predicted classes.
    """

    accuracy: float
    agreement: float
    kl: float
    nll: float
    per_class: Tensor
    predictions: Tensor


def at_once(images: Tensor) -> int:
    """How many of these (N, C, H, W) images to classify at a time: 1,000, or as many pixels as 1,000 of 64 px have."""
    return max(1, min(1000, 1000 * 64 * 64 // images[0, 0].numel()))


def in_unit_range(images: Tensor) -> Tensor:
    """Images as uint8, or as floats in [0, 1] -> float32 in [0, 1]."""
    return images.float() / 255 if images.dtype == torch.uint8 else images.float()


@torch.no_grad()
def in_batches(network: Callable[[Tensor], Tensor], images: Tensor, batch: int | None = None) -> Tensor:
    """The output, N rows, of a network in eval mode for images (N, C, H, W), uint8 or in [0, 1], batch by batch."""
    return torch.cat([network(in_unit_range(part)) for part in images.split(batch or at_once(images))])


def features(classifier: Classifier, images: Tensor) -> Tensor:
    """(N, C, H, W) uint8 or in [0, 1] -> (N, d) pooled features, the head's input, of a classifier in eval mode."""
    return in_batches(lambda part: classifier(part, return_features=True)[1], images)


class Evaluator:
    """Scores classifiers on one split against one teacher; the teacher's logits are computed once.

    A teacher that scores badly is warned about.

    Args:
        batch: images at a time; None: `at_once`.

    Attributes:
        classifier: the open teacher, also where the method has a black box: evaluation uses up none of its budget.
        teacher: its scores.

    Raises:
        UserError: a label that the teacher has no class for.
    """

    def __init__(self, teacher: Classifier, split: Split, batch: int | None = None):
        self.classes = len(teacher.class_names)
        self.classifier, self.split = teacher, split.checked(self.classes)
        self.batch = min(batch or at_once(self.split.images), len(self.split.labels))
        self.teacher_logits = self.logits(teacher)
        self.teacher = self.score(self.teacher_logits)
        self._warn(teacher.accuracy.get(split.name))

    def logits(self, classifier: Classifier, statistics: str = "running") -> Tensor:
        """(N, K) logits in eval mode; the classifier's mode is restored, and no buffer of it moves.

        Args:
            statistics: which BatchNorm uses, its "running" ones or those of each "batch" of test images: transductive.
        """
        if statistics not in STATISTICS:
            raise unknown("choice of statistics", statistics, STATISTICS)
        if statistics == "batch":
            return in_batches(with_batch_statistics(classifier), self.split.images, self.batch)
        was_training = classifier.training
        classifier.eval()
        rows = in_batches(classifier, self.split.images, self.batch)
        classifier.train(was_training)
        return rows

    def score(self, logits: Tensor) -> Scores:
        """Scores of (N, K) logits on the split."""
        labels, predictions = self.split.labels, logits.argmax(1)
        right = (predictions == labels).float()
        count = torch.bincount(labels, minlength=self.classes)
        return Scores(
            accuracy=right.mean().item(),
            agreement=(predictions == self.teacher_logits.argmax(1)).float().mean().item(),
            kl=kl_per_image(self.teacher_logits, logits).mean().item(),
            nll=F.cross_entropy(logits, labels).item(),
            per_class=torch.bincount(labels, weights=right, minlength=self.classes).cpu() / count.cpu(),
            predictions=predictions.cpu(),
        )

    def __call__(self, classifier: Classifier, statistics: str = "running") -> Scores:
        """Score a classifier, with its running statistics or, transductively, with those of each test "batch"."""
        return self.score(self.logits(classifier, statistics))

    def _warn(self, stated: float | None) -> None:
        """Warn of a teacher within ten points of chance, or more than five below what its file states.

        That is most often a wrong normalisation or class order. What a small split decides by chance is let through.
        """
        accuracy, images = self.teacher.accuracy, len(self.split.labels)
        reason = ""
        if accuracy < 1 / self.classes + 0.1:
            reason = "about chance"
        elif stated and stated - accuracy > 0.05 + 2 * math.sqrt(max(0, stated * (1 - stated)) / images):
            reason = f"and its file states {100 * stated:.1f} %"
        if reason:
            warnings.warn(
                f"the teacher scores {100 * accuracy:.1f} %, {reason}: check its normalisation, the order of its "
                "classes, and whether the images were resized.",
                stacklevel=3,
            )
