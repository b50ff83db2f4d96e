"""KAKR_MB (Patel et al. 2023, "Learning to Retain while Acquiring", CVPR): MBDFKD's ring, bilevel.py's student step.

Apart from the step the authors' code differs from its MBDFKD in the schedule: twice the turns, half the images.
"""

from .bilevel import Bilevel
from .mbdfkd import MBDFKD


class KAKRMB(Bilevel, MBDFKD):
    """Retain what is in a ring of mini-batches while acquiring what is new."""

    name = "KAKR_MB"
    citation = "Patel et al. 2023"
