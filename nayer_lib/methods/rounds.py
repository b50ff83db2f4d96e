"""Synthesis in rounds of g steps: what all methods share that make their images by lowering a sum of loss terms.

* `Inversion` optimises one batch of images a round and keeps it in the memory (NAYER, FM, CMI, DeepInversion,
  SpaceshipNet).
* `Live` lets one generator play on through the whole run; the student sees its fresh images, and none is kept but for
  what a method replays (DAFL, ZSKT, DFQ and their descendants).
"""

import copy
import dataclasses
import math
import operator
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from .. import losses
from ..augment import draw_pixels, take
from ..base_config import GeneratorConfig
from ..compute import Graphs, Step
from ..generator.networks import Generator
from ..memory import Memory
from .base import Batch, Examples, Method, NonFiniteLoss, SynthesisReport


@dataclass(frozen=True)
class Seen:
    """What the terms of one step are computed from.

    Attributes:
        made: (B, C, H, W) as the generator made them.
        images: the same as the teacher saw them: cropped and flipped, if synthesis augments.
        labels: (B,) the pseudo-labels; of a live generator, which has none, the classes that the teacher sees.
        t, s: (B, K) logits of teacher and student; s is None while nobody plays against the student.
        features: (B, d) the teacher's pooled features, for methods that ask for them.
        view: what `draw_view` drew for this step.
    """

    made: Tensor
    images: Tensor
    labels: Tensor
    t: Tensor
    s: Tensor | None
    features: Tensor | None
    view: Tensor | tuple[Tensor, ...] | None


def parameter_bytes(network: nn.Module, copies: int) -> int:
    """Bytes of a network's parameters, times the numbers kept for each: 4 under Adam, with gradient and moments."""
    return copies * sum(p.nbytes for p in network.parameters())


class Rounds(Method):
    """A round: g steps that lower sum(weight * term) over whatever makes the images.

    A subclass names its terms in `terms` and computes them in `values`; `generator` maps labels or z to images.

    Attributes:
        terms: name -> the config field of its weight. The first is the cross-entropy, the one weighted by "alpha_adv"
            plays against the student.
        asks_features: whether `values` needs the teacher's features.
        generator: the module that is optimised.
        bn_loss: L_BN with its momentum memory; None where there is no such term.
    """

    terms: ClassVar[dict[str, str]]
    asks_features: ClassVar[bool] = False
    generator: nn.Module

    def __init__(self, teacher, student, config, table=None, facts=None, compute=None, ranks=None):
        super().__init__(teacher, student, config, table, facts, compute, ranks)
        watched = config.alpha_bn and "alpha_bn" in self.terms.values()
        self.bn_loss = losses.BatchNormLoss(self.teacher, config.bn_momentum) if watched else None
        self.round = 0  # of the run
        self._round_of_epoch = 0
        self._generate = Step(self._objective, self.running)
        self._improve = Graphs(self._update, self.running, lambda: self.student.training)

    def begin_epoch(self, epoch: int) -> None:
        """Start counting the epoch's rounds."""
        self._round_of_epoch = 0

    # What a subclass fills in.

    def values(self, seen: Seen) -> list[Tensor]:
        """The terms, unweighted, each a scalar, in the order of `terms`. Where `seen.s` is None, alpha_adv's is 0."""
        raise NotImplementedError

    def draw_view(self, batch: int) -> Tensor | tuple[Tensor, ...]:
        """The random part of how the teacher sees a batch: by default the data set's crop and flip."""
        facts = self.facts
        shape = torch.Size((batch, *facts.image_shape))
        return draw_pixels(shape, facts.crop_padding, facts.flip, self.own_rng, self.device)

    def view(self, images: Tensor, drawn: Tensor) -> Tensor:
        """The images as the teacher sees them."""
        return take(images, drawn, self.facts.crop_padding)

    def after_backward(self) -> None:
        """Called in every step between its backward pass and its update."""

    def after_update(self) -> None:
        """Called after each of the generator's updates."""

    def worth_keeping(self, images: Tensor) -> list[Tensor]:
        """What a round keeps of a step: its images. Each tensor (B, ...), one row an image."""
        return [images]

    # The round.

    def steps(
        self, epoch: int, entering: Callable[[], Tensor], optimizers: Sequence[torch.optim.Optimizer]
    ) -> Iterator[tuple[Tensor, Tensor, list[Tensor]]]:
        """g steps. Each is yielded as its loss, its images and what is worth keeping, all as before its update.

        The next step may overwrite them: clone what is to stay.

        Args:
            entering: what enters the generator in the next step: labels (B,) or z (B, r).
            optimizers: of the generator's parameters.
        """
        config = self.config
        adversarial = config.alpha_adv > 0 and epoch >= config.warmup_epochs  # no student to play against before
        self.student.train(config.student_trains_in_synthesis and self._round_of_epoch > 0)  # D13
        self.student.requires_grad_(False)
        self._parts: list[Tensor] = []
        with self.bn_loss.armed() if self.bn_loss else nullcontext():
            for _ in range(config.generator_steps):
                enters = entering()
                view = self.draw_view(len(enters)) if config.augment_synthesis else None  # D12
                loss, terms, images, kept, statistics = self._improve(enters, view, adversarial, optimizers=optimizers)
                self._parts.append(terms.clone())
                yield self.ranks.mean(loss), images, kept
            if self.bn_loss:
                self.bn_loss.last = statistics  # where a graph was replayed no hook has run
                self.bn_loss.end_round()
                self.ranks.average(x for pair in self.bn_loss.memory for x in pair)
        self.student.requires_grad_(True).train()

    def _update(self, entering: Tensor, view, adversarial: bool, optimizers: Sequence[torch.optim.Optimizer]):
        """One step of the generator: loss, terms, images, what is worth keeping, and what L_BN saw, all detached."""
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss, terms, images = self._generate.backward(entering, view, adversarial, loss_of=operator.itemgetter(0))
        self.ranks.average_gradients(self.generator)
        self.after_backward()
        for optimizer in optimizers:
            self.before_update(optimizer)
            self.scaler.step(optimizer)
        self.scaler.update()
        self.after_update()
        images = images.detach()
        return loss.detach(), terms.detach(), images, self.worth_keeping(images), self.bn_loss and self.bn_loss.last

    def report(self, epoch: int, images: int, start: float) -> SynthesisReport:
        """What the round's steps did; it counts the round, and waits for the device once.

        Raises:
            NonFiniteLoss: a term became NaN or infinite.
        """
        columns = self.ranks.mean(torch.stack(self._parts)).T.tolist()
        for term, values in zip(self.terms, columns, strict=True):
            if not all(map(math.isfinite, values)):
                raise NonFiniteLoss(
                    f"{term} became NaN or infinite in synthesis round {self.round} (epoch {epoch}): lower "
                    "generator_lr, or check the teacher's normalisation. What was saved before is whole."
                )
        self.round += 1
        self._round_of_epoch += 1
        last = {term: values[-1] for term, values in zip(self.terms, columns, strict=True)}
        weighted = {self.terms[term]: value for term, value in last.items()}
        return SynthesisReport(
            steps=self.config.generator_steps,
            images=images,
            ce_per_step=columns[0],
            bn=weighted.get("alpha_bn", 0.0),
            adv=weighted.get("alpha_adv", 0.0),
            seconds=time.perf_counter() - start,
            extra={t: v for t, v in last.items() if self.terms[t] not in ("alpha_cls", "alpha_bn", "alpha_adv")},
        )

    def _objective(self, entering: Tensor, view, adversarial: bool) -> tuple[Tensor, Tensor, Tensor]:
        """The weighted sum of the terms on images made from what enters, the terms, and the images (B, C, H, W)."""
        with self.compute.autocast(self.device):
            images = self.generator(entering)  # Eq. 4
        terms = self._terms(images, entering, view, adversarial)
        if self.bn_loss:
            self.bn_loss.settle()
        weights = [getattr(self.config, weight) for weight in self.terms.values()]
        return sum(alpha * term for alpha, term in zip(weights, terms, strict=True)), terms, images

    def _terms(self, images: Tensor, entering: Tensor, view, adversarial: bool) -> Tensor:
        seen = images if view is None else self.view(images, view)
        with self.compute.autocast(self.device):
            answer = self.teacher(seen, return_features=self.asks_features)
            s = self.student(seen).float() if adversarial else None
        t, features = (x.float() for x in answer) if self.asks_features else (answer.float(), None)
        return torch.stack(self.values(Seen(images, seen, self.labels_of(entering, t), t, s, features, view)))

    def labels_of(self, entering: Tensor, t: Tensor) -> Tensor:
        """(B,) the labels that the first term is computed with."""
        raise NotImplementedError

    # Shared pieces.

    def batch_norm_term(self, seen: Seen) -> Tensor:
        """L_BN of what the teacher saw last, a scalar; 0 where it has no weight."""
        return self.bn_loss() if self.bn_loss else seen.t.new_zeros(())

    def adversarial_term(self, seen: Seen) -> Tensor:
        """`against_student`; 0 while nobody plays against the student."""
        return seen.t.new_zeros(()) if seen.s is None else self.against_student(seen.t, seen.s)

    def against_student(self, t: Tensor, s: Tensor) -> Tensor:
        """-L_KL of Eq. 5 from the logits (B, K), a scalar: low where the student is far from the teacher."""
        return losses.adversarial(t, s, self.config.adversarial_mask)

    def build(self, make: Callable[[], nn.Module]) -> nn.Module:
        """What `make` makes, its weights drawn from this run's random numbers, on the device, in train mode."""
        seed = int(torch.randint(2**31, (), generator=self.rng, device=self.device))
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []), self.device:
            torch.manual_seed(seed)
            built = make()
        return self.compute.lay_out(self.ranks.synchronised(built.to(self.device))).train()

    def network(self, width_in: int) -> Generator:
        """G for this data set, reading `width_in` numbers."""
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
        """A.2's optimiser, for whatever is optimised in synthesis."""
        return torch.optim.Adam(parameters, rate, self.config.generator_betas, fused=True)

    def state_dict(self) -> dict:
        """The rounds' part on top of `Method.state_dict`."""
        return super().state_dict() | {
            "generator": self.generator.state_dict(),
            "bn_loss": self.bn_loss.state_dict() if self.bn_loss else {},
            "round": self.round,
        }

    def load_state_dict(self, state: dict) -> None:
        """The inverse of `state_dict`."""
        super().load_state_dict(state)
        self.generator.load_state_dict(state["generator"])
        if self.bn_loss:
            self.bn_loss.load_state_dict(state["bn_loss"])
        self.round = state["round"]


@dataclass(frozen=True)
class InversionConfig(GeneratorConfig):
    """Methods that optimise a generator for a batch of images a round and keep it in the memory, as NAYER does."""

    generator_lr: float = 1e-3
    alpha_bn: float = 1.0
    alpha_adv: float = 1.0
    adversarial_mask: bool = True
    bn_momentum: float = 0.0
    keep: str = "best"  # of a round's steps, or "last"
    student_trains_in_synthesis: bool = False
    memory_size: int | None = None  # images; None: all
    student_lr: float = 0.1
    student_lr_end: float = 0.0
    temperature: float = 20.0  # of the student's loss


class Inversion(Rounds):
    """A round optimises one batch of images for pseudo-labels and keeps it. Its terms are Eq. 5's.

    Attributes:
        balanced: pseudo-labels are all classes in order until the batch is full; else each is drawn at random.
    """

    terms = {"L_CE": "alpha_cls", "L_BN": "alpha_bn", "L_KL": "alpha_adv"}
    balanced: ClassVar[bool] = True

    def __init__(self, teacher, student, config, table=None, facts=None, compute=None, ranks=None):
        super().__init__(teacher, student, config, table, facts, compute, ranks)
        self._adam: torch.optim.Adam | None = None

    def values(self, seen: Seen) -> list[Tensor]:
        """The three terms of Eq. 5, the adversarial one with its minus."""
        ce = losses.classification(seen.t, seen.labels)
        return [ce, self.batch_norm_term(seen), self.adversarial_term(seen)]

    def begin_round(self) -> list[torch.optim.Optimizer]:
        """Make the generator ready for new images, and its optimisers."""
        raise NotImplementedError

    def fresh_adam(self, parameters, rate: float) -> torch.optim.Adam:
        """A.2's optimiser for one round: the same one each time, its moments made zero in place, so that what was
        captured with it goes on."""
        if self._adam is None:
            self._adam = self.adam(parameters, rate)
        for moments in self._adam.state.values():
            for moment in moments.values():
                moment.zero_()
        return self._adam

    def remember(self, kept: list[Tensor], labels: Tensor) -> None:
        """Put what the round kept into the memory: Algorithm 1, line 11."""
        self.memory.add(kept[0], labels, self.round - 1)

    def synthesize(self, epoch: int) -> SynthesisReport:
        """One round: Algorithm 1, lines 5-11."""
        start = time.perf_counter()
        optimizers = self.begin_round()  # line 5
        labels = self.pseudo_labels()
        best, traced = torch.full((), math.inf, device=self.device), []
        for step, (loss, images, made) in enumerate(self.steps(epoch, lambda: labels, optimizers)):  # lines 6-10
            # D11: chosen on the device, without waiting for the loss's value.
            better = loss < best
            best = torch.where(better, loss, best)
            if step == 0 or self.config.keep == "last":
                kept = [new.clone() for new in made]
            else:
                kept = [torch.where(better, *pair) for pair in zip(made, kept, strict=True)]
            if self.trace is not None:
                traced.append(Memory.as_bytes(images))
        if self.trace is not None:
            self.trace.append((torch.stack(traced), labels))
        report = self.report(epoch, self.config.generator_batch, start)
        self.remember(kept, labels)  # line 11
        return report

    def labels_of(self, entering: Tensor, t: Tensor) -> Tensor:
        """The pseudo-labels, which are what enters."""
        return entering

    def pseudo_labels(self) -> Tensor:
        """A round's labels: balanced, the remainder at random, so that each of NAYER's heads sees each class once.

        Returns:
            (B / ranks,): this rank's part of them.
        """
        classes, batch = len(self.teacher.class_names), self.config.generator_batch
        ordered = batch // classes if self.balanced else 0
        whole = torch.arange(classes, device=self.device).repeat(ordered)
        rest = torch.randint(classes, (batch - len(whole),), generator=self.rng, device=self.device)
        share, first = self.block
        return torch.cat([whole, rest])[first : first + share]

    @property
    def block(self) -> tuple[int, int]:
        """How much of the batch is this rank's, and where in it that begins."""
        share = self.ranks.share(self.config.generator_batch, "generator_batch")
        return share, self.ranks.rank * share


@dataclass(frozen=True)
class LiveConfig(GeneratorConfig):
    """Methods whose generator plays on through the whole run."""

    generator_lr: float = 1e-3
    alpha_cls: float = 0.0  # of L_OH: cross-entropy with the class that the teacher itself sees
    augment_synthesis: bool = False
    student_lr: float = 0.1
    student_lr_end: float = 0.0

    def in_turns(self) -> Self:
        """Table 8's budget for a live generator: an epoch in turns of a few generator and as many student steps.

        Published turns are of 1 and 5 or 10 steps; here both sides get up to five, so that with the same student steps
        about as many images go through the teacher in synthesis as in NAYER's warm-up and rounds together.
        """
        turn = max(steps for steps in range(1, 6) if self.student_steps % steps == 0)
        repeats = self.student_steps // turn
        steps = self.distillation_epochs * repeats * turn
        return dataclasses.replace(
            self,
            repeats=repeats,
            rounds=1,
            warmup_rounds=None,
            warmup_epochs=0,
            epochs=self.distillation_epochs,
            epochs_include_warmup=False,
            generator_steps=turn,
            generator_batch=max(2, round(self.synthesis_passes / steps)),
            student_steps=turn,
        )


@dataclass(frozen=True)
class AdversarialConfig(LiveConfig):
    """Those whose generator plays against the student."""

    alpha_adv: float = 1.0
    student_trains_in_synthesis: bool = False


class Live(Rounds):
    """One generator and one optimiser for the whole run: z -> images, fresh ones in every step. Its terms are those of
    DFQ, where a method has no others.

    Its layout is that of the other methods here, images in [0, 1], so that the comparison is of losses and schedules;
    the authors of most of these methods end theirs in a BatchNorm without squashing.

    Attributes:
        holds_z: a round's steps, and the student steps after it, all look at the same z.
    """

    terms = {"L_OH": "alpha_cls", "L_IE": "alpha_ie", "L_BN": "alpha_bn", "L_KL": "alpha_adv"}
    holds_z: ClassVar[bool] = False

    def __init__(self, teacher, student, config, table=None, facts=None, compute=None, ranks=None):
        super().__init__(teacher, student, config, table, facts, compute, ranks)
        self.generator = self.build(lambda: self.network(config.noise_dim))
        self.generator_optimizer = self.adam(self.generator.parameters(), config.generator_lr)
        self._held_z = torch.empty(0, config.noise_dim, device=self.device)

    def synthesize(self, epoch: int) -> SynthesisReport:
        """One round of generator steps."""
        start = time.perf_counter()
        config = self.config
        batch = self.ranks.share(config.generator_batch, "generator_batch")
        if self.holds_z:
            self._held_z = self._draw(max(batch, self.ranks.share(config.student_batch, "student_batch")))
        for _ in self.steps(epoch, lambda: self.z(batch), [self.generator_optimizer]):
            pass
        return self.report(epoch, config.generator_steps * config.generator_batch, start)

    def values(self, seen: Seen) -> list[Tensor]:
        """The four terms, the adversarial one with its minus."""
        return [
            losses.classification(seen.t, seen.labels),
            losses.information_entropy(seen.t),
            self.batch_norm_term(seen),
            self.adversarial_term(seen),
        ]

    def z(self, n: int) -> Tensor:
        """(n, r) what enters the generator next."""
        return self._held_z[:n] if self.holds_z else self._draw(n)

    def _draw(self, n: int) -> Tensor:
        return torch.randn(n, self.config.noise_dim, generator=self.own_rng, device=self.device)

    def labels_of(self, entering: Tensor, t: Tensor) -> Tensor:
        """The classes that the teacher sees."""
        return t.argmax(1)

    @torch.no_grad()
    def made(self, n: int, generator: nn.Module | None = None) -> Tensor:
        """(n, C, H, W) images that the generator, or another one, makes now."""
        with self.compute.autocast(self.device):
            return (generator or self.generator)(self.z(n)).float()

    def fresh(self, n: int, generator: nn.Module | None = None) -> Tensor:
        """The same, augmented."""
        return self.augment(self.made(n, generator))

    def sample(self, n: int) -> Batch:
        """This rank's share of n images, made now."""
        return Batch(self.fresh(self.ranks.share(n, "student_batch")), None, "generator")

    @torch.no_grad()
    def examples(self) -> Examples:
        """500 images of now, labelled by the teacher. They come from random numbers of their own, through a copy of
        the generator, so that looking at them changes nothing."""
        rng = torch.Generator(self.device).manual_seed(self.round)
        z = torch.randn(500, self.config.noise_dim, generator=rng, device=self.device)
        images = copy.deepcopy(self.generator)(z).float()
        return Examples(Memory.as_bytes(images), self.teacher(images).argmax(1), None)

    def state_dict(self) -> dict:
        """The generator's optimiser and the z that is held on top of `Rounds.state_dict`."""
        return super().state_dict() | {
            "generator_optimizer": self.generator_optimizer.state_dict(),
            "held_z": self._held_z,
        }

    def load_state_dict(self, state: dict) -> None:
        """The inverse of `state_dict`."""
        super().load_state_dict(state)
        self.generator_optimizer.load_state_dict(state["generator_optimizer"])
        self._held_z = state["held_z"].to(self.device)
