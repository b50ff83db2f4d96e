"""The seam behind every row of Table 1: how images are made, and how the student learns from them.

`distill()` runs every method the same way; a method overrides what makes it different. The defaults are NAYER-like.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from .. import losses
from ..augment import crop_and_flip
from ..base_config import Config
from ..classifiers.teacher import Classifier
from ..compute import Compute, fix_shapes, folded
from ..datasets import DataSet, dataset
from ..errors import UserError
from ..memory import Memory, Pool
from ..ranks import Ranks
from ..steps import Graphs, Running, Step


class NonFiniteLoss(UserError):
    """A loss became NaN or infinite; the sentence names the term. What was saved before is whole."""


class Paused(UserError):
    """An epoch cannot begin, and nothing of it has happened: the run is saved, and goes on as the sentence says."""


@dataclass(frozen=True)
class SynthesisReport:
    """What one synthesis round did; the notebooks draw their curves from these reports.

    Attributes:
        steps: optimiser steps taken.
        images: images added to the memory, on all ranks; of a method that keeps none, images made.
        ce_per_step: L_CE before each step, nats; of a method without labels, with the class that the teacher predicts.
        bn, adv: L_BN and the adversarial term of the last step, unweighted, both lowered; 0 where the term is off.
        seconds: wall time of the round.
        extra: a method's other terms in the last step, unweighted.
    """

    steps: int
    images: int
    ce_per_step: list[float]
    bn: float
    adv: float
    seconds: float
    extra: dict[str, float] = field(default_factory=dict)


class Batch(NamedTuple):
    """What the student sees in one step.

    Attributes:
        images: (B, C, H, W) in [0, 1], augmented.
        labels: (B,) the images' pseudo-labels; None if they have none.
        source: where the images come from, e.g. "memory".
        replayed: how many of the images, the last ones, come from a memory beside fresh ones.
        answers: (B, K) the teacher's logits, where they are kept with the images; None: it is asked in the step.
    """

    images: Tensor
    labels: Tensor | None
    source: str
    replayed: int = 0
    answers: Tensor | None = None


@dataclass(frozen=True)
class Examples:
    """Images to look at and to measure.

    Attributes:
        images: (N, C, H, W) uint8, the oldest first.
        labels: (N,) the images' pseudo-labels, or the teacher's predictions.
        rounds: (N,) the synthesis round that made each image; None where images are not kept.
    """

    images: Tensor
    labels: Tensor
    rounds: Tensor | None


class Method:
    """A data-free distillation method: one file, one class, one row of Table 1.

    Each of several processes holds one such object, with a share of the batches (`Ranks`). Networks that are trained
    through the whole run have their gradients averaged before each step (`ranks.average_gradients`).

    Args:
        teacher: frozen here; nothing in this kit changes a teacher.
        student: trained in place.
        config: of the run, all processes together. The run's device is the teacher's.
        table: (K, e), the pool P, for methods that read label text.
        facts: image size, crop and flip; None takes those of the config's data set.
        compute: number format, memory layout, how steps run; None: 32 bits, plain.
        ranks: this process among those that share the run; None: this process is alone.

    Attributes:
        running: how the method's steps really run.
        name, citation: the row's label, and the paper in author-year form.
        config_class: a `Config` with the fields that the method reads, and the authors' values.
        published: the method's schedule for CIFAR-10, by Section 4 of its paper or the code behind the printed numbers.
        reads_text: whether the method needs the pool P.
        student_first: whether the student's steps come before the synthesis rounds.
        reads_images: whether it learns from real images: a control, and no data-free method.
        needs_bits: whether the method is for quantised students alone.
        makes_images: whether it makes any.
        keeps_images: whether those of its rounds stay in the memory: not those of a live generator.
        black_box: whether answers are all that it needs of its teacher.
        compilable: whether torch.compile can take the student's loss: not a loss that contains gradients.
        saved: the attributes whose state decides what happens next, random numbers aside: a module, an optimiser or
            whatever else has a `state_dict`, or tensors and plain values.
        config: of this process's part of the run, with its share of the batches.
        rng: this process's random numbers.
        trace: a list to which each round of an `Inversion` adds its images at every step, (g, B, C, H, W) uint8, and
            their labels; None: nothing is traced.

    Raises:
        UserError: other classes than the teacher's; a black box where more than answers is needed; a student that is
            not quantised where it has to be; a batch or a memory that the ranks cannot share; steps that the device
            cannot do.
    """

    name: ClassVar[str]
    citation: ClassVar[str]
    config_class: ClassVar[type[Config]]
    published: ClassVar[dict[str, Any]]
    reads_text: ClassVar[bool] = False
    student_first: ClassVar[bool] = False
    reads_images: ClassVar[bool] = False
    needs_bits: ClassVar[bool] = False
    makes_images: ClassVar[bool] = True
    keeps_images: ClassVar[bool] = True
    black_box: ClassVar[bool] = False
    compilable: ClassVar[bool] = True
    saved: ClassVar[tuple[str, ...]] = ("student", "student_optimizer", "memory", "scaler")

    def __init__(
        self,
        teacher: Classifier,
        student: Classifier,
        config: Config,
        table: Tensor | None = None,
        facts: DataSet | None = None,
        compute: Compute | None = None,
        ranks: Ranks | None = None,
    ):
        if teacher.class_names != student.class_names:
            raise UserError("teacher and student must have the same class names in the same order.")
        if teacher.answers_alone and not self.black_box:
            raise UserError(
                f"{self.name} needs its teacher's gradient or layers, which a black box does not give: take stealing."
            )
        if self.needs_bits and student.quantisation is None:
            raise UserError(f"{self.name} makes a quantised student: give weight_bits, from 2 to 16.")
        self.ranks = ranks or Ranks()
        self.config = config = self.ranks.local(config)
        self.teacher, self.student, self.table = teacher.freeze(), student, table
        self.facts = facts or dataset(config.dataset)
        self.device = teacher.device
        compute = compute or Compute()
        compute.check(self.device, self.ranks.size)
        self.running = Running(compute, self.device, (type(self), dataclasses.replace(config, seed=0)))
        fix_shapes(self.device)
        self.rng = self.ranks.generator(config.seed, self.device)
        self.memory: Pool = Memory(self.facts.image_shape, self.device, config.memory_size)
        self.trace: list[tuple[Tensor, Tensor]] | None = None
        self.compute.lay_out(self.teacher)
        self.compute.lay_out(self.student)
        self.student_optimizer = self.make_student_optimizer()
        self._answering = folded(self.teacher, self.facts.image_shape)  # the teacher of the student phase
        self._learn = Step(self._student_loss, self.running, compilable=self.compilable)
        self._teach = Graphs(self._update_student, self.running, lambda: self.student.training)

    @property
    def compute(self) -> Compute:
        """How the run is computed."""
        return self.running.compute

    @property
    def scaler(self) -> torch.amp.GradScaler:
        """Scales the losses in fp16; does nothing with other number formats."""
        return self.running.scaler

    # Phase 1.

    def begin_epoch(self, epoch: int) -> None:
        """Called once before an epoch's first synthesis, epochs counted from 0.

        Raises:
            Paused: the epoch cannot begin; nothing has changed.
        """

    def synthesize(self, epoch: int) -> SynthesisReport:
        """One synthesis round: Algorithm 1, lines 5-11."""
        raise NotImplementedError

    # Phase 2.

    def sample(self, n: int) -> Batch:
        """n augmented images for the student: Algorithm 1, line 13."""
        images, labels = self.memory.draw(n, self.rng)
        return Batch(self.augment(images).float() / 255, labels, "memory")  # cropped as bytes, a quarter of the floats

    def make_student_optimizer(self) -> torch.optim.Optimizer:
        """A.2: SGD with momentum; `distill` sets its rate each epoch."""
        c = self.config
        return torch.optim.SGD(
            self.student.parameters(), c.student_lr, c.student_momentum, weight_decay=c.student_weight_decay, fused=True
        )

    def before_update(self, optimizer: torch.optim.Optimizer) -> None:
        """Called before every step of an optimiser, the student's or one of synthesis, after its backward pass."""

    def student_loss(self, batch: Batch, teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
        """Eq. 6."""
        return losses.distillation(teacher_logits, student_logits, self.config.temperature)

    def student_step(self, batch: Batch) -> Tensor:
        """One update of the student: Algorithm 1, line 14. Returns the loss, a scalar still on the device."""
        loss = self._teach(batch, optimizers=[self.student_optimizer])
        return self.ranks.mean(loss.clone())

    def _update_student(self, batch: Batch, optimizers: Sequence[torch.optim.Optimizer]) -> Tensor:
        [optimizer] = optimizers
        optimizer.zero_grad(set_to_none=True)
        loss = self._learn.backward(batch)
        self.ranks.average_gradients([self.student])
        self.before_update(optimizer)
        self.scaler.step(optimizer)
        self.scaler.update()
        return loss.detach()

    def _student_loss(self, batch: Batch) -> Tensor:
        with self.compute.autocast(self.device):
            with torch.no_grad():
                teacher_logits = self._answering(batch.images) if batch.answers is None else batch.answers
            student_logits = self.student(batch.images)
        return self.student_loss(batch, teacher_logits.float(), student_logits.float())

    # Shared pieces.

    def augment(self, images: Tensor) -> Tensor:
        """The data set's crop and flip."""
        return crop_and_flip(images, self.facts.crop_padding, self.facts.flip, self.rng)

    def examples(self) -> Examples:
        """What the student learns from at present: the memory, or fresh images of a live generator."""
        return Examples(self.memory.images, self.memory.labels, self.memory.rounds)

    @property
    def beside(self) -> int:
        """The most bytes that a method holds beside generator, student, teacher and memory: a second generator, a bank,
        a ring, with their optimisers."""
        return 0

    @property
    def held(self) -> int:
        """Images in the memory, on all ranks together: every rank holds the same number."""
        return self.ranks.size * len(self.memory)

    def on_card(self) -> dict:
        """What a run's card says of the method beside its config, after each epoch."""
        return {}

    def state_dict(self) -> dict:
        """Everything that decides what happens next, where this process is alone: the parts in `saved`."""
        parts = {name: getattr(self, name) for name in self.saved}
        states = {name: part.state_dict() if hasattr(part, "state_dict") else part for name, part in parts.items()}
        return states | {"rng": self.rng.get_state()}

    def load_state_dict(self, state: dict) -> None:
        """The inverse of `state_dict`, on a method built with the same arguments."""
        self.rng.set_state(state["rng"])
        for name in self.saved:
            part = getattr(self, name)
            if hasattr(part, "load_state_dict"):
                part.load_state_dict(state[name])
            else:
                setattr(self, name, tree_map_only(Tensor, lambda value: value.to(self.device), state[name]))
