"""The numbers of the other methods: a `Config` with the fields that they read, and their published schedules.

Two protocols. `equal` gives every method Table 8's budget: as many student steps and student images, as many images
through the teacher in synthesis, the same augmentation. `published` is the method's own schedule for CIFAR-10, in
PUBLISHED. Loss weights and rates are the method's own under both.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from ..base_config import Config, GeneratorConfig, NayerConfig


@dataclass(frozen=True)
class InversionConfig(GeneratorConfig):
    """Methods that optimise a generator for a batch of images a round and keep it in the memory, as NAYER does."""

    generator_lr: float = 1e-3
    alpha_bn: float = 1.0
    alpha_adv: float = 1.0
    adversarial_mask: bool = True
    bn_momentum: float = 0.0
    keep: str = "best"  # of a round's steps, or "last"
    student_trains_in_synthesis: bool = False
    memory_size: int | None = None  # images; None: all
    student_lr: float = 0.1
    student_lr_end: float = 0.0
    temperature: float = 20.0  # of the student's loss


@dataclass(frozen=True)
class FMConfig(InversionConfig):
    """FM (Fang et al. 2022), its numbers for WRN pairs at g = 10."""

    noise_dim: int = 256  # of z
    nayer_generator: bool = False  # z enters G through a further Linear, as the text's vectors do in NAYER (Table 11)
    nayer_noise_dim: int = 1000  # r of that Linear
    generator_lr: float = 2e-3  # of the round's copy; the meta step's is g times that
    latent_lr: float = 0.01
    alpha_cls: float = 0.4
    alpha_bn: float = 10.0
    alpha_adv: float = 1.1
    bn_momentum: float = 0.9
    student_lr: float = 0.2
    student_lr_end: float = 2e-4
    reset_after: float = 0.6  # of the distillation epochs: G's first layers start over then


@dataclass(frozen=True)
class DeepInvConfig(Config):
    """DeepInversion (Yin et al. 2020), in the setting behind the printed numbers (Fang et al. 2022); it has no G."""

    generator_lr: float = 0.1  # Adam on pixels
    generator_betas: tuple[float, float] = (0.5, 0.99)
    alpha_cls: float = 1.0
    alpha_bn: float = 10.0
    alpha_adv: float = 1.0  # of the Jensen-Shannon term; 0: without it
    alpha_tv: float = 0.0
    alpha_l2: float = 0.0
    bn_momentum: float = 0.0
    keep: str = "best"
    student_trains_in_synthesis: bool = False
    memory_size: int | None = None
    student_lr: float = 0.1
    student_lr_end: float = 0.0
    temperature: float = 20.0


@dataclass(frozen=True)
class CMIConfig(InversionConfig):
    """CMI (Fang et al. 2021), its numbers for WRN pairs."""

    noise_dim: int = 256  # of z
    alpha_cls: float = 1.0
    alpha_bn: float = 1.0
    alpha_adv: float = 0.5
    alpha_cr: float = 0.8
    temperature_cr: float = 0.1
    bank_size: int = 40_960  # features kept
    bank_draw: int = 4_096  # of them compared with in a step


@dataclass(frozen=True)
class SpaceshipConfig(InversionConfig):
    """SpaceshipNet (Yu et al. 2023), its numbers for CIFAR."""

    noise_dim: int = 256  # of z
    alpha_cls: float = 0.5
    alpha_bn: float = 1.0
    alpha_adv: float = 0.0
    exchange_rate: float = 0.7  # how often a student batch swaps channels
    alpha_cam: float = 1.0
    alpha_gradcam: float = 1.0
    temperature: float = 30.0
    memory_size: int | None = 51_200  # all of the published run's; on 32 px 213 KB each, 10.9 GB together


@dataclass(frozen=True)
class LiveConfig(GeneratorConfig):
    """Methods whose generator plays on through the whole run: the student sees fresh images; none is kept but to be
    replayed."""

    generator_lr: float = 1e-3
    alpha_cls: float = 0.0  # of L_OH: cross-entropy with the class that the teacher itself sees
    augment_synthesis: bool = False
    student_lr: float = 0.1
    student_lr_end: float = 0.0


@dataclass(frozen=True)
class AdversarialConfig(LiveConfig):
    """Those whose generator plays against the student."""

    alpha_adv: float = 1.0
    student_trains_in_synthesis: bool = False


@dataclass(frozen=True)
class DAFLConfig(LiveConfig):
    """DAFL (Chen et al. 2019), its numbers for CIFAR-10. For CIFAR-100 its README has alpha_cls 0.5 and a fourfold
    alpha_ie."""

    generator_lr: float = 0.02
    alpha_cls: float = 1.0
    alpha_ie: float = 5 / math.log(10)  # 5 with the authors' logarithm to base 10
    alpha_act: float = 0.1
    student_weight_decay: float = 5e-4
    temperature: float = 1.0


@dataclass(frozen=True)
class ZSKTConfig(AdversarialConfig):
    """ZSKT (Micaelli & Storkey 2019), in the setting behind the printed numbers (Fang et al. 2022)."""

    noise_dim: int = 256  # of z
    adversarial_mask: bool = False
    temperature: float = 1.0
    alpha_at: float = 0.0  # of attention transfer; the authors' 250 stands beside KL / K, so it is 250 K here


@dataclass(frozen=True)
class DFQChoiConfig(AdversarialConfig):
    """DFQ (Choi et al. 2020), in the setting behind the printed numbers (Fang et al. 2022)."""

    noise_dim: int = 256  # of z
    alpha_cls: float = 1.0
    alpha_bn: float = 1.0
    adversarial_mask: bool = False
    alpha_ie: float = 20.0
    bn_momentum: float = 0.0
    temperature: float = 1.0


@dataclass(frozen=True)
class ReplayConfig(AdversarialConfig):
    """DAFL's numbers and a student that is played against; of each nine of the student's images one is replayed.

    alpha_adv is of the Jensen-Shannon term.
    """

    generator_lr: float = DAFLConfig.generator_lr
    alpha_cls: float = DAFLConfig.alpha_cls
    alpha_ie: float = DAFLConfig.alpha_ie
    alpha_act: float = DAFLConfig.alpha_act
    student_weight_decay: float = DAFLConfig.student_weight_decay


@dataclass(frozen=True)
class MBDFKDConfig(ReplayConfig):
    """MBDFKD (Binici et al. 2022, WACV), its numbers as the code of KAKR has them."""

    push_every: int = 5  # epochs between two mini-batches that enter the ring
    ring_batches: int = 10  # mini-batches kept, where memory_size does not say how many images
    memory_size: int | None = None  # images


@dataclass(frozen=True)
class PREKDConfig(ReplayConfig):
    """PREKD (Binici et al. 2022, AAAI), its numbers for CIFAR."""

    vae_lr: float = 0.02 / 40  # Adam
    vae_share: float = 0.4  # of a turn's student steps, from the first on: the VAE learns beside these
    alpha_kld: float = 1e-5  # of the VAE's posterior
    latent_lr: float = 0.02  # of the one Adam step that readies a z for replay


@dataclass(frozen=True)
class KAKRMBConfig(MBDFKDConfig):
    """KAKR over MBDFKD's ring (Patel et al. 2023)."""

    inner_lr: float = 0.9  # of the step towards the new images, through which the replayed ones are judged


@dataclass(frozen=True)
class KAKRGRConfig(PREKDConfig):
    """KAKR over PREKD's VAE (Patel et al. 2023)."""

    inner_lr: float = 0.9  # as KAKR_MB's


@dataclass(frozen=True)
class MADConfig(DFQChoiConfig):
    """MAD (Do et al. 2022): DFQ's terms. All weights are guesses; `ema` is from a summary of the paper."""

    alpha_ema: float = 1.0  # lambda_0, of the loss on the slow generator's images
    ema: float = 0.95  # how much of the slow generator stays at each step


@dataclass(frozen=True)
class DFADConfig(AdversarialConfig):
    """DFAD (Fang et al. 2019), its numbers for CIFAR-10."""

    noise_dim: int = 256  # of z
    student_weight_decay: float = 5e-4


CONFIGS: dict[str, type[Config]] = {
    "nayer": NayerConfig,
    "fm": FMConfig,
    "deepinv": DeepInvConfig,
    "cmi": CMIConfig,
    "dafl": DAFLConfig,
    "zskt": ZSKTConfig,
    "dfq_choi": DFQChoiConfig,
    "prekd": PREKDConfig,
    "mbdfkd": MBDFKDConfig,
    "kakr_mb": KAKRMBConfig,
    "kakr_gr": KAKRGRConfig,
    "mad": MADConfig,
    "spaceship": SpaceshipConfig,
    "dfad": DFADConfig,
}

# PREKD and MBDFKD: 1,024 new images and 128 replayed ones a student step. KAKR: twice the turns of half as many.
_REPLAY = {"repeats": 36, "rounds": 1, "warmup_rounds": None, "generator_steps": 1, "generator_batch": 1024} | {
    "epochs": 400,
    "warmup_epochs": 0,
    "student_steps": 10,
    "student_batch": 1152,
}
_KAKR = _REPLAY | {"repeats": 72, "generator_batch": 512, "student_batch": 576}

# For CIFAR-10 (Section 4 of each paper, or the code behind the printed numbers).
PUBLISHED: dict[str, dict[str, Any]] = {
    "nayer": {},  # Table 8
    "fm": {"rounds": 1, "warmup_rounds": 1, "generator_steps": 10, "generator_batch": 256, "epochs": 200}
    | {"warmup_epochs": 20, "student_steps": 400, "student_batch": 256},
    "deepinv": {"rounds": 1, "warmup_rounds": None, "generator_steps": 1000, "generator_batch": 256, "epochs": 200}
    | {"warmup_epochs": 0, "student_steps": 400, "student_batch": 256},
    "cmi": {"rounds": 1, "warmup_rounds": None, "generator_steps": 200, "generator_batch": 256, "epochs": 200}
    | {"warmup_epochs": 0, "student_steps": 400, "student_batch": 128},
    "dafl": {"repeats": 120, "rounds": 1, "warmup_rounds": None, "generator_steps": 1, "generator_batch": 1024}
    | {"epochs": 2000, "warmup_epochs": 0, "student_steps": 1, "student_batch": 1024},
    "zskt": {"repeats": 80, "rounds": 1, "warmup_rounds": None, "generator_steps": 1, "generator_batch": 256}
    | {"epochs": 200, "warmup_epochs": 0, "student_steps": 5, "student_batch": 256},
    "dfq_choi": {"repeats": 40, "rounds": 1, "warmup_rounds": None, "generator_steps": 1, "generator_batch": 256}
    | {"epochs": 200, "warmup_epochs": 0, "student_steps": 10, "student_batch": 256},
    "prekd": _REPLAY,
    "mbdfkd": _REPLAY,
    "kakr_mb": _KAKR,
    "kakr_gr": _KAKR,
    # A guess: DFQ's.
    "mad": {"repeats": 40, "rounds": 1, "warmup_rounds": None, "generator_steps": 1, "generator_batch": 256}
    | {"epochs": 200, "warmup_epochs": 0, "student_steps": 10, "student_batch": 256},
    "spaceship": {"rounds": 1, "warmup_rounds": None, "generator_steps": 200, "generator_batch": 256, "epochs": 200}
    | {"warmup_epochs": 0, "student_steps": 2000, "student_batch": 256},
    "dfad": {"repeats": 50, "rounds": 1, "warmup_rounds": None, "generator_steps": 1, "generator_batch": 256}
    | {"epochs": 500, "warmup_epochs": 0, "student_steps": 5, "student_batch": 256},
}


def in_turns(config: LiveConfig) -> LiveConfig:
    """Table 8's budget for a generator that plays on: an epoch in turns of a few generator and as many student steps.

    Published turns are of 1 and 5 or 10 steps; here both sides get up to five, so that with the same student steps
    about as many images go through the teacher in synthesis as in NAYER's warm-up and rounds together.
    """
    turn = max(steps for steps in range(1, 6) if config.student_steps % steps == 0)
    repeats = config.student_steps // turn
    steps = config.distillation_epochs * repeats * turn
    return dataclasses.replace(
        config,
        repeats=repeats,
        rounds=1,
        warmup_rounds=None,
        warmup_epochs=0,
        epochs=config.distillation_epochs,
        epochs_include_warmup=False,
        generator_steps=turn,
        generator_batch=max(2, round(config.synthesis_passes / steps)),
        student_steps=turn,
    )
