"""The terms of Table 1's other methods, those of Eq. 5 and Eq. 6 aside (`losses.py`).

t and s are the logits (B, K) of teacher and student on the same images.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F


def jensen_shannon(t: Tensor, s: Tensor, temperature: float = 3.0) -> Tensor:
    """The mean over images of JS(p, q) = (KL(p || m) + KL(q || m)) / 2, m = (p + q) / 2, in nats: from 0 to ln 2.

    1 - JS is the adversarial term of Yin et al. 2020; public code clamps JS to [0, 1], a range that it never leaves.
    p and q are the softmax of t / T and s / T, each probability clamped to [0.01, 0.99], beyond which nothing is gained
    by pulling further: the clamp stops its gradient (Yin et al. 2020). The authors' and later public code passes
    `kl_div` its arguments the other way round and so has KL(m || p) and KL(m || q): equal to second order near p = q,
    larger far from p = q. Here stands the formula of their text.
    """
    p, q = (F.softmax(x / temperature, 1).clamp(0.01, 0.99) for x in (t, s))
    m = (p + q) / 2
    return (p * (p / m).log() + q * (q / m).log()).sum(1).mean() / 2


def total_variation(x: Tensor) -> Tensor:
    """How rough images are: the L2 norms of the differences of neighbours, down, right and along both diagonals, added.

    x is (B, C, H, W) of normalised pixels, and each norm is over the whole batch (Yin et al. 2020).
    """
    down = x[..., 1:, :] - x[..., :-1, :]
    right = x[..., 1:] - x[..., :-1]
    falling = x[..., 1:, 1:] - x[..., :-1, :-1]
    rising = x[..., :-1, 1:] - x[..., 1:, :-1]
    return sum(torch.linalg.vector_norm(differences) for differences in (down, right, falling, rising))


def information_entropy(t: Tensor) -> Tensor:
    """L_IE: minus the entropy of the batch's mean prediction, in nats (Chen et al. 2019).

    -log K where all classes come equally often, 0 where all images are of one class with certainty.
    """
    log_mean = F.log_softmax(t, 1).logsumexp(0) - math.log(len(t))  # finite where a probability rounds to zero
    return (log_mean.exp() * log_mean).sum()


def activation(features: Tensor) -> Tensor:
    """L_act: minus the mean size of the teacher's pooled features (B, d) (Chen et al. 2019)."""
    return -features.abs().mean()


def attention_transfer(of_teacher: Iterable[Tensor], of_student: Iterable[Tensor]) -> Tensor:
    """How far the networks' attention differs: sum over stages of mean (A_t - A_s)^2 over images and places.

    A (B, H W) is a stage's attention: its maps (B, C, H, W) squared, averaged over channels, at length 1 for each
    image. The networks may differ in C (Zagoruyko & Komodakis 2017, as in the code of Micaelli & Storkey 2019).
    """

    def attention(maps: Tensor) -> Tensor:
        return F.normalize(maps.float().square().mean(1).flatten(1))

    pairs = zip(of_teacher, of_student, strict=True)
    return torch.stack([(attention(t) - attention(s)).square().mean() for t, s in pairs]).sum()


def class_activation(maps: Tensor, weight: Tensor) -> Tensor:
    """Class activation maps (B, K, H, W): the head's weights (K, d) at each place of the last feature map (B, d, H, W).

    Their mean over places is the logits without the bias (Zhou et al. 2016).
    """
    return torch.einsum("bdhw,kd->bkhw", maps, weight)


def grad_cams(logits: Tensor, maps: list[Tensor], classes: Tensor) -> list[Tensor]:
    """Grad-CAM of each feature map (B, C, H, W), (B, H, W), without its ReLU (Selvaraju et al. 2017):

        sum over channels c of w_c A_c,   w_c = mean over places of d logit / d A_c

    The w_c are constants: gradients flow through the maps alone.

    Args:
        logits: (B, K), computed from the maps.
        classes: (B,) whose logits.
    """
    chosen = logits.gather(1, classes.unsqueeze(1)).sum()
    gradients = torch.autograd.grad(chosen, maps, retain_graph=True)
    weights = [gradient.float().mean((2, 3), keepdim=True) for gradient in gradients]
    return [(weight * each.float()).sum(1) for weight, each in zip(weights, maps, strict=True)]


def logit_distance(t: Tensor, s: Tensor) -> Tensor:
    """The mean over images and classes of |t - s| (Fang et al. 2019): its gradient stays where both are sure."""
    return (t - s).abs().mean()


def from_standard_normal(z: Tensor) -> Tensor:
    """How far a batch of z (B, r) is from N(0, 1): the mean over its r numbers of (var - 1)^2 + mean^2.

    var and mean are those of a number over the batch; var divides by B - 1, as the source's code does (Binici et al.
    2022, AAAI).
    """
    var, mean = torch.var_mean(z, 0)
    return ((var - 1).square() + mean.square()).mean()


def posterior_divergence(mean: Tensor, log_var: Tensor) -> Tensor:
    """KL(N(mean, e^log_var) || N(0, 1)) of a VAE's posterior, (B, r) each: the sum over r, the mean over images."""
    return (mean.square() + log_var.exp() - 1 - log_var).sum(1).mean() / 2


def info_nce(query: Tensor, key: Tensor, temperature: float) -> Tensor:
    """How well each query finds its own key among all, (N,), in nats (CMI, after van den Oord et al. 2018).

        -log( exp(q_i . k_i / T) / sum over j of exp(q_i . k_j / T) )

    Args:
        query, key: (N, d), l2-normalised; row i belongs to row i. No gradient flows into the keys.
    """
    similarity = query @ key.detach().T / temperature
    return F.cross_entropy(similarity, torch.arange(len(query), device=query.device), reduction="none")
