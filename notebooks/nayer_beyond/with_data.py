"""Distillation WITH the data: the ceiling that every data-free method is measured against. Not one of METHODS."""

from dataclasses import dataclass
from typing import ClassVar

from nayer_lib.base_config import Config
from nayer_lib.classifiers.teacher import Classifier
from nayer_lib.compute import Compute
from nayer_lib.datasets import DataSet, Split
from nayer_lib.methods.base import Method, SynthesisReport
from nayer_lib.ranks import Ranks


@dataclass(frozen=True)
class NoSynthesisConfig(Config):
    """Methods without synthesis: what decides it are constants."""

    rounds: ClassVar[int] = 0
    warmup_rounds: ClassVar[int | None] = None
    warmup_epochs: ClassVar[int] = 0
    epochs_include_warmup: ClassVar[bool] = False
    generator_batch: ClassVar[int] = 0
    generator_steps: ClassVar[int] = 0
    generator_lr: ClassVar[float] = 0.0
    generator_betas: ClassVar[tuple[float, float]] = (0.0, 0.0)
    alpha_cls: ClassVar[float] = 0.0
    augment_synthesis: ClassVar[bool] = False


class NoSynthesis(Method):
    """A method without synthesis rounds."""

    def synthesize(self, epoch: int) -> SynthesisReport:
        """Nothing to make."""
        return SynthesisReport(steps=0, images=0, ce_per_step=[], bn=0.0, adv=0.0, seconds=0.0)


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
