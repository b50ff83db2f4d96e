"""KAKR_GR (Patel et al. 2023, "Learning to Retain while Acquiring", CVPR): PREKD's VAE, bilevel.py's student step.

Apart from the step the authors' code (gaurav104/LRA) differs from its PREKD in the schedule: twice the turns, half the
images.
"""

from dataclasses import dataclass

from .bilevel import Bilevel
from .prekd import PREKD, PREKDConfig


@dataclass(frozen=True)
class KAKRGRConfig(PREKDConfig):
    """KAKR over PREKD's VAE (Patel et al. 2023)."""

    inner_lr: float = 0.9  # as KAKR_MB's


class KAKRGR(Bilevel, PREKD):
    """Retain what a VAE remembers while acquiring what is new."""

    name = "KAKR_GR"
    citation = "Patel et al. 2023"
    config_class = KAKRGRConfig
