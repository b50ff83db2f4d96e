"""The terms of Eq. 5 and Eq. 6, one function a term.

    L_Z = alpha_cls * L_CE + alpha_bn * L_BN - alpha_adv * L_KL        (Eq. 5, minimised over G and Z)
    L_S = L_KL                                                         (Eq. 6, minimised over S)

t and s are the logits (B, K) of teacher and student on the same images, y the pseudo-labels (B,). The terms of Table
1's other methods stand in methods/terms.py.
"""

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


def statistics(maps: Tensor) -> tuple[Tensor, Tensor]:
    """(C,) biased variance and mean of maps (B, C, ...) over all but C, in 32 bits."""
    if maps.dtype in (torch.bfloat16, torch.float16):
        return _Statistics16.apply(maps)
    return torch.var_mean(maps.float(), _all_but_channels(maps), correction=0)


class _Statistics16(torch.autograd.Function):
    """`statistics` of maps in 16 bits, as E[x^2] - E[x]^2, summed in 32 bits without a copy of the maps in 32 bits.

    The error, where the mean is large, is smaller than the maps' rounding. The gradient, 2 (x - mean) / n of the
    variance and 1 / n of the mean, takes two passes over the maps: autograd's own takes one for each operation of the
    two formulas, most of them in 32 bits.
    """

    @staticmethod
    def forward(ctx, maps: Tensor) -> tuple[Tensor, Tensor]:
        over, count = _all_but_channels(maps), maps.numel() / maps.shape[1]
        mean = maps.mean(over, dtype=torch.float32)
        norm = torch.linalg.vector_norm(maps, dim=over, dtype=torch.float32)
        ctx.save_for_backward(maps, mean)
        return norm.square() / count - mean.square(), mean

    @staticmethod
    def backward(ctx, of_var: Tensor, of_mean: Tensor) -> Tensor:
        maps, mean = ctx.saved_tensors
        count, shape = maps.numel() / maps.shape[1], (-1, *[1] * (maps.dim() - 2))
        slope = 2 * of_var / count
        start = of_mean / count - slope * mean
        return torch.addcmul(start.view(shape), maps, slope.view(shape)).to(maps.dtype)


def _all_but_channels(maps: Tensor) -> tuple[int, ...]:
    return 0, *range(2, maps.dim())


class BatchNormLoss:
    """L_BN of Eq. 5: how far a batch's statistics inside the teacher are from its BatchNorm layers' running ones.

        L_BN = sum over layers of ||v_run - v'||_2 + ||mu_run - mu'||_2,   v' = (1 - m) v + m v_mem

    v and mu are the biased variance and the mean of the layer's input over (N, H, W). In the run's first round m is 0
    (v' = v), and the memory (v_mem, mu_mem) is updated once a round by `end_round`. With m = 0.9 the batch's own
    share is 0.1, and so is the gradient: the momentum is also a tenfold smaller weight (docs/divergences.md, D8).

    The teacher is hooked only inside `with loss.armed():`, so the student phase has no cost.

    Attributes:
        memory: (v_mem, mu_mem) of each layer, on the teacher's device; zeros before the first round's end.
        last: (v, mu) of the last pass, in the same form, without a gradient.

    Raises:
        UserError: the teacher has no BatchNorm; the sentence says how to go on without the term.
    """

    def __init__(self, teacher: Classifier, momentum: float):
        self.layers = teacher.batch_norms()
        if not self.layers:
            raise UserError("this teacher has no BatchNorm layer for L_BN to look at: set alpha_bn=0 to drop the term.")
        self.momentum = momentum
        # The memory and its share change in place: a step compiled or captured in the first round serves all others.
        self.memory = [
            (torch.zeros_like(layer.running_var), torch.zeros_like(layer.running_mean)) for layer in self.layers
        ]
        # In 64 bits, so that 1 - m is rounded as for a Python number.
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
        """After a step: keep the statistics in `last`, without their autograd graph. Every step starts with none, so it
        is compiled once, not twice."""
        self.last = [tuple(x.detach() for x in self._batch[i]) for i in range(len(self.layers))]
        self._batch = {}

    def mixed(self) -> list[tuple[Tensor, Tensor]]:
        """(v', mu') of each layer in the teacher's last pass: the batch's statistics, mixed with the memory."""
        split = self._mixed().split(self._sizes)
        return list(zip(split[::2], split[1::2], strict=True))

    def __call__(self) -> Tensor:
        """The loss of the teacher's last pass, a scalar."""
        running = _joined((layer.running_var, layer.running_mean) for layer in self.layers)
        apart = (running - self._mixed()).split(self._sizes)
        return torch.stack([torch.linalg.vector_norm(x) for x in apart]).sum()

    @property
    def _sizes(self) -> list[int]:
        return [len(layer.running_mean) for layer in self.layers for _ in range(2)]

    def _mixed(self) -> Tensor:
        """v' and mu' of all layers in one vector: a GPU takes as long for one layer's numbers as for all of them."""
        now = _joined(self._batch[i] for i in range(len(self.layers)))
        return (1 - self._share) * now + self._share * _joined(self.memory) if self.momentum else now

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
        for old, new in zip(self.memory, memory, strict=True):
            for old_statistic, new_statistic in zip(old, new, strict=True):
                old_statistic.copy_(new_statistic)
        self._share.fill_(self.momentum)
        self._empty = False

    def state_dict(self) -> dict:
        """The memory, for an exact resume; nothing before the first round's end."""
        return {"memory": [] if self._empty else self.memory}

    def load_state_dict(self, state: dict) -> None:
        """The inverse of `state_dict`, onto the teacher's device."""
        if state["memory"]:
            self._keep(state["memory"])


def _joined(pairs: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Pairs of vectors as one vector."""
    return torch.cat([x for pair in pairs for x in pair])


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


def distillation(t: Tensor, s: Tensor, temperature: float) -> Tensor:
    """L_S of Eq. 6: the mean KL at temperature T, times T^2 so that its gradient keeps its size."""
    return kl_per_image(t, s, temperature).mean() * temperature**2
