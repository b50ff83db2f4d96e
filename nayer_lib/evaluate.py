"""Scores on real test images, for teacher and student alike, in the same run."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from .classifiers.teacher import Classifier
from .datasets import Split
from .errors import UserError
from .losses import kl_per_image


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

    Raises:
        UserError: a label that the teacher has no class for.
    """

    def __init__(self, teacher: Classifier, split: Split, batch: int | None = None):
        self.classes = len(teacher.class_names)
        if not len(split.labels):
            raise UserError("there is no image to score on: the test split is empty.")
        highest = int(split.labels.max())
        if highest >= self.classes:
            raise UserError(f"the test labels go up to {highest}, the teacher has {self.classes} classes.")
        self.split, self.batch = split, batch
        self.teacher_logits = self.logits(teacher)
        self.teacher = self.score(self.teacher_logits)

    def logits(self, classifier: Classifier) -> Tensor:
        """(N, K) logits in eval mode; the classifier's mode is restored."""
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

    def __call__(self, classifier: Classifier) -> Scores:
        """Score a classifier."""
        return self.score(self.logits(classifier))

    @property
    def teacher_at_chance(self) -> bool:
        """Whether the teacher is within ten points of chance, most often by a wrong normalisation or class order."""
        return self.teacher.accuracy < 1 / self.classes + 0.1
