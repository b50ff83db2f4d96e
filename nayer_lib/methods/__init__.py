"""Every method behind one seam (`base.Method`): a new paper is its file, one line of METHODS and its test."""

from .cmi import CMI
from .cpnet import CPNet
from .dafl import DAFL
from .deepinv import DeepInversion
from .dfad import DFAD
from .dfq_choi import DFQChoi
from .dfq_nagel import DFQNagel
from .fm import FM
from .kakr import KAKRGR, KAKRMB
from .mad import MAD
from .mbdfkd import MBDFKD
from .nayer import Nayer
from .nayer_plus import NayerPlus
from .noise import Noise
from .prekd import PREKD
from .rounding import Rounding
from .spaceship import SpaceshipNet
from .stealing import Stealing
from .with_data import WithData
from .zaq import ZAQ
from .zeroq import ZeroQ
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
    "zeroq": ZeroQ,
    "dfq_nagel": DFQNagel,
    "zaq": ZAQ,
    "nayer_plus": NayerPlus,
    "cpnet": CPNet,
    "stealing": Stealing,
}

# What stands below and above them: a quantised student that learns nothing, a student that learns from noise, and one
# that learns from real images.
CONTROLS = {"rounding": Rounding, "noise": Noise, "with_data": WithData}
KINDS = METHODS | CONTROLS
