"""NAYER+, the future work that the paper names (B.7): feature exchange, retention and momentum on NAYER.

A class of its own, so that methods/nayer.py stays the paper's method. The paper names the three with their sources
(Yu et al. 2023; Patel et al. 2023; Do et al. 2022) and says nothing of how they would join NAYER. All of this is our
reading, and each at 0 is off:

    exchange     in that share of the rounds, at a round's end: the best step's maps at one of three depths of G, drawn
                 at random, each row i with a random half of its channels from row B - 1 - i; this round's G makes
                 images of them, which stand in M, with row i's label, in the place of the round's own
    retention    L_S = L(theta', old) + L(theta, batch),  theta' = theta - retention * grad of L(theta, new): old is the
                 ninth of a batch that the oldest rounds made, new the rest, L is Eq. 6
    ema          G~ <- a G~ + (1 - a) G after each step of G; it makes the second half of a round's images, from the
                 best step's v

SpaceshipNet keeps maps and decodes them when the student asks; here the noisy layer is redrawn in each round and G is
rebuilt every few epochs, so that old maps would meet another G: they are decoded at once. G~ follows G alone, since the
noisy layer's weights are new in each round, and starts over with G. G and G~ decode in eval mode, as in the sources.

The budget is NAYER's: M gets as many images, and a student's batch has the same ones, in another order, whereas the
sources, which keep no M, make eight of nine images, or half of them, anew. The gradient of a gradient is not compiled,
and a quantised student, whose BatchNorm is frozen, wants a far smaller inner rate: at 0.9 it diverges.
"""

import copy
import functools
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nayer_lib import losses
from nayer_lib.base_config import NayerConfig
from nayer_lib.classifiers.teacher import tapped
from nayer_lib.methods.base import Batch
from nayer_lib.methods.kakr import retaining
from nayer_lib.methods.mad import follow
from nayer_lib.methods.nayer import Nayer
from nayer_lib.methods.replay import replayed_of
from nayer_lib.methods.round import parameter_bytes
from nayer_lib.methods.spaceship import SpaceshipNet, exchange, exchange_layers


@dataclass(frozen=True)
class NayerPlusConfig(NayerConfig):
    """NAYER's numbers, and those of the three sources."""

    exchange: float = 0.7  # share of the rounds whose rows exchange channels; 0: none
    retention: float = 0.9  # learning rate of the inner step; 0: no such step
    ema: float = 0.95  # share of the slow generator's weights that stays at each step; 0: no such generator


class NayerPlus(Nayer):
    """NAYER with exchanged features, a student that retains while it acquires, and a slow generator.

    Attributes:
        layers: the places in G of the maps that are exchanged.
        slow: G~, in eval mode; None without `ema`.

    Raises:
        UserError: an exchange in another generator than that of the released layout up to 64 px.
    """

    name = "NAYER+"
    config_class = NayerPlusConfig
    decode = SpaceshipNet.decode
    saved = (*Nayer.saved, "slow")

    def __init__(self, teacher, student, config, table, facts=None, compute=None, ranks=None):
        super().__init__(teacher, student, config, table, facts, compute, ranks)
        self.layers = exchange_layers(self.generator[1]) if config.exchange else []
        self.slow: nn.Module | None = None
        if config.ema:
            self.slow = copy.deepcopy(self.generator[1]).eval().requires_grad_(False)

    @property
    def compilable(self) -> bool:
        """Whether the student's loss contains no gradient."""
        return not self.config.retention

    # Phase 1.

    def rebuild(self) -> None:
        """A new generator, and G~ starts over with it."""
        super().rebuild()
        if self.slow:
            self.slow.load_state_dict(self.generator[1].state_dict())

    def after_update(self) -> None:
        """G~ follows G."""
        if self.slow:
            follow(self.slow, self.generator[1], self.config.ema)

    def watched(self) -> AbstractContextManager[dict[int, Tensor]]:
        """The outputs of the noisy layer, v, and of the layers whose maps are exchanged."""
        return tapped([self.generator[0], *(self.generator[1].layers[i] for i in self.layers)])

    def worth_keeping(self, images: Tensor) -> list[Tensor]:
        """The images, v, and the maps; every step starts with `caught` empty, so it is compiled once."""
        return [images, *(self.caught.pop(place).detach() for place in range(1 + len(self.layers)))]

    def remember(self, kept: list[Tensor], labels: Tensor) -> None:
        """Put the images into the memory, or what exchanged maps and G~ make in the place of them."""
        images, v, *maps = kept
        if maps and torch.rand((), generator=self.rng, device=self.device) < self.config.exchange:
            depth = int(torch.randint(len(maps), (), generator=self.rng, device=self.device))
            images = self.decode(exchange(maps[depth], 1.0, self.rng), depth)
        if self.slow:
            half = len(v) // 2
            with torch.no_grad(), self.compute.autocast(self.device):
                images = torch.cat([images[:-half], self.slow(v[-half:])])
        super().remember([images], labels)

    # Phase 2.

    def sample(self, n: int) -> Batch:
        """n augmented images, those of the oldest rounds last; of these a ninth count as `replayed`, unless M holds no
        more than one round's images."""
        if not self.config.retention:
            return super().sample(n)
        images, labels = self.memory.draw(n, self.rng, oldest_last=True)
        old = replayed_of(n) if len(self.memory) > self.config.generator_batch else 0
        return Batch(self.augment(images).float() / 255, labels, "memory", old)

    def student_loss(self, batch: Batch, teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
        """L_S, the first term in 32 bits: the inner gradient is not scaled."""
        config = self.config
        joint = super().student_loss(batch, teacher_logits, student_logits)
        loss = functools.partial(losses.distillation, temperature=config.temperature)
        return retaining(joint, self.student, batch, teacher_logits, config.retention, loss)

    @property
    def beside(self) -> int:
        """G~."""
        return parameter_bytes(self.slow, copies=1) if self.slow else 0
