"""MBDFKD (Binici et al. 2022, "Preventing Catastrophic Forgetting and Distribution Mismatch in Knowledge Distillation
via Synthetic Data", WACV): replay from a memory bank.

L_G, L_S and the batch are those of `replay.py`. After the first epoch and every `push_every` epochs from there on G
makes one mini-batch for a ring, as many images as a student step replays; each student step replays one of the ring's
mini-batches, drawn uniformly. The ring holds ten.

The authors' own code was not found: numbers and ring are those of KAKR's (Patel et al. 2023), which has this method
beside its own. That code pushes images of the epoch's last student step; here G makes new ones, at the next epoch's
start, uncropped. On few epochs (profiles quick and lab) a push is every epoch, else the ring would hardly fill.
`memory_size` (Table 10) replaces the ring's ten by as many mini-batches as make up that many images; the published
schedule pushes 10,240 in all, too few for Table 10's rows of 20k and more. Each of several ranks has a ring for its
share of a batch.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import UserError
from ..memory import Memory
from .replay import Replay, ReplayConfig, replayed_of


@dataclass(frozen=True)
class MBDFKDConfig(ReplayConfig):
    """MBDFKD (Binici et al. 2022, WACV), its numbers as the code of KAKR has them."""

    push_every: int = 5  # epochs between two mini-batches that enter the ring
    ring_batches: int = 10  # mini-batches kept, unless memory_size gives a number of images
    memory_size: int | None = None  # images


class MBDFKD(Replay):
    """Replay from a ring of mini-batches.

    Attributes:
        ring: the newest mini-batches, (n, C, H, W) each as bytes, the oldest first.

    Raises:
        UserError: a memory_size that holds no mini-batch.
    """

    name = "MBDFKD"
    citation = "Binici et al. 2022"
    config_class = MBDFKDConfig
    saved = (*Replay.saved, "ring")

    def __init__(self, teacher, student, config, table=None, facts=None, compute=None, ranks=None):
        super().__init__(teacher, student, config, table, facts, compute, ranks)
        config = self.config
        self._pushed = replayed_of(config.student_batch)
        self._batches = config.ring_batches
        if config.memory_size and self._pushed:
            self._batches = config.memory_size // self._pushed
        if not self._batches:
            raise UserError(
                f"memory_size={config.memory_size} holds none of the mini-batches of {self._pushed} images that a "
                "student step replays: raise memory_size, or lower student_batch."
            )
        self.ring: list[Tensor] = []

    def begin_epoch(self, epoch: int) -> None:
        """Push a freshly generated mini-batch into the ring: after the first epoch, then every `push_every` epochs."""
        super().begin_epoch(epoch)
        if epoch and (epoch - 1) % self.config.push_every == 0 and self._pushed:
            self.ring = [*self.ring, Memory.as_bytes(self.generate(self._pushed))][-self._batches :]

    def replay(self, n: int) -> Tensor:
        """The first n images of one of the ring's mini-batches, augmented."""
        if not self.ring:
            return self.no_images
        drawn = int(torch.randint(len(self.ring), (), generator=self.rng, device=self.device))
        return self.augment(self.ring[drawn][:n].float() / 255)

    @property
    def beside(self) -> int:
        """The bytes of a full ring."""
        return self._batches * self._pushed * math.prod(self.facts.image_shape)
