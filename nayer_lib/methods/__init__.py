"""Every method behind one seam (`base.Method`): a new paper is one file and one line here."""

from .cmi import CMI
from .nayer import Nayer

METHODS = {"nayer": Nayer, "cmi": CMI}
