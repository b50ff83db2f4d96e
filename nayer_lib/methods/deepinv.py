"""DeepInversion and Adaptive DeepInversion (Yin et al., "Dreaming to Distill", CVPR 2020): there is no generator, the
pixels themselves are optimised.

    x ~ N(0, 1) in the space that the teacher's normalisation leads to, labels y balanced; a round lowers over x

    alpha_cls CE(T(x), y) + alpha_tv TV(x) + alpha_l2 ||x||_2 + alpha_bn L_BN(x) + alpha_adv (1 - JS(T(x), S(x)))

The second and third are their R_prior, the fourth R_feature, which NAYER took over as L_BN, and the last R_compete,
which makes DeepInversion adaptive. In each step T and S see x rolled around its edges and mirrored, the whole batch
alike.

Code. Theirs for CIFAR-10 rolls by up to 2 pixels and never mirrors, starts from alpha_adv = 0, and means to keep the
best step's pixels but keeps a view of x, so the last step's; the training of their student was not published. The
printed numbers come from a port: the CIFAR-10 ones are digit for digit those of CMI's README (Fang et al. 2021), and
FM's (2022) calls the row DeepInv-2k, so `published` has 2,000 steps a round where both scripts have 1,000. The port's
weights, rate, roll by up to an eighth of the side and mirroring stand here. The port differs from this file: it draws
labels at random, cuts x to the range of images after each step, also lowers minus 0.001 times the student's L_BN, and
fails where alpha_adv = 0; its weight of TV is 0.001 in CMI's code and 0 in FM's. The port, too, keeps a view of x for
the best step: it stores x after the last update, pixels that no step has evaluated. Here x may leave the range of
images, and only the memory cuts it. Both programs compute JS with the arguments of KL exchanged
(`terms.jensen_shannon`). The student's rate falls to 0, as in CMI's code; in FM's to 2e-4 over 200 epochs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .. import losses
from ..augment import take
from ..base_config import Config
from . import terms
from .inversion import Inversion
from .round import SynthesisBatch


class Pixels(nn.Module):
    """A batch of images that is optimised itself, in the space that a teacher's normalisation leads to.

    Args:
        shape: (B, C, H, W).
        mean, std: C numbers each, of the normalisation, in [0, 1] units.

    Attributes:
        x: (B, C, H, W), the normalised images.
    """

    def __init__(self, shape: Sequence[int], mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.x = nn.Parameter(torch.zeros(*shape))
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    @torch.no_grad()
    def redraw(self, rng: torch.Generator) -> None:
        """Start over from N(0, 1)."""
        self.x.normal_(generator=rng)

    def forward(self, labels: Tensor) -> Tensor:
        """The images for labels (B,): (B, C, H, W), 0 black and 1 white, but not bounded."""
        return self.x * self.std + self.mean


@dataclass(frozen=True)
class DeepInvConfig(Config):
    """DeepInversion (Yin et al. 2020), in the setting behind the printed numbers (Fang et al. 2021); it has no G."""

    generator_lr: float = 0.1  # Adam on pixels
    generator_betas: tuple[float, float] = (0.5, 0.99)
    alpha_cls: float = 1.0
    alpha_bn: float = 10.0
    alpha_adv: float = 1.0  # of the Jensen-Shannon term; 0: DeepInversion without it
    alpha_tv: float = 0.0
    alpha_l2: float = 0.0
    bn_momentum: float = 0.0
    keep: str = "best"
    student_trains_in_synthesis: bool = False
    memory_size: int | None = None
    student_lr: float = 0.1
    student_lr_end: float = 0.0
    temperature: float = 20.0


class DeepInversion(Inversion):
    """Adaptive DeepInversion; with alpha_adv = 0, DeepInversion."""

    name = "DeepInv"
    citation = "Yin et al. 2020"
    config_class = DeepInvConfig
    published = {"rounds": 1, "warmup_rounds": None, "generator_steps": 2000, "generator_batch": 256}
    published |= {"epochs": 200, "warmup_epochs": 0, "student_steps": 400, "student_batch": 256}
    terms = {"L_CE": "alpha_cls", "L_BN": "alpha_bn", "L_JS": "alpha_adv", "L_TV": "alpha_tv", "L_2": "alpha_l2"}

    def __init__(self, teacher, student, config, table=None, facts=None, compute=None, ranks=None):
        super().__init__(teacher, student, config, table, facts, compute, ranks)
        shape = self.config.generator_batch, *self.facts.image_shape
        self.generator = Pixels(shape, teacher.mean, teacher.std).to(self.device)
        self.optimizers = [self.adam(self.generator.parameters(), config.generator_lr)]

    @property
    def shared(self) -> list[nn.Module]:
        """No part: each rank has pixels of its own."""
        return []

    def begin_round(self) -> None:
        """New noise, a fresh Adam."""
        super().begin_round()
        self.generator.redraw(self.rng)

    def draw_view(self, batch: int) -> Tensor:
        """(H * W,) where each pixel of the jittered images comes from: one roll and one flip for the whole batch."""
        size, reach = self.facts.size, self.facts.size // 8
        places = torch.arange(size, device=self.device)
        down, right = torch.randint(-reach, reach + 1, (2,), generator=self.rng, device=self.device)
        rows, columns = (places - down) % size, (places - right) % size
        if self.facts.flip:
            mirrored = torch.rand((), generator=self.rng, device=self.device) < 0.5
            columns = torch.where(mirrored, columns.flip(0), columns)
        return (rows.unsqueeze(1) * size + columns).flatten()

    def view(self, images: Tensor, drawn: Tensor) -> Tensor:
        """The jittered images."""
        return take(images, drawn.expand(len(images), -1), padding=0)

    def against_student(self, t: Tensor, s: Tensor) -> Tensor:
        """1 - JS in place of -L_KL."""
        return 1 - terms.jensen_shannon(t, s)

    def values(self, batch: SynthesisBatch) -> list[Tensor]:
        """The five terms."""
        x = self.teacher.normalised(batch.images)
        return [
            losses.classification(batch.t, batch.labels),
            self.batch_norm_term(batch),
            self.adversarial_term(batch),
            terms.total_variation(x),
            torch.linalg.vector_norm(x),
        ]
