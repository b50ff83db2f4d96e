"""Table 8 and appendix A.1-A.2 as data, and how a `Config` is made.

In this order: the method's own numbers, the data set's row of Table 8 (or the method's published schedule), the
variant, the profile, what the user overrides.

* Two protocols. `equal` gives every method Table 8's budget: as many student steps and student images, as many images
  through the teacher in synthesis, the same augmentation. `published` is the method's own schedule for CIFAR-10. Loss
  weights and rates are the method's own under both.

* Two variants: `released` (what the authors' code does, the default) and `paper` (the text). They differ in exactly the
  fields of DIVERGENCES; rule: a component that the text does not name is off in `paper`, a number that it does not
  give takes the released value. docs/divergences.md explains each.
* Four profiles: `quick` (a laptop CPU, minutes), `hour` (CIFAR-10 on two CPU cores, an hour or more), `lab` (one GPU),
  `full` (the row as it stands). A profile shrinks counts and sizes only, never a rate or a weight, and never switches
  on what the variant left off.
"""

import dataclasses
import functools
import re
import sys
from typing import Any

from .base_config import PROTOCOLS, Config, NayerConfig, check
from .errors import UserError, unknown
from .methods import KINDS

# Rows of Table 8. The digit sets are ours: CIFAR-10's row with small networks and an encoder that works offline; other
# differences were chosen on their validation part.
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

# Counts and sizes, also those of a single method. A value here never switches on what the variant left off (None).
PROFILES: dict[str, dict[str, Any]] = {
    "quick": {
        "noise_dim": 256,
        "nayer_noise_dim": 256,
        "generator_width": 32,
        "generator_batch": 100,
        "generator_steps": 20,
        "warmup_epochs": 2,
        "warmup_rounds": 4,
        "generator_life": 5,
        "epochs": 16,
        "student_steps": 40,
        "student_batch": 128,
        "images": 4_000,
        "repeats": 8,
        "bank_size": 4_096,
        "bank_draw": 256,
        "push_every": 1,
    },
    "hour": {
        "noise_dim": 256,
        "nayer_noise_dim": 256,
        "generator_width": 64,
        "generator_batch": 200,
        "generator_steps": 20,
        "warmup_epochs": 4,
        "epochs": 30,
        "student_steps": 330,
        "student_batch": 128,
        "images": 20_000,
        "push_every": 1,
    },
    "lab": {"warmup_epochs": 6, "epochs": 25, "images": 44_000, "push_every": 1},
    "full": {},
}

# The columns of Table 1, our two digit sets, and CIFAR-10 as a CPU can do it: small networks, and text that needs no
# download.
_CIFAR_PAIRS = ["resnet34 resnet18", "wrn40_2 wrn16_2", "wrn40_2 wrn16_1", "wrn40_2 wrn40_1", "vgg11 resnet18"]
_PAIRS = {
    "cifar10": _CIFAR_PAIRS,
    "cifar100": _CIFAR_PAIRS,
    "tiny_imagenet": ["resnet34 resnet18"],
    "imagenet": ["resnet50 resnet50"],
}
PRESETS: dict[str, dict[str, Any]] = {"digits": TABLE8["digits"], "color_digits": TABLE8["color_digits"]}
PRESETS["cifar10-resnet20-wrn16_1"] = {
    **TABLE8["cifar10"],
    "teacher": "resnet20",
    "student": "wrn16_1",
    "encoder": "sbert",
}
for _dataset, _pairs in _PAIRS.items():
    for _teacher, _student in map(str.split, _pairs):
        PRESETS[f"{_dataset}-{_teacher}-{_student}"] = {**TABLE8[_dataset], "teacher": _teacher, "student": _student}
# Table 9's cells. The paper has no rates: these are the literature's for a student that starts as its teacher. D13 is
# off, so that the generator's steps do not move the student's ranges.
_QUANTISED = {"edge_bits": 8, "student_lr": 1e-3, "student_lr_end": 1e-5, "student_trains_in_synthesis": False}
_CELLS = {
    "cifar10": {"mobilenetv2": (6, 6), "vgg19": (4, 8)},
    "cifar100": {"resnet20_b": (5, 5), "resnet18": (4, 4)},
}
for _dataset, _networks in _CELLS.items():
    for _network, (_weights, _activations) in _networks.items():
        PRESETS[f"{_dataset}-{_network}-w{_weights}a{_activations}"] = {
            **TABLE8[_dataset],
            **_QUANTISED,
            "teacher": _network,
            "student": _network,
            "weight_bits": _weights,
            "activation_bits": _activations,
        }
DEFAULT_PRESETS = {"quick": "digits", "hour": "cifar10-resnet20-wrn16_1"} | dict.fromkeys(
    ("lab", "full"), "cifar10-wrn40_2-wrn16_2"
)


def make_config(
    preset: str | None = None,
    variant: str = "released",
    profile: str = "quick",
    method: str = "nayer",
    protocol: str = "equal",
    **overrides,
) -> Config:
    """A config from a preset (a column of Table 1 or 9, or a digit set), a method and its protocol, a variant, a
    profile and overrides.

    `preset` None takes the profile's own: digits on a laptop, CIFAR-10 with ResNet-20 -> WRN-16-1 on a CPU,
    with WRN-40-2 -> WRN-16-2 on a GPU. Under the protocol "equal" counts are NAYER's, and a method with a persistent
    generator spreads them over turns (`Config.in_turns`), unless `repeats` is overridden: then counts stay as
    given.

    Raises:
        UserError: an unknown name (the nearest is named), a field that the method does not read, an invalid value
            (`check`), or the variant "paper", which is NAYER's text, for another method.
    """
    named = {"profile": (profile, PROFILES), "variant": (variant, VARIANTS), "method": (method, KINDS)}
    named |= {"protocol": (protocol, PROTOCOLS)} | ({} if preset is None else {"preset": (preset, PRESETS)})
    for kind, (name, known) in named.items():
        if not isinstance(name, str) or name not in known:
            raise unknown(kind, name, known)
    preset = DEFAULT_PRESETS[profile] if preset is None else preset
    if variant != "released" and method != "nayer":
        raise UserError(f"the variant {variant!r} is NAYER's text: leave it out for {method}.")
    for name in (name for name in overrides if name not in fields_of(method)):
        if readers := [reader for reader in KINDS if name in fields_of(reader)]:
            raise UserError(f"{method} does not read {name}: of all methods {', '.join(readers)} do.")
        raise unknown(f"config field of {method}", name, fields_of(method))

    config_class, row = KINDS[method].config_class, PRESETS[preset]
    overrides = {name: _typed(value, getattr(config_class, name)) for name, value in overrides.items()}
    schedule = KINDS[method].published if protocol == "published" else {}
    if not issubclass(config_class, NayerConfig):  # others take Table 8's names and counts, not its weights and rates
        kept = {"student_lr"} if "weight_bits" in row else set()  # not Table 8's: every quantised student's
        taken = fields_of(method) - {name for name in row.keys() - kept if re.match(r"alpha_|.*_lr$", name)}
        row = {name: value for name, value in row.items() if name in taken}
    rows = {**row, **VARIANTS[variant], **schedule}
    rows |= {"method": method, "protocol": protocol, "variant": variant, "profile": profile}
    config = config_class(**rows)
    whole = {name: getattr(config, name) for name in PROFILES[profile] if name in fields_of(method)}
    shrunk = {name: min(PROFILES[profile][name], value) for name, value in whole.items() if value is not None}
    config = check(dataclasses.replace(config, **{**shrunk, **overrides}))
    if protocol == "equal" and "repeats" not in overrides:
        return check(config.in_turns())
    return config


def _typed(value: Any, default: Any) -> Any:
    """A value as its field has it, so that equal configs have equal hashes: JSON has no tuples, and one may write 1 for
    1.0. The only tuples are pairs of floats."""
    if isinstance(value, list | tuple):
        return tuple(_typed(each, default) for each in value)
    whole = type(value) is int and abs(value) <= sys.float_info.max  # larger ones no float holds: `check` refuses them
    return float(value) if whole and isinstance(default, float | tuple) else value


def fields_of(method: str) -> frozenset[str]:
    """The config fields that a method reads."""
    return _names(KINDS[method].config_class)


@functools.cache  # asked for each override of each config of each sweep
def _names(kind: type[Config]) -> frozenset[str]:
    return frozenset(field.name for field in dataclasses.fields(kind))


def differences(first: Config, second: Config) -> dict[str, tuple[Any, Any]]:
    """The fields in which two configs differ: name -> both values, None where a config lacks the field."""
    names = dict.fromkeys(field.name for config in (first, second) for field in dataclasses.fields(config))
    pairs = {name: (getattr(first, name, None), getattr(second, name, None)) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
