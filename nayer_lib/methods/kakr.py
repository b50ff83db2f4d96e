"""KAKR (Patel et al. 2023, "Learning to Retain while Acquiring", CVPR): a student step for methods that replay, over
MBDFKD's ring (KAKR_MB) or PREKD's VAE (KAKR_GR).

    theta' = theta - inner_lr * grad of L(theta, x_new)                            acquire
    L_S    = L(theta', x_mem) + L(theta, x_new and x_mem)                          retain, over theta

with L = mean |t - s| on logits. The first term is the loss on remembered images after a step towards the new ones. Its
gradient goes through that inner step, a gradient of a gradient, and so aligns the gradients of new and remembered
images. As long as there is nothing to replay, L_S is L(theta, x_new).

The authors' inner step also has weight decay, left out here, and momentum, which does nothing in a single step. As in
their code the inner rate is constant while the outer one falls; no run of their code was compared. BatchNorm normalises
each pass by its own images, and its running statistics move once a step, by the joint batch. On several ranks each
takes the inner step with its own images. Apart from L_S their code (gaurav104/LRA) differs from its MBDFKD and PREKD in
the schedule: twice the turns, half the images.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from . import terms
from .base import Batch
from .mbdfkd import MBDFKD, MBDFKDConfig
from .prekd import PREKD, PREKDConfig
from .replay import Replay

Loss = Callable[[Tensor, Tensor], Tensor]  # of logits of teacher and student, (B, K) each, to a scalar


def retention(
    student: nn.Module,
    new: Tensor,
    t_new: Tensor,
    old: Tensor,
    t_old: Tensor,
    rate: float,
    loss: Loss = terms.logit_distance,
) -> Tensor:
    """L(theta', x_mem), a scalar whose gradient goes through theta'; the student's buffers are left alone.

    Args:
        new, old: images (B, C, H, W) to acquire and to retain; t_new, t_old: the teacher's logits (B, K) on them.
        rate: of the inner step.
        loss: L, from the logits of teacher and student.
    """
    theta = dict(student.named_parameters())

    def answer(parameters: dict[str, Tensor], images: Tensor) -> Tensor:
        buffers = {name: buffer.clone() for name, buffer in student.named_buffers()}
        return functional_call(student, parameters | buffers, (images,))

    acquisition = loss(t_new, answer(theta, new))
    gradients = torch.autograd.grad(acquisition, list(theta.values()), create_graph=True)
    moved = {name: p - rate * g for (name, p), g in zip(theta.items(), gradients, strict=True)}
    return loss(t_old, answer(moved, old))


def retaining(
    joint: Tensor, student: nn.Module, batch: Batch, t: Tensor, rate: float, loss: Loss = terms.logit_distance
) -> Tensor:
    """L_S from the joint loss, its second term: `retention` on the batch's replayed images, if it has any, is added.

    t are the teacher's logits (B, K); rate and loss are those of `retention`.
    """
    if not batch.replayed:
        return joint
    parts = [len(batch.images) - batch.replayed, batch.replayed]
    (new, old), (t_new, t_old) = batch.images.split(parts), t.split(parts)
    return joint + retention(student, new, t_new, old, t_old, rate, loss)


class Bilevel(Replay):
    """A student whose steps towards new images are to lower its error on replayed ones too."""

    published = Replay.published | {"repeats": 72, "generator_batch": 512, "student_batch": 576}  # twice the turns
    compilable = False

    def student_loss(self, batch: Batch, teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
        """L_S, in 32 bits but for the joint pass: the inner gradient is not scaled."""
        joint = super().student_loss(batch, teacher_logits, student_logits)
        return retaining(joint, self.student, batch, teacher_logits, self.config.inner_lr)


@dataclass(frozen=True)
class KAKRMBConfig(MBDFKDConfig):
    """KAKR over MBDFKD's ring (Patel et al. 2023)."""

    inner_lr: float = 0.9  # learning rate of the inner step, towards the new images


class KAKRMB(Bilevel, MBDFKD):
    """Retain what is in a ring of mini-batches while acquiring what is new."""

    name = "KAKR_MB"
    citation = "Patel et al. 2023"
    config_class = KAKRMBConfig


@dataclass(frozen=True)
class KAKRGRConfig(PREKDConfig):
    """KAKR over PREKD's VAE (Patel et al. 2023)."""

    inner_lr: float = 0.9  # as in KAKRMBConfig


class KAKRGR(Bilevel, PREKD):
    """Retain what a VAE remembers while acquiring what is new."""

    name = "KAKR_GR"
    citation = "Patel et al. 2023"
    config_class = KAKRGRConfig
