"""Every method behind one seam (`base.Method`): a new paper is one file and one line here."""

from .cmi import CMI
from .dafl import DAFL
from .deepinv import DeepInversion
from .dfad import DFAD
from .dfq_choi import DFQChoi
from .fm import FM
from .mad import MAD
from .nayer import Nayer
from .spaceship import SpaceshipNet
from .zskt import ZSKT

METHODS = {
    "nayer": Nayer,
    "deepinv": DeepInversion,
    "zskt": ZSKT,
    "dfq_choi": DFQChoi,
    "cmi": CMI,
    "fm": FM,
    "mad": MAD,
    "spaceship": SpaceshipNet,
    "dafl": DAFL,
    "dfad": DFAD,
}
