"""ZAQ (Liu et al. 2021, "Zero-shot Adversarial Quantization", CVPR).

    L_G = -|p - q| - alpha_crm CRM - alpha_act mean |A|     over G
    L_Q =  |p - q| + alpha_crm CRM                          over the quantised student

p and q are the logits of teacher and student, CRM how far the relations of places and of channels in their feature maps
are apart (`relation_distance`), A the teacher's last map. It is DFAD on quantised networks with two terms more:
the student moves first, five steps, then one of the generator.

Theirs for the student: SGD at 0.1, a tenth from epochs 100 and 200 on (a cosine here), BatchNorm in train mode
(`quantised_bn="train"`). Their ranges also widen on test images, which are shown before the first epoch; here an
evaluation moves nothing, and the last epoch counts, not the best on the test split. G is this kit's (`Live`); it is in
DFAD's setting. The Gram matrix of a 32 px map has 1,024^2 numbers an image: stages with larger maps than
`crm_largest_map` are left out of CRM, which is ours.
"""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from nayer_lib.classifiers.teacher import tapped
from nayer_lib.errors import UserError
from nayer_lib.methods import terms
from nayer_lib.methods.base import Batch
from nayer_lib.methods.dfad import DFAD, DFADConfig
from nayer_lib.methods.round import SynthesisBatch


@dataclass(frozen=True)
class ZAQConfig(DFADConfig):
    """ZAQ (Liu et al. 2021)."""

    alpha_crm: float = 1.0
    alpha_act: float = 0.1
    crm_largest_map: int = 16  # pixels of a side


class ZAQ(DFAD):
    """A generator of images on which the quantised student's answers and relations lie apart from the teacher's.

    Raises:
        UserError: a teacher without stages (`Classifier.stages`) to compare.
    """

    name = "ZAQ"
    citation = "Liu et al. 2021"
    config_class = ZAQConfig
    published = DFAD.published | {"repeats": 60, "epochs": 300}
    terms = DFAD.terms | {"L_CRM": "alpha_crm", "L_act": "alpha_act"}
    needs_bits = True

    def __init__(self, teacher, student, config, table=None, facts=None, compute=None, ranks=None):
        super().__init__(teacher, student, config, table, facts, compute, ranks)
        self._answering = self.teacher  # the stages of a folded teacher cannot be tapped
        if not self.teacher.stages():
            raise UserError(
                "ZAQ compares feature maps, and finds none in this teacher: call the modules that give them block* or "
                "layer*, or take dfad."
            )

    def watched(self) -> AbstractContextManager[dict[int, Tensor]]:
        """The stages of the teacher, then those of the student."""
        return tapped(self.teacher.stages() + self.student.stages())

    def values(self, batch: SynthesisBatch) -> list[Tensor]:
        """DFAD's two terms, CRM with its minus, 0 where the student is not asked, and L_act."""
        maps = [self.caught.pop(i) for i in sorted(self.caught)]  # left empty, so that steps are compiled once
        stages = len(self.teacher.stages())
        of_teacher, of_student = maps[:stages], maps[stages:]
        crm = self.relation_distance(of_teacher, of_student) if of_student else batch.t.new_zeros(())
        return [*super().values(batch), -crm, terms.activation(of_teacher[-1].float())]

    def relation_distance(self, of_teacher: Iterable[Tensor], of_student: Iterable[Tensor]) -> Tensor:
        """CRM over the stages whose maps are not too large; over the last one if all are."""
        pairs = list(zip(of_teacher, of_student, strict=True))
        small = [pair for pair in pairs if pair[0].shape[-1] <= self.config.crm_largest_map]
        return relation_distance(*zip(*(small or pairs[-1:]), strict=True))

    def _student_loss(self, batch: Batch) -> Tensor:
        """L_Q."""
        with tapped(self.teacher.stages()) as of_teacher, tapped(self.student.stages()) as of_student:
            loss = super()._student_loss(batch)
        return loss + self.config.alpha_crm * self.relation_distance(of_teacher.values(), of_student.values())


def relations(maps: Tensor) -> tuple[Tensor, Tensor]:
    """What ZAQ compares of a stage's maps (B, C, H, W): two maps (B, C, H W) in which places, or channels, are mixed.

        places:    F + 0.1 F A,   A = softmax of F^T F, so that the weights of each place add up to 1
        channels:  F + 0.1 D F,   D = softmax of (largest of a row of F F^T) - F F^T, rows adding up to 1

    F are the maps at length 1 over channels (Liu et al. 2021; the modules are those of Fu et al. 2019).
    """
    f = F.normalize(maps.float().flatten(2))
    of_places = (f.transpose(1, 2) @ f).softmax(1)
    gram = f @ f.transpose(1, 2)
    of_channels = (gram.amax(2, keepdim=True) - gram).softmax(2)
    return f + 0.1 * f @ of_places, f + 0.1 * of_channels @ f


def relation_distance(of_teacher: Iterable[Tensor], of_student: Iterable[Tensor]) -> Tensor:
    """CRM of ZAQ: the sum over stages of the mean |difference| of both `relations`."""
    pairs = zip(of_teacher, of_student, strict=True)
    apart = [(a - b).abs().mean() for t, s in pairs for a, b in zip(relations(t), relations(s), strict=True)]
    return torch.stack(apart).sum()
