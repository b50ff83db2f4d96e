"""The terms of Eq. 5 and Eq. 6, one function a term.

    L_Z = alpha_cls * L_CE - alpha_adv * L_KL + alpha_bn * L_BN        (Eq. 5, minimised over G and Z)
    L_S = L_KL                                                         (Eq. 6, minimised over S)

and the terms that other methods have in their place. t and s are the logits (B, K) of teacher and student on the same
images, y the pseudo-labels (B,).
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional as F

from .classifiers.teacher import Classifier
from .errors import UserError


def classification(t: Tensor, y: Tensor) -> Tensor:
    """L_CE of Eq. 5: the mean cross-entropy of the teacher's logits with the pseudo-labels, in nats."""
    return F.cross_entropy(t, y)


def kl_per_image(t: Tensor, s: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(softmax(t / T) || softmax(s / T)) of each image, (B,), in nats; gradients flow through both."""
    log_p = F.log_softmax(t / temperature, 1)
    log_q = F.log_softmax(s / temperature, 1)
    return (log_p.exp() * (log_p - log_q)).sum(1)


def adversarial(t: Tensor, s: Tensor, mask: bool) -> Tensor:
    """-L_KL of Eq. 5, at temperature 1: low where the student is far from the teacher.

    With `mask` only images on which both predict the same class count (the released code has it, the paper does not:
    docs/divergences.md, D7); the mean is over all B either way.
    """
    divergence = kl_per_image(t, s)
    if mask:
        divergence = divergence * (t.argmax(1) == s.argmax(1))
    return -divergence.mean()


def jensen_shannon(t: Tensor, s: Tensor, temperature: float = 3.0) -> Tensor:
    """The mean over images of JS(p, q) = (KL(p || m) + KL(q || m)) / 2, m = (p + q) / 2, in nats: from 0 to ln 2.

    p and q are the softmax of t / T and s / T, each probability clamped to [0.01, 0.99], beyond which nothing is gained
    by pulling further: the clamp stops its gradient (Yin et al. 2020). Public code, theirs first, passes `kl_div` its
    arguments the other way round and so has KL(m || p) and KL(m || q): equal to second order near p = q, larger far
    from it. This is the formula of their text.
    """
    p, q = (F.softmax(x / temperature, 1).clamp(0.01, 0.99) for x in (t, s))
    m = (p + q) / 2
    return (p * (p / m).log() + q * (q / m).log()).sum(1).mean() / 2


def adversarial_js(t: Tensor, s: Tensor) -> Tensor:
    """1 - JS at temperature 3, the adversarial term of Yin et al. 2020: 1 where student and teacher agree.

    Code clamps JS to [0, 1] here, which JS never leaves.
    """
    return 1 - jensen_shannon(t, s)


def total_variation(x: Tensor) -> Tensor:
    """How rough images are: the L2 norms of the differences of neighbours, down, right and along both diagonals, added.

    x is (B, C, H, W) of normalised pixels, and a norm is one over the whole batch (Yin et al. 2020).
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
    """How far the student looks elsewhere: sum over stages of mean (A_t - A_s)^2 over images and places.

    A (B, H W) is a stage's attention: its maps (B, C, H, W) squared, averaged over channels, at length 1 for each
    image. The two may differ in C (Zagoruyko & Komodakis 2017, as in the code of Micaelli & Storkey 2019).
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
    """The mean over images and classes of |t - s| (Fang et al. 2019): it keeps its gradient where both are sure."""
    return (t - s).abs().mean()


def distillation(t: Tensor, s: Tensor, temperature: float) -> Tensor:
    """L_S of Eq. 6: the mean KL at temperature T, times T^2 so that its gradient keeps its size."""
    return kl_per_image(t, s, temperature).mean() * temperature**2


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


def statistics(maps: Tensor) -> tuple[Tensor, Tensor]:
    """(C,) biased variance and mean of maps (B, C, H, W) over all but C, in 32 bits.

    Of maps in 16 bits as E[x^2] - E[x]^2, summed in 32: no copy of them in 32 bits is made, nor kept for the gradient.
    What that loses where the mean is large is less than their own rounding.
    """
    over = (0, 2, 3)
    if maps.dtype not in (torch.bfloat16, torch.float16):
        return torch.var_mean(maps.float(), over, correction=0)
    mean = maps.mean(over, dtype=torch.float32)
    norm = torch.linalg.vector_norm(maps, dim=over, dtype=torch.float32)
    return norm.square() / (maps.numel() / maps.shape[1]) - mean.square(), mean


class BatchNormLoss:
    """L_BN of Eq. 5: how far a batch's statistics inside the teacher are from its BatchNorm layers' running ones.

        L_BN = sum over layers of ||v_run - v'||_2 + ||mu_run - mu'||_2,   v' = (1 - m) v + m v_mem

    v and mu are the biased variance and the mean of the layer's input over (N, H, W). In the run's first round m is 0
    (v' = v), and the memory (v_mem, mu_mem) is updated once a round by `end_round`. With m = 0.9 the batch's own
    share is 0.1, and so is the gradient: the momentum is also a tenfold smaller weight (docs/divergences.md, D8).

    The teacher is hooked only inside `with loss.armed():`, so the student phase pays nothing for it.

    Attributes:
        memory: (v_mem, mu_mem) of each layer, on the teacher's device; zeros before the first round's end.
        last: (v, mu) of the last pass, likewise, without a gradient.

    Raises:
        UserError: the teacher has no BatchNorm2d; the sentence says how to go on without the term.
    """

    def __init__(self, teacher: Classifier, momentum: float):
        self.layers = teacher.batch_norms()
        if not self.layers:
            raise UserError(
                "this teacher has no BatchNorm2d layer for L_BN to look at: set alpha_bn=0 to drop the term."
            )
        self.momentum = momentum
        # The memory and its share change in place: what is compiled or captured in the first round serves all others.
        self.memory = [
            (torch.zeros_like(layer.running_var), torch.zeros_like(layer.running_mean)) for layer in self.layers
        ]
        # In 64 bits, so that 1 - m is what it is for a Python number.
        self._share = torch.zeros((), dtype=torch.float64, device=self.memory[0][0].device)
        self._empty = True
        self.last: list[tuple[Tensor, Tensor]] = []
        self._batch: dict[int, tuple[Tensor, Tensor]] = {}

    @contextmanager
    def armed(self) -> Iterator[None]:
        """Watch the inputs of the teacher's BatchNorm layers while the block runs."""

        def watch(index: int):
            def hook(_module, inputs):
                self._batch[index] = statistics(inputs[0])

            return hook

        handles = [layer.register_forward_pre_hook(watch(i)) for i, layer in enumerate(self.layers)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._batch.clear()

    def settle(self) -> None:
        """After a step: only numbers stay, in `last`. Its graph need not live on, and the next step starts with nothing
        seen: it is compiled once, not twice."""
        self.last = [tuple(x.detach() for x in self._batch[i]) for i in range(len(self.layers))]
        self._batch = {}

    def __call__(self) -> Tensor:
        """The loss of the batch that the teacher saw last, a scalar."""
        total = []
        for i, layer in enumerate(self.layers):
            var, mean = self._batch[i]
            if self.momentum:
                old_var, old_mean = self.memory[i]
                var = (1 - self._share) * var + self._share * old_var
                mean = (1 - self._share) * mean + self._share * old_mean
            total += [torch.linalg.vector_norm(layer.running_var - var)]
            total += [torch.linalg.vector_norm(layer.running_mean - mean)]
        return torch.stack(total).sum()

    def end_round(self) -> None:
        """mem <- m * mem + (1 - m) * batch, in place, from the round's last batch; the first time a copy."""
        if not self.momentum:
            return
        if self._batch:
            self.settle()
        mixed = [
            tuple(self._share * old + (1 - self._share) * new for old, new in zip(*pair, strict=True))
            for pair in zip(self.memory, self.last, strict=True)
        ]
        self._keep(mixed)

    def _keep(self, memory: list[tuple[Tensor, Tensor]]) -> None:
        for mine, new in zip(self.memory, memory, strict=True):
            for x, y in zip(mine, new, strict=True):
                x.copy_(y)
        self._share.fill_(self.momentum)
        self._empty = False

    def state_dict(self) -> dict:
        """The memory, for an exact resume; nothing before the first round's end."""
        return {"memory": [] if self._empty else self.memory}

    def load_state_dict(self, state: dict) -> None:
        """The inverse of `state_dict`, onto the teacher's device."""
        if state["memory"]:
            self._keep(state["memory"])
