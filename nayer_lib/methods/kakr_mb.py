"""KAKR_MB (Patel et al. 2023, "Learning to Retain while Acquiring", CVPR): MBDFKD's ring, bilevel.py's student step.

Apart from the step the authors' code (gaurav104/LRA) differs from its MBDFKD in the schedule: twice the turns, half the
images.
"""

from dataclasses import dataclass

from .bilevel import Bilevel
from .mbdfkd import MBDFKD, MBDFKDConfig


@dataclass(frozen=True)
class KAKRMBConfig(MBDFKDConfig):
    """KAKR over MBDFKD's ring (Patel et al. 2023)."""

    inner_lr: float = 0.9  # of the step towards the new images, through which the replayed ones are judged


class KAKRMB(Bilevel, MBDFKD):
    """Retain what is in a ring of mini-batches while acquiring what is new."""

    name = "KAKR_MB"
    citation = "Patel et al. 2023"
    config_class = KAKRMBConfig
