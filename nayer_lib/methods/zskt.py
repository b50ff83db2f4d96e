"""ZSKT (Micaelli & Storkey 2019, "Zero-shot Knowledge Transfer via Adversarial Belief Matching", NeurIPS).

    L_G = -KL(t || s)                                              over G
    L_S = KL(t || s) + alpha_at sum over stages of |A_t - A_s|^2   over S, both at temperature 1

A round draws z once, for the generator's steps and the student's after them, and every gradient is clipped.
The second term of L_S, attention transfer, is off as in Table 1; it needs feature maps of equal size.

Table 1's CIFAR-10 numbers are digit for digit those of CMI's README (Fang et al. 2021). From the code of that year come
the schedule, batch, width of z and SGD for the student, along a cosine to 0. In that code the adversarial term has the
student in eval mode, every step draws new z, no gradient is clipped, and G has Adam with betas (0.5, 0.999) at a
constant rate. FM's code (Fang et al. 2022) has other settings for the same row (a cosine to 2e-4), and gives this
method the teacher as its student: KL(t || t) is 0, the largest gradient that G gets 1e-8 (measured with that code on a
CPU).

The held z, the clipping and, under `published`, Adam for G (torch's betas, a cosine to 0) are the authors' own.
They also have Adam for the student (from 2e-3), 10 student steps a round, 80,000 rounds of 128 images, z of 100
numbers, a student in train mode in the generator's steps and a G that ends in a BatchNorm; their rates fall after each
round, here after each epoch. None of these programs crops or mirrors, nor does `published` here; `equal` crops. The
authors divide the KL by the number of classes K too: their largest norm of 5 is 5 K here, and their weight of attention
transfer, 250, would be 250 K. That term is a mean over places, and grows as maps shrink: on the 8 px digits a weight
counts sixteen times as much as on 32 px.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .. import losses
from ..classifiers.check import check_paired
from ..classifiers.teacher import Classifier, tapped
from . import terms
from .base import Batch
from .live import AdversarialConfig, Live
from .round import SynthesisBatch

LARGEST_NORM = 5.0  # of a gradient of KL / K


@dataclass(frozen=True)
class ZSKTConfig(AdversarialConfig):
    """ZSKT (Micaelli & Storkey 2019), in the setting behind the printed numbers (Fang et al. 2021)."""

    noise_dim: int = 256  # of z
    generator_cosine: bool = False  # G's rate falls along a cosine to 0
    adversarial_mask: bool = False
    temperature: float = 1.0
    alpha_at: float = 0.0  # of attention transfer; the authors' 250 stands beside KL / K, so it is 250 K here


class ZSKT(Live):
    """A generator of images on which the student does not yet answer as the teacher does.

    Raises:
        UserError: attention transfer between networks whose feature maps do not pair up.
    """

    name = "ZSKT"
    citation = "Micaelli & Storkey 2019"
    config_class = ZSKTConfig
    published = {"repeats": 80, "rounds": 1, "warmup_rounds": None, "generator_steps": 1, "generator_batch": 256}
    published |= {"epochs": 200, "warmup_epochs": 0, "student_steps": 5, "student_batch": 256}
    published |= {"augment_student": False, "generator_betas": (0.9, 0.999), "generator_cosine": True}
    terms = {"L_OH": "alpha_cls", "L_KL": "alpha_adv"}
    holds_z = True

    def __init__(self, teacher, student, config, table=None, facts=None, compute=None, ranks=None):
        super().__init__(teacher, student, config, table, facts, compute, ranks)
        if config.alpha_at:
            check_paired(
                self.teacher,
                self.student,
                self.facts.image_shape,
                Classifier.stages,
                "attention transfer",
                "take two networks of one family, or set alpha_at=0",
            )
            self._answering = self.teacher  # the stages of a folded teacher cannot be tapped

    def begin_epoch(self, epoch: int) -> None:
        """Set G's rate, if it follows a cosine."""
        super().begin_epoch(epoch)
        if self.config.generator_cosine:
            falling = (1 + math.cos(math.pi * epoch / self.config.total_epochs)) / 2
            for group in self.generator_optimizer.param_groups:
                group["lr"] = falling * self.config.generator_lr

    def values(self, batch: SynthesisBatch) -> list[Tensor]:
        """L_OH, which has no weight and is only reported, and the adversarial term with its minus."""
        return [losses.classification(batch.t, batch.labels), self.adversarial_term(batch)]

    def before_update(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip the gradient as a whole."""
        self.scaler.unscale_(optimizer)
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(parameters, LARGEST_NORM * len(self.teacher.class_names))

    def _student_loss(self, batch: Batch) -> Tensor:
        """Eq. 6 at temperature 1, and attention transfer between the feature maps of both networks."""
        if not self.config.alpha_at:
            return super()._student_loss(batch)
        with tapped(self.teacher.stages()) as of_teacher, tapped(self.student.stages()) as of_student:
            loss = super()._student_loss(batch)
        return loss + self.config.alpha_at * terms.attention_transfer(of_teacher.values(), of_student.values())
