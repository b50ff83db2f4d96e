"""DFQ (Choi et al. 2020, "Data-Free Network Quantization with Adversarial Knowledge Distillation", CVPR Workshops).

    L_G = L_OH + alpha_ie L_IE + alpha_bn L_BN - alpha_adv KL(t || s)      over G
    L_S = KL(t || s)                                                       over S, both at temperature 1

Table 1's CIFAR-10 numbers are digit for digit those of CMI's README (Fang et al. 2021). These terms and weights are
those of the code of that year: no warm-up, G in eval mode when it makes images for the student, a cosine to 0. FM's
code (Fang et al. 2022) has the same terms, but G in train mode there, a cosine to 2e-4 over 200 epochs, and the teacher
in the student's place, so that the adversarial term is KL(t || t) = 0. Neither program crops or mirrors the student's
images, nor does `published` here; `equal` does.

Choi et al. have each image's entropy for L_OH, a Gaussian KL for L_BN, 0.01 for all weights but the adversarial one,
and train G alone before the student starts: `protocol=published` with `warmup_epochs=50` does that here. They also have
a deeper G, several generators and students, and a quantised student; no code of their own was compared. On several
ranks L_IE and L_BN see each rank's own images.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from .. import losses
from . import terms
from .live import AdversarialConfig, Live
from .round import SynthesisBatch


@dataclass(frozen=True)
class DFQChoiConfig(AdversarialConfig):
    """DFQ (Choi et al. 2020), in the setting behind the printed numbers (Fang et al. 2021)."""

    noise_dim: int = 256  # of z
    alpha_cls: float = 1.0
    alpha_bn: float = 1.0
    adversarial_mask: bool = False
    alpha_ie: float = 20.0
    bn_momentum: float = 0.0
    temperature: float = 1.0


class DFQChoi(Live):
    """An adversarial generator of images of all classes that the teacher is sure of, with the real data's statistics.

    Not the quantisation method of the same short name (Nagel et al. 2019).
    """

    name = "DFQ"
    citation = "Choi et al. 2020"
    config_class = DFQChoiConfig
    published = {"repeats": 40, "rounds": 1, "warmup_rounds": None, "generator_steps": 1, "generator_batch": 256}
    published |= {"epochs": 200, "warmup_epochs": 0, "student_steps": 10, "student_batch": 256}
    published |= {"augment_student": False}

    terms = {"L_OH": "alpha_cls", "L_IE": "alpha_ie", "L_BN": "alpha_bn", "L_KL": "alpha_adv"}

    def values(self, batch: SynthesisBatch) -> list[Tensor]:
        """The four terms of L_G, the adversarial one with its minus."""
        return [
            losses.classification(batch.t, batch.labels),
            terms.information_entropy(batch.t),
            self.batch_norm_term(batch),
            self.adversarial_term(batch),
        ]

    def fresh(self, n: int, generator: nn.Module | None = None) -> Tensor:
        """n images (n, C, H, W), generated in eval mode, augmented."""
        self.generator.eval()
        images = super().fresh(n, generator)
        self.generator.train()
        return images
