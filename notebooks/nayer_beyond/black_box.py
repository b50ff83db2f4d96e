"""A teacher as somebody else's service: it answers, it counts what it is asked, and it shows nothing else."""

import math

import torch
from torch import Tensor, nn

from nayer_lib.base_config import ANSWERS
from nayer_lib.classifiers.teacher import Classifier
from nayer_lib.errors import UserError, unknown

SURE = 0.99  # probability of the class that an answer by label names; the other classes share the rest
CLOSED = "a black box shows no layer, no weight and no feature of its network: take the teacher itself, or stealing."


class BlackBox(Classifier):
    """A classifier of which only the answers are to be had.

    An answer has the form of logits (B, K), whatever it is: probabilities come as their logarithm, which has the same
    softmax as the logits at every temperature, and a label as the logarithm of `SURE` and equal shares of the rest.
    Class names, normalisation and device are known; BatchNorm is not seen, and there is no gradient.

    Args:
        teacher: frozen here; a black box may stand in another.
        answers: "logits", "probabilities" or "labels".
        budget: images that it can be asked about; None: as many as one likes.

    Attributes:
        asked: images that it was asked about so far.

    Raises:
        UserError: unknown answers; in a call, a gradient or features that are asked for, or a budget that is used up.
    """

    answers_alone = True

    def __init__(self, teacher: Classifier, answers: str = "logits", budget: int | None = None):
        nn.Module.__init__(self)  # not the classifier's, whose network would be found here
        if answers not in ANSWERS:
            raise unknown("kind of answers", answers, ANSWERS)
        self._ask = teacher.freeze().forward  # not the module: it would be a part of this one
        self._device = teacher.device
        self.mean, self.std, self.class_names, self.name = teacher.mean, teacher.std, teacher.class_names, ""
        self.accuracy, self.quantisation = {}, None
        self.answers, self.budget, self.asked = answers, budget, 0

    @property
    def left(self) -> float:
        """Images that it can still be asked about."""
        return math.inf if self.budget is None else self.budget - self.asked

    @torch.no_grad()
    def forward(self, images: Tensor, return_features: bool = False) -> Tensor:
        """(B, C, H, W) in [0, 1] -> answers (B, K) in the form of logits, without a gradient."""
        if return_features:
            raise UserError(CLOSED)
        if images.requires_grad:
            raise UserError("a black box gives no gradient: detach its images; a loss through its answers is constant.")
        if len(images) > self.left:
            left = f"{self.left:,} of {self.budget:,} images are left to ask about"
            raise UserError(f"{left}, and these are {len(images):,}: give a larger budget.")
        self.asked += len(images)
        logits = self._ask(images)
        if self.answers == "logits":
            return logits
        if self.answers == "probabilities":
            return logits.log_softmax(1)
        rest = (1 - SURE) / (logits.shape[1] - 1)
        return torch.full_like(logits, rest).scatter(1, logits.argmax(1, keepdim=True), SURE).log()

    @property
    def net(self) -> nn.Module:
        """Not to be had, and so neither are head, stages and features."""
        raise UserError(CLOSED)

    @property
    def device(self) -> torch.device:
        """Where its images have to lie."""
        return self._device

    def batch_norms(self) -> list[nn.Module]:
        """None that could be seen."""
        return []
