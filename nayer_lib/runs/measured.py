"""What is measured and drawn of a run after its last epoch: convergence, diversity, a judge's score, its images."""

import dataclasses
import statistics
from pathlib import Path

import torch

from .. import files
from ..classifiers.judge import load_judge
from ..classifiers.teacher import Classifier
from ..errors import MissingFile
from ..evaluate import Evaluator, in_batches
from ..memory import newest_of_each
from ..methods.base import Method
from ..metrics import by_step, classifier_score, convergence, diversity, feature_diversity

SCORED = 1000  # newest images that the judge scores
CE_THRESHOLDS = (0.1, 0.5, 1.0)  # nats; Table 3's is the first, which small problems may never reach


def convergence_and_diversity(method: Method, rounds: list[list[float]], teacher: Classifier) -> dict:
    """Convergence over the rounds after warm-up; diversity of the newest images in this rank's memory, or of what a
    live generator makes.

    Args:
        rounds: L_CE per step of each of those rounds; without any nothing is measured.
        teacher: the one that was distilled, whole.
    """
    if not rounds:
        return {}
    shown = method.examples()
    found = {
        "ce_by_step": [statistics.mean(ces) for ces in zip(*rounds, strict=True)],
        "convergence": {str(t): _no_nan(convergence(rounds, t)) for t in CE_THRESHOLDS},
    }
    if shown.rounds is not None:
        images = (shown.images, shown.labels, shown.rounds)
        found["diversity"] = _no_nan(diversity(*images))
        found["feature_diversity"] = _no_nan(feature_diversity(*images, teacher))
    return found


def judged(method: Method, teacher: Classifier) -> dict:
    """A judge's score of the method's newest images, and Figure 5's curves from the last epoch's rounds; {} without
    a judge.

    Raises:
        UserError: the judge's file is damaged, or the judge is the distilled teacher.
    """
    try:
        judge = load_judge(method.config.dataset, teacher).to(method.device)
    except MissingFile:
        return {}
    score = classifier_score(in_batches(judge, method.examples().images[-SCORED:]))
    found = {"classifier_score": {"mean": score, "judge": judge.name}}
    if method.trace:
        found["by_step"] = by_step(*zip(*method.trace, strict=True), judge, teacher)
    return found


def transductive(method: Method, evaluate: Evaluator) -> dict:
    """Beside the headline, and never in its place: the student's accuracy with the statistics of each test batch."""
    accuracy = evaluate(method.student, "batch").accuracy
    return {"accuracy": accuracy, "statistics": "each test batch's own", "batch": evaluate.batch}


def draw_images(method: Method, path: Path) -> None:
    """A PNG file with a row of the newest ten images for each of the first ten classes."""
    from torchvision.utils import save_image

    shown, classes = method.examples(), min(10, len(method.teacher.class_names))
    images = newest_of_each(shown.images, shown.labels, classes, 10)
    larger = torch.nn.functional.interpolate(images, scale_factor=max(1, 64 // images.shape[2]))
    with files.replacing(path) as temporary:
        save_image(larger, temporary, nrow=10, pad_value=1.0, format="png")


def _no_nan(measured) -> dict:
    """A metric's fields for JSON, which has no nan."""
    return {name: None if value != value else value for name, value in dataclasses.asdict(measured).items()}
