"""Every method behind one seam (`base.Method`): a new paper is one file and one line here."""

from .dafl import DAFL
from .dfq_choi import DFQChoi
from .nayer import Nayer
from .zskt import ZSKT

METHODS = {
    "nayer": Nayer,
    "dafl": DAFL,
    "zskt": ZSKT,
    "dfq_choi": DFQChoi,
}
