"""What Table 3 and Figures 3b-d, 5 and 6 measure, with definitions where the paper gives none.

Convergence: the paper counts "epochs" to CE < 0.1 with 30 generation steps; all its values lie below 30, so the unit
must be generator steps within a round. Diversity: it names no formula; its values fit a distance a pixel in [0, 1].
Embeddings: "L2 distance" (Section 3.3) without saying of what; `spread` gives every reading of it that we know.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

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


# --- embeddings: rows of a pool, or class means of image features -----------------------------------------------------


def cosines(table: Tensor) -> Tensor:
    """(K, K) cosine of every two rows."""
    unit = nn.functional.normalize(table)
    return unit @ unit.T


def distances(table: Tensor) -> Tensor:
    """(K, K) L2 distance of every two rows."""
    return torch.cdist(table, table, compute_mode="donot_use_mm_for_euclid_dist")


def off_diagonal(matrix: Tensor) -> Tensor:
    """(K, K) symmetric -> (K (K - 1) / 2,): every pair once."""
    return matrix[tuple(torch.triu_indices(*matrix.shape, offset=1))]


def spread(table: Tensor) -> dict[str, float]:
    """How far apart the rows lie, the mean over all pairs: cosine, and L2 in four readings.

    "L2" of the rows as they are, "unit L2" of rows scaled to length 1; "RMS" and "unit RMS" are the same a dimension,
    L2 / sqrt(e).
    """
    unit = nn.functional.normalize(table)
    l2, unit_l2 = (off_diagonal(distances(rows)).mean().item() for rows in (table, unit))
    root = math.sqrt(table.shape[1])
    cosine = off_diagonal(cosines(table)).mean().item()
    return {"cosine": cosine, "L2": l2, "RMS": l2 / root, "unit L2": unit_l2, "unit RMS": unit_l2 / root}


def batch_normed(table: Tensor) -> Tensor:
    """The rows behind a fresh BatchNorm in train mode that sees each class once: what a noisy layer's heads read."""
    return nn.BatchNorm1d(table.shape[1], affine=False).train()(table)


def outlier_dimensions(table: Tensor, times: float = 5.0) -> dict[int, float]:
    """Dimensions that hold more than `times` their even share, 1 / e, of all squared length: {dimension: its share}."""
    share = table.pow(2).mean(0) / table.pow(2).mean(0).sum()
    large = [d for d in share.argsort(descending=True).tolist() if share[d] > times / table.shape[1]]
    return {d: share[d].item() for d in large}


def neighbours(table: Tensor, count: int = 1) -> Tensor:
    """(K, count) for each row the rows of highest cosine, nearest first, itself left out."""
    return cosines(table).fill_diagonal_(-math.inf).topk(count).indices


def neighbour_in_group(table: Tensor, groups: Sequence[str]) -> tuple[float, float]:
    """The share of rows whose nearest row (by cosine) is of their own group, and what chance would give."""
    nearest = neighbours(table).flatten().tolist()
    sizes = Counter(groups)
    hits = sum(groups[k] == groups[other] for k, other in enumerate(nearest))
    chance = sum(sizes[group] - 1 for group in groups) / (len(groups) - 1)
    return hits / len(groups), chance / len(groups)


def class_means(features: Tensor, labels: Tensor, classes: int) -> Tensor:
    """(N, d) features and (N,) labels -> (K, d) mean of each class.

    Raises:
        UserError: a class without an image.
    """
    counts = labels.bincount(minlength=classes)
    if not counts.all():
        raise UserError(f"class {int(counts.argmin())} has no image: its mean is not defined.")
    sums = torch.zeros(classes, features.shape[1], dtype=features.dtype).index_add(0, labels, features)
    return sums / counts[:, None]


def rank_correlation(one: Tensor, other: Tensor, permutations: int = 9999, seed: int = 0) -> tuple[float, float]:
    """Spearman's rho of two (K, K) distance matrices over all pairs of classes, and how often chance does as well.

    Pairs that share a class are not independent, so the p-value is Mantel's: classes, not pairs, are shuffled, and p is
    the share of shuffles (the given order among them) whose rho is at least as large. Both are nan where all distances
    of one matrix are equal: there is nothing to rank.
    """
    from scipy.stats import rankdata

    classes = len(one)
    rows, columns = torch.triu_indices(classes, classes, offset=1)

    def ranks(matrix: Tensor) -> Tensor:
        ranked = torch.from_numpy(rankdata(matrix[rows, columns].numpy()))
        ranked = (ranked - ranked.mean()) / ranked.std(correction=0)
        square = torch.zeros(classes, classes, dtype=ranked.dtype)
        square[rows, columns] = ranked
        return square + square.T

    first, second = ranks(one), ranks(other)[rows, columns]
    rng = torch.Generator().manual_seed(seed)
    shuffles = (torch.randperm(classes, generator=rng) for _ in range(permutations))
    rho = (first[rows, columns] * second).mean().item()
    if math.isnan(rho):
        return rho, rho
    chance = [(first[order[rows], order[columns]] * second).mean().item() for order in shuffles]
    return rho, (1 + sum(value >= rho - 1e-12 for value in chance)) / (1 + permutations)
