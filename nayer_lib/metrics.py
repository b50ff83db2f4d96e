"""What Table 3 and Figures 3d and 5 measure, with definitions where the paper gives none.

Convergence: the paper counts "epochs" to CE < 0.1 with 30 generation steps; all its values lie below 30, so the unit
must be generator steps within a round. Diversity: it names no formula; its values fit a distance a pixel in [0, 1].
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import UserError
from .generator.noisy_layer import NoisyLayer


@dataclass(frozen=True)
class Convergence:
    """How soon rounds reach a cross-entropy, in generator steps; step 1 is before any update.

    Attributes:
        success: the share of rounds that reach it.
        mean: over the rounds that reach it; nan if none does (the paper's "-").
        restricted: over all rounds, one that never reaches it counting as g + 1: the honest one to compare.
    """

    success: float
    mean: float
    restricted: float


def convergence(ce_per_step: Sequence[Sequence[float]], threshold: float = 0.1) -> Convergence:
    """Table 3's first row, from each round's L_CE before each step (`SynthesisReport.ce_per_step`).

    Raises:
        UserError: no rounds.
    """
    if not ce_per_step:
        raise UserError("convergence needs at least one synthesis round.")
    firsts = [next((t for t, ce in enumerate(ces, 1) if ce < threshold), None) for ces in ce_per_step]
    reached = [t for t in firsts if t is not None]
    restricted = [len(ces) + 1 if t is None else t for t, ces in zip(firsts, ce_per_step, strict=True)]
    return Convergence(
        success=len(reached) / len(firsts),
        mean=sum(reached) / len(reached) if reached else math.nan,
        restricted=sum(restricted) / len(restricted),
    )


@dataclass(frozen=True)
class Diversity:
    """How far images of one class lie apart: root mean square over pixels, images in [0, 1].

    Attributes:
        within: between images of the same round: what several heads, or noise, give. nan if no class has two in one.
        across: between images of different rounds: what redrawing gives. nan with one round.
    """

    within: float
    across: float


def diversity(images: Tensor, labels: Tensor, rounds: Tensor, per_class: int = 50) -> Diversity:
    """Table 3's second row on a memory's newest images: the mean over classes of the mean over pairs.

    Args:
        images: (N, C, H, W) uint8 or in [0, 1]; labels, rounds: (N,).
        per_class: at most so many of the newest images of each class.
    """
    scale = 255 if images.dtype == torch.uint8 else 1
    within, across = [], []
    for k in labels.unique():
        chosen = (labels == k).nonzero().flatten()[-per_class:]
        x, r = images[chosen].float().flatten(1) / scale, rounds[chosen]  # no more: a memory fills a GPU
        distance = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist") / math.sqrt(x.shape[1])
        same = r[:, None] == r[None, :]
        pair = torch.ones_like(same).triu(1)
        within += distance[pair & same].mean()[None].tolist() if (pair & same).any() else []
        across += distance[pair & ~same].mean()[None].tolist() if (pair & ~same).any() else []
    return Diversity(*(sum(values) / len(values) if values else math.nan for values in (within, across)))


def weight_magnitude(layer: NoisyLayer) -> tuple[float, float]:
    """Fig. 3d: mean |W| of the heads' weights on BN(e), and on the concatenated noise.

    Raises:
        UserError: the layer has no noise beside BN(e).
    """
    width = layer.norm.num_features
    if layer.weight.shape[1] == width:
        raise UserError("this layer reads no concatenated noise: take a 'cat' latent.")
    magnitude = layer.weight.detach().abs()
    return magnitude[:, :width].mean().item(), magnitude[:, width:].mean().item()
