"""MAD (Do et al. 2022, "Momentum Adversarial Distillation: Handling Large Distribution Shifts in Data-Free Knowledge
Distillation", NeurIPS).

    L_G = alpha_cls L_OH + alpha_ie L_IE + alpha_bn L_BN - alpha_adv D(t, s)          over G
    G~ <- a G~ + (1 - a) G   after each step of G, a = 0.95                           (`ema`; buffers too)
    L_S = D(t, s | G) + lambda_0 D(t, s | G~)   on half a batch of each               over S   (`alpha_ema`)

The student of a persistent generator forgets images that the generator no longer makes. A second generator, the first
one's slow mean over time, still makes such images.

This is our re-implementation: there is no public code, and the coefficients are guesses. What is known is the two
losses' form, and by a third party's summary a = 0.95 as the best of the authors' values. Guesses: D, the KL at
temperature 1; the weights of L_G, those of DFQ (Fang et al. 2022); lambda_0 = 1; half a batch of each; G~ in eval mode;
one step of G to ten of the student in the published schedule, the rest of it DFQ's. Left out: the authors' bound on
the losses and their regulariser of a norm, whose form we do not know; and the class-conditional generator, which they
take for large data sets.
"""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .. import losses
from ..errors import UserError
from .base import Batch
from .dfq_choi import DFQChoi, DFQChoiConfig
from .live import Live
from .round import parameter_bytes


@torch.no_grad()
def follow(slow: nn.Module, network: nn.Module, ema: float) -> None:
    """slow <- ema * slow + (1 - ema) * network, BatchNorm statistics too; counts of batches are copied."""
    for old, new in zip(slow.state_dict().values(), network.state_dict().values(), strict=True):
        if old.is_floating_point():
            old.lerp_(new, 1 - ema)
        else:
            old.copy_(new)


@dataclass(frozen=True)
class MADConfig(DFQChoiConfig):
    """MAD (Do et al. 2022): DFQ's terms. All weights are guesses; `ema` is from a summary of the paper."""

    alpha_ema: float = 1.0  # lambda_0, of the loss on the slow generator's images
    ema: float = 0.95  # share of the slow generator's weights that stays at each step


class MAD(Live):
    """A persistent adversarial generator, and a slow copy of it whose images remind the student.

    Attributes:
        slow: G~, in eval mode.

    Raises:
        UserError: a student batch that cannot be halved.
    """

    name = "MAD"
    citation = "Do et al. 2022"
    config_class = MADConfig
    published = DFQChoi.published  # a guess
    terms, values = DFQChoi.terms, DFQChoi.values
    saved = (*Live.saved, "slow")

    def __init__(self, teacher, student, config, table=None, facts=None, compute=None, ranks=None):
        super().__init__(teacher, student, config, table, facts, compute, ranks)
        if self.config.student_batch < 2:
            raise UserError("MAD's student sees two halves of a batch: raise student_batch to 2 or more a process.")
        self.slow = copy.deepcopy(self.generator).eval().requires_grad_(False)

    def after_update(self) -> None:
        """G~ follows G."""
        follow(self.slow, self.generator, self.config.ema)

    def sample(self, n: int) -> Batch:
        """n freshly generated images: of G, then of G~, which count as `replayed`."""
        images = [self.fresh(n - n // 2), self.fresh(n // 2, self.slow)]
        return Batch(torch.cat(images), None, "generator and its slow copy", replayed=n // 2)

    def student_loss(self, batch: Batch, teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
        """D on the images of G, plus `alpha_ema` times D on those of G~."""
        halves = [len(batch.images) - batch.replayed, batch.replayed]
        pairs = zip(teacher_logits.split(halves), student_logits.split(halves), strict=True)
        new, old = (losses.distillation(t, s, self.config.temperature) for t, s in pairs)
        return new + self.config.alpha_ema * old

    @property
    def beside(self) -> int:
        """G~."""
        return parameter_bytes(self.slow, copies=1)
