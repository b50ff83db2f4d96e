"""KAKR_GR (Patel et al. 2023, "Learning to Retain while Acquiring", CVPR): PREKD's VAE, bilevel.py's student step.

Apart from the step the authors' code differs from its PREKD in the schedule: twice the turns, half the images.
"""

from .bilevel import Bilevel
from .prekd import PREKD


class KAKRGR(Bilevel, PREKD):
    """Retain what a VAE remembers while acquiring what is new."""

    name = "KAKR_GR"
    citation = "Patel et al. 2023"
