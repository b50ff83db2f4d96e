"""A synthesis round: g steps that lower a weighted sum of loss terms over the generator's parameters.

`inversion.py` and `live.py` have the two families of methods that are built on rounds.
"""

import math
import operator
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from .. import losses
from ..augment import draw_pixels, take
from ..classifiers.teacher import Classifier
from ..generator.networks import Generator
from ..steps import Graphs, Step
from .base import Method, NonFiniteLoss, SynthesisReport


@dataclass(frozen=True)
class SynthesisBatch:
    """What the terms of one step are computed from.

    Attributes:
        generated: (B, C, H, W) the generator's images.
        images: (B, C, H, W) the networks' input: the generator's images, cropped and flipped if synthesis augments.
        labels: (B,) the pseudo-labels; of a live generator, which has none, the teacher's predictions.
        t, s: (B, K) logits of the network that is asked, which is the teacher, and of the student; s is None in steps
            without an adversarial term.
        features: (B, d) the teacher's pooled features; None unless the method asks for them.
        view: what `draw_view` drew for this step.
    """

    generated: Tensor
    images: Tensor
    labels: Tensor
    t: Tensor
    s: Tensor | None
    features: Tensor | None
    view: Tensor | tuple[Tensor, ...] | None


class StepResult(NamedTuple):
    """The results of one step, detached and from before its update.

    Attributes:
        loss: the weighted sum, a scalar.
        terms: (number of terms,) unweighted, in their order.
        images: (B, C, H, W) the generator's images.
        kept: the tensors of `worth_keeping`, one row an image.
        statistics: the variance and mean that L_BN compared, of each layer; None without L_BN.
    """

    loss: Tensor
    terms: Tensor
    images: Tensor
    kept: list[Tensor]
    statistics: list[tuple[Tensor, Tensor]] | None


def parameter_bytes(network: nn.Module, copies: int) -> int:
    """Bytes of `copies` tensors of each parameter; under Adam 4: the weights, their gradient and two moments."""
    return copies * sum(p.nbytes for p in network.parameters())


class Rounds(Method):
    """A method whose rounds take g steps that lower sum(weight * term) over the generator's parameters.

    A subclass names its terms in `terms` and computes them in `values`; `generator` maps labels or z to images.

    Attributes:
        terms: name -> the config field of its weight. The first is the cross-entropy; the one with the weight
            "alpha_adv" is the adversarial term.
        asks_features: whether `values` needs the teacher's features.
        generator: the module that is optimised.
        optimizers: of the generator, and of what else learns in these steps; a subclass makes them.
        caught: the activations that the hooks of `watched` recorded in this step.
        bn_loss: L_BN with its momentum memory; None without L_BN.
    """

    terms: ClassVar[dict[str, str]]
    asks_features: ClassVar[bool] = False
    saved = (*Method.saved, "generator", "bn_loss", "round")
    generator: nn.Module
    optimizers: list[torch.optim.Optimizer]

    def __init__(self, teacher, student, config, table=None, facts=None, compute=None, ranks=None):
        super().__init__(teacher, student, config, table, facts, compute, ranks)
        watched = config.alpha_bn and "alpha_bn" in self.terms.values()
        self.bn_loss = losses.BatchNormLoss(self.teacher, config.bn_momentum) if watched else None
        self.round = 0  # of the run
        self._round_of_epoch = 0
        self._synthesis = Step(self._objective, self.running)
        self._improve = Graphs(self._update, self.running, lambda: self.student.training)

    def begin_epoch(self, epoch: int) -> None:
        """Start counting the epoch's rounds."""
        self._round_of_epoch = 0

    # What a subclass fills in.

    def values(self, batch: SynthesisBatch) -> list[Tensor]:
        """The unweighted terms, scalars, in the order of `terms`; the adversarial one is 0 where `batch.s` is None."""
        raise NotImplementedError

    @property
    def asked(self) -> Classifier:
        """The network that a round's images are made for: the teacher."""
        return self.teacher

    def draw_view(self, batch: int) -> Tensor | tuple[Tensor, ...]:
        """The random numbers of `view`: by default those of the data set's crop and flip."""
        facts = self.facts
        shape = torch.Size((batch, *facts.image_shape))
        return draw_pixels(shape, facts.crop_padding, facts.flip, self.rng, self.device)

    def view(self, images: Tensor, drawn: Tensor) -> Tensor:
        """The networks' input, made from the generator's images and what `draw_view` drew."""
        return take(images, drawn, self.facts.crop_padding)

    def watched(self) -> AbstractContextManager[dict[int, Tensor]]:
        """Hooks on a network's layers for the time of a round (`tapped`): they record activations in `caught`."""
        return nullcontext({})

    @property
    def shared(self) -> list[nn.Module]:
        """The parts of the generator that outlive a round: all ranks train these together."""
        return [self.generator]

    def after_backward(self) -> None:
        """Called in every step between its backward pass and its update."""

    def after_update(self) -> None:
        """Called after each of the generator's updates."""

    def worth_keeping(self, images: Tensor) -> list[Tensor]:
        """The tensors (B, ...) of a step that a round may keep, one row an image: by default its images."""
        return [images]

    # The round.

    def steps(self, epoch: int, entering: Callable[[], Tensor]) -> Iterator[StepResult]:
        """g steps. The next step may overwrite a result's `images` and `kept`: clone what is to stay.

        Args:
            entering: returns the generator's input for the next step: labels (B,) or z (B, r).
        """
        config = self.config
        adversarial = config.alpha_adv > 0 and epoch >= config.warmup_epochs  # in warm-up the student learns nothing
        self.student.train(config.student_trains_in_synthesis and self._round_of_epoch > 0)  # D13
        self.student.requires_grad_(False)
        with self.bn_loss.armed() if self.bn_loss else nullcontext(), self.watched() as self.caught:
            for _ in range(config.generator_steps):
                inputs = entering()
                view = self.draw_view(len(inputs)) if config.augment_synthesis else None  # D12
                step = self._improve(inputs, view, adversarial, optimizers=self.optimizers)
                yield step._replace(terms=step.terms.clone())
            if self.bn_loss:
                self.bn_loss.last = step.statistics  # a replayed graph runs no hook
                self.bn_loss.end_round()
        self.student.requires_grad_(True).train()

    def _update(self, entering: Tensor, view, adversarial: bool, optimizers: list[torch.optim.Optimizer]) -> StepResult:
        """One step of the generator."""
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss, terms, images = self._synthesis.backward(entering, view, adversarial, loss_of=operator.itemgetter(0))
        self.ranks.average_gradients(self.shared, self.generator.parameters())
        self.after_backward()
        for optimizer in optimizers:
            self.before_update(optimizer)
            self.scaler.step(optimizer)
        self.scaler.update()
        self.after_update()
        images = images.detach()
        statistics = self.bn_loss.last if self.bn_loss else None
        return StepResult(loss.detach(), terms.detach(), images, self.worth_keeping(images), statistics)

    def report(self, epoch: int, terms: list[Tensor], images: int, start: float) -> SynthesisReport:
        """Count a finished round and report on it; waits for the device once.

        Args:
            terms: of each step, (number of terms,).
            images: the number of images that this rank generated.
            start: when the round began, by `time.perf_counter`.

        Raises:
            NonFiniteLoss: a term became NaN or infinite.
        """
        columns = self.ranks.mean(torch.stack(terms)).T.tolist()
        for term, values in zip(self.terms, columns, strict=True):
            if not all(map(math.isfinite, values)):
                raise NonFiniteLoss(
                    f"{term} became NaN or infinite in synthesis round {self.round} (epoch {epoch}): lower "
                    "generator_lr or student_lr, or check the teacher's normalisation. What was saved before is whole."
                )
        self.round += 1
        self._round_of_epoch += 1
        last = {term: values[-1] for term, values in zip(self.terms, columns, strict=True)}
        weighted = {self.terms[term]: value for term, value in last.items()}
        return SynthesisReport(
            steps=self.config.generator_steps,
            images=images * self.ranks.size,
            ce_per_step=columns[0],
            bn=weighted.get("alpha_bn", 0.0),
            adv=weighted.get("alpha_adv", 0.0),
            seconds=time.perf_counter() - start,
            extra={t: v for t, v in last.items() if self.terms[t] not in ("alpha_cls", "alpha_bn", "alpha_adv")},
        )

    def _objective(self, entering: Tensor, view, adversarial: bool) -> tuple[Tensor, Tensor, Tensor]:
        """The weighted sum of the terms, the terms, and the generator's images (B, C, H, W) for its input."""
        with self.compute.autocast(self.device):
            generated = self.generator(entering)  # Eq. 4
            images = generated if view is None else self.view(generated, view)
            answer = self.asked(images, return_features=self.asks_features)
            s = self.student(images).float() if adversarial else None
        t, features = (x.float() for x in answer) if self.asks_features else (answer.float(), None)
        batch = SynthesisBatch(generated, images, self.labels_of(entering, t), t, s, features, view)
        terms = torch.stack(self.values(batch))
        if self.bn_loss:
            self.bn_loss.settle()
        weights = [getattr(self.config, weight) for weight in self.terms.values()]
        return sum(alpha * term for alpha, term in zip(weights, terms, strict=True)), terms, generated

    def labels_of(self, entering: Tensor, t: Tensor) -> Tensor:
        """(B,) the labels that the first term is computed with."""
        raise NotImplementedError

    # Shared pieces.

    def batch_norm_term(self, batch: SynthesisBatch) -> Tensor:
        """L_BN of the teacher's last pass, a scalar; 0 without L_BN."""
        return self.bn_loss() if self.bn_loss else batch.t.new_zeros(())

    def adversarial_term(self, batch: SynthesisBatch) -> Tensor:
        """`against_student`, a scalar; 0 in steps without an adversarial term."""
        return batch.t.new_zeros(()) if batch.s is None else self.against_student(batch.t, batch.s)

    def against_student(self, t: Tensor, s: Tensor) -> Tensor:
        """-L_KL of Eq. 5 from the logits (B, K), a scalar: low where the student is far from the teacher."""
        return losses.adversarial(t, s, self.config.adversarial_mask)

    def build(self, make: Callable[[], nn.Module]) -> nn.Module:
        """The module that `make` returns, on the device, in train mode; its weights are drawn from this run's random
        numbers and equal on all ranks."""
        seed = self.ranks.agree(torch.randint(2**31, (), generator=self.rng, device=self.device))
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []), self.device:
            torch.manual_seed(seed)
            built = make()
        return self.compute.lay_out(built.to(self.device)).train()

    def network(self, width_in: int) -> Generator:
        """G for this data set, with an input of `width_in` numbers."""
        config, facts = self.config, self.facts
        return Generator(
            width_in,
            facts.size,
            facts.channels,
            config.generator_width,
            config.generator_layout,
            config.spectral_norm,
        )

    def adam(self, parameters, rate: float) -> torch.optim.Adam:
        """A.2's optimiser for synthesis: Adam."""
        return torch.optim.Adam(parameters, rate, self.config.generator_betas, fused=True)
