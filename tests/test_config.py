"""Table 8 stands in the code as the paper prints it; variants, profiles and overrides change what they say they do."""

import contextlib
import dataclasses
import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nayer_lib import files
from nayer_lib.base_config import BELOW_ONE, QUANTISATION, NayerConfig
from nayer_lib.config import (
    DEFAULT_PRESETS,
    DIVERGENCES,
    PRESETS,
    PROFILES,
    TABLE8,
    VARIANTS,
    differences,
    fields_of,
    make_config,
)
from nayer_lib.errors import UserError
from nayer_lib.methods import METHODS
from nayer_lib.methods.nayer import Nayer
from nayer_notebooks import paper

IDS = [f"D{i}" for i in range(1, 14)]
DIVERGING = {field for row in DIVERGENCES.values() for field in row}
FIELDS = fields_of("nayer")

# What a profile may change: how many, how often, how large. Never a rate, a weight, a network, a choice.
COUNTS_AND_SIZES = {
    "noise_dim",
    "generator_width",
    "generator_batch",
    "generator_steps",
    "generator_life",
    "warmup_epochs",
    "warmup_rounds",
    "epochs",
    "student_steps",
    "student_batch",
}

# CIFAR-10, field by field: released, paper. Tiny-ImageNet's own values stand in TINY.
CIFAR10 = {
    "generator_layout": ("released", "paper"),
    "spectral_norm": (False, True),
    "student_lr": (0.2, 0.1),
    "student_lr_end": (2e-4, 0.0),
    "warmup_rounds": (10, None),
    "generator_life": (10, None),
    "epochs_include_warmup": (False, True),
    "adversarial_mask": (True, False),
    "bn_momentum": (0.9, 0.0),
    "prompt": ("a", "p2"),
    "redraw_norm": (False, True),
    "keep": ("best", "last"),
    "augment_synthesis": (True, False),
    "student_trains_in_synthesis": (True, False),
}
TINY_IMAGENET = CIFAR10 | {"student_lr": (0.1, 0.1), "warmup_rounds": (20, None)}


def full(preset, variant="released", **overrides):
    return make_config(preset, variant, "full", **overrides)


# --- Table 8


@pytest.mark.parametrize("row", list(paper.table(8).itertuples(index=False)), ids=lambda row: row.dataset)
def test_table_8_in_code_is_table_8_of_the_paper(row):
    config = NayerConfig(**TABLE8[row.dataset])
    assert {name: getattr(config, name) for name in row._fields} == row._asdict()


def test_the_full_profile_is_table_8_as_it_stands():
    for preset, row in PRESETS.items():
        config = full(preset)
        assert not differences(config, NayerConfig(**row))
        assert config.total_epochs == 120 and config.lr(20) == config.student_lr


def test_the_settings_of_a2_and_section_3_3_hold_in_every_preset():
    for preset in PRESETS:
        config = full(preset)
        assert (config.generator_lr, config.generator_betas) == (4e-3, (0.5, 0.999))
        assert (config.student_momentum, config.student_weight_decay, config.temperature) == (0.9, 1e-4, 20)
        assert (config.noise_dim, config.warmup_epochs, config.memory_size) == (1000, 20, None)


# --- presets


TABLE9 = {
    "cifar10-mobilenetv2-w6a6",
    "cifar10-vgg19-w4a8",
    "cifar100-resnet20_b-w5a5",
    "cifar100-resnet18-w4a4",
}
OUR_PRESETS = {"digits", "color_digits", "cifar10-resnet20-wrn16_1"}


def test_presets_are_the_columns_of_table_1_and_three_for_a_cpu():
    columns = paper.table(1)[["dataset", "teacher", "student"]].drop_duplicates().itertuples(index=False)
    printed = {f"{c.dataset}-{c.teacher}-{c.student}": tuple(c) for c in columns}
    assert len(printed) == 12
    assert set(PRESETS) == set(printed) | OUR_PRESETS | TABLE9
    for name, column in printed.items():
        config = full(name)
        assert (config.dataset, config.teacher, config.student) == column


def test_table_9_has_a_preset_for_each_printed_cell():
    """Its ResNet-20 has projections in its shortcuts, as in ZAQ's program: another network than `resnet20`."""
    printed = {(row.dataset, row.network, row.bits.lower()) for row in paper.table(9).itertuples()}
    cells = {tuple(name.split("-")) for name in TABLE9}
    assert {(dataset, network.removesuffix("_b"), bits) for dataset, network, bits in cells} == printed
    for name in TABLE9:
        for method in ("nayer", "zaq", "dfq_choi", "zeroq"):
            config = full(name, method=method)
            assert f"w{config.weight_bits}a{config.activation_bits}" in name and config.edge_bits == 8
            assert (config.student_lr, config.student_lr_end) == (1e-3, 1e-5)
            assert config.teacher == config.student and not config.student_trains_in_synthesis
        assert full(name, method="dfq_nagel").weight_scale == "tensor"


def test_each_profile_has_a_preset_of_its_own():
    assert set(DEFAULT_PRESETS) == set(PROFILES)
    assert make_config().dataset == "digits" and make_config().profile == "quick"
    assert make_config(profile="hour") == make_config("cifar10-resnet20-wrn16_1", profile="hour")
    assert make_config(profile="lab") == make_config("cifar10-wrn40_2-wrn16_2", profile="lab")


# --- variants


def test_the_divergences_are_d1_to_d13_and_no_field_stands_twice():
    assert list(DIVERGENCES) == IDS
    assert sum(map(len, DIVERGENCES.values())) == len(DIVERGING) == 14  # D3 has two fields


@pytest.mark.parametrize("profile", PROFILES)
def test_paper_and_released_differ_in_the_fields_of_d1_to_d13_alone(profile):
    for preset in PRESETS:
        found = set(differences(make_config(preset, "released", profile), make_config(preset, "paper", profile)))
        text = VARIANTS["paper"]  # Tiny-ImageNet's rate, D3, and a quantised student's mode, D13, are the text's anyway
        same_anyway = {name for name, value in text.items() if PRESETS[preset].get(name, ...) == value}
        assert found == DIVERGING - same_anyway | {"variant"}, preset


@pytest.mark.parametrize(
    ("preset", "expected"),
    [("cifar10-wrn40_2-wrn16_2", CIFAR10), ("tiny_imagenet-resnet34-resnet18", TINY_IMAGENET)],
)
def test_the_values_of_d1_to_d13(preset, expected):
    released, text = full(preset), full(preset, "paper")
    assert set(expected) == DIVERGING
    assert {name: (getattr(released, name), getattr(text, name)) for name in expected} == expected


def test_released_is_the_default():
    assert VARIANTS["released"] == {} and make_config().variant == NayerConfig().variant == "released"


def test_every_divergence_has_a_row_in_the_document_that_names_its_fields():
    lines = (files.data_dir().parent / "docs" / "divergences.md").read_text(encoding="utf-8").splitlines()
    rows = {line.split("|")[1].strip(): line for line in lines if re.match(r"\| D\d", line)}
    assert list(rows) == IDS
    for name, row in rows.items():
        assert all(f"`{field}`" in row for field in DIVERGENCES[name]), name


# --- profiles and the order of layers


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("profile", PROFILES)
def test_a_profile_shrinks_counts_and_sizes_and_switches_nothing_on(variant, profile):
    for preset in PRESETS:
        changed = differences(full(preset, variant), make_config(preset, variant, profile))
        assert changed.pop("profile", None) == (None if profile == "full" else ("full", profile))
        assert set(changed) <= COUNTS_AND_SIZES
        for name, (before, after) in changed.items():
            assert before is not None and 1 <= after < before, (preset, name)


def test_a_profile_shrinks_a_methods_own_counts_too():
    small, large = (make_config("digits", profile=profile, method="cmi") for profile in ("quick", "full"))
    assert (small.bank_size, small.bank_draw) == (4_096, 256) and (large.bank_size, large.bank_draw) == (40_960, 4_096)
    assert make_config("digits", method="cmi", bank_draw=300).bank_draw == 300


@pytest.mark.parametrize("method", [name for name, kind in METHODS.items() if not issubclass(kind, Nayer)])
def test_another_methods_weights_and_rates_are_its_own_on_every_data_set(method):
    """ImageNet's row of Table 8 has other weights, Tiny-ImageNet's another rate: they are NAYER's."""
    own = METHODS[method].config_class()
    for preset in PRESETS:
        config = make_config(preset, profile="full", method=method)
        names = ["alpha_cls", "alpha_bn", "alpha_adv", "generator_lr"]
        names += [] if preset in TABLE9 else ["student_lr", "student_lr_end"]
        for name in names:
            assert getattr(config, name) == getattr(own, name), (preset, name)


def test_overrides_win_over_profile_variant_and_table_8():
    config = make_config("digits", "paper", "quick", epochs=7, prompt="a", generator_life=3, alpha_bn=0.0, teacher="t")
    assert (config.epochs, config.prompt, config.generator_life, config.alpha_bn) == (7, "a", 3, 0.0)
    assert (config.teacher, config.variant, config.profile) == ("t", "paper", "quick")


def test_the_profile_wins_over_the_variant_and_the_variant_over_table_8():
    config = make_config("tiny_imagenet-resnet34-resnet18", "paper", "quick")
    assert config.generator_steps == PROFILES["quick"]["generator_steps"] != TABLE8["tiny_imagenet"]["generator_steps"]
    assert config.warmup_rounds is None  # Table 8's row as released has 20, the text none, and quick leaves it off
    assert config.synthesis_rounds(0) == config.rounds == 4


# --- what a config computes


@pytest.mark.parametrize(("variant", "total", "learning"), [("released", 120, 100), ("paper", 100, 80)])
def test_d6_says_what_e_counts(variant, total, learning):
    config = full("cifar10-wrn40_2-wrn16_2", variant, epochs=100)
    assert (config.total_epochs, config.distillation_epochs, config.warmup_epochs) == (total, learning, 20)


def test_the_students_rate_is_a_cosine_over_the_distillation_epochs():
    released = full("cifar10-wrn40_2-wrn16_2")
    assert released.lr(20) == 0.2  # the first epoch after warm-up
    assert released.lr(70) == pytest.approx((0.2 + 2e-4) / 2)  # 50 of 100 done
    assert released.lr(119) == pytest.approx(2e-4 + 0.1998 / 2 * (1 + math.cos(math.pi * 0.99)))
    assert released.lr(119) == pytest.approx(2.493e-4, rel=1e-3)  # the same number, worked out by hand

    text = full("cifar10-wrn40_2-wrn16_2", "paper")
    assert text.lr(20) == 0.1 and text.lr(60) == pytest.approx(0.05)
    assert text.lr(99) == pytest.approx(0.05 * (1 - math.cos(math.pi / 80)))  # 79 of 80 done


@pytest.mark.parametrize(("variant", "images"), [("released", 160_000), ("paper", 80_000)])
def test_the_memory_grows_as_the_schedule_says(variant, images):
    """80 k in warm-up and 800 an epoch as released; the text makes 800 in each of its 100."""
    config = full("cifar10-wrn40_2-wrn16_2", variant)
    made = sum(config.synthesis_rounds(epoch) for epoch in range(config.total_epochs)) * config.generator_batch
    assert made == images


def test_the_hash_ignores_the_seed_and_nothing_else():
    base = make_config()
    assert dataclasses.replace(base, seed=5).hash == base.hash
    for name in FIELDS - {"seed", *QUANTISATION}:
        assert dataclasses.replace(base, **{name: "other"}).hash != base.hash, name
    rounded = dataclasses.replace(base, weight_bits=4)
    assert rounded.hash != base.hash
    for name in QUANTISATION:
        assert dataclasses.replace(rounded, **{name: 5}).hash != rounded.hash, name
    assert make_config("digits", "paper").hash != base.hash


@pytest.mark.parametrize("method", METHODS)
def test_equal_configs_have_equal_hashes_whether_a_number_is_written_with_a_point_or_without(method):
    fields = dataclasses.fields(METHODS[method].config_class)
    whole = {field.name: int(field.name not in BELOW_ONE) for field in fields if isinstance(field.default, float)}
    exact = {name: float(number) for name, number in whole.items()}
    if "generator_betas" in fields_of(method):
        whole["generator_betas"], exact["generator_betas"] = [0, 0], (0.0, 0.0)
    bits = {"method": method, "weight_bits": 4, "student": "wrn10_1"}  # with them all fields count
    one, other = make_config(**bits, **whole), make_config(**bits, **exact)
    assert one == other and one.hash == other.hash


def test_a_config_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        make_config().seed = 1


# --- what is refused


@pytest.mark.parametrize(
    ("arguments", "kind", "nearest"),
    [
        ({"preset": "cifar10-wrn40_2-wrn16_3"}, "preset", "cifar10-wrn40_2-wrn16_2"),
        ({"preset": "Digit"}, "preset", "digits"),
        ({"variant": "papers"}, "variant", "paper"),
        ({"profile": "quik"}, "profile", "quick"),
        ({"generator_stepz": 3}, "config field", "generator_steps"),
        ({"keep": "lasts"}, "choice for keep", "last"),
        ({"generator_layout": "papre"}, "generator layout", "paper"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest_known(arguments, kind, nearest):
    with pytest.raises(UserError, match=f"unknown {kind} .*Did you mean '{nearest}'"):
        make_config(**arguments)


@pytest.mark.parametrize("kind", ["profile", "variant", "method", "protocol", "preset"])
@pytest.mark.parametrize("value", [["digits"], {}, 3, True])
def test_what_is_no_name_is_an_unknown_one(kind, value):
    with pytest.raises(UserError, match=f"unknown {kind} {re.escape(repr(value))}"):
        make_config(**{kind: value})


@pytest.mark.parametrize("pair", [("a", "b"), (True, 0.9), (0.5, None), (0.5,), ["a", "b"], 0.5])
def test_what_is_no_pair_of_numbers_is_refused(pair):
    with pytest.raises(UserError, match=r"generator_betas must be a pair of numbers in \[0, 1\), not "):
        make_config(generator_betas=pair)


@pytest.mark.parametrize("name", ["alpha_cls", "student_lr", "bn_momentum", "latent_beta", "range_momentum", "seed"])
@pytest.mark.parametrize("value", [True, False])
def test_a_bool_is_no_number(name, value):
    with pytest.raises(UserError, match=f"{name} must .*, not {value}"):
        make_config(**{name: value})


JUNK = [True, None, -1, 1.5, math.nan, "a", "", [], ["a"], [["a"]], {}, {"a": 1}, ("a", "b"), object()]


@pytest.mark.parametrize("method", ["nayer", "cmi", "nayer_plus", "noise"])
def test_no_value_of_a_field_is_a_traceback(method):
    for name in fields_of(method) - {"method"}:
        for value in JUNK:
            with contextlib.suppress(UserError):
                make_config(**{"method": method, name: value})


COUNTS = sorted(COUNTS_AND_SIZES - {"warmup_epochs"} | {"rounds", "memory_size", "latent_concat"})
not_a_count = st.one_of(
    st.integers(max_value=0), st.floats(), st.text(), st.lists(st.integers(), max_size=2), st.tuples(st.integers())
)


@pytest.mark.parametrize("seed", [2**63, -(2**63), 10**400], ids=["above", "below", "far above"])
def test_a_seed_is_one_that_torch_takes(seed):
    with pytest.raises(UserError, match="seed must be a whole number of at most 63 bits"):
        make_config(seed=seed)
    torch.manual_seed(make_config(seed=2**63 - 1).seed)
    torch.manual_seed(make_config(seed=1 - 2**63).seed)


finite = st.floats(allow_nan=False, allow_infinity=False)
NOT_FINITE = (math.nan, math.inf, 10**400)
few = settings(max_examples=60, deadline=None, database=None)


def refuses(name, value):
    with pytest.raises(UserError, match=rf"\b{name}\b"):
        make_config(**{name: value})


@few
@given(st.sampled_from(COUNTS), not_a_count)
def test_a_count_is_a_whole_number_from_1_up(name, value):
    refuses(name, value)


@pytest.mark.parametrize("value", [1, 33, -2, 32.0, True])
def test_the_generators_width_can_be_halved(value):
    with pytest.raises(UserError, match=f"generator_width must be an even number from 2 up, not {value}"):
        make_config(generator_width=value)
    assert make_config(generator_width=2).generator_width == 2


@few
@given(not_a_count.filter(lambda value: value != 0 or not isinstance(value, int)))
def test_the_warm_up_is_a_whole_number_from_0_up(value):
    refuses("warmup_epochs", value)
    assert make_config(warmup_epochs=0).total_epochs == 16


@few
@given(
    st.sampled_from(["generator_lr", "student_lr", "temperature", "latent_beta"]),
    st.one_of(finite.filter(lambda x: x <= 0), st.sampled_from(NOT_FINITE)),
)
def test_a_rate_is_positive_and_finite(name, value):
    refuses(name, value)


@few
@given(
    st.sampled_from(["alpha_cls", "alpha_bn", "alpha_adv", "student_lr_end", "student_weight_decay"]),
    st.one_of(finite.filter(lambda x: x < -1e-9), st.sampled_from(NOT_FINITE)),
)
def test_a_weight_is_zero_or_positive_and_finite(name, value):
    refuses(name, value)
    assert getattr(make_config(**{name: 0}), name) == 0


@few
@given(st.sampled_from(["bn_momentum", "student_momentum"]), st.floats().filter(lambda x: not 0 <= x < 1))
def test_a_momentum_lies_below_one(name, value):
    refuses(name, value)


@pytest.mark.parametrize(
    ("method", "name"), [("fm", "reset_after"), ("prekd", "vae_share"), ("kakr_gr", "vae_share")]
)
@pytest.mark.parametrize("value", [-0.1, 1.1, 3.0, math.nan])
def test_a_share_lies_between_0_and_1(method, name, value):
    with pytest.raises(UserError, match=rf"{name} must lie in \[0, 1\], not {value}"):
        make_config(method=method, **{name: value})
    assert getattr(make_config(method=method, **{name: 1.0}), name) == 1


def test_an_epoch_count_that_leaves_the_student_nothing_is_refused_naming_d6():
    with pytest.raises(UserError, match="leaves none for the student .*D6"):
        full("cifar10-wrn40_2-wrn16_2", "paper", epochs=20)
    assert full("cifar10-wrn40_2-wrn16_2", "paper", epochs=21).distillation_epochs == 1
