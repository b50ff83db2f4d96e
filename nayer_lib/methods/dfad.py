"""DFAD (Fang et al. 2019, "Data-Free Adversarial Distillation", arXiv:1912.11006).

    L_G = -|t - s|      over G
    L_S =  |t - s|      over S,  |t - s| the mean absolute difference of the logits

The student moves first: five steps on fresh images, then one of the generator. The mean difference of logits does not
vanish where both networks are sure, as a KL does: this is the paper's point.

The authors' code has, as here, a z of 256 numbers and Adam at 1e-3 for G. Its student is in train mode in G's step, so
that its BatchNorm statistics move, G's Adam has torch's betas, and nothing is cropped or mirrored: `published` has all
three (train mode but for an epoch's first turn), `equal` none. Their G ends in a BatchNorm. This kit's does not, and
with a student in train mode it ends in one class: 9.8 % on the validation digits at each of three rates, where eval
mode gives 57.6 to 83.8 % (one seed). Their option to divide both rates by ten at epochs 100 and 200 is a cosine for the
student here. FM's code (Fang et al. 2022) has this method too, with the teacher as the student: |t - t| is 0 and so is
G's whole gradient. Not in Table 1: PREKD, MBDFKD and KAKR take its L_S, ZAQ both losses.
"""

from dataclasses import dataclass

from torch import Tensor

from .. import losses
from . import terms
from .base import Batch
from .live import AdversarialConfig, Live
from .round import SynthesisBatch


@dataclass(frozen=True)
class DFADConfig(AdversarialConfig):
    """DFAD (Fang et al. 2019), its numbers for CIFAR-10."""

    noise_dim: int = 256  # of z
    student_weight_decay: float = 5e-4


class DFAD(Live):
    """A generator that looks for images on which the logits of student and teacher lie apart."""

    name = "DFAD"
    citation = "Fang et al. 2019"
    config_class = DFADConfig
    published = {"repeats": 50, "rounds": 1, "warmup_rounds": None, "generator_steps": 1, "generator_batch": 256}
    published |= {"epochs": 500, "warmup_epochs": 0, "student_steps": 5, "student_batch": 256}
    published |= {"augment_student": False, "generator_betas": (0.9, 0.999), "student_trains_in_synthesis": True}
    terms = {"L_OH": "alpha_cls", "L_1": "alpha_adv"}
    student_first = True

    def values(self, batch: SynthesisBatch) -> list[Tensor]:
        """L_OH, which every method reports first and which has no weight here, and -|t - s|."""
        return [losses.classification(batch.t, batch.labels), self.adversarial_term(batch)]

    def against_student(self, t: Tensor, s: Tensor) -> Tensor:
        """-|t - s| in place of -L_KL."""
        return -terms.logit_distance(t, s)

    def student_loss(self, batch: Batch, teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
        """|t - s|."""
        return terms.logit_distance(teacher_logits, student_logits)
