"""Distillation WITH the data: the ceiling that every data-free method is measured against. Not one of METHODS."""

from dataclasses import dataclass

from ..base_config import Config
from ..classifiers.teacher import Classifier
from ..compute import Compute
from ..datasets import DataSet, Split
from ..ranks import Ranks
from .rounding import NoSynthesis, NoSynthesisConfig


@dataclass(frozen=True)
class WithDataConfig(NoSynthesisConfig):
    """Eq. 6 on real images, with A.2's schedule for the student."""

    temperature: float = 20.0


class WithData(NoSynthesis):
    """Eq. 6 on real training images: the memory is filled with them once and nothing is synthesised.

    Args:
        split: the images to learn from; their labels are not used.
    """

    name = "distillation with data"
    citation = "Hinton et al. 2015"
    config_class = WithDataConfig
    published = {}
    reads_images = True
    makes_images = False
    black_box = True

    def __init__(
        self,
        teacher: Classifier,
        student: Classifier,
        config: Config,
        split: Split,
        facts: DataSet | None = None,
        compute: Compute | None = None,
        ranks: Ranks | None = None,
    ):
        super().__init__(teacher, student, config, None, facts, compute, ranks)
        self.memory.add(split.images.float() / 255, split.labels, round_number=0)
