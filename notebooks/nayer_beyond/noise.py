"""Noise: distillation on random numbers, without a generator. Not one of METHODS, but the floor under them.

    x ~ N(0, 1) in the space that the teacher's normalisation leads to, fresh in every step
    L_S = KL(T(x) || S(x)) at temperature 1

Where the teacher's BatchNorm takes mean and variance from the batch of noise, its inner maps lie where those of real
images lie, and its answers vary (Raikwar & Mishra 2022, "Discovering and Overcoming Limitations of Noise-engineered
Data-free Knowledge Distillation", NeurIPS). The student's running statistics are then those of noise. With them it
fails on real images; with the statistics of the test batch it does not, but that score is transductive (`evaluate`). In
the authors' code no network ever leaves train mode, so that validation is transductive, the student's running
statistics take in test images, and the comparison with real data is scored in eval mode; for CIFAR-10 that
"validation" is the test split, and steers the learning rate. A card of this kit states both scores, each by its name.

Theirs: Adam at 1e-3, batches of 256, an epoch of as many steps as the training set has batches, the rate lowered where
the loss stands still (here a cosine). `gaussian_unclipped` is theirs, and the one exemption from this kit's images in
[0, 1]; `gaussian` is the same, cut to [0, 1].
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from nayer_lib.classifiers.folding import with_batch_statistics
from nayer_lib.errors import UserError
from nayer_lib.memory import Memory
from nayer_lib.methods.base import Batch, Examples

from .with_data import NoSynthesis, NoSynthesisConfig


@dataclass(frozen=True)
class NoiseConfig(NoSynthesisConfig):
    """Noise (Raikwar & Mishra 2022)."""

    noise: str = "gaussian"  # cut to [0, 1]; "gaussian_unclipped": theirs; "uniform": in [0, 1]
    teacher_statistics: str = "batch"  # of the teacher's BatchNorm: those of the "batch", or its "running" ones
    student_lr: float = 1e-3  # Adam
    student_lr_end: float = 0.0
    student_momentum: ClassVar[float] = 0.0
    student_weight_decay: ClassVar[float] = 0.0
    temperature: float = 1.0


class Noise(NoSynthesis):
    """Eq. 6 on fresh noise in every step.

    Raises:
        UserError: a teacher without BatchNorm, or a black box, that is asked to use the batch's statistics.
    """

    name = "noise"
    citation = "Raikwar & Mishra 2022"
    config_class = NoiseConfig
    black_box = True
    published = {"noise": "gaussian_unclipped", "epochs": 5, "student_steps": 196, "student_batch": 256}

    def __init__(self, teacher, student, config, table=None, facts=None, compute=None, ranks=None):
        super().__init__(teacher, student, config, table, facts, compute, ranks)
        self._mean, self._std = (
            torch.tensor(x, device=self.device).view(-1, 1, 1) for x in (self.teacher.mean, self.teacher.std)
        )
        if config.teacher_statistics == "batch":
            if not self.teacher.batch_norms():
                raise UserError(
                    "this teacher shows no BatchNorm that could use a batch's statistics: set "
                    "teacher_statistics=running."
                )
            self._answering = with_batch_statistics(self.teacher)

    def make_student_optimizer(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.student.parameters(), self.config.student_lr, fused=True)

    def draw(self, n: int, rng: torch.Generator) -> Tensor:
        """n images of noise, (n, C, H, W), in [0, 1] unless they are unclipped."""
        shape = (n, *self.facts.image_shape)
        if self.config.noise == "uniform":
            return torch.rand(shape, generator=rng, device=self.device)
        images = self._mean + self._std * torch.randn(shape, generator=rng, device=self.device)
        return images if self.config.noise == "gaussian_unclipped" else images.clamp(0, 1)

    def sample(self, n: int) -> Batch:
        """n fresh images, neither cropped nor mirrored."""
        return Batch(self.draw(n, self.rng), None, "noise")

    @torch.no_grad()
    def examples(self) -> Examples:
        """500 images from a generator of their own with the run's seed, so that the run does not change.

        The labels are the teacher's, as it answers here.
        """
        images = self.draw(500, torch.Generator(self.device).manual_seed(self.config.seed))
        return Examples(Memory.as_bytes(images), self._answering(images).argmax(1), None)
