"""ZeroQ (Cai et al. 2020, "ZeroQ: A Novel Zero Shot Quantization Framework", CVPR).

    x ~ N(0, 1) in the space that the teacher's normalisation leads to; lowered over x, once in a run:

    sum over layers of (1 / B) sum over images b of [ ||mean_b - mu_run||^2 + ||std_b - sigma_run||^2 ]

mean_b and std_b are those of one image, over its places, of what a BatchNorm reads; mu_run and sigma_run its running
ones; the image itself counts as a layer with 0 and 1. There are no labels and no student in it. The ranges of the
quantised student are then set on these images, and that is all: the authors' program does not fine-tune (its backward
pass of the rounding is not implemented). The paper of NAYER says that ZeroQ "retrains": `fine_tune=True` lets the
student learn by Eq. 6 on these images.

Theirs: 32 images, 500 steps of Adam at 0.5, whose rate falls tenfold after 100 steps without progress, down to 1e-4.
They pair the i-th convolution's output with the i-th BatchNorm, which fails where BatchNorm comes first; here a
BatchNorm's own input is read. Their weights are asymmetric, their inputs rounded behind each nn.ReLU alone. As
everywhere in this kit the images are cut to [0, 1] when they are kept. Re-made from the equations.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from nayer_lib import losses
from nayer_lib.base_config import Config
from nayer_lib.classifiers.teacher import tapped
from nayer_lib.errors import UserError
from nayer_lib.memory import Memory
from nayer_lib.methods.base import Batch
from nayer_lib.methods.deepinv import DeepInversion
from nayer_lib.methods.round import StepResult, SynthesisBatch

from .quantised import calibrate, layers

PATIENCE, LOWEST_RATE = 100, 1e-4  # steps without progress before the rate falls tenfold, and where it ends


@dataclass(frozen=True)
class ZeroQConfig(Config):
    """ZeroQ (Cai et al. 2020); it has no G, and one round in a run."""

    generator_lr: float = 0.5  # Adam on pixels
    generator_betas: tuple[float, float] = (0.9, 0.999)
    warmup_epochs: int = 0
    fine_tune: bool = False  # the student learns on the images
    student_lr: float = 1e-3
    student_lr_end: float = 1e-5
    temperature: float = 20.0
    alpha_statistics: ClassVar[float] = 1.0
    alpha_cls: ClassVar[float] = 0.0
    augment_synthesis: ClassVar[bool] = False
    keep: ClassVar[str] = "last"
    repeats: ClassVar[int] = 1
    rounds: ClassVar[int] = 1
    warmup_rounds: ClassVar[int | None] = None

    def synthesis_rounds(self, epoch: int) -> int:
        """One in the first epoch, none after it."""
        return int(epoch == 0)


class ZeroQ(DeepInversion):
    """One batch of images with the teacher's statistics, to set the ranges of a quantised student on.

    Raises:
        UserError: a teacher without BatchNorm; images too few to set ranges on.
    """

    name = "ZeroQ"
    citation = "Cai et al. 2020"
    config_class = ZeroQConfig
    # Its program does not fine-tune: one epoch, whose one step does nothing.
    published = {"generator_steps": 500, "generator_batch": 32, "epochs": 1, "student_steps": 1, "student_batch": 2}
    terms = {"L_CE": "alpha_cls", "L_statistics": "alpha_statistics"}
    needs_bits = True

    def __init__(self, teacher, student, config, table=None, facts=None, compute=None, ranks=None):
        super().__init__(teacher, student, config, table, facts, compute, ranks)
        self.norms = self.teacher.batch_norms()
        if not self.norms:
            raise UserError("ZeroQ needs a teacher with BatchNorm, whose statistics its images are given.")

    def watched(self) -> AbstractContextManager[dict[int, Tensor]]:
        """What each BatchNorm reads."""
        return tapped(self.norms, inputs=True)

    def labels_of(self, entering: Tensor, t: Tensor) -> Tensor:
        """The classes that the teacher predicts."""
        return t.argmax(1)

    def values(self, batch: SynthesisBatch) -> list[Tensor]:
        """L_CE, which has no weight and is only reported, and the statistics of images and layers."""
        x = self.teacher.normalised(batch.images)
        zero, one = torch.zeros_like(self.generator.mean).flatten(), torch.ones_like(self.generator.std).flatten()
        apart = [image_statistics(x, zero, one)]
        apart += [
            image_statistics(self.caught.pop(i), norm.running_mean, norm.running_var)
            for i, norm in enumerate(self.norms)
        ]
        return [losses.classification(batch.t, batch.labels), torch.stack(apart).sum()]

    def steps(self, epoch: int, entering: Callable[[], Tensor]) -> Iterator[StepResult]:
        """The round's steps, with a rate that falls where there is no progress."""
        schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(
            self.optimizers[0], patience=PATIENCE, min_lr=LOWEST_RATE
        )
        for step in super().steps(epoch, entering):
            schedule.step(step.loss.item())
            yield step

    @torch.no_grad()
    def remember(self, kept: list[Tensor], labels: Tensor) -> None:
        """Keep the images, with the classes that the teacher predicts, and set the student's ranges on them."""
        seen = Memory.as_bytes(kept[0]).float() / 255
        super().remember(kept, self.teacher(seen).argmax(1))
        calibrate(self.student, seen)
        for layer in layers(self.student):
            for end in (layer.low, layer.high):
                end.copy_(self.ranks.mean(end))

    def student_step(self, batch: Batch) -> Tensor:
        """Eq. 6 where the student is fine-tuned; else nothing, a loss of 0."""
        return super().student_step(batch) if self.config.fine_tune else torch.zeros((), device=self.device)


def image_statistics(maps: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    """How far each image's own statistics are from given ones, the mean over images of (Cai et al. 2020)

        ||mean_b - mean||^2 + ||std_b - std||^2

    mean_b and std_b are over the places of one image; both std are sqrt(var + 1e-6), as in the authors' code, whose
    var_b divides by the places less one.

    Args:
        maps: (B, C, ...), a layer's or the images themselves.
        mean, var: (C,).
    """
    places = maps.float().reshape(*maps.shape[:2], -1)
    own_var, own_mean = torch.var_mean(places, 2, correction=0)
    apart = (own_mean - mean).square() + ((own_var + 1e-6).sqrt() - (var + 1e-6).sqrt()).square()
    return apart.sum(1).mean()
