"""Methods with a persistent generator, trained through the whole run: the student learns from freshly generated images,
and no image is kept except for replay."""

import copy
import dataclasses
import time
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from ..base_config import GeneratorConfig
from ..memory import Memory
from .base import Batch, Examples, SynthesisReport
from .round import Rounds


@dataclass(frozen=True)
class LiveConfig(GeneratorConfig):
    """Methods with a persistent generator."""

    generator_lr: float = 1e-3
    alpha_cls: float = 0.0  # of L_OH: cross-entropy with the class that the teacher itself predicts
    augment_synthesis: bool = False
    augment_student: bool = True  # crop and flip before the student's steps; published programs do not
    student_lr: float = 0.1
    student_lr_end: float = 0.0

    def in_turns(self) -> Self:
        """Table 8's budget for a live generator: an epoch in turns of a few generator and as many student steps.

        Published turns have 1 generator step and 5 or 10 student steps; here each network gets up to five, so that with
        the same student steps about as many images go through the teacher in synthesis as in NAYER's warm-up and rounds
        together.
        """
        turn = max(steps for steps in range(1, 6) if self.student_steps % steps == 0)
        repeats = self.student_steps // turn
        steps = self.distillation_epochs * repeats * turn
        return dataclasses.replace(
            self,
            repeats=repeats,
            rounds=1,
            warmup_rounds=None,
            warmup_epochs=0,
            epochs=self.distillation_epochs,
            epochs_include_warmup=False,
            generator_steps=turn,
            generator_batch=max(2, round(self.synthesis_passes / steps)),
            student_steps=turn,
        )


@dataclass(frozen=True)
class AdversarialConfig(LiveConfig):
    """Methods with a persistent generator and an adversarial term."""

    alpha_adv: float = 1.0
    student_trains_in_synthesis: bool = False


class Live(Rounds):
    """A persistent generator with one optimiser: z -> images, fresh ones in every step.

    The generator's layout is that of the other methods here, images in [0, 1], so that losses and schedules alone are
    compared; most of these methods' authors end the generator in a BatchNorm without squashing.

    Attributes:
        holds_z: whether a round's steps, and the student steps after them, all use the same z.
    """

    keeps_images = False
    holds_z: ClassVar[bool] = False
    saved = (*Rounds.saved, "generator_optimizer", "_held_z")

    def __init__(self, teacher, student, config, table=None, facts=None, compute=None, ranks=None):
        super().__init__(teacher, student, config, table, facts, compute, ranks)
        self.generator = self.build(lambda: self.network(config.noise_dim))
        self.generator_optimizer = self.adam(self.generator.parameters(), self.config.generator_lr)
        self.optimizers = [self.generator_optimizer]
        self._held_z = torch.empty(0, self.config.noise_dim, device=self.device)

    def synthesize(self, epoch: int) -> SynthesisReport:
        """One round of generator steps."""
        start = time.perf_counter()
        batch = self.config.generator_batch
        if self.holds_z:
            self._held_z = self._draw(max(batch, self.config.student_batch))
        terms = [step.terms for step in self.steps(epoch, lambda: self.z(batch))]
        return self.report(epoch, terms, len(terms) * batch, start)

    def z(self, n: int) -> Tensor:
        """(n, r) the generator's next input."""
        return self._held_z[:n] if self.holds_z else self._draw(n)

    def _draw(self, n: int) -> Tensor:
        return torch.randn(n, self.config.noise_dim, generator=self.rng, device=self.device)

    def labels_of(self, entering: Tensor, t: Tensor) -> Tensor:
        """The classes that the teacher predicts."""
        return t.argmax(1)

    @torch.no_grad()
    def generate(self, n: int, generator: nn.Module | None = None) -> Tensor:
        """n images (n, C, H, W) of the run's generator as it is now, or of `generator`."""
        with self.compute.autocast(self.device):
            return (generator or self.generator)(self.z(n)).float()

    def augment(self, images: Tensor) -> Tensor:
        """The data set's crop and flip, where the config asks for it."""
        return super().augment(images) if self.config.augment_student else images

    def fresh(self, n: int, generator: nn.Module | None = None) -> Tensor:
        """n images of `generate`, augmented."""
        return self.augment(self.generate(n, generator))

    def sample(self, n: int) -> Batch:
        """n freshly generated images."""
        return Batch(self.fresh(n), None, "generator")

    @torch.no_grad()
    def examples(self) -> Examples:
        """500 fresh images, labelled by the teacher. A copy of the generator makes them, from random numbers of their
        own, so that the run does not change."""
        rng = torch.Generator(self.device).manual_seed(self.round)
        z = torch.randn(500, self.config.noise_dim, generator=rng, device=self.device)
        images = copy.deepcopy(self.generator)(z).float()
        return Examples(Memory.as_bytes(images), self.teacher(images).argmax(1), None)
