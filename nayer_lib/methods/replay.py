"""Replay: what PREKD, MBDFKD and both KAKR share. The generator changes, so the student sees earlier images too.

    L_G = L_OH + alpha_ie L_IE + alpha_act L_act + alpha_adv (1 - JS(t, s))     over G
    L_S = mean |t - s|                                                          over S, on logits

L_G is DAFL's with an adversarial term, the Jensen-Shannon term of Yin et al. 2020, and z is new in every step. The term
is computed as in the public code of PREKD and of KAKR (`one_minus_js`), with the student in train mode except in an
epoch's first turn; Adam has torch's betas. Their L_IE is in base 10 (5 is 5 / ln 10 here).

Their student step has 1,024 new images and 128 of the memory; here the last n / 9 of a batch of n images are replayed
and the others new, so that under "equal" these methods see no more images than the others. As long as the memory is
empty all images are new. Under "equal" the student's images are cropped; the authors' are not, nor are they under
"published". The costs of a memory, above all of PREKD's VAE, are not in the budget of "equal".

Their G ends in Tanh and BatchNorm, has spectral norm, BatchNorms with eps = 0.8 after its first two convolutions and
starts from U(-0.08, 0.08); here it is this kit's (`Live`).
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from . import terms
from .base import Batch
from .dafl import DAFL, DAFLConfig
from .live import AdversarialConfig
from .round import SynthesisBatch

ONE_IN = 9  # one image in nine of a batch is replayed: 128 beside 1,024


def replayed_of(n: int) -> int:
    """How many of a batch of n images are replayed: a ninth. At least two, for BatchNorm; none of less than four."""
    return max(2, n // ONE_IN) if n >= 4 else 0


def one_minus_js(t: Tensor, s: Tensor) -> Tensor:
    """1 - JS at temperature 3, JS = (KL(m || p) + KL(m || q)) / 2, a mean over images and classes; low where t and s
    differ.

    p and q are the softmax of t / 3 and s / 3, m = (p + q) / 2, all clamped to [0.01, 0.99]; t gets no gradient. Unlike
    `terms.jensen_shannon` this exchanges KL's arguments and divides by K as well: the gradient in s is 5.9 (K = 10)
    and 55 (K = 100) times smaller (measured on normal logits of standard deviation 3).
    """
    p, q = F.softmax(t.detach() / 3, 1), F.softmax(s / 3, 1)
    p, q, m = (x.clamp(0.01, 0.99) for x in (p, q, (p + q) / 2))
    return 1 - (m * (m.log() - (p.log() + q.log()) / 2)).mean().clamp(0, 1)


@dataclass(frozen=True)
class ReplayConfig(AdversarialConfig):
    """DAFL's numbers and an adversarial term: alpha_adv is the weight of the Jensen-Shannon term."""

    generator_lr: float = DAFLConfig.generator_lr
    generator_betas: tuple[float, float] = (0.9, 0.999)
    alpha_cls: float = DAFLConfig.alpha_cls
    alpha_ie: float = DAFLConfig.alpha_ie
    alpha_act: float = DAFLConfig.alpha_act
    student_weight_decay: float = DAFLConfig.student_weight_decay
    student_trains_in_synthesis: bool = True


class Replay(DAFL):
    """An adversarial generator, and a memory of earlier images, which a subclass keeps."""

    # 1,024 new images and 128 replayed ones a student step.
    published = {"repeats": 36, "rounds": 1, "warmup_rounds": None, "generator_steps": 1, "generator_batch": 1024}
    published |= {"epochs": 400, "warmup_epochs": 0, "student_steps": 10, "student_batch": 1152}
    published |= {"augment_student": False}
    terms = DAFL.terms | {"L_JS": "alpha_adv"}
    holds_z = False

    def values(self, batch: SynthesisBatch) -> list[Tensor]:
        """The four terms of L_G."""
        return [*super().values(batch), self.adversarial_term(batch)]

    def against_student(self, t: Tensor, s: Tensor) -> Tensor:
        """1 - JS in place of -L_KL."""
        return one_minus_js(t, s)

    def student_loss(self, batch: Batch, teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
        """The mean distance of logits."""
        return terms.logit_distance(teacher_logits, student_logits)

    def replay(self, n: int) -> Tensor:
        """Up to n images (n, C, H, W) in [0, 1] from the memory, for the student; `no_images` while it is empty."""
        raise NotImplementedError

    @property
    def no_images(self) -> Tensor:
        """(0, C, H, W)."""
        return torch.empty(0, *self.facts.image_shape, device=self.device)

    def sample(self, n: int) -> Batch:
        """n images: fresh ones, then replayed ones."""
        replayed = self.replay(replayed_of(n))
        fresh = self.fresh(n - len(replayed))
        if not len(replayed):
            return Batch(fresh, None, "generator")
        return Batch(torch.cat([fresh, replayed]), None, "generator, memory", len(replayed))
