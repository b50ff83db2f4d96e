"""Every method behind one seam (`base.Method`): a new paper is its file, one line of METHODS and its test."""

from .cmi import CMI
from .dafl import DAFL
from .deepinv import DeepInversion
from .dfad import DFAD
from .dfq_choi import DFQChoi
from .fm import FM
from .kakr import KAKRGR, KAKRMB
from .mad import MAD
from .mbdfkd import MBDFKD
from .nayer import Nayer
from .prekd import PREKD
from .spaceship import SpaceshipNet
from .zskt import ZSKT

METHODS = {
    "nayer": Nayer,
    "deepinv": DeepInversion,
    "zskt": ZSKT,
    "dfq_choi": DFQChoi,
    "cmi": CMI,
    "prekd": PREKD,
    "mbdfkd": MBDFKD,
    "fm": FM,
    "kakr_mb": KAKRMB,
    "kakr_gr": KAKRGR,
    "mad": MAD,
    "spaceship": SpaceshipNet,
    "dafl": DAFL,
    "dfad": DFAD,
}
