"""A frozen `Config` describes a run: the fields that every method reads, and those of its method."""

import dataclasses
import json
import math
import re
import sys
from dataclasses import dataclass
from typing import ClassVar, Self

from .errors import UserError, unknown
from .files import text_hash
from .generator.latents import EMBEDDINGS, LATENTS
from .generator.networks import LAYOUTS

PROTOCOLS = ("equal", "published")
ANSWERS = ("logits", "probabilities", "labels")  # of a black box


@dataclass(frozen=True)
class Config:
    """The fields of every run. The defaults are Table 8's CIFAR-10 row and A.2; units in the comments.

    A method's subclass adds exactly the fields that the method reads, so that a setting without effect is refused and
    never swept. Where shared code reads a setting that only some methods have as a field, the others have a constant.
    """

    dataset: str = "cifar10"
    teacher: str = "wrn40_2"  # names of classifiers.build
    student: str = "wrn16_2"
    method: str = "nayer"
    protocol: str = "equal"  # "equal": Table 8's budget for all methods; "published": the method's own schedule
    variant: str = "released"
    profile: str = "full"
    seed: int = 0

    # Phase 1: synthesis (Algorithm 1, lines 4-11).
    repeats: int = 1  # turns of an epoch, each of synthesis rounds and student steps
    generator_batch: int = 400  # images of a round
    rounds: int = 2  # I, synthesis rounds an epoch
    warmup_rounds: int | None = 10  # D4: rounds of a warm-up epoch; None: I
    generator_steps: int = 30  # g, steps a round
    generator_lr: float = 4e-3  # Adam
    generator_betas: tuple[float, float] = (0.5, 0.999)
    alpha_cls: float = 0.5
    augment_synthesis: bool = True  # D12: crop and flip before the teacher in synthesis
    alpha_bn: ClassVar[float] = 0.0
    alpha_adv: ClassVar[float] = 0.0
    student_trains_in_synthesis: ClassVar[bool] = False
    memory_size: ClassVar[int | None] = None

    # Phase 2: the student (lines 12-14; A.2).
    epochs: int = 100  # E
    warmup_epochs: int = 20  # synthesis alone
    epochs_include_warmup: bool = False  # D6
    student_steps: int = 400  # S, steps an epoch
    student_batch: int = 512
    student_lr: float = 0.2  # D3: SGD, cosine
    student_lr_end: float = 2e-4  # D3
    student_momentum: float = 0.9
    student_weight_decay: float = 1e-4

    # A quantised student (nayer_beyond/quantised.py): a copy of the teacher on few levels. None: none, and then the
    # other fields stay as they are.
    weight_bits: int | None = None
    activation_bits: int = 8
    edge_bits: int | None = None  # of the first and the last layer, weights and inputs; None: as the others
    weight_scale: str = "channel"  # a scale for each output "channel", or one a "tensor"
    quantised_bn: str = "frozen"  # BatchNorm's running statistics stay the teacher's; "train": the student's batches'
    range_momentum: float = 0.1  # how far a batch in train mode moves the ranges of layers' inputs

    @property
    def total_epochs(self) -> int:
        """Warm-up and distillation epochs together."""
        return self.epochs if self.epochs_include_warmup else self.warmup_epochs + self.epochs

    @property
    def distillation_epochs(self) -> int:
        """Epochs in which the student learns: the length of its cosine."""
        return self.total_epochs - self.warmup_epochs

    def synthesis_rounds(self, epoch: int) -> int:
        """Synthesis rounds of an epoch, counted from 0."""
        if epoch < self.warmup_epochs and self.warmup_rounds is not None:
            return self.warmup_rounds
        return self.rounds

    @property
    def total_rounds(self) -> int:
        """Synthesis rounds of the whole run, warm-up included."""
        return self.repeats * sum(map(self.synthesis_rounds, range(self.total_epochs)))

    @property
    def synthesis_passes(self) -> int:
        """Images that go through the teacher in all synthesis steps, warm-up included: the cost of synthesis."""
        return self.total_rounds * self.generator_steps * self.generator_batch

    def in_turns(self) -> Self:
        """The config with NAYER's counts spread over an epoch's turns: itself, but for methods that need many turns."""
        return self

    def lr(self, epoch: int) -> float:
        """The student's learning rate in an epoch: cosine over the distillation epochs (A.2)."""
        done = (epoch - self.warmup_epochs) / self.distillation_epochs
        return self.student_lr_end + (self.student_lr - self.student_lr_end) / 2 * (1 + math.cos(math.pi * done))

    @property
    def hash(self) -> str:
        """sha256 over all fields but the seed: runs with equal hashes may be averaged.

        Without quantisation its fields are left out, so that runs from before them keep their hashes.
        """
        fields = dataclasses.asdict(self)
        for name in ("seed", *(QUANTISATION if self.weight_bits is None else ())):
            fields.pop(name, None)
        return text_hash(json.dumps(fields, sort_keys=True))


@dataclass(frozen=True)
class GeneratorConfig(Config):
    """Methods with a generator G (Tables 6 and 7)."""

    noise_dim: int = 1000  # r, numbers that enter G
    generator_width: int = 128  # channels of G's first feature map
    generator_layout: str = "released"  # D1
    spectral_norm: bool = False  # D2


@dataclass(frozen=True)
class NayerConfig(GeneratorConfig):
    """NAYER as `released`. It stands here, not in methods/nayer.py, because algorithm1.py imports no method."""

    # The pool P (Section 3.2).
    encoder: str = "clip"
    prompt: str = "a"  # D9; an id of text.prompts.PROMPTS

    # What enters the generator (Section 3.3).
    latent: str = "noisy"  # generator.latents.LATENTS: Table 3's columns
    latent_beta: float = 1.0  # beta of "sum"
    latent_concat: int = 100  # width of z in "cat"
    embedding: str = "text"  # generator.latents.EMBEDDINGS: the text, or a control in its place
    redraw_norm: bool = False  # D10: a round redraws the noisy layer's BatchNorm too
    generator_life: int | None = 10  # D5: epochs after which G is rebuilt; None: never

    # Eq. 5 and the images that are kept.
    alpha_bn: float = 10.0
    alpha_adv: float = 1.33
    adversarial_mask: bool = True  # D7
    bn_momentum: float = 0.9  # D8
    keep: str = "best"  # D11: the images of the round's "best" (lowest loss) or "last" step
    student_trains_in_synthesis: bool = True  # D13: train mode from an epoch's second round on (a side effect)
    memory_size: int | None = None  # images; None: all

    temperature: float = 20.0  # of Eq. 6


QUANTISATION = "weight_bits activation_bits edge_bits weight_scale quantised_bn range_momentum".split()
BITS = "weight_bits activation_bits edge_bits".split()
FEWEST_BITS, MOST_BITS = 2, 16  # symmetric weights of one bit would have one level
OPTIONAL = "warmup_rounds generator_life memory_size budget".split()  # counts that None switches off
POSITIVE = "latent_beta generator_lr student_lr temperature".split()
BELOW_ONE = "range_momentum bn_momentum student_momentum ema".split()
SHARES = "exchange_rate exchange cutmix jitter reset_after vae_share".split()
NAME_BYTES = 50  # a run's id holds four names, and a file's name may have 255 bytes
CHOICES = {  # field -> what a sentence calls it, and its values
    "protocol": ("protocol", PROTOCOLS),
    "generator_layout": ("generator layout", LAYOUTS),
    "latent": ("latent", LATENTS),
    "embedding": ("embedding", EMBEDDINGS),
    "keep": ("choice for keep", ("best", "last")),
    "weight_scale": ("weight scale", ("channel", "tensor")),
    "noise": ("kind of noise", ("uniform", "gaussian", "gaussian_unclipped")),
    "answers": ("kind of answers", ANSWERS),
    "teacher_statistics": ("choice for teacher_statistics", ("batch", "running")),
    "quantised_bn": ("choice for quantised_bn", ("frozen", "train")),
}


def check(config: Config) -> Config:
    """The config itself, if its values are valid.

    Raises:
        UserError: one sentence that names the field.
    """
    values = {field.name: (field.default, getattr(config, field.name)) for field in dataclasses.fields(config)}
    given = [name for name, (default, value) in values.items() if type(value) is not type(default) or value != default]
    for name in given:
        _check(name, *values[name])
    if config.weight_bits is None and (idle := [name for name in QUANTISATION if name in given]):
        raise UserError(f"{idle[0]} is of a quantised student: give weight_bits too.")
    if config.weight_bits is not None and config.student != config.teacher:
        raise UserError(
            f"a quantised student is a copy of its teacher: with weight_bits, student is {config.teacher}, not "
            f"{config.student}."
        )
    if config.distillation_epochs < 1:
        raise UserError(
            f"epochs={config.epochs} with {config.warmup_epochs} warm-up epochs included leaves none for the student "
            "(docs/divergences.md, D6)."
        )
    return config


def _check(name: str, default: object, value: object) -> None:
    """Check one field's value by the type of the default."""
    whole = type(value) is int  # a bool is not
    number = _number(value)
    if name in CHOICES and value not in CHOICES[name][1]:
        raise unknown(CHOICES[name][0], value, CHOICES[name][1])
    if name == "seed":
        must = None if whole and abs(value) < 2**63 else "be a whole number of at most 63 bits"
    elif name == "warmup_epochs":
        must = None if whole and value >= 0 else "be a whole number from 0 up"
    elif name == "generator_width":
        must = None if whole and value >= 2 and value % 2 == 0 else "be an even number from 2 up"
    elif name in BITS:
        off = value is None and default is None
        must = None if off or whole and FEWEST_BITS <= value <= MOST_BITS else "be a whole number of bits from 2 to 16"
    elif type(default) is int or name in OPTIONAL:
        off = value is None and name in OPTIONAL
        must = None if off or whole and value >= 1 else "be a whole number from 1 up"
    elif name in BELOW_ONE:
        must = None if 0 <= number < 1 else "lie in [0, 1)"
    elif name in SHARES:
        must = None if 0 <= number <= 1 else "lie in [0, 1]"
    elif name in POSITIVE:
        must = None if number > 0 else "be a positive number"
    elif isinstance(default, float):
        must = None if number >= 0 else "be zero or positive"
    elif name == "generator_betas":
        pair = isinstance(value, tuple) and len(value) == 2 and all(0 <= _number(beta) < 1 for beta in value)
        must = None if pair else "be a pair of numbers in [0, 1)"
    elif isinstance(default, str):  # names of folders and files are made of them
        plain = isinstance(value, str) and re.fullmatch(r"[^\W_][\w .+-]*", value) and len(value.encode()) <= NAME_BYTES
        must = None if plain else f"be a name of letters, digits, blanks, and . _ + -, of at most {NAME_BYTES} bytes"
    else:
        must = None if isinstance(value, type(default)) else f"be a {type(default).__name__}"
    if must:
        raise UserError(f"{name} must {must}, not {value!r}.")


def _number(value: object) -> float:
    """A number as it is; for anything else, a bool and what no float holds among it, NaN, which lies in no range."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if number and abs(value) <= sys.float_info.max else math.nan
