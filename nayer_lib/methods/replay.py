"""Replay: what PREKD, MBDFKD and both KAKR share. The generator moves on, so the student is shown older images too.

    L_G = L_OH + alpha_ie L_IE + alpha_act L_act + alpha_adv (1 - JS(t, s))     over G
    L_S = mean |t - s|                                                          over S, on logits

L_G is DAFL's with the Jensen-Shannon term of Yin et al. 2020, so that G looks for images on which the student does not
yet answer as the teacher does, and z is new in every step. JS is that of `losses.jensen_shannon`, which is not quite
what the authors' code computes. Their L_IE is in base 10 (5 is 5 / ln 10 here).

Their student step has 1,024 new images and 128 of the memory; here a batch of n images holds n / 9 that are replayed,
at its end, the others new, so that under "equal" these methods see no more images than the others. Before there is
anything to replay all of them are new. Both parts are cropped (the authors crop neither). What a memory costs beside
that, PREKD's VAE above all, is not in the budget of "equal".

Their G ends in Tanh and BatchNorm, has spectral norm and starts from U(-0.08, 0.08); here it is this kit's (`Live`).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .. import losses
from .base import Batch
from .dafl import DAFL, DAFLConfig
from .live import AdversarialConfig
from .round import Seen

ONE_IN = 9  # images of a batch is replayed: 128 beside 1,024


def replayed_of(n: int) -> int:
    """How many of a batch of n images are replayed: a ninth. At least two, for BatchNorm; none of less than four."""
    return max(2, n // ONE_IN) if n >= 4 else 0


@dataclass(frozen=True)
class ReplayConfig(AdversarialConfig):
    """DAFL's numbers and a student that is played against: alpha_adv is of the Jensen-Shannon term."""

    generator_lr: float = DAFLConfig.generator_lr
    alpha_cls: float = DAFLConfig.alpha_cls
    alpha_ie: float = DAFLConfig.alpha_ie
    alpha_act: float = DAFLConfig.alpha_act
    student_weight_decay: float = DAFLConfig.student_weight_decay


class Replay(DAFL):
    """A generator that plays against the student, and a memory that reminds the student. A subclass has the memory."""

    # 1,024 new images and 128 replayed ones a student step.
    published = {"repeats": 36, "rounds": 1, "warmup_rounds": None, "generator_steps": 1, "generator_batch": 1024}
    published |= {"epochs": 400, "warmup_epochs": 0, "student_steps": 10, "student_batch": 1152}
    terms = DAFL.terms | {"L_JS": "alpha_adv"}
    holds_z = False

    def values(self, seen: Seen) -> list[Tensor]:
        """The four terms of L_G."""
        return [*super().values(seen), self.adversarial_term(seen)]

    def against_student(self, t: Tensor, s: Tensor) -> Tensor:
        """1 - JS in place of -L_KL."""
        return losses.adversarial_js(t, s)

    def student_loss(self, batch: Batch, teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
        """The mean distance of logits."""
        return losses.logit_distance(teacher_logits, student_logits)

    def replay(self, n: int) -> Tensor:
        """Up to n images (n, C, H, W) in [0, 1] from the memory, as they were made; `no_images` before it has any."""
        raise NotImplementedError

    @property
    def no_images(self) -> Tensor:
        """(0, C, H, W)."""
        return torch.empty(0, *self.facts.image_shape, device=self.device)

    def sample(self, n: int) -> Batch:
        """n images: those made now, then those replayed."""
        replayed = self.replay(replayed_of(n))
        fresh = self.fresh(n - len(replayed))
        if not len(replayed):
            return Batch(fresh, None, "generator")
        return Batch(torch.cat([fresh, self.augment(replayed)]), None, "generator, memory", len(replayed))
