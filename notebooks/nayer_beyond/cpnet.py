"""CPNet (Chen et al. 2025, "Coupling the Generator with Teacher for Effective Data-Free Knowledge Distillation", ICCV):
NAYER with a generator that runs through the teacher's layers backwards.

    L = alpha_cls L_mix + alpha_bn L_BN - alpha_adv L_KL + alpha_x L_X + alpha_align L_align

Nodes f_1 (the deepest) .. f_n are maps of T, inputs of BatchNorm layers. G makes x_1, of f_1's shape, from v and each
x_(k+1) from x_k, then the image. With all of it off G and L are NAYER's.

    L_X      sum over k of mean (x_k - f~_k)^2,   f~ = (f - m) / sqrt(v) * sd_run + mu_run, without gradient: m and v
             are the batch's statistics, mixed with L_BN's momentum memory
    L_mix    (1 - l) CE(y_a) + l CE(y_b): T and S see images that are cropped, flipped, jittered in colour, and (CutMix)
             have a box of share l of another image
    L_align  mean |cos(phi - (d y - b) W+, 1 W+)|: phi are T's pooled features, W+ is the pseudo-inverse of its
             transposed head with singular values of at least 0.1, b its bias, and d = ln(9 (K - 1)) gives y a
             probability of 0.9; 0 in steps without L_KL, whose weight it has in the authors' code

That code (LannCX/CPNet 3f3d397) is NAYER's with these changes and its schedule, for 100 and 300 epochs (alpha_adv is
5.33 for VGG-11 on CIFAR-10 with 300). As there, L_X pairs maps of the whole image with f of the cropped, mirrored, cut
one, and L_align takes y_a alone. It stops at its first step, since it reads a loss before it is assigned, and its
option --dist is used nowhere. Its v is unbiased and without eps; here L_BN's v, with eps, keeps a dead channel finite.

Guesses: nodes of networks other than WRN-40-2, ResNet-34 and VGG-11; a box of uniform share, one for a batch; jitter
drawn for each image, its parts in a fixed order, hue around the grey axis.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nayer_lib import losses
from nayer_lib.base_config import NayerConfig
from nayer_lib.classifiers.teacher import Classifier, tapped
from nayer_lib.errors import UserError
from nayer_lib.methods.nayer import Nayer
from nayer_lib.methods.round import SynthesisBatch

from .coupled import CoupledGenerator, head_inverse, recoloured
from .views import draw_box, draw_jitter, jitter


@torch.no_grad()
def nodes(teacher: Classifier, image_shape: tuple[int, int, int]) -> tuple[list[int], list[tuple[int, int]]]:
    """Places in `batch_norms` of layers whose inputs are the nodes, and those maps' channels and side, deep to shallow.

    In a network that ends in a BatchNorm, as wide ResNets do, that one and each stage's first; else each stage's last.
    Of equal shapes the deepest alone: so WRN-40-2, ResNet-34 and VGG-11 have the authors' nodes.

    Raises:
        UserError: there are none, or a side is no multiple of the deeper one.
    """
    known = teacher.batch_norms()
    inside = [[m for m in stage.modules() if m in known] for stage in teacher.stages()]
    last, place = ([teacher.pooled()], 0) if teacher.pooled() in known else ([], -1)
    norms = [*last, *(stage[place] for stage in reversed(inside) if stage)]
    with tapped(norms, inputs=True) as maps:
        teacher(torch.zeros(1, *image_shape, device=teacher.device))
    found = {}
    for i, norm in enumerate(norms):
        found.setdefault(tuple(maps[i].shape[1:]), norm)
    sides = [*(shape[-1] for shape in found), image_shape[-1]]
    if not found or any(len(shape) != 3 for shape in found) or any(b % a for a, b in pairwise(sides)):
        raise UserError("this teacher has no maps to couple G to: set coupled_generator=False and alpha_x=0.")
    return [known.index(norm) for norm in found.values()], [(shape[0], shape[-1]) for shape in found]


@dataclass(frozen=True)
class CPNetConfig(NayerConfig):
    """CPNet (Chen et al. 2025): NAYER's numbers, and a switch for each ingredient; that of the text is `embedding`."""

    coupled_generator: bool = True  # in place of NAYER's G, whose width, layout and norm it does not read
    alpha_x: float = 1.0
    alpha_align: float = 1.33
    cutmix: float = 0.5  # probability, for a batch
    jitter: float = 0.4  # probability, for an image


class CPNet(Nayer):
    """A generator coupled to the teacher.

    Raises:
        UserError: a teacher without nodes; L_X without the coupled generator or without L_BN; CutMix or jitter without
            views.
    """

    name = "CPNet"
    citation = "Chen et al. 2025"
    config_class = CPNetConfig
    asks_features = True
    terms = Nayer.terms | {"L_X": "alpha_x", "L_align": "alpha_align"}

    def __init__(self, teacher, student, config, table, facts=None, compute=None, ranks=None):
        if config.alpha_x and not (config.coupled_generator and config.alpha_bn):
            raise UserError("L_X needs the maps of coupled_generator and the statistics of L_BN: else set alpha_x=0.")
        if (config.cutmix or config.jitter) and not config.augment_synthesis:
            raise UserError("CutMix and jitter make views: leave augment_synthesis on, or set cutmix=0 and jitter=0.")
        super().__init__(teacher, student, config, table, facts, compute, ranks)
        head, classes = self.teacher.head(), len(self.teacher.class_names)
        inverse = head_inverse(head.weight.flatten(1).float())
        logits = math.log(9 * (classes - 1)) * torch.eye(classes, device=self.device)
        self._aligned = (logits - head.bias if head.bias is not None else logits) @ inverse
        self._shift = inverse.sum(0, keepdim=True)

    def network(self, width_in: int) -> nn.Module:
        """G, coupled or NAYER's."""
        if not self.config.coupled_generator:
            return super().network(width_in)
        self.nodes, shapes = nodes(self.teacher, self.facts.image_shape)
        return CoupledGenerator(width_in, shapes, self.facts.channels, self.facts.size)

    def draw_view(self, batch: int) -> tuple:
        """Pixels of crop and flip, moves of colours, the box, and whose it is for each image; None for what is off."""
        config, rng, device, pixels = self.config, self.rng, self.device, super().draw_view(batch)
        moves = draw_jitter(batch, config.jitter, rng, device) if config.jitter else None
        box = draw_box(self.facts.size, config.cutmix, rng, device) if config.cutmix else None
        partners = torch.randperm(batch, generator=rng, device=device) if config.cutmix else None
        return pixels, moves, box, partners

    def view(self, images: Tensor, drawn: tuple) -> Tensor:
        """Cropped and flipped, then jittered, then cut."""
        pixels, moves, box, partners = drawn
        images = super().view(images, pixels)
        images = images if moves is None else jitter(images, moves)
        return images if box is None else torch.where(box, images[partners], images)

    @contextmanager
    def watched(self) -> Iterator[tuple[dict[int, Tensor], dict[int, Tensor]]]:
        """G's maps, and the teacher's at the nodes, where L_X compares them."""
        blocks, places = (self.generator[1].blocks, self.nodes) if self.config.alpha_x else ([], [])
        with tapped(blocks) as made, tapped([self.bn_loss.layers[i] for i in places], inputs=True) as seen:
            yield made, seen

    def values(self, batch: SynthesisBatch) -> list[Tensor]:
        """NAYER's terms, L_CE as L_mix, then L_X and L_align."""
        ce, bn, adv = super().values(batch)
        if self.config.cutmix:
            share = batch.view[2].float().mean()
            ce = (1 - share) * ce + share * losses.classification(batch.t, batch.labels[batch.view[3]])
        x = align = batch.t.new_zeros(())
        if self.config.alpha_x:
            made, seen = self.caught  # every step starts with none, so it is compiled once
            mixed, layers = self.bn_loss.mixed(), self.bn_loss.layers
            targets = [recoloured(seen.pop(k), *mixed[i], layers[i]) for k, i in enumerate(self.nodes)]
            x = sum(F.mse_loss(made.pop(k).float(), target) for k, target in enumerate(targets))
        if self.config.alpha_align and batch.s is not None:
            align = F.cosine_similarity(batch.features - self._aligned[batch.labels], self._shift).abs().mean()
        return [ce, bn, adv, x, align]
