"""The geometry of label-text embeddings and image features, and the heads' weights: Figures 3b-d and 6 as numbers.

The rows of a table are a pool's embeddings, or class means of image features. The paper speaks of an "L2 distance"
(Section 3.3) without saying of what; `spread` gives every reading that we know.
"""

import math
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nayer_lib.errors import UserError
from nayer_lib.generator.noisy_layer import NoisyLayer
from nayer_lib.metrics import cosines, distances


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
    """The rows behind a fresh BatchNorm in train mode that sees each class once: the input of a noisy layer's heads."""
    return nn.BatchNorm1d(table.shape[1], affine=False).train()(table)


def outlier_dimensions(table: Tensor, times: float = 5.0) -> dict[int, float]:
    """Dimensions that hold more than `times` their even share, 1 / e, of all squared length: {dimension: its share}."""
    share = table.pow(2).mean(0) / table.pow(2).mean(0).sum()
    large = [d for d in share.argsort(descending=True).tolist() if share[d] > times / table.shape[1]]
    return {d: share[d].item() for d in large}


def neighbours(table: Tensor, count: int = 1) -> Tensor:
    """(K, count) for each row the other rows of highest cosine, nearest first."""
    return cosines(table).fill_diagonal_(-math.inf).topk(count).indices


def neighbour_in_group(table: Tensor, groups: Sequence[str]) -> tuple[float, float]:
    """The share of rows whose nearest row (by cosine) is of the same group, and the share expected by chance."""
    nearest = neighbours(table).flatten().tolist()
    sizes = Counter(groups)
    hits = sum(groups[k] == groups[neighbour] for k, neighbour in enumerate(nearest))
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


def rank_correlation(first: Tensor, second: Tensor, permutations: int = 9999, seed: int = 0) -> tuple[float, float]:
    """Spearman's rho of two (K, K) distance matrices over all pairs of classes, and its p-value.

    Pairs that share a class are not independent, so the p-value is Mantel's: classes, not pairs, are shuffled, and p is
    the share of shuffles (the given order among them) whose rho is at least as large. Both numbers are nan if all
    distances of one matrix are equal.
    """
    from scipy.spatial.distance import squareform
    from scipy.stats import rankdata, zscore

    one, other = (zscore(rankdata(off_diagonal(matrix))) for matrix in (first, second))
    rho = float((one * other).mean())
    if math.isnan(rho):
        return rho, rho
    square, rng = squareform(one), torch.Generator().manual_seed(seed)
    orders = (torch.randperm(len(first), generator=rng).numpy() for _ in range(permutations))
    chance = [float((squareform(square[order][:, order], checks=False) * other).mean()) for order in orders]
    return rho, (1 + sum(value >= rho - 1e-12 for value in chance)) / (1 + permutations)


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


def tsne(rows: Tensor, perplexity: float, seed: int = 0) -> Tensor:
    """(N, d) -> (N, 2) by t-SNE; `perplexity`, about the number of neighbours that count, must be below N.

    Such a map shows which rows are neighbours; its sizes, gaps and directions mean nothing.
    """
    from sklearn.manifold import TSNE

    fit = TSNE(perplexity=perplexity, init="pca", learning_rate="auto", random_state=seed, n_jobs=1).fit_transform
    return torch.from_numpy(fit(rows.numpy()))
