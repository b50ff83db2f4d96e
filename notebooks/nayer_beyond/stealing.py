"""Stealing: the teacher is a black box that answers and gives no gradient (the paper's outlook, B.7).

Images are made for the student, which costs no question, and the teacher is asked about each one once:

    L   = alpha_cls * CE(s, y) + alpha_ie * sum over classes c of q_c log q_c        over G and Z
    L_S = KL(answer || s), as Eq. 6; where the answers are labels, CE(s, label)      over S

s are the student's logits and q its mean prediction over the batch. The scheme is that of IDEAL (Zhang et al. 2023,
"IDEAL: Query-Efficient Data-Free Learning from Black-Box Models", ICLR), of which we read the abstract alone: no
question while images are made, one for each image afterwards. The terms are our choice, DAFL's second one among them,
and the generator is NAYER's with everything that can enter it, so that text can be compared with what has no meaning.
Of other papers' ways, gradients estimated by questions (DFME, MAZE) and a second student whose disagreement is sought
(DisGUIDE, Dual Students), none is here.

The memory M keeps the answer with each image, as made: the student sees it cropped and mirrored with the same answer,
and a run asks about as many images as it makes. There is no warm-up, since images for a student that learned nothing
are worth little. Both weights are guesses, tried on digits.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from nayer_lib import losses
from nayer_lib.base_config import NayerConfig
from nayer_lib.classifiers.teacher import Classifier
from nayer_lib.memory import Memory, Pool
from nayer_lib.methods import terms
from nayer_lib.methods.base import Batch, Examples, Paused
from nayer_lib.methods.nayer import Nayer
from nayer_lib.methods.round import SynthesisBatch
from nayer_lib.ranks import Ranks

from .black_box import BlackBox


@dataclass(frozen=True)
class StealingConfig(NayerConfig):
    """NAYER's numbers without those of the terms that need the teacher's gradient."""

    answers: str = "logits"  # or "probabilities", "labels"
    budget: int | None = None  # images that the teacher can be asked about; None: as many as the run makes
    alpha_cls: float = 1.0
    alpha_ie: float = 1.0
    warmup_epochs: ClassVar[int] = 0
    warmup_rounds: ClassVar[int | None] = None
    epochs_include_warmup: ClassVar[bool] = False
    alpha_bn: ClassVar[float] = 0.0
    bn_momentum: ClassVar[float] = 0.0
    alpha_adv: ClassVar[float] = 0.0
    adversarial_mask: ClassVar[bool] = False
    student_trains_in_synthesis: ClassVar[bool] = False


class Stealing(Nayer):
    """NAYER's rounds with the student in the teacher's place; the teacher answers, and is counted.

    Of several ranks each has an equal share of the budget.

    Attributes:
        teacher: a `BlackBox`.
        memory: a row is an image and its answer.
    """

    name = "Stealing"
    citation = "Zhang et al. 2023"
    config_class = StealingConfig
    terms = {"L_CE": "alpha_cls", "L_IE": "alpha_ie"}
    black_box = True

    def __init__(self, teacher, student, config, table, facts=None, compute=None, ranks=None):
        share = config.budget and config.budget // (ranks or Ranks()).size
        closed = BlackBox(teacher, config.answers, share)
        super().__init__(closed, student, config, table, facts, compute, ranks)
        kinds = [(self.facts.image_shape, torch.uint8), ((len(closed.class_names),), torch.float32)]
        self.memory = Pool(kinds, self.device, self.config.memory_size)

    @property
    def asked(self) -> Classifier:
        """The student: its gradient is to be had."""
        return self.student

    def values(self, batch: SynthesisBatch) -> list[Tensor]:
        """Both terms, of the student's logits."""
        return [losses.classification(batch.t, batch.labels), terms.information_entropy(batch.t)]

    def begin_epoch(self, epoch: int) -> None:
        """See that the budget lasts for the epoch."""
        wanted = self.config.repeats * self.config.synthesis_rounds(epoch) * self.config.generator_batch
        if wanted > self.teacher.left:
            raise Paused(
                f"the budget of {self.config.budget:,} images does not last: the teacher was asked about "
                f"{self.ranks.size * self.teacher.asked:,}, and epoch {epoch} needs {self.ranks.size * wanted:,} more. "
                "Resume the run with a larger budget."
            )
        super().begin_epoch(epoch)

    @torch.no_grad()
    def remember(self, kept: list[Tensor], labels: Tensor) -> None:
        """Ask the teacher about the images, as they are kept, and keep its answers too."""
        images = Memory.as_bytes(kept[0])
        self.memory.add([images, self.teacher(images.float() / 255)], labels, self.round - 1)

    def sample(self, n: int) -> Batch:
        """n augmented images with the answers to them as they were made."""
        images, answers, labels = self.memory.draw(n, self.rng, 0, 1)
        return Batch(self.augment(images).float() / 255, labels, "memory", answers=answers)

    def student_loss(self, batch: Batch, teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
        """Eq. 6, or the cross-entropy with the label that was answered."""
        if self.config.answers == "labels":
            return F.cross_entropy(student_logits, teacher_logits.argmax(1))
        return super().student_loss(batch, teacher_logits, student_logits)

    def examples(self) -> Examples:
        """The images of the memory."""
        return Examples(self.memory.rows[0], self.memory.labels, self.memory.rounds)

    def on_card(self) -> dict:
        """How the teacher answers, and how many images all ranks asked about; the evaluation's are not counted."""
        return {"black_box": {"answers": self.teacher.answers, "asked": self.ranks.size * self.teacher.asked}}

    def state_dict(self) -> dict:
        """`Rounds.state_dict` with the count of images asked."""
        return super().state_dict() | {"asked": self.teacher.asked}

    def load_state_dict(self, state: dict) -> None:
        """The inverse of `state_dict`."""
        super().load_state_dict(state)
        self.teacher.asked = state["asked"]
