"""Rounding: a quantised copy of the teacher as it is, the floor under every method that makes it learn.

Its ranges were set on noise (`quantised`). Nothing is synthesised and nothing is learned, so that a
run has one epoch, in which the student is scored (Krishnamoorthi 2018, "Quantizing deep convolutional networks for
efficient inference", arXiv:1806.08342, section 3.1).
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from nayer_lib.methods.base import Batch

from .with_data import NoSynthesis, NoSynthesisConfig


@dataclass(frozen=True)
class RoundingConfig(NoSynthesisConfig):
    """Neither synthesis nor learning: one epoch with one step that does nothing."""

    repeats: ClassVar[int] = 1
    epochs: ClassVar[int] = 1
    student_steps: ClassVar[int] = 1
    student_batch: ClassVar[int] = 1
    student_lr: ClassVar[float] = 0.0
    student_lr_end: ClassVar[float] = 0.0
    student_momentum: ClassVar[float] = 0.0
    student_weight_decay: ClassVar[float] = 0.0
    quantised_bn: ClassVar[str] = "frozen"
    range_momentum: ClassVar[float] = 0.1


class Rounding(NoSynthesis):
    """A quantised student that does not learn. Not one of METHODS, but the control below them."""

    name = "rounding"
    citation = "Krishnamoorthi 2018"
    config_class = RoundingConfig
    published = {}
    needs_bits = True
    makes_images = False

    def sample(self, n: int) -> Batch:
        """No image."""
        return Batch(torch.empty(0, *self.facts.image_shape, device=self.device), None, "nothing")

    def student_step(self, batch: Batch) -> Tensor:
        """Nothing; a loss of 0."""
        return torch.zeros((), device=self.device)
