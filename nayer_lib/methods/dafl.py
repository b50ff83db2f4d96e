"""DAFL (Chen et al. 2019, "Data-Free Learning of Student Networks", ICCV).

    L_G = L_OH + alpha_ie L_IE + alpha_act L_act        over G
    L_S = KL(t || s) at temperature 1                   over S

L_OH is the cross-entropy of the teacher's answer with the class that it predicts, L_IE minus the entropy of the batch's
mean answer, L_act minus the mean size of the teacher's pooled features. The student does not enter L_G.

The authors' code takes L_IE in base 10 (so its 5 is 5 / ln 10 here), makes one joint update of both networks from one
batch, divides the student's rate by ten at 40 and 80 % of the run (a cosine here) and has Adam's usual betas for G; its
G ends in Tanh and BatchNorm, and its BatchNorms after the convolutions have eps = 0.8 (a positional argument), here
1e-5: they divide by sqrt(var + 0.8). Here the student's steps follow the generator's and use the same z; under `equal`
their images are also cropped. On several ranks L_IE balances each rank's own images. The printed CIFAR-10 numbers come
from CMI's code (Fang et al. 2021), which has other weights.
"""

import math
from dataclasses import dataclass

from torch import Tensor

from .. import losses
from . import terms
from .live import Live, LiveConfig
from .round import SynthesisBatch


@dataclass(frozen=True)
class DAFLConfig(LiveConfig):
    """The authors' numbers for CIFAR-10; for CIFAR-100 their README has alpha_cls 0.5 and a fourfold alpha_ie."""

    generator_lr: float = 0.02
    alpha_cls: float = 1.0
    alpha_ie: float = 5 / math.log(10)  # 5 with the authors' logarithm to base 10
    alpha_act: float = 0.1
    student_weight_decay: float = 5e-4
    temperature: float = 1.0


class DAFL(Live):
    """A generator of images of all classes that the teacher is sure of, with large features."""

    name = "DAFL"
    citation = "Chen et al. 2019"
    config_class = DAFLConfig
    published = {"repeats": 120, "rounds": 1, "warmup_rounds": None, "generator_steps": 1, "generator_batch": 1024}
    published |= {"epochs": 2000, "warmup_epochs": 0, "student_steps": 1, "student_batch": 1024}
    published |= {"augment_student": False}
    terms = {"L_OH": "alpha_cls", "L_IE": "alpha_ie", "L_act": "alpha_act"}
    asks_features = True
    holds_z = True

    def values(self, batch: SynthesisBatch) -> list[Tensor]:
        """The three terms of L_G."""
        return [
            losses.classification(batch.t, batch.labels),
            terms.information_entropy(batch.t),
            terms.activation(batch.features),
        ]
