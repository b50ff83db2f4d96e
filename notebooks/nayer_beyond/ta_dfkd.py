"""TA-DFKD (Shin & Choi 2024, "Teacher as a Lenient Expert: Teacher-Agnostic Data-Free Knowledge Distillation", AAAI).

    L_G = alpha_adv (1 - JS / K) + alpha_bn L_BN + alpha_l2 ||x||_2 + alpha_tv TV      over G; no class prior
    L_S = mean |t - s|                                                            over S

The teacher does not say what G shall make; it says which images are clean. An image's uncertainty is -log of the
teacher's largest probability. Over a batch, scaled to [0, 1], it is fitted by a mixture of two Gaussians, and an image
is clean where the lower one explains it better. JS and L_S see clean images alone.

Theirs (bigdata-inha/TA-DFKD-Official 03a0d7e): JS is a mean over images and classes, so divided by K here. They sort
images as they were made and show both networks cropped, mirrored ones; here what is shown is what is sorted in G's
step, and L_BN is of all images where their hooks keep those of the last pass, the clean ones. For the student they draw
until the batch is clean, without a bound; here at most `draws` times, and the surest of the others fill it up. Batches
of 1,024 are a guess: their program's default is 32. That program scores CIFAR-100's student on CIFAR-10's test images,
reports the best epoch, and draws its seed. Re-made from the equations; L_TV and L_2 as in `deepinv`.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from nayer_lib.methods import terms
from nayer_lib.methods.base import Batch
from nayer_lib.methods.deepinv import DeepInversion
from nayer_lib.methods.live import AdversarialConfig, Live

ADDED = 5e-4  # variance, so that no Gaussian shrinks to a point
ITERATIONS = 10  # of expectation and maximisation


@dataclass(frozen=True)
class TADFKDConfig(AdversarialConfig):
    """TA-DFKD (Shin & Choi 2024), its numbers for CIFAR-10."""

    alpha_bn: float = 10.0
    alpha_l2: float = 6e-3
    alpha_tv: float = 1.5e-5
    bn_momentum: float = 0.0
    select: bool = True  # False: every image counts as clean
    draws: int = 10  # batches that the student's images are chosen from, at most
    student_lr: float = 0.01
    student_weight_decay: float = 5e-4


class TADFKD(Live):
    """An adversarial generator without class prior, whose images the teacher sorts into clean and unclean ones.

    Attributes:
        seen, clean: images that were drawn for the student, and those of them that were clean.
    """

    name = "TA-DFKD"
    citation = "Shin & Choi 2024"
    config_class = TADFKDConfig
    published = {"repeats": 36, "rounds": 1, "warmup_rounds": None, "generator_steps": 1, "generator_batch": 1024}
    published |= {"epochs": 200, "warmup_epochs": 0, "student_steps": 10, "student_batch": 1024}
    published |= {"augment_synthesis": True, "generator_betas": (0.9, 0.999), "student_trains_in_synthesis": True}
    student_first = True
    terms = {"L_OH": "alpha_cls", "L_BN": "alpha_bn", "L_JS": "alpha_adv", "L_TV": "alpha_tv", "L_2": "alpha_l2"}
    values = DeepInversion.values  # the first, L_OH, has no weight here
    saved = (*Live.saved, "seen", "clean")

    def __init__(self, teacher, student, config, table=None, facts=None, compute=None, ranks=None):
        super().__init__(teacher, student, config, table, facts, compute, ranks)
        self.seen = self.clean = 0

    def against_student(self, t: Tensor, s: Tensor) -> Tensor:
        """1 - JS / K, the mean over clean images and classes."""
        if not self.config.select:
            return 1 - terms.jensen_shannon(t, s) / t.shape[1]
        kept = clean(uncertainty(t.detach()))
        own = torch.where(kept.unsqueeze(1), s, t.detach())  # JS of an unclean image is 0, and so is its gradient
        return 1 - terms.jensen_shannon(t, own) * len(t) / kept.sum().clamp(min=1) / t.shape[1]

    @torch.no_grad()
    def sample(self, n: int) -> Batch:
        """n fresh images that the teacher is sure of: clean ones, and where these are too few the surest others."""
        if not self.config.select:
            return super().sample(n)
        drawn, doubts, found = [], [], 0
        while found < n and len(drawn) < self.config.draws:
            images = self.generate(n)
            doubt = uncertainty(self._answering(images))
            kept = clean(doubt)
            found += int(kept.sum())
            drawn.append(images)
            doubts.append(torch.where(kept, -math.inf, doubt))
        self.seen, self.clean = self.seen + n * len(drawn), self.clean + found
        order = torch.cat(doubts).argsort(stable=True)[:n]  # clean images first, in the order in which they came
        return Batch(self.augment(torch.cat(drawn)[order]), None, "generator")

    def student_loss(self, batch: Batch, teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
        """|t - s|."""
        return terms.logit_distance(teacher_logits, student_logits)

    def on_card(self) -> dict:
        """The share of clean images among those that this rank drew for the student."""
        return {"clean": self.clean / self.seen} if self.seen else {}


def uncertainty(t: Tensor) -> Tensor:
    """(B,) -log of the largest probability of logits (B, K), in nats."""
    return -F.log_softmax(t.float(), 1).amax(1)


def clean(doubt: Tensor) -> Tensor:
    """(B,) bool: which of the numbers (B,) the lower of two Gaussians explains better; all, where they are alike.

    Ten steps of expectation and maximisation from the two ends of the range, in fixed shapes and without a branch.
    """
    low, high = torch.aminmax(doubt)
    x = ((doubt - low) / (high - low).clamp(min=1e-12)).unsqueeze(1)  # (B, 1)
    mean = torch.arange(2.0, device=x.device)
    var = (x.var(correction=0) + ADDED).expand(2)
    share = torch.full_like(mean, 0.5)
    for _ in range(ITERATIONS):
        of = _belonging(x, mean, var, share)
        count = of.sum(0).clamp(min=1e-6)
        mean = (of * x).sum(0) / count
        var = (of * (x - mean).square()).sum(0) / count + ADDED
        share = count / len(x)
    of = _belonging(x, mean, var, share)
    lower = torch.where(mean[0] <= mean[1], of[:, 0], of[:, 1])
    return (lower > 0.5) | (high - low < 1e-6)


def _belonging(x: Tensor, mean: Tensor, var: Tensor, share: Tensor) -> Tensor:
    """(B, 2) the probability of each Gaussian for numbers (B, 1)."""
    return (share.log() - var.log() / 2 - (x - mean).square() / (2 * var)).softmax(1)
