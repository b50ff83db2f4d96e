"""Every method behind one seam (`base.Method`): a new paper is its file and one line of METHODS."""

from collections.abc import Iterator, Mapping

from ..lazy import imported
from .base import Method


class Kinds(Mapping[str, type[Method]]):
    """Methods by name. A class is imported when it is asked for, so that a run reads its own method's file alone.

    Args:
        places: name -> "module:class", the module as seen from here.
    """

    def __init__(self, **places: str):
        self.places = places

    def __getitem__(self, name: str) -> type[Method]:
        return imported(self.places[name], name, __name__)

    def __contains__(self, name: object) -> bool:
        return name in self.places

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


# Table 1's rows stand in this folder; what students on few levels (Table 9) and papers after this one need stands
# beside the notebooks that teach it, in notebooks/nayer_beyond.
METHODS = Kinds(
    nayer=".nayer:Nayer",
    deepinv=".deepinv:DeepInversion",
    zskt=".zskt:ZSKT",
    dfq_choi=".dfq_choi:DFQChoi",
    cmi=".cmi:CMI",
    prekd=".prekd:PREKD",
    mbdfkd=".mbdfkd:MBDFKD",
    fm=".fm:FM",
    kakr_mb=".kakr:KAKRMB",
    kakr_gr=".kakr:KAKRGR",
    mad=".mad:MAD",
    spaceship=".spaceship:SpaceshipNet",
    dafl=".dafl:DAFL",
    dfad=".dfad:DFAD",
    zeroq="nayer_beyond.zeroq:ZeroQ",
    dfq_nagel="nayer_beyond.dfq_nagel:DFQNagel",
    zaq="nayer_beyond.zaq:ZAQ",
    nayer_plus="nayer_beyond.nayer_plus:NayerPlus",
    cpnet="nayer_beyond.cpnet:CPNet",
    ta_dfkd="nayer_beyond.ta_dfkd:TADFKD",
    stealing="nayer_beyond.stealing:Stealing",
)

# What stands below and above them: a quantised student that learns nothing, students that learn from noise, from drawn
# pictures, and from real images.
CONTROLS = Kinds(
    rounding="nayer_beyond.rounding:Rounding",
    noise="nayer_beyond.noise:Noise",
    procedural="nayer_beyond.procedural:Procedural",
    with_data="nayer_beyond.with_data:WithData",
)
KINDS = Kinds(**METHODS.places, **CONTROLS.places)
