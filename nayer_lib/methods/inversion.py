"""Methods that optimise one batch of images a round and keep it in the memory, as NAYER does."""

import math
import time
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..base_config import GeneratorConfig
from ..memory import Memory
from .base import SynthesisReport
from .round import Rounds


@dataclass(frozen=True)
class InversionConfig(GeneratorConfig):
    """Methods that optimise a generator for a batch of images a round and keep it in the memory, as NAYER does."""

    generator_lr: float = 1e-3
    alpha_bn: float = 1.0
    alpha_adv: float = 1.0
    adversarial_mask: bool = True
    bn_momentum: float = 0.0
    keep: str = "best"  # of a round's steps, or "last"
    student_trains_in_synthesis: bool = False
    memory_size: int | None = None  # images; None: all
    student_lr: float = 0.1
    student_lr_end: float = 0.0
    temperature: float = 20.0  # of the student's loss


def start_over(optimizer: torch.optim.Adam) -> None:
    """Set an optimiser's moments to zero, in place: captured steps go on reading the same tensors."""
    for moments in optimizer.state.values():
        for moment in moments.values():
            moment.zero_()


class Inversion(Rounds):
    """A round optimises one batch of images for pseudo-labels, and keeps it.

    Attributes:
        generator: a latent, then G: labels (B,) -> images (B, C, H, W) in [0, 1].
        balanced: whether a batch has as many whole sets of the classes as fit in; all other labels are drawn uniformly.
    """

    balanced: ClassVar[bool] = True

    @property
    def shared(self) -> list[nn.Module]:
        """G, and the BatchNorm of its latent; each rank draws heads and z of its own for a round."""
        latent, *networks = self.generator
        return [*networks, *(part for part in latent.modules() if isinstance(part, _BatchNorm))]

    def begin_round(self) -> None:
        """Prepare the generator for new images; its optimiser, the first of `optimizers`, starts over."""
        start_over(self.optimizers[0])

    def remember(self, kept: list[Tensor], labels: Tensor) -> None:
        """Put the images that the round kept into the memory: Algorithm 1, line 11."""
        self.memory.add(kept[0], labels, self.round - 1)

    def synthesize(self, epoch: int) -> SynthesisReport:
        """One round: Algorithm 1, lines 5-11."""
        start = time.perf_counter()
        self.begin_round()  # line 5
        labels = self.pseudo_labels()
        lowest, kept, terms, traced = torch.full((), math.inf, device=self.device), [], [], []
        for step in self.steps(epoch, lambda: labels):  # lines 6-10
            better = step.loss < lowest  # D11: chosen on the device, without waiting for the loss's value
            lowest = torch.where(better, step.loss, lowest)
            if not kept or self.config.keep == "last":
                kept = [new.clone() for new in step.kept]
            else:
                kept = [torch.where(better, *pair) for pair in zip(step.kept, kept, strict=True)]
            terms.append(step.terms)
            if self.trace is not None:
                traced.append(Memory.as_bytes(step.images))
        if self.trace is not None:
            self.trace.append((torch.stack(traced), labels))
        report = self.report(epoch, terms, len(labels), start)
        self.remember(kept, labels)  # line 11
        return report

    def labels_of(self, entering: Tensor, t: Tensor) -> Tensor:
        """The pseudo-labels, which are the generator's input."""
        return entering

    def pseudo_labels(self) -> Tensor:
        """(B,) a round's labels, balanced, the remainder uniform: each of NAYER's heads sees each class once."""
        classes, batch = len(self.teacher.class_names), self.config.generator_batch
        ordered = batch // classes if self.balanced else 0
        whole = torch.arange(classes, device=self.device).repeat(ordered)
        rest = torch.randint(classes, (batch - len(whole),), generator=self.rng, device=self.device)
        return torch.cat([whole, rest])
