"""Table 8 and appendix A.1-A.2 as data: one frozen `Config` says everything about a run.

A config is made in this order: the data set's row of Table 8, the variant, the profile, what the user overrides.

* Two variants: `released` (what the authors' code does, the default) and `paper` (the text). They differ in exactly the
  fields of DIVERGENCES; rule: a component that the text does not name is off in `paper`, a number that it does not
  give takes the released value. docs/divergences.md tells each.
* Three profiles: `quick` (a laptop CPU), `lab` (one GPU), `full` (the row as it stands). A profile shrinks counts and
  sizes only, never a rate or a weight, and never switches on what the variant left off.
"""

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Any

from .errors import UserError, unknown
from .files import text_hash
from .generator.latents import EMBEDDINGS, LATENTS


@dataclass(frozen=True)
class Config:
    """One run. The defaults are Table 8's CIFAR-10 row, A.2 and the `released` variant; units in the comments."""

    dataset: str = "cifar10"
    teacher: str = "wrn40_2"  # names of classifiers.build
    student: str = "wrn16_2"
    method: str = "nayer"
    variant: str = "released"
    profile: str = "full"
    seed: int = 0

    # The pool P (Section 3.2).
    encoder: str = "clip"
    prompt: str = "a"  # D9; an id of text.prompts.PROMPTS

    # The generator and what enters it (Section 3.3, Tables 6 and 7).
    latent: str = "noisy"  # generator.latents.LATENTS: Table 3's columns
    latent_beta: float = 1.0  # beta of "sum"
    latent_concat: int = 100  # width of z in "cat"
    embedding: str = "text"  # generator.latents.EMBEDDINGS: the text, or a control in its place
    noise_dim: int = 1000  # r
    generator_width: int = 128  # channels of G's first feature map
    generator_layout: str = "released"  # D1
    spectral_norm: bool = False  # D2
    redraw_norm: bool = False  # D10: a round redraws the noisy layer's BatchNorm too

    # Phase 1: synthesis (Algorithm 1, lines 4-11; Eq. 5).
    generator_batch: int = 400  # images of a round
    rounds: int = 2  # I, synthesis rounds an epoch
    warmup_rounds: int | None = 10  # D4: rounds of a warm-up epoch; None: I
    generator_steps: int = 30  # g, steps a round
    generator_life: int | None = 10  # D5: epochs after which G is rebuilt; None: never
    generator_lr: float = 4e-3  # Adam
    generator_betas: tuple[float, float] = (0.5, 0.999)
    alpha_cls: float = 0.5
    alpha_bn: float = 10.0
    alpha_adv: float = 1.33
    adversarial_mask: bool = True  # D7
    bn_momentum: float = 0.9  # D8
    augment_synthesis: bool = True  # D12: crop and flip before the teacher in synthesis
    keep: str = "best"  # D11: the images of the round's "best" (lowest loss) or "last" step
    student_trains_in_synthesis: bool = True  # D13: train mode from an epoch's second round on (a side effect)
    memory_size: int | None = None  # images; None: all

    # Phase 2: the student (lines 12-14; Eq. 6; A.2).
    epochs: int = 100  # E
    warmup_epochs: int = 20  # synthesis alone
    epochs_include_warmup: bool = False  # D6
    student_steps: int = 400  # S, steps an epoch
    student_batch: int = 512
    student_lr: float = 0.2  # D3: SGD, cosine
    student_lr_end: float = 2e-4  # D3
    student_momentum: float = 0.9
    student_weight_decay: float = 1e-4
    temperature: float = 20.0  # of Eq. 6

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

    def lr(self, epoch: int) -> float:
        """The student's learning rate in an epoch: cosine over the distillation epochs (A.2)."""
        done = (epoch - self.warmup_epochs) / self.distillation_epochs
        return self.student_lr_end + (self.student_lr - self.student_lr_end) / 2 * (1 + math.cos(math.pi * done))

    @property
    def hash(self) -> str:
        """sha256 over all fields but the seed: equal for runs that may be averaged."""
        fields = dataclasses.asdict(self)
        del fields["seed"]
        return text_hash(json.dumps(fields, sort_keys=True))


# Rows of Table 8. The digit sets are ours: CIFAR-10's row with small networks and an encoder that works offline; what
# else differs in them was chosen on their validation part.
_DIGITS = {"teacher": "wrn10_1", "encoder": "sbert"}
TABLE8: dict[str, dict[str, Any]] = {
    "cifar10": {"dataset": "cifar10"},
    "cifar100": {"dataset": "cifar100", "generator_steps": 40},
    "tiny_imagenet": {
        "dataset": "tiny_imagenet",
        "student_batch": 256,
        "generator_batch": 200,
        "rounds": 4,
        "generator_steps": 60,
        "student_steps": 1000,
        "warmup_rounds": 20,
        "student_lr": 0.1,
    },
    "imagenet": {
        "dataset": "imagenet",
        "student_batch": 128,
        "generator_batch": 50,
        "alpha_cls": 0.1,
        "alpha_bn": 0.1,
        "alpha_adv": 0.1,
        "rounds": 20,
        "generator_steps": 100,
        "student_steps": 2000,
        "warmup_rounds": 20,
    },
    "digits": {"dataset": "digits", "student": "wrn10_half", **_DIGITS},
    "color_digits": {"dataset": "color_digits", "student": "wrn10_1", "rounds": 3, **_DIGITS},
}

# D1-D13 (docs/divergences.md): the fields in which the text differs from the released code, and the text's values.
DIVERGENCES: dict[str, dict[str, Any]] = {
    "D1": {"generator_layout": "paper"},
    "D2": {"spectral_norm": True},
    "D3": {"student_lr": 0.1, "student_lr_end": 0.0},
    "D4": {"warmup_rounds": None},
    "D5": {"generator_life": None},
    "D6": {"epochs_include_warmup": True},
    "D7": {"adversarial_mask": False},
    "D8": {"bn_momentum": 0.0},
    "D9": {"prompt": "p2"},
    "D10": {"redraw_norm": True},
    "D11": {"keep": "last"},
    "D12": {"augment_synthesis": False},
    "D13": {"student_trains_in_synthesis": False},
}
VARIANTS = {"released": {}, "paper": {field: value for row in DIVERGENCES.values() for field, value in row.items()}}

# Counts and sizes. A value here never switches on what the variant left off (None).
PROFILES: dict[str, dict[str, Any]] = {
    "quick": {
        "noise_dim": 256,
        "generator_width": 32,
        "generator_batch": 100,
        "generator_steps": 20,
        "warmup_epochs": 2,
        "warmup_rounds": 4,
        "generator_life": 5,
        "epochs": 16,
        "student_steps": 40,
        "student_batch": 128,
    },
    "lab": {"warmup_epochs": 6, "epochs": 25},
    "full": {},
}

# The columns of Table 1, and our two.
_CIFAR_PAIRS = ["resnet34 resnet18", "wrn40_2 wrn16_2", "wrn40_2 wrn16_1", "wrn40_2 wrn40_1", "vgg11 resnet18"]
_PAIRS = {
    "cifar10": _CIFAR_PAIRS,
    "cifar100": _CIFAR_PAIRS,
    "tiny_imagenet": ["resnet34 resnet18"],
    "imagenet": ["resnet50 resnet50"],
}
PRESETS: dict[str, dict[str, Any]] = {"digits": TABLE8["digits"], "color_digits": TABLE8["color_digits"]}
for _dataset, _pairs in _PAIRS.items():
    for _teacher, _student in map(str.split, _pairs):
        PRESETS[f"{_dataset}-{_teacher}-{_student}"] = {**TABLE8[_dataset], "teacher": _teacher, "student": _student}
DEFAULT_PRESETS = {"quick": "digits", "lab": "cifar10-wrn40_2-wrn16_2", "full": "cifar10-wrn40_2-wrn16_2"}


def make_config(preset: str | None = None, variant: str = "released", profile: str = "quick", **overrides) -> Config:
    """A config from a preset (a column of Table 1, or a digit set), a variant, a profile and overrides, in this order.

    `preset` None takes the profile's own: digits on a laptop, CIFAR-10 with WRN-40-2 -> WRN-16-2 on a GPU.

    Raises:
        UserError: an unknown name (the nearest is named) or a value that makes no sense (`check`).
    """
    if profile not in PROFILES:
        raise unknown("profile", profile, PROFILES)
    if variant not in VARIANTS:
        raise unknown("variant", variant, VARIANTS)
    preset = DEFAULT_PRESETS[profile] if preset is None else preset
    if preset not in PRESETS:
        raise unknown("preset", preset, PRESETS)
    fields = {field.name for field in dataclasses.fields(Config)}
    for name in overrides:
        if name not in fields:
            raise unknown("config field", name, fields)

    overrides = {name: tuple(v) if isinstance(v, list) else v for name, v in overrides.items()}  # JSON has no tuples
    config = Config(**{**PRESETS[preset], **VARIANTS[variant]}, variant=variant, profile=profile)
    shrunk = {k: min(v, getattr(config, k)) for k, v in PROFILES[profile].items() if getattr(config, k) is not None}
    return check(dataclasses.replace(config, **{**shrunk, **overrides}))


def check(config: Config) -> Config:
    """The config itself, if its values make sense.

    Raises:
        UserError: one sentence that names the field.
    """
    counts = (
        "noise_dim latent_concat generator_width generator_batch rounds generator_steps epochs student_steps "
        "student_batch"
    ).split()
    optional = "warmup_rounds generator_life memory_size".split()
    for name in counts + [name for name in optional if getattr(config, name) is not None]:
        value = getattr(config, name)
        if type(value) is not int or value < 1:  # a bool is no count
            raise UserError(f"{name} must be a whole number from 1 up, not {value!r}.")
    if not isinstance(config.warmup_epochs, int) or config.warmup_epochs < 0:
        raise UserError(f"warmup_epochs must be a whole number from 0 up, not {config.warmup_epochs!r}.")
    if config.distillation_epochs < 1:
        raise UserError(
            f"epochs={config.epochs} with {config.warmup_epochs} warm-up epochs included leaves none for the student "
            "(docs/divergences.md, D6)."
        )
    ranges = {
        "be a positive number": ("latent_beta generator_lr student_lr temperature", lambda x: 0 < x < math.inf),
        "be zero or positive": (
            "alpha_cls alpha_bn alpha_adv student_lr_end student_weight_decay",
            lambda x: 0 <= x < math.inf,
        ),
        "lie in [0, 1)": ("bn_momentum student_momentum", lambda x: 0 <= x < 1),
    }
    for must, (names, holds) in ranges.items():
        for name in names.split():
            value = getattr(config, name)
            if not isinstance(value, int | float) or not holds(value):
                raise UserError(f"{name} must {must}, not {value!r}.")
    for field in dataclasses.fields(Config):
        value = getattr(config, field.name)
        if isinstance(field.default, bool | str) and not isinstance(value, type(field.default)):
            raise UserError(f"{field.name} must be a {type(field.default).__name__}, not {value!r}.")
    betas = config.generator_betas
    if not isinstance(betas, tuple) or len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise UserError(f"generator_betas must be a pair of numbers in [0, 1), not {betas!r}.")
    if config.latent not in LATENTS:
        raise unknown("latent", config.latent, LATENTS)
    if config.embedding not in EMBEDDINGS:
        raise unknown("embedding", config.embedding, EMBEDDINGS)
    if type(config.seed) is not int:
        raise UserError(f"seed must be a whole number, not {config.seed!r}.")
    if config.keep not in ("best", "last"):
        raise unknown("choice for keep", config.keep, ("best", "last"))
    return config


def differences(config: Config, other: Config) -> dict[str, tuple[Any, Any]]:
    """The fields in which two configs differ: name -> (config's value, other's value)."""
    pairs = {f.name: (getattr(config, f.name), getattr(other, f.name)) for f in dataclasses.fields(Config)}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
