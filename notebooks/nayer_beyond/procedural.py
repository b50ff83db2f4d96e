"""Procedural images: distillation on pictures that a formula draws and that know no class. Not one of METHODS, but the
second floor under them, beside noise.

A picture is a pattern p in [0, 1] between two random colours, a + p (b - a). A quarter each of the patterns are

    gratings     waves of a random direction, length and phase
    clouds       4 x 4 random numbers, enlarged smoothly
    dead leaves  discs of random grey, place and size, each over those before it
    lines        three random strokes, joined

Frank & Davis 2023 ("Data-Free Knowledge Distillation Using Adversarially Perturbed OpenGL Shader Images",
arXiv:2310.13782) learn from pictures of public shader programs, strongly augmented, and move each by steps that drive
the student away from the teacher (`perturb`). Their pictures, augmentations and attack are not re-made: these
patterns are ours, M is filled with them once, and the student learns as NAYER's does.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from nayer_lib import losses
from nayer_lib.errors import UserError
from nayer_lib.evaluate import in_batches
from nayer_lib.memory import Memory
from nayer_lib.methods.base import Batch

from .with_data import NoSynthesis, WithDataConfig

CHUNK = 1000  # pictures drawn at a time
DISCS, STROKES, CLOUD = 16, 3, 4


@dataclass(frozen=True)
class ProceduralConfig(WithDataConfig):
    """Eq. 6 on pictures, with A.2's schedule for the student."""

    images: int = 160_000  # as many as NAYER makes for CIFAR with E = 100; profiles follow
    perturb: int = 0  # steps against the student, on each batch that it learns from
    epsilon: float = 4 / 255  # of such a step, in units of [0, 1]


class Procedural(NoSynthesis):
    """Eq. 6 on drawn pictures: the memory is filled with them once.

    Raises:
        UserError: a black box that is asked for its gradient.
    """

    name = "procedural images"
    citation = "Frank & Davis 2023"
    config_class = ProceduralConfig
    published = {}
    black_box = True

    def __init__(self, teacher, student, config, table=None, facts=None, compute=None, ranks=None):
        super().__init__(teacher, student, config, table, facts, compute, ranks)
        if config.perturb and self.teacher.answers_alone:
            raise UserError("a black box gives no gradient to perturb images by: set perturb=0.")

    def begin_epoch(self, epoch: int) -> None:
        """Fill the memory, once."""
        while (left := self.config.images - len(self.memory)) > 0:
            pictures = draw_pictures(min(CHUNK, left), self.facts.image_shape, self.rng)
            answers = in_batches(self.teacher, Memory.as_bytes(pictures))
            self.memory.add(pictures, answers.argmax(1), round_number=0)

    def sample(self, n: int) -> Batch:
        """n pictures of the memory, cropped and flipped, then moved against the student."""
        batch = super().sample(n)
        return batch._replace(images=self.perturbed(batch.images)) if self.config.perturb else batch

    def perturbed(self, images: Tensor) -> Tensor:
        """Steps of `epsilon` along the sign of the gradient of Eq. 6, in [0, 1].

        The student is in eval mode meanwhile: its BatchNorm sees each picture once, in its own step.
        """
        training = self.student.training
        self.student.eval()
        for _ in range(self.config.perturb):
            images = images.detach().requires_grad_()
            with self.compute.autocast(self.device):
                t, s = self._answering(images), self.student(images)
            mean = losses.distillation(t.float(), s.float(), self.config.temperature)
            loss = len(images) * mean  # of one image: float16 would lose the gradient of the mean
            [gradient] = torch.autograd.grad(loss, images)
            images = (images + self.config.epsilon * gradient.sign()).clamp(0, 1)
        self.student.train(training)
        return images.detach()


def draw_pictures(n: int, shape: tuple[int, int, int], rng: torch.Generator) -> Tensor:
    """n pictures (n, C, H, W) in [0, 1], on the generator's device."""
    channels, *size = shape
    each = [draw(n, size, rng) for draw in (gratings, clouds, dead_leaves, lines)]
    kind = torch.randint(len(each), (n,), generator=rng, device=rng.device)
    patterns = torch.stack(each)[kind, torch.arange(n, device=rng.device)].unsqueeze(1)
    first, second = torch.rand(2, n, channels, 1, 1, generator=rng, device=rng.device)
    return first + patterns * (second - first)


def gratings(n: int, size: list[int], rng: torch.Generator) -> Tensor:
    """Patterns (n, H, W): (1 + cos(2 pi (f u + phase))) / 2 along a random direction u, f from 1/2 to 4 waves."""
    angle, waves, phase = torch.rand(3, n, 1, 1, generator=rng, device=rng.device)
    down, across = _places(size, rng)
    along = (2 * math.pi * angle).cos() * down + (2 * math.pi * angle).sin() * across
    return (1 + (2 * math.pi * ((0.5 + 3.5 * waves) * along + phase)).cos()) / 2


def clouds(n: int, size: list[int], rng: torch.Generator) -> Tensor:
    """Patterns (n, H, W): random numbers on a coarse grid, bicubic between them."""
    coarse = torch.rand(n, 1, CLOUD, CLOUD, generator=rng, device=rng.device)
    return F.interpolate(coarse, size=size, mode="bicubic", align_corners=True).squeeze(1).clamp(0, 1)


def dead_leaves(n: int, size: list[int], rng: torch.Generator) -> Tensor:
    """Patterns (n, H, W): discs with radii from a twentieth to two fifths of the side, evenly in their logarithm."""
    pattern = torch.rand(n, 1, 1, generator=rng, device=rng.device).expand(n, *size)
    down, across = _places(size, rng)
    for _ in range(DISCS):
        y, x, radius, grey = torch.rand(4, n, 1, 1, generator=rng, device=rng.device)
        inside = (down - y).square() + (across - x).square() < (0.05 * 8**radius).square()
        pattern = torch.where(inside, grey, pattern)
    return pattern


def lines(n: int, size: list[int], rng: torch.Generator) -> Tensor:
    """Patterns (n, H, W): 1 within a half width of a polyline, 0 elsewhere.

    The half width is from a fiftieth to a tenth of the side, and half a pixel at least."""
    corners = torch.rand(STROKES + 1, 2, n, 1, 1, generator=rng, device=rng.device)
    width = 0.02 + 0.08 * torch.rand(n, 1, 1, generator=rng, device=rng.device)
    down, across = _places(size, rng)
    near = torch.full((n, *size), math.inf, device=rng.device)
    for (y, x), (to_y, to_x) in zip(corners[:-1], corners[1:], strict=True):
        dy, dx = to_y - y, to_x - x
        share = (((down - y) * dy + (across - x) * dx) / (dy**2 + dx**2).clamp(min=1e-6)).clamp(0, 1)
        near = near.minimum((down - y - share * dy).square() + (across - x - share * dx).square())
    return (near.sqrt() < width.clamp(min=0.5 / min(size))).float()


def _places(size: list[int], rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Each pixel's middle, in shares of the side: (H, 1) down and (1, W) across."""
    down, across = ((torch.arange(side, device=rng.device) + 0.5) / side for side in size)
    return down.unsqueeze(1), across.unsqueeze(0)
