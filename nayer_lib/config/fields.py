"""One frozen `Config` says everything about a run."""

import dataclasses
import json
import math
from dataclasses import dataclass

from ..errors import UserError, unknown
from ..files import text_hash
from ..generator.latents import EMBEDDINGS, LATENTS

PROTOCOLS = ("equal", "published")


@dataclass(frozen=True)
class Config:
    """One run. The defaults are Table 8's CIFAR-10 row, A.2 and the `released` variant; units in the comments."""

    dataset: str = "cifar10"
    teacher: str = "wrn40_2"  # names of classifiers.build
    student: str = "wrn16_2"
    method: str = "nayer"
    protocol: str = "equal"  # "equal": Table 8's budget, whatever the method; "published": the method's own schedule
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
    repeats: int = 1  # how often an epoch goes through its synthesis rounds and student steps
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

    @property
    def total_rounds(self) -> int:
        """Synthesis rounds of the whole run, warm-up included."""
        return self.repeats * sum(map(self.synthesis_rounds, range(self.total_epochs)))

    @property
    def synthesis_passes(self) -> int:
        """Images that go through the teacher in all synthesis steps, warm-up included: what synthesis costs."""
        return self.total_rounds * self.generator_steps * self.generator_batch

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


def check(config: Config) -> Config:
    """The config itself, if its values make sense.

    Raises:
        UserError: one sentence that names the field.
    """
    counts = (
        "noise_dim latent_concat generator_width repeats generator_batch rounds generator_steps epochs student_steps "
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
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(field.default, bool | str) and not isinstance(value, type(field.default)):
            raise UserError(f"{field.name} must be a {type(field.default).__name__}, not {value!r}.")
    betas = config.generator_betas
    if not isinstance(betas, tuple) or len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise UserError(f"generator_betas must be a pair of numbers in [0, 1), not {betas!r}.")
    if config.protocol not in PROTOCOLS:
        raise unknown("protocol", config.protocol, PROTOCOLS)
    for field in dataclasses.fields(config)[len(dataclasses.fields(Config)) :]:  # a method's own numbers
        value = getattr(config, field.name)
        if isinstance(field.default, float) and not (isinstance(value, int | float) and 0 <= value < math.inf):
            raise UserError(f"{field.name} must be zero or positive, not {value!r}.")
        if type(field.default) is int and (type(value) is not int or value < 1):
            raise UserError(f"{field.name} must be a whole number from 1 up, not {value!r}.")
    if config.latent not in LATENTS:
        raise unknown("latent", config.latent, LATENTS)
    if config.embedding not in EMBEDDINGS:
        raise unknown("embedding", config.embedding, EMBEDDINGS)
    if type(config.seed) is not int:
        raise UserError(f"seed must be a whole number, not {config.seed!r}.")
    if config.keep not in ("best", "last"):
        raise unknown("choice for keep", config.keep, ("best", "last"))
    return config
