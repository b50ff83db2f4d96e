"""NAYER: constant label text, redrawn layers (Section 3; Algorithm 1).

The authors' code and the text differ in D1-D13; each is a field of `Config` (docs/divergences.md). One round here is
the released code's `synthesize`, and with `variant="paper"` the text's lines 5-11.
"""

import math
import operator
import time
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from .. import losses
from ..augment import draw_pixels, take
from ..classifiers.teacher import Classifier
from ..compute import Compute, Step
from ..config import Config
from ..datasets import DataSet
from ..errors import UserError
from ..generator.latents import COLUMNS, build_latent, control_table
from ..generator.networks import Generator
from ..ranks import Ranks
from .base import Method, NonFiniteLoss, SynthesisReport

KEPT = [name for name, column in COLUMNS.items() if not column.redrawn]  # latents whose heads outlive a rebuild of G


class Nayer(Method):
    """The method of the paper.

    On several ranks each takes a block of the batch's labels in their order, with the heads that belong to it: whole
    heads, every class as often as on the other ranks, where K times their number divides the batch. L_BN sees a rank's
    own images, also where SyncBatchNorm joins the statistics of generator and student; its momentum memory is averaged.

    Attributes:
        generator: the latent (Z over the pool P) followed by G: labels (B,) -> images (B, C, H, W) in [0, 1].
        bn_loss: L_BN with its momentum memory; None where alpha_bn is 0.
    """

    name = "NAYER"
    citation = "Tran et al. 2024"

    def __init__(
        self,
        teacher: Classifier,
        student: Classifier,
        config: Config,
        table: Tensor,
        facts: DataSet | None = None,
        compute: Compute | None = None,
        ranks: Ranks | None = None,
    ):
        super().__init__(teacher, student, config, table, facts, compute, ranks)
        if len(table) != len(teacher.class_names):
            raise UserError(f"the pool has {len(table)} classes, the teacher {len(teacher.class_names)}.")
        self.table = control_table(config.embedding, table.cpu(), self.facts.factors, config.seed).to(self.device)
        self.generator: nn.Sequential | None = None
        self.bn_loss = losses.BatchNormLoss(self.teacher, config.bn_momentum) if config.alpha_bn else None
        self.round = 0  # of the run
        self._round_of_epoch = 0
        self._generate = Step(self._eq5, self.compute, self.device)
        self._rebuild()

    def begin_epoch(self, epoch: int) -> None:
        """Rebuild the whole generator every `generator_life` epochs, counted from the end of warm-up (D5)."""
        self._round_of_epoch = 0
        life = self.config.generator_life
        if life is not None and epoch > 0 and (epoch - self.config.warmup_epochs) % life == 0:
            self._rebuild()

    def synthesize(self, epoch: int) -> SynthesisReport:
        """One round: redraw the noisy layer, train it with G for g steps on Eq. 5, keep one batch of images."""
        start = time.perf_counter()
        config = self.config
        adversarial = config.alpha_adv > 0 and epoch >= config.warmup_epochs  # no student to play against before
        self.student.train(config.student_trains_in_synthesis and self._round_of_epoch > 0)  # D13
        self.student.requires_grad_(False)

        latent = self.generator[0]
        latent.redraw(self.rng)  # line 5
        labels = self._pseudo_labels()
        optimizer = torch.optim.Adam(
            self.generator.parameters(), config.generator_lr, config.generator_betas, fused=True
        )  # a fresh one each round
        best, parts = torch.full((), math.inf, device=self.device), []
        with self.bn_loss.armed() if self.bn_loss else nullcontext():
            for step in range(config.generator_steps):  # line 7
                crop = self._draw_crop(len(labels)) if config.augment_synthesis else None  # D12
                optimizer.zero_grad(set_to_none=True)
                loss, terms, images = self._generate.backward(
                    labels, crop, adversarial, scaler=self.scaler, loss_of=operator.itemgetter(0)
                )  # lines 6, 8 and 9
                self.ranks.average_gradients(self.generator)
                # D11: chosen on the device, without waiting for the loss's value.
                loss = self.ranks.mean(loss.detach())
                better = loss < best
                best = torch.where(better, loss, best)
                if step == 0 or config.keep == "last":
                    kept = images.detach().clone()
                else:
                    kept = torch.where(better, images.detach(), kept)
                self.scaler.step(optimizer)  # line 10
                self.scaler.update()
                parts.append(terms.detach().clone())
            if self.bn_loss:
                self.bn_loss.end_round()
                self.ranks.average(x for pair in self.bn_loss.memory for x in pair)

        self.student.requires_grad_(True).train()
        ce, bn, adv = self.ranks.mean(torch.stack(parts)).T.tolist()  # the round's one wait for the device
        for term, values in (("L_CE", ce), ("L_BN", bn), ("L_KL", adv)):
            if not all(map(math.isfinite, values)):
                raise NonFiniteLoss(
                    f"{term} became NaN or infinite in synthesis round {self.round} (epoch {epoch}): lower "
                    "generator_lr, or check the teacher's normalisation. What was saved before is whole."
                )
        self.memory.add(kept, labels, self.round)  # line 11
        self.round += 1
        self._round_of_epoch += 1
        seconds = time.perf_counter() - start
        return SynthesisReport(config.generator_steps, config.generator_batch, ce, bn[-1], adv[-1], seconds)

    def _eq5(self, labels: Tensor, crop: Tensor | None, adversarial: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Eq. 5 on images made for some labels: the loss, its three terms (3,), and the images (B, C, H, W)."""
        config = self.config
        if self.bn_loss:
            self.bn_loss.forget()
        with self.compute.autocast(self.device):
            images = self.generator(labels)  # Eq. 4
        seen = images if crop is None else take(images, crop, self.facts.crop_padding)
        terms = self._terms(seen, labels, adversarial)
        weights = (config.alpha_cls, config.alpha_bn, config.alpha_adv)
        return sum(alpha * term for alpha, term in zip(weights, terms, strict=True)), terms, images

    def _terms(self, images: Tensor, labels: Tensor, adversarial: bool) -> Tensor:
        """The three terms of Eq. 5, unweighted, the adversarial one with its minus: (3,)."""
        with self.compute.autocast(self.device):
            teacher_logits = self.teacher(images)
            student_logits = self.student(images) if adversarial else None
        teacher_logits = teacher_logits.float()
        zero = teacher_logits.new_zeros(())
        return torch.stack(
            [
                losses.classification(teacher_logits, labels),
                self.bn_loss() if self.bn_loss else zero,
                losses.adversarial(teacher_logits, student_logits.float(), self.config.adversarial_mask)
                if adversarial
                else zero,
            ]
        )

    def _draw_crop(self, batch: int) -> Tensor:
        facts = self.facts
        shape = torch.Size((batch, facts.channels, facts.size, facts.size))
        return draw_pixels(shape, facts.crop_padding, facts.flip, self.own_rng, self.device)

    def _pseudo_labels(self) -> Tensor:
        """All classes in order until the batch is full, the remainder at random: each head sees each class once.

        Returns:
            (B / ranks,): this rank's part of them.
        """
        classes, batch = len(self.teacher.class_names), self.config.generator_batch
        whole = torch.arange(classes, device=self.device).repeat(batch // classes)
        rest = torch.randint(classes, (batch % classes,), generator=self.rng, device=self.device)
        share, first = self._block
        return torch.cat([whole, rest])[first : first + share]

    @property
    def _block(self) -> tuple[int, int]:
        """How much of the batch is this rank's, and where in it that begins."""
        share = self.ranks.share(self.config.generator_batch, "generator_batch")
        return share, self.ranks.rank * share

    def _rebuild(self) -> None:
        """A new G with PyTorch's default initialisation, and a new latent, unless its heads are meant to persist."""
        config = self.config
        kept = self.generator[0] if self.generator and config.latent in KEPT else None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**31, (), generator=self.rng, device=self.device)))
            latent = kept or build_latent(
                config.latent,
                self.table.cpu(),
                config.noise_dim,
                config.generator_batch,
                config.latent_beta,
                config.latent_concat,
                config.redraw_norm,
                first=self._block[1],
            )
            network = Generator(
                config.noise_dim,
                self.facts.size,
                self.facts.channels,
                config.generator_width,
                config.generator_layout,
                config.spectral_norm,
            )
        built = self.ranks.synchronised(nn.Sequential(latent, network).to(self.device))
        built = self.compute.lay_out(built).train()
        if self.generator:  # in place: what was compiled for the old one serves the new one
            self.generator.load_state_dict(built.state_dict())
        else:
            self.generator = built

    def state_dict(self) -> dict:
        """The method's part on top of `Method.state_dict`; a round's Adam does not outlive it."""
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
