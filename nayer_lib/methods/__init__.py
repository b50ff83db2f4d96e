"""Every method behind one seam (`base.Method`): a new paper is one file and one line here."""

from .cmi import CMI
from .deepinv import DeepInversion
from .fm import FM
from .nayer import Nayer

METHODS = {
    "nayer": Nayer,
    "deepinv": DeepInversion,
    "cmi": CMI,
    "fm": FM,
}
