"""What is measured of a run after its last epoch: convergence, diversity, and a judge's score."""

import dataclasses
import statistics

from ..classifiers.teacher import Classifier, load_judge
from ..errors import MissingFile
from ..evaluate import in_batches
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
    """A judge's score of those images, and Figure 5's curves from the last epoch's rounds; without a judge nothing.

    Raises:
        UserError: the judge's file is damaged, or the judge is the distilled teacher.
    """
    try:
        judge = load_judge(method.config.dataset, teacher).to(method.device)
    except MissingFile:
        return {}
    score = classifier_score(in_batches(judge, method.examples().images[-SCORED:]), splits=1)
    found = {"classifier_score": dataclasses.asdict(score) | {"judge": judge.name}}
    if method.trace:
        found["by_step"] = by_step(*zip(*method.trace, strict=True), judge, teacher)
    return found


def _no_nan(measured) -> dict:
    """A metric's fields for JSON, which has no nan."""
    return {name: None if value != value else value for name, value in dataclasses.asdict(measured).items()}
