"""Every column of Table 1 can be put together and run without data, weights or network; what it would hold adds up."""

import os

import pytest
import torch
from tiny import tiny_config

from nayer_lib import cli, distill
from nayer_lib.classifiers.teacher import make_classifier
from nayer_lib.config import PRESETS, VARIANTS, make_config
from nayer_lib.datasets import Split, dataset
from nayer_lib.errors import UserError
from nayer_lib.runs import forecast
from nayer_lib.runs.forecast import COPIES, in_words, rehearse
from nayer_lib.text.lte_pool import build_pool

# Parameters of teacher, student and generator, images and their bytes: the published counts (released, E = 100).
PUBLISHED = {
    "cifar10-wrn40_2-wrn16_2": (2_243_546, 691_674, 28_944_771, 160_000, 160_000 * (3 * 32 * 32 + 16)),
    "cifar100-wrn40_2-wrn16_1": (2_255_156, 180_916, 10_476_771, 160_000, 160_000 * (3 * 32 * 32 + 16)),
    "tiny_imagenet-resnet34-resnet18": (21_379_592, 11_271_432, 33_538_347, 160_000, 160_000 * (3 * 64 * 64 + 16)),
    "imagenet-resnet50-resnet50": (25_557_032, 25_557_032, 26_072_107, 120_000, 120_000 * (3 * 224 * 224 + 16)),
}


TWO = Split(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.arange(2))  # images


@pytest.fixture(autouse=True)
def nothing_is_read(monkeypatch):
    def read(*words):
        raise AssertionError(f"a rehearsal asked for {words}")

    monkeypatch.setattr(distill, "load_split", read)


SMALLEST = ("digits", "color_digits", "cifar10-resnet20-wrn16_1", "cifar10-wrn40_2-wrn16_1")


@pytest.mark.parametrize(
    "preset", [pytest.param(name, marks=() if name in SMALLEST else pytest.mark.slow) for name in PRESETS]
)
def test_every_preset_is_rehearsed_at_its_full_size(preset):
    config = make_config(preset, "released", "full")
    counted = rehearse(config)
    if preset in PUBLISHED:
        assert (*counted.parameters.values(), counted.images, counted.bytes["memory"]) == PUBLISHED[preset]
    assert counted.bytes["generator"] == 16 * counted.parameters["generator"]
    assert f"{config.teacher} -> {config.student}, released, full" in in_words(config, counted)


def test_the_papers_variant_counts_its_warm_up_epochs_in():
    config = make_config("cifar100-vgg11-resnet18", "paper", "full")
    assert rehearse(config).images == 100 * config.rounds * config.generator_batch


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("profile", ["quick", "lab", "full"])
@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_variant_and_profile(preset, variant, profile):
    assert rehearse(make_config(preset, variant, profile)).images > 0


def test_the_arithmetic_by_hand():
    """Two epochs after one of warm-up, one and two rounds of 20 images, of 64 pixels with label and round."""
    counted = rehearse(tiny_config())
    assert counted.images == 20 * (1 + 2 * 2) and counted.bytes["memory"] == 100 * (64 + 8 + 8)
    assert rehearse(tiny_config(memory_size=30)).images == 30
    live = rehearse(tiny_config(method="zskt"))
    assert live.images == live.bytes["memory"] == 0  # it keeps none
    features = rehearse(tiny_config(method="spaceship"))  # three activations an image, two bytes a number
    assert features.images == 100
    assert features.bytes["memory"] == 100 * (2 * (8 * 2 * 2 + 8 * 4 * 4 + 4 * 8 * 8) + 8 + 8)
    assert counted.bytes["beside"] == live.bytes["beside"] == features.bytes["beside"] == 0
    teacher, student = (sum(p.numel() for p in build(name).parameters()) for name in ("wrn10_1", "wrn10_half"))
    assert (counted.parameters["teacher"], counted.parameters["student"]) == (teacher, student)
    assert (counted.bytes["teacher"], counted.bytes["student"]) == (8 * teacher, 12 * student)
    assert COPIES == {"teacher": 2, "student": 3, "generator": 4}


@pytest.mark.parametrize(
    ("method", "beside"),
    [
        ("fm", lambda of: 16 * numbers(of.meta)),
        ("mad", lambda of: 4 * numbers(of.slow)),
        ("prekd", lambda of: 16 * numbers(of.vae)),
        ("kakr_gr", lambda of: 16 * numbers(of.vae)),
        ("cmi", lambda of: 16 * numbers(of.head) + 50 * (4 * 2 * of.head[0].in_features + 16)),
        ("mbdfkd", lambda of: 10 * 2 * 64),  # ten mini-batches of two images of 64 bytes
    ],
)
@pytest.mark.filterwarnings("ignore:the teacher scores")  # on two images
def test_what_a_method_holds_beside_networks_and_memory_is_counted(method, beside):
    config = tiny_config(method=method, **({"bank_size": 50, "bank_draw": 30} if method == "cmi" else {}))
    counted = rehearse(config)
    assert counted.bytes["beside"] == beside(distill.prepare(config, test=TWO, device="cpu").method) > 0
    assert "beside them" in in_words(config, counted)


def numbers(network) -> int:
    return sum(p.numel() for p in network.parameters())


def build(name):
    facts = dataset("digits")
    return make_classifier(name, facts.class_names, facts.mean, facts.std, seed=0)


def test_ones_own_teacher_pool_and_images_are_rehearsed_with():
    names = ("leaf", "stone", "wood")
    teacher = make_classifier("wrn10_half", names, (0.5,) * 3, (0.2,) * 3, seed=0)
    test = Split(torch.randint(256, (2, 3, 16, 16), dtype=torch.uint8), torch.arange(2))
    counted = rehearse(tiny_config(dataset="leaves"), teacher, build_pool(names, "random", "a"), test)
    assert counted.bytes["memory"] == 100 * (3 * 16 * 16 + 16)


def test_real_images_that_a_control_learns_from_are_held_and_told(monkeypatch):
    asked = []
    monkeypatch.setattr(distill, "load_split", lambda *words: asked.append(words) or TWO)
    config = tiny_config(method="with_data")
    counted = rehearse(config)
    assert asked == [("digits", "train")]
    assert counted.images == 2 and counted.bytes["memory"] == 2 * (64 + 8 + 8)
    assert "step ran on real images, one evaluation on random ones: no weights were needed" in in_words(config, counted)


@pytest.mark.filterwarnings("ignore:the teacher scores")  # on two images
def test_a_run_that_does_not_fit_is_refused_before_it_starts(tmp_path, monkeypatch, capsys):
    setup = distill.prepare(tiny_config(), test=TWO, device="cpu")
    needed = sum(forecast.held(setup.method).bytes.values())
    monkeypatch.setattr(forecast, "free_memory", lambda device: needed)
    forecast.check_fits(setup.method)
    monkeypatch.setattr(forecast, "free_memory", lambda device: None)  # nobody knows
    forecast.check_fits(setup.method)
    monkeypatch.setattr(forecast, "free_memory", lambda device: needed - 1)
    with pytest.raises(UserError, match=rf"would hold {needed / 1e6:.1f} MB at its end.* free \(cpu\): take a smaller"):
        forecast.check_fits(setup.method)
    monkeypatch.setattr(distill, "load_split", lambda *_: TWO)
    assert cli.main(["distill", "--device", "cpu", "--out", str(tmp_path / "run")]) == 2
    assert "would hold" in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_the_free_memory_is_what_the_system_or_the_gpu_says(monkeypatch):
    free, page = forecast.free_memory(torch.device("cpu")), os.sysconf("SC_PAGE_SIZE")
    if free is not None:
        assert 0 < free < page * os.sysconf("SC_PHYS_PAGES")
    monkeypatch.setattr(
        forecast.Path, "read_text", lambda *_, **__: "MemTotal: 9 kB\nMemAvailable:   5 kB\nHeld: 1 kB\n"
    )
    assert forecast.free_memory(torch.device("cpu")) == 5120
    monkeypatch.setattr(forecast.Path, "read_text", lambda *_, **__: "MemTotal: 9 kB\n")
    assert forecast.free_memory(torch.device("cpu")) is None
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 7)
    assert forecast.free_memory(torch.device("cuda")) == 107


def test_distill_dry_run_prints_the_table_and_leaves_no_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("NAYER_RUNS", str(tmp_path / "runs"))
    preset = "cifar10-wrn40_2-wrn16_2"
    assert cli.main(["distill", "--preset", preset, "--profile", "full", "--dry-run"]) == 0
    said = capsys.readouterr().out
    for expected in (
        "2,243,546",
        "691,674",
        "28,944,771",
        "160,000 images",
        "494.1 MB",
        "no data or weights were need",
    ):
        assert expected in said
    assert not (tmp_path / "runs").exists()
    assert cli.main(["distill", "--preset", preset, "--dry-run", "--set", "student=wrn16"]) == 2
    assert capsys.readouterr().err.startswith("nayer_lib: unknown network 'wrn16'")
