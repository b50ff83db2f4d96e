"""Many runs from one file: what a file may say, what is run, where and in which order, what is skipped or fails."""

import contextlib
import dataclasses
import io
import json
import multiprocessing
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
import types
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import forkserver
from pathlib import Path

import pytest
import torch
from joblib import register_parallel_backend
from joblib._parallel_backends import ThreadingBackend
from tiny import TINY, clone_cards, copy_data, read_json, run_all, tiny_config, tiny_setup

from nayer_lib import cli, files
from nayer_lib.classifiers.teacher import load_classifier
from nayer_lib.config import DIVERGENCES, Config, make_config
from nayer_lib.errors import MissingFile, UserError
from nayer_lib.generator.latents import EMBEDDINGS, LATENTS
from nayer_lib.runs import card as cards_module
from nayer_lib.runs import launch
from nayer_lib.runs.card import card_config, device_name, kept_cards, local_cards
from nayer_lib.runs.forecast import budget, projected
from nayer_lib.runs.launch import run_sweep
from nayer_lib.runs.sweep import Sweep, arm_cards, keep_sweep, read_sweep

SPEC = {"preset": "digits", "seeds": [0, 1], "common": TINY, "arms": {"text": {}, "z": {"latent": "noise"}}}


@pytest.fixture
def write(tmp_path):
    """Write a sweep file; returns its path."""

    def written(spec, name="mine.json"):
        path = tmp_path / name
        path.write_text(spec if isinstance(spec, str) else json.dumps(spec), encoding="utf-8")
        return path

    return written


@pytest.fixture
def no_runs(tmp_path, monkeypatch):
    """An empty runs folder; it is the test's own."""
    monkeypatch.setenv("NAYER_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


def card_of(config: Config, status: str = "finished", **facts) -> dict:
    """A card as it is read from a file: lists where the config has tuples."""
    config = json.loads(json.dumps(dataclasses.asdict(config)))
    seconds = {"synthesis": 60.0, "student": 30.0, "evaluation": 10.0, "total": 110.0}
    name = f"{config['latent']}-{config['seed']}"
    card = {"id": name, "status": status, "config": config, "seconds": seconds, "device": "a device", "curve": []}
    card |= {"teacher": {"accuracy": 1.0, "sha256": "a"}, "test_split": {"sha256": "b"}}
    return card | {"accuracy_last": 0.5, "accuracy_best": 0.5} | facts


def save_card(folder, card: dict) -> None:
    (folder / card["id"]).mkdir(parents=True)
    (folder / card["id"] / "card.json").write_text(json.dumps(card))


# --- reading


def test_a_file_is_arms_with_one_config_a_seed(write):
    read = read_sweep(write(SPEC, "latents.json"))
    assert read.name == "latents" and list(read.arms) == ["text", "z"]
    assert read.arms == {
        "text": [tiny_config(seed=0), tiny_config(seed=1)],
        "z": [tiny_config(seed=0, latent="noise"), tiny_config(seed=1, latent="noise")],
    }


def test_preset_variant_and_profile_are_those_of_make_config(write):
    spec = {"preset": "cifar10-wrn40_2-wrn16_2", "variant": "paper", "profile": "lab", "seeds": [4], "arms": {"a": {}}}
    assert read_sweep(write(spec)).arms == {"a": [make_config("cifar10-wrn40_2-wrn16_2", "paper", "lab", seed=4)]}
    assert read_sweep(write({"seeds": [4], "arms": {"a": {}}})).arms == {"a": [make_config(seed=4)]}


def test_an_arm_has_the_last_word(write):
    """Over what all arms have in common, and over the preset."""
    spec = SPEC | {"variant": "released", "common": {**TINY, "rounds": 3}, "unequal_budgets": True}
    spec["arms"] = {"as all": {}, "its own": {"rounds": 1}, "the text": {"variant": "paper"}}
    arms = read_sweep(write(spec)).arms
    assert [configs[0].rounds for configs in arms.values()] == [3, 1, 3]
    assert [configs[0].variant for configs in arms.values()] == ["released", "released", "paper"]


def test_what_is_common_reaches_the_arms_that_read_it(write):
    common = {"epochs": 3, "encoder": "sbert", "noise_dim": 64, "student_steps": 7}
    arms = {"NAYER": {}, "FM": {"method": "fm"}, "DeepInv": {"method": "deepinv"}}
    read = read_sweep(write({"preset": "digits", "seeds": [0], "common": common, "arms": arms})).arms
    assert read["NAYER"] == [make_config("digits", **common)]
    assert read["FM"] == [make_config("digits", method="fm", epochs=3, noise_dim=64, student_steps=7)]
    assert read["DeepInv"] == [make_config("digits", method="deepinv", epochs=3, student_steps=7)]


@pytest.mark.parametrize(
    ("common", "arms"),
    [
        ({}, {"NAYER": {}, "DeepInv": {"method": "deepinv", "latent": "lte"}}),  # an arm's own
        ({"latent": "lte"}, {"DeepInv": {"method": "deepinv"}}),  # of no arm
    ],
)
def test_a_field_that_no_run_would_read_is_refused(write, common, arms):
    with pytest.raises(UserError, match="deepinv does not read latent: of all methods nayer, .* do"):
        read_sweep(write({"preset": "digits", "seeds": [0], "common": common, "arms": arms}))


def test_every_kept_line_of_a_sweep_is_still_a_run_of_one_of_its_arms():
    folder = files.data_dir()
    for path in sorted((folder / "runs").glob("*.jsonl")):
        read = read_sweep(folder / "sweeps" / f"{path.stem}.json")
        found = {card["id"] for cards in arm_cards(read, clone_cards(read.split)).values() for card in cards}
        lines = path.read_text(encoding="utf-8").splitlines()
        assert {json.loads(line)["id"] for line in lines} <= found, path.name


def test_a_file_that_is_not_there_is_told(tmp_path):
    with pytest.raises(MissingFile, match="no sweep file .*nothing.json: the kit's own are in data/sweeps"):
        read_sweep(tmp_path / "nothing.json")


@pytest.mark.parametrize("text", ["", '{"arms": ', "3", "null", '["arms", "seeds"]', '"arms"'])
def test_what_is_no_json_object_is_told(write, text):
    with pytest.raises(UserError, match="is not JSON that describes a sweep"):
        read_sweep(write(text))


@pytest.mark.parametrize(
    ("change", "told"),
    [({"repeats": 3}, "repeats"), ({"Seeds": [1]}, "Seeds"), ({"arms": None}, "arms"), ({"seeds": None}, "seeds")],
    ids=str,
)
def test_a_field_that_is_unknown_or_missing_is_told(write, change, told):
    spec = {name: value for name, value in (SPEC | change).items() if value is not None}
    with pytest.raises(UserError, match=f"must have 'arms' and 'seeds'.*{told if change[told] else ''}"):
        read_sweep(write(spec))


@pytest.mark.parametrize(
    ("where", "override", "sentence"),
    [
        ("arms", {"latnt": "noise"}, "unknown config field of nayer 'latnt'. Did you mean 'latent'"),
        ("arms", {"latent_beta": 0}, "latent_beta must be a positive number, not 0"),
        ("common", {"epochs": 0}, "epochs must be a whole number from 1 up, not 0"),
        ("common", {"student_lr": "high"}, "student_lr must be a positive number"),
    ],
)
def test_a_wrong_override_is_told_before_anything_runs(write, where, override, sentence):
    spec = SPEC | {"arms": {"good": {}, "bad": override}} if where == "arms" else SPEC | {where: override}
    with pytest.raises(UserError, match=sentence):
        read_sweep(write(spec))


PRIMARY = {"primary": [["z", "text"]]}


@pytest.mark.parametrize(
    "pairs", [[["text", "nothing"]], [["z"]], ["z", "text"], [["z", "z"]], 7 * [["z", "text"]], 3, {"z": "text"}]
)
def test_a_primary_contrast_is_a_pair_of_two_arms(write, pairs):
    with pytest.raises(UserError, match=r"'primary' is a list of at most 6 pairs \[arm, reference\]"):
        read_sweep(write(SPEC | {"primary": pairs}))


def test_what_was_registered_is_known_by_its_hash(write):
    assert read_sweep(write(SPEC)).registration is None
    sweep = read_sweep(write(SPEC | PRIMARY))
    assert sweep.primary == (("z", "text"),) and len(sweep.registration) == 64
    assert read_sweep(write(dict(reversed((SPEC | PRIMARY).items())))).registration == sweep.registration
    others = [{"more_seeds": {"z": [7]}}, {"seeds": [7]}, {"common": {"epochs": 2}}, {"primary": [["text", "z"]]}]
    assert sweep.registration not in [read_sweep(write(SPEC | PRIMARY | other)).registration for other in others]


def test_an_arm_may_have_more_seeds(write):
    arms = read_sweep(write(SPEC | {"more_seeds": {"z": [2, 3]}})).arms
    assert {arm: [config.seed for config in configs] for arm, configs in arms.items()} == {
        "text": [0, 1],
        "z": [0, 1, 2, 3],
    }
    with pytest.raises(UserError, match="arm with more seeds 'zz'.*z"):
        read_sweep(write(SPEC | {"more_seeds": {"zz": [2]}}))


@pytest.mark.parametrize("name", ["preset", "variant", "profile"])
def test_an_unknown_preset_variant_or_profile_is_told(write, name):
    with pytest.raises(UserError, match=f"unknown {name} 'digit'"):
        read_sweep(write(SPEC | {name: "digit"}))


# --- budgets


def test_a_budget_counts_what_a_run_does():
    setup = tiny_setup(warmup_epochs=2, warmup_rounds=3, rounds=1)
    method, drawn = setup.method, []
    step = method.student_step
    method.student_step = lambda batch: drawn.append(len(batch.images)) or step(batch)
    rounds = [report for epoch in run_all(setup) for report in epoch.rounds]
    assert budget(method.config) == {
        "images through the teacher in synthesis": sum(report.steps * report.images for report in rounds),
        "student steps": len(drawn),
        "images drawn by the student": sum(drawn),
    }


def test_an_epoch_that_repeats_spends_so_many_times_as_much():
    once = budget(tiny_config())
    assert budget(tiny_config(repeats=5)) == {what: 5 * count for what, count in once.items()}


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ({"epochs": 3}, "images through the teacher in synthesis"),
        ({"generator_steps": 3}, "arm 'dear' has 300 images through the teacher in synthesis, arm 'text' 200"),
        ({"rounds": 3}, "images through"),
        ({"warmup_rounds": 2}, "images through"),
        ({"generator_batch": 21}, "arm 'dear' has 210 images through"),
        ({"student_steps": 3}, "arm 'dear' has 6 student steps, arm 'text' 4"),
        ({"student_batch": 8}, "32 images drawn by the student, arm 'text' 64"),
    ],
    ids=str,
)
def test_arms_of_unequal_budgets_are_refused_unless_the_file_says_so(write, override, told):
    spec = SPEC | {"arms": {"text": {}, "dear": override}}
    for said in (None, False, "yes", 1):
        with pytest.raises(UserError, match=f'{told}.*give all arms one budget, or say "unequal_budgets": true'):
            read_sweep(write(spec if said is None else spec | {"unequal_budgets": said}))
    assert len(read_sweep(write(spec | {"unequal_budgets": True})).arms) == 2


@pytest.mark.parametrize(
    "override", [{"memory_size": 50}, {"student": "wrn10_1"}, {"student_lr": 0.1}, {"keep": "last"}]
)
def test_what_a_run_holds_or_which_networks_it_has_is_no_budget(write, override):
    read_sweep(write(SPEC | {"arms": {"text": {}, "another": override}}))


def test_an_unknown_method_is_told_before_anything_runs(write):
    with pytest.raises(UserError, match="unknown method 'nayr'. Did you mean 'nayer'"):
        read_sweep(write(SPEC | {"arms": {"text": {}, "typo": {"method": "nayr"}}}))


# --- what is run


@pytest.fixture
def asked(monkeypatch):
    """(arm, seed) of every run that was asked for, in order; nothing runs."""
    seen = []
    monkeypatch.setattr(launch, "_run", lambda arm, config, *_: seen.append((arm, config.seed)))
    return seen


def test_seed_by_seed_so_that_a_cut_sweep_has_every_arm(write, no_runs, asked):
    spec = SPEC | {"seeds": [3, 0, 1], "arms": {"b": {}, "a": {"latent": "lte"}}}
    assert run_sweep(read_sweep(write(spec))) == []
    assert asked == [("b", 0), ("a", 0), ("b", 1), ("a", 1), ("b", 3), ("a", 3)]


def test_a_finished_run_is_known_by_its_card(write, no_runs, asked):
    save_card(no_runs, card_of(tiny_config(seed=0)))
    save_card(no_runs, card_of(tiny_config(seed=1, latent="noise")))
    run_sweep(read_sweep(write(SPEC)))
    assert asked == [("z", 0), ("text", 1)]


def test_a_card_from_before_a_field_counts_too(write, no_runs, asked):
    card = card_of(tiny_config(seed=0))
    del card["config"]["embedding"], card["config"]["latent_beta"]
    save_card(no_runs, card)
    run_sweep(read_sweep(write(SPEC)))
    assert asked == [("z", 0), ("text", 1), ("z", 1)]


@pytest.mark.parametrize("status", ["running", "failed: L_CE became NaN.", "stopped before its last epoch"])
def test_a_run_that_did_not_finish_is_run_again(write, no_runs, asked, status):
    save_card(no_runs, card_of(tiny_config(seed=0), status))
    run_sweep(read_sweep(write(SPEC)))
    assert asked[0] == ("text", 0) and len(asked) == 4


def test_a_card_of_another_config_stands_for_nothing(write, no_runs, asked):
    for change in ({"seed": 2}, {"rounds": 9}, {"latent": "lte"}):
        card = card_of(tiny_config(**change))
        save_card(no_runs, card | {"id": str(change)})
    run_sweep(read_sweep(write(SPEC)))
    assert len(asked) == 4


def test_a_kept_run_is_not_run_again(no_runs, asked):
    """The kit's own presets are kept: seeds 0 to 2 of the quick profile on digits."""
    assert make_config(seed=0) in [card_config(card) for card in clone_cards()]
    run_sweep(Sweep("mine", {"preset": [make_config(seed=0), make_config(seed=77)]}))
    assert asked == [("preset", 77)]


def test_a_sweep_that_is_done_runs_nothing(write, no_runs, asked):
    read = read_sweep(write(SPEC))
    for i, config in enumerate(config for configs in read.arms.values() for config in configs):
        save_card(no_runs, card_of(config) | {"id": str(i)})
    assert run_sweep(read) == [] and asked == []


def test_a_config_that_two_arms_share_is_run_once(write, no_runs, asked):
    run_sweep(read_sweep(write(SPEC | {"seeds": [0, 0], "arms": {"one": {}, "same": {}, "z": {"latent": "noise"}}})))
    assert asked == [("one", 0), ("z", 0)]


# --- shares


@pytest.mark.parametrize("n", range(1, 9))
def test_shares_are_disjoint_balanced_and_cover_everything(write, n):
    read = read_sweep(write(SPEC | {"seeds": [2, 0, 1]}))
    shares = [read.runs(f"{i}/{n}") for i in range(1, n + 1)]
    runs = [run for share in shares for run in share]
    assert len(runs) == 6 and set(runs) == set(read.runs())
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_share_is_the_same_however_much_is_finished(write, no_runs, asked):
    read = read_sweep(write(SPEC))
    run_sweep(read, share="2/2")
    assert asked == [("z", 0), ("z", 1)]
    save_card(no_runs, card_of(tiny_config(seed=0)))
    save_card(no_runs, card_of(tiny_config(seed=0, latent="noise")))
    run_sweep(read, share="2/2")
    assert asked[2:] == [("z", 1)]


@pytest.mark.parametrize("share", ["0/3", "4/3", "3", "1/0", "-1/2", "1/2/3", "a/b", "", "1/ 2"])
def test_a_share_that_does_not_exist_is_told(write, no_runs, asked, share):
    with pytest.raises(UserError, match="a share of a sweep is i/n with i from 1 to n, as 2/3, not "):
        run_sweep(read_sweep(write(SPEC)), share=share)
    assert asked == []


# --- how long it takes


@pytest.fixture
def nothing_kept(monkeypatch):
    monkeypatch.setattr(cards_module, "kept_cards", lambda split="test": [])


def test_a_run_takes_as_long_as_those_of_other_seeds(no_runs):
    cards = [card_of(tiny_config(seed=s), seconds={**PHASES, "total": t}) for s, t in ((0, 100.0), (1, 200.0))]
    other = card_of(tiny_config(latent="noise"), seconds={**PHASES, "total": 9.0})  # as many steps, but not equal
    finished = [(card_config(card), card) for card in (other, *cards)]
    assert projected(tiny_config(seed=7), finished) == (pytest.approx(150), "a device")


PHASES = {"synthesis": 60.0, "student": 30.0, "evaluation": 10.0}


def test_else_as_long_as_alike_ones_scaled_by_steps(no_runs):
    """Of 110 s, 100 are of the phases: synthesis has twice the steps, the student three times, scoring as many."""
    base = card_of(tiny_config())
    twice = tiny_config(generator_steps=4, student_steps=6, latent="noise", memory_size=10)
    assert projected(twice, [(card_config(base), base)]) == (pytest.approx(110 * (120 + 90 + 10) / 100), "a device")
    longer = tiny_config(epochs=4)  # 9 rounds where there were 5, and four epochs where there were two
    expected = 110 * (60 * 9 / 5 + 30 * 2 + 10 * 2) / 100
    assert projected(longer, [(card_config(base), base)]) == (pytest.approx(expected), "a device")
    control = make_config("digits", method="with_data", student="wrn10_1")  # it makes no images
    assert projected(dataclasses.replace(control, student_lr=0.01), [(control, base)])[0] == pytest.approx(110)


@pytest.mark.parametrize(
    "other", [{"student": "wrn10_1"}, {"teacher": "x"}, {"dataset": "color_digits"}, {"profile": "lab"}]
)
def test_of_other_networks_data_or_profiles_nothing_is_known(other):
    card = card_of(dataclasses.replace(tiny_config(), **other))
    assert projected(tiny_config(), [(card_config(card), card)]) is None and projected(tiny_config(), []) is None


def test_runs_on_this_device_come_first():
    here = device_name(torch.device("cpu"))
    cards = [card_of(tiny_config(seed=0, epochs=4), device=here), card_of(tiny_config(seed=1))]
    finished = [(card_config(card), card) for card in cards]
    assert projected(tiny_config(seed=2), finished)[1] == here
    assert projected(tiny_config(seed=2), finished[1:]) == (pytest.approx(110), "a device")


def test_the_time_is_printed_before_anything_runs(write, no_runs, nothing_kept, asked, capsys):
    read = read_sweep(write(SPEC))

    def told(**options) -> str:
        run_sweep(read, **options)
        return capsys.readouterr().out.splitlines()[0]

    assert told() == "4 of 4 runs left, 1 at a time: time not known"
    save_card(no_runs, card_of(tiny_config(seed=0)))
    assert told() == "3 of 4 runs left, 1 at a time: about 6 min, as on a device"
    assert told(jobs=2) == "3 of 4 runs left, 2 at a time: about 3 min, as on a device"
    assert told(jobs=3, share="2/2") == "2 of 2 runs left, 3 at a time: about 2 min, as on a device"
    wide = SPEC | {"arms": {**SPEC["arms"], "wide": {"student": "wrn10_1"}}}
    read = read_sweep(write(wide))
    assert told() == "5 of 6 runs left, 1 at a time: about 6 min, as on a device; for 2 of them not known"
    read = Sweep("done", {"text": [tiny_config(seed=0)]})
    assert told() == "0 of 1 runs left, 1 at a time: nothing to do"


def test_short_and_long_times_have_their_units(write, no_runs, nothing_kept, asked, capsys):
    for seconds, told in ((10.0, "about 20 s,"), (4000.0, "about 2.2 h,")):
        save_card(no_runs, card_of(tiny_config(seed=5), id=told, seconds={**PHASES, "total": seconds}))
        run_sweep(Sweep("two", {"text": [tiny_config(seed=6), tiny_config(seed=7)]}), jobs=1)
        assert told in capsys.readouterr().out
        (no_runs / told / "card.json").unlink()


def test_a_dry_run_lists_what_is_left_and_runs_and_keeps_nothing(
    write, no_runs, nothing_kept, asked, capsys, monkeypatch
):
    monkeypatch.setattr(cli, "keep_sweep", lambda sweep: asked.append("keep"))
    save_card(no_runs, card_of(tiny_config(seed=0)))
    path = write(SPEC | {"arms": {"text": {}, "wide": {"student": "wrn10_1"}}})
    assert cli.main(["sweep", str(path), "--dry-run", "--keep"]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        "wide, seed 0: time not known",
        "text, seed 1: about 2 min, as on a device",
        "wide, seed 1: time not known",
    ]
    assert asked == [] and len(list(no_runs.iterdir())) == 1


# --- a process for every run


PLAYED = """
import json, os, signal, sys, time
from pathlib import Path
import torch
folder, does = Path(sys.argv[1]), sys.argv[2]
names = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "SPOILT")
seen = {name: os.environ.get(name) for name in names} | {"threads": torch.get_num_threads()}
seen |= {"dtype": str(torch.get_default_dtype()), "seed": torch.initial_seed(), "folder": os.getcwd()}
begin = time.time()
print("in", does, flush=True)
print("to stderr", file=sys.stderr, flush=True)
if does == "raise":
    raise ZeroDivisionError("of the network")
if does == "die":
    os.kill(os.getpid(), signal.SIGKILL)
if does == "leave":
    sys.exit("nayer_lib: no label-text embeddings.")
if does == "sleep":
    time.sleep(0.3)
if does == "spoil":
    os.environ |= {"SPOILT": "yes", "OMP_NUM_THREADS": "5", "CUDA_VISIBLE_DEVICES": "3"}
    os.chdir("/")
    torch.set_num_threads(3)
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(4)
status = "stopped before its last epoch" if does == "stop" else "finished"
card = json.loads(sys.argv[3]) | {"id": folder.name, "status": status, "seen": seen, "time": (begin, time.time())}
(folder / "card.partial").write_text(json.dumps(card))
(folder / "card.partial").rename(folder / "card.json")  # whole, as a real run's is at any time
"""


@pytest.fixture(scope="module")
def fork_server():
    """That of the sweeps in this file: it has imported less than theirs, and is there sooner."""
    multiprocessing.set_forkserver_preload(["nayer_lib.runs.launch"])
    forkserver.ensure_running()


@pytest.fixture
def play(monkeypatch, no_runs, nothing_kept, fork_server, tmp_path):
    """Run arms that are named for what their process does, in place of a distillation; returns their cards too."""

    def command(config: Config, folder: Path, split: str, computed: tuple[str, ...]) -> list[str]:
        card = json.dumps(card_of(config, accuracy_last=0.5))
        return [sys.executable, "-m", "played", str(folder), does[config.generator_lr], card]

    def played(*names: str, **options) -> tuple[list[str], dict[str, dict]]:
        arms = {f"{k} {name}": [tiny_config(generator_lr=float(1 + k))] for k, name in enumerate(names)}
        does.update({config.generator_lr: arm.split()[1] for arm, [config] in arms.items()})
        failed = run_sweep(Sweep("played", arms), **options)
        return failed, {arm: card for arm, cards in arm_cards(Sweep("", arms), local_cards()).items() for card in cards}

    does: dict[float, str] = {}
    (tmp_path / "played.py").write_text(PLAYED)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(launch, "_command", command)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return played


@pytest.mark.parametrize("jobs", [1, 3])
def test_runs_that_fail_or_die_do_not_stop_the_others(play, capsys, jobs):
    failed, cards = play("raise", "die", "work", "leave", "stop", "work", jobs=jobs)
    assert set(cards) == {"2 work", "5 work"}
    reasons = {
        "0 raise": "ZeroDivisionError: of the network",
        "1 die": "ended by SIGKILL",
        "3 leave": "no label-text embeddings.",
        "4 stop": "stopped before its last epoch",
    }
    logs = {}
    for sentence, (arm, reason) in zip(sorted(failed), reasons.items(), strict=True):  # whichever ended first
        assert sentence.startswith(f"{arm}, seed 0: {reason} (") and sentence.endswith("log.txt)")
        logs[arm] = Path(sentence.rsplit("(", 1)[1][:-1]).read_text()
    lines = capsys.readouterr().out.splitlines()[1:]  # a line for every run that ended
    assert sorted(lines) == sorted([*failed, "2 work, seed 0: 50.0 %", "5 work, seed 0: 50.0 %"])
    for arm, log in logs.items():  # the command, what it printed, and the traceback
        assert log.splitlines()[0].startswith(sys.executable) and f"in {arm[2:]}\nto stderr\n" in log
    assert "Traceback (most recent call last)" in logs["0 raise"]


def test_a_finished_run_has_its_log_too(play, no_runs):
    _, cards = play("work")
    assert "in work\nto stderr\n" in (no_runs / cards["0 work"]["id"] / "log.txt").read_text()


def test_a_process_that_says_nothing_is_told_by_its_status(play, monkeypatch, tmp_path):
    (tmp_path / "silent.py").write_text("raise SystemExit(3)")
    monkeypatch.setattr(launch, "_command", lambda *_: [sys.executable, "-m", "silent"])
    assert "0 work, seed 0: ended with status 3 (" in play("work")[0][0]


def test_what_goes_wrong_around_a_process_does_not_stop_the_others_either(play, monkeypatch, no_runs):
    real = launch._process

    def broken(command, log, environment):
        if command[4] == "raise":
            raise OSError("no more processes")
        return real(command, log, environment)

    monkeypatch.setattr(launch, "_process", broken)
    failed, cards = play("raise", "work")
    assert failed[0].startswith("0 raise, seed 0: OSError: no more processes (") and set(cards) == {"1 work"}


def test_the_command_line_lists_failed_runs_with_their_logs_at_the_end(write, no_runs, capsys, monkeypatch):
    monkeypatch.setattr(launch, "_process", lambda command, log, environment: files.write_text(log, "x\nbroken\n") or 1)
    assert cli.main(["sweep", str(write(SPEC | {"seeds": [5]}))]) == 2
    said = capsys.readouterr()
    *_, title, first, second = said.out.splitlines()
    assert (
        title == "failed:" and first.startswith("text, seed 5: broken (") and second.startswith("z, seed 5: broken (")
    )
    assert said.err == ("nayer_lib: runs that failed: 2; read their logs, then run the sweep again to repeat them.\n")


def test_on_the_cpu_one_at_a_time_with_one_thread_unless_told_otherwise(play, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    _, cards = play("work", "work")
    assert capsys.readouterr().out.startswith("2 of 2 runs left, 1 at a time")
    for card in cards.values():
        assert {"CUDA_VISIBLE_DEVICES": None, "OMP_NUM_THREADS": "1", "threads": 1}.items() <= card["seen"].items()
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert {"OMP_NUM_THREADS": "4", "threads": 4}.items() <= play(*["work"] * 3)[1]["2 work"]["seen"].items()


def test_no_setting_of_a_run_reaches_the_next(play):
    """The settings that "spoil" changes are those that each run notes when it begins."""
    _, cards = play("work", "spoil", "work")
    assert len(cards) == 3 and len({str(card["seen"]) for card in cards.values()}) == 1
    assert torch.get_num_threads() == 1 and "SPOILT" not in os.environ


def test_a_run_has_the_environment_and_the_folder_that_are_those_of_the_sweep_now(play, monkeypatch, tmp_path):
    """Not those in which the first sweep began."""
    play("work")
    monkeypatch.setenv("SPOILT", "by hand")
    monkeypatch.chdir(tmp_path)
    seen = play("work", "work")[1]["1 work"]["seen"]
    assert seen["SPOILT"] == "by hand" and Path(seen["folder"]) == tmp_path


def test_threads_that_run_processes_take_no_exit_status_from_each_other(play, monkeypatch):
    """Whoever starts a process may read the status of any: only one thread at a time may."""
    alone, read_signed = threading.Lock(), forkserver.read_signed

    def read(fd: int) -> int:
        assert alone.acquire(blocking=False)
        time.sleep(0.03)
        alone.release()
        return read_signed(fd)

    monkeypatch.setattr(forkserver, "read_signed", read)
    failed, cards = play(*["work", "die"] * 4, jobs=4)
    assert len(cards) == 4 and len(failed) == 4
    assert all("ended by SIGKILL" in sentence for sentence in failed)


def test_what_the_command_refuses_stands_in_its_log(fork_server, tmp_path):
    log = tmp_path / "run" / "log.txt"
    command = [sys.executable, "-m", "nayer_lib", "distill", "--device", "gpu", "--out", str(log.parent)]
    assert launch._process(command, log, {}) == 2
    told = "unknown device 'gpu'. Did you mean 'cpu'? Known: cpu, cuda."
    assert log.read_text().splitlines() == [shlex.join(command), f"nayer_lib: {told}"]
    assert launch._reason(2, log) == told


@pytest.mark.parametrize(
    ("allowed", "names", "jobs", "at_a_time"),
    [("4,7", ["4", "7"], None, 2), (None, ["0", "1"], None, 2), ("GPU-a,GPU-b", ["GPU-a", "GPU-b"], 4, 4)],
)
def test_every_process_has_a_gpu_of_its_own(play, monkeypatch, capsys, allowed, names, jobs, at_a_time):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    if allowed:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", allowed)
    _, cards = play(*["sleep"] * 6, jobs=jobs)
    assert f"6 of 6 runs left, {at_a_time} at a time" in capsys.readouterr().out
    by_gpu = {name: [] for name in names}
    for card in cards.values():
        by_gpu[card["seen"]["CUDA_VISIBLE_DEVICES"]].append(card["time"])
    assert all(by_gpu.values()) and sum(map(len, by_gpu.values())) == 6
    for times in by_gpu.values():
        for begin, _ in times:
            assert sum(b <= begin < e for b, e in times) <= at_a_time / 2


@pytest.mark.parametrize("jobs", [0, -1])
def test_less_than_one_run_at_a_time_is_told(write, no_runs, asked, jobs):
    with pytest.raises(UserError, match=f"the runs at a time must be 1 or more, not {jobs}"):
        run_sweep(read_sweep(write(SPEC)), jobs=jobs)


# --- Ray


@pytest.fixture
def fake_ray(monkeypatch):
    """A `ray` of threads, with a cluster whose resources a test names; returns what it was asked for."""
    asked = {"inits": 0, "resources": {"CPU": 3.0}}

    class Backend(ThreadingBackend):
        def __init__(self, ray_remote_args=None, **options):
            asked["args"] = ray_remote_args
            super().__init__(**options)

    def init():
        asked["inits"] += 1

    ray = types.ModuleType("ray")
    ray.init, ray.is_initialized = init, lambda: bool(asked["inits"])
    ray.cluster_resources = lambda: asked["resources"]
    backend = types.ModuleType("ray.util.joblib")
    backend.register_ray = lambda: register_parallel_backend("ray", Backend)
    for name, module in {"ray": ray, "ray.util": types.ModuleType("ray.util"), "ray.util.joblib": backend}.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setenv("RAY_DEDUP_LOGS", "0")
    return asked


@pytest.mark.parametrize(
    ("resources", "jobs", "at_a_time", "gpus"),
    [
        ({"CPU": 3.0}, None, 3, 0),
        ({"CPU": 3.0}, 2, 2, 0),
        ({"CPU": 8.0, "GPU": 4.0}, None, 4, 1),
        ({"CPU": 8.0, "GPU": 4.0}, 2, 2, 1),
        ({"CPU": 8.0, "GPU": 1.0}, 4, 4, 0.25),
    ],
)
def test_ray_gives_every_worker_its_gpu(play, fake_ray, monkeypatch, capsys, resources, jobs, at_a_time, gpus):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)  # those of this machine do not count
    fake_ray["resources"] = resources
    failed, cards = play("work", "die", "work", backend="ray", jobs=jobs)
    assert fake_ray["args"] == {"num_gpus": gpus} and fake_ray["inits"] == 1
    assert set(cards) == {"0 work", "2 work"} and "1 die, seed 0: ended by SIGKILL" in failed[0]
    assert f"3 of 3 runs left, {at_a_time} at a time" in capsys.readouterr().out
    assert cards["0 work"]["seen"]["CUDA_VISIBLE_DEVICES"] is None  # Ray sets it, in its workers


def test_a_ray_that_runs_already_is_used(play, fake_ray):
    fake_ray["inits"] = 1
    play("work", backend="ray")
    assert fake_ray["inits"] == 1


def test_without_ray_it_says_what_to_install(write, no_runs, asked, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setenv("RAY_DEDUP_LOGS", "0")
    assert cli.main(["sweep", str(write(SPEC)), "--backend", "ray"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("nayer_lib: ray is not installed: `pip install -e '.[ray]'`, or") and said.count("\n") == 1
    assert asked == []


def test_an_unknown_backend_is_told(write, no_runs, asked):
    with pytest.raises(UserError, match="unknown backend 'rai'. Did you mean 'ray'"):
        run_sweep(read_sweep(write(SPEC)), backend="rai")


# --- for real


@pytest.fixture
def in_process(monkeypatch):
    """The real command, but called here: without the seconds of imports that the first process takes."""

    def called(command, log, environment):
        assert command[1:3] == ["-m", "nayer_lib"]
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            status = cli.main(command[3:])
        files.write_text(log, f"the command\n{printed.getvalue()}")
        return status

    monkeypatch.setattr(launch, "_process", called)


def test_the_command_of_a_run_is_exactly_its_config(write, no_runs, in_process):
    """Whatever the preset, variant and profile: every field goes with it, None, pairs and numbers alike."""
    odd = {
        "generator_betas": [0.4, 0.91],
        "memory_size": 30,
        "student_lr_end": 1e-7,
        "generator_life": 1,
        "keep": "last",
    }
    spec = SPEC | {"variant": "paper", "profile": "lab", "seeds": [11], "arms": {"odd": odd}}
    spec["common"] = {**TINY, "warmup_rounds": None}
    read = read_sweep(write(spec))
    assert run_sweep(read) == []
    [card] = local_cards()
    assert card_config(card) == read.arms["odd"][0] and card["status"] == "finished"
    assert card["registration"] is None


def test_a_card_keeps_what_was_registered_before_its_run(write, no_runs, in_process):
    read = read_sweep(write(SPEC | {"seeds": [5]} | PRIMARY))
    assert run_sweep(read) == []
    assert [card["registration"] for card in local_cards()] == 2 * [read.registration]


def test_of_a_run_that_was_made_twice_the_first_counts(write):
    first, again = (card_of(tiny_config(seed=0), id=name, accuracy_last=a) for name, a in (("a", 0.9), ("b", 0.99)))
    assert arm_cards(read_sweep(write(SPEC)), [first, again])["text"] == [first]


def test_a_run_of_two_registered_sweeps_belongs_to_both(write, no_runs, in_process, tmp_path, monkeypatch):
    read = read_sweep(write(SPEC | {"seeds": [5]} | PRIMARY))
    monkeypatch.setenv("NAYER_DATA", str(copy_data(tmp_path)))
    kit = files.data_dir() / "sweeps"
    others = {
        "shared": SPEC | {"seeds": [5, 6], "arms": {"words": {}, "one-hot": {"latent": "onehot"}}},
        "elsewhere": SPEC | {"seeds": [5], "split": "validation"},
        "precise": SPEC | {"seeds": [5], "compute": {"precision": "bf16"}},
    }
    for name, spec in others.items():
        pair = [[*spec["arms"]][:2]]
        (kit / f"{name}.json").write_text(json.dumps(spec | {"primary": pair}))
    shared = read_sweep(kit / "shared.json").registration
    assert run_sweep(read) == []
    cards = {card["config"]["latent"]: card["registration"] for card in local_cards()}
    assert cards == {"noisy": f"{read.registration} {shared}", "noise": read.registration}


def test_a_sweep_that_chooses_is_scored_on_validation_and_its_cards_stand_for_no_other(write, no_runs, in_process):
    spec = SPEC | {"seeds": [5], "arms": {"text": {}}}
    choosing, reporting = (read_sweep(write(spec | part)) for part in ({"split": "validation"}, {}))
    assert (choosing.split, reporting.split) == ("validation", "test")
    for chosen, scored in ((choosing, {"text": 1}), (reporting, {"text": 0})):
        if chosen is choosing:
            assert run_sweep(chosen) == []
        assert {arm: len(cards) for arm, cards in arm_cards(chosen, local_cards()).items()} == scored
    [card] = local_cards()
    assert card["test_split"]["split"] == "validation" and card["test_split"]["images"] == 297
    assert run_sweep(choosing) == [] and len(local_cards()) == 1  # it is known
    assert run_sweep(reporting) == [] and len(local_cards()) == 2  # by its own kind alone


def test_a_file_may_say_how_its_runs_are_computed(write, no_runs, in_process):
    spec = SPEC | {"seeds": [5], "arms": {"text": {}}, "compute": {"precision": "bf16", "channels_last": True}}
    assert run_sweep(read_sweep(write(spec))) == []
    [card] = local_cards()
    assert card["compute"] == {"precision": "bf16", "channels_last": True, "steps": "eager"}
    assert read_sweep(write(spec | {"compute": {"channels_last": False}})).computed == ("--no-channels-last",)
    assert read_sweep(write(SPEC)).computed == ()


@pytest.mark.parametrize(
    ("compute", "sentence"),
    [
        ({"compiled": True}, "'compute' may have .'precision', 'channels_last', 'steps'., channels_last true or false"),
        ({"channels_last": "yes"}, "channels_last true or false, not {'channels_last': 'yes'}"),
        ("bf16", "channels_last true or false, not 'bf16'"),
        ({"precision": "bf"}, "unknown precision 'bf'"),
        ({"steps": "fast"}, "unknown steps 'fast'"),
    ],
    ids=str,
)
def test_what_runs_cannot_be_computed_with_is_told(write, compute, sentence):
    with pytest.raises(UserError, match=sentence):
        read_sweep(write(SPEC | {"compute": compute}))


def test_a_sweep_is_scored_on_no_other_split(write):
    with pytest.raises(UserError, match="unknown split of a sweep 'train'"):
        read_sweep(write(SPEC | {"split": "train"}))


def test_a_sweep_runs_skips_what_is_done_and_tells_what_failed(
    write, no_runs, in_process, capsys, tmp_path, monkeypatch
):
    """An arm without a pool fails, in the first place; the others run all the same."""
    arms = {"no pool": {"encoder": "nothing"}, "LTE": {"latent": "lte"}, "text": {}}
    read = read_sweep(write(SPEC | {"seeds": [5], "arms": arms}))
    [sentence] = run_sweep(read)
    assert sentence.startswith("no pool, seed 5: unknown text encoder 'nothing'. Did you mean") and "\n" not in sentence
    cards = arm_cards(read, local_cards())
    assert [len(found) for found in cards.values()] == [0, 1, 1]
    [lte], [text] = cards["LTE"], cards["text"]
    assert (lte["config"]["latent"], text["config"]["latent"]) == ("lte", "noisy")
    assert "metrics" in lte and lte["id"] != text["id"]
    assert load_classifier(no_runs / lte["id"] / "student.safetensors").class_names[0] == "zero"
    told = [f"{arm}, seed 5: {100 * card['accuracy_last']:.1f} %" for arm, card in (("LTE", lte), ("text", text))]
    assert capsys.readouterr().out.splitlines()[2:] == told

    assert len(run_sweep(read)) == 1  # again: only the one without a card
    assert "1 of 3 runs left" in capsys.readouterr().out and len(local_cards()) == 2

    monkeypatch.setenv("NAYER_DATA", str(copy_data(tmp_path)))  # a run of a sweep is kept by its id, as any other
    assert cli.main(["runs", "--keep", text["id"]]) == 0
    assert read_json(tmp_path / "data" / "runs" / f"{text['id']}.json") == text


def finished(runs: Path) -> list[Config]:
    return [card_config(card) for card in map(read_json, runs.glob("*/card.json")) if card["status"] == "finished"]


@pytest.mark.slow
def test_a_killed_sweep_goes_on(write, no_runs):
    path = write(SPEC | {"common": {**TINY, "student_steps": 4}})
    command = [sys.executable, "-m", "nayer_lib", "sweep", str(path), "--jobs", "2"]
    with subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL) as process:
        while not finished(no_runs):
            assert process.poll() is None
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGKILL)
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    configs = finished(no_runs)
    assert sorted(configs, key=str) == sorted((c for _, c in read_sweep(path).runs()), key=str)
    assert "4 of 4 runs left" not in done.stdout


@pytest.mark.slow
def test_ctrl_c_ends_the_runs_too(write, no_runs):
    path = write(SPEC | {"common": {**TINY, "epochs": 500}})
    command = [sys.executable, "-m", "nayer_lib", "sweep", str(path), "--jobs", "2"]
    with subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True) as process:
        while len(list(no_runs.glob("*/student.safetensors"))) < 2:
            assert process.poll() is None
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        told = process.communicate()[1]
    assert process.returncode == 130 and told == "nayer_lib: stopped; the files of the last whole epoch are kept.\n"
    cards = [read_json(path) for path in no_runs.glob("*/card.json")]
    assert [card["status"] for card in cards] == ["stopped before its last epoch"] * 2


@pytest.mark.slow
def test_a_run_that_is_told_to_stop_goes_on_with_the_next_sweep(no_runs, fork_server, capsys):
    config = tiny_config(epochs=100)
    with ThreadPoolExecutor() as pool:
        run = pool.submit(launch._run, "text", config, no_runs, None, Sweep("mine", {}))
        while not list(no_runs.glob("*/student.safetensors")):
            assert not run.done()
            time.sleep(0.1)
        [process] = multiprocessing.active_children()
        process.terminate()
        assert run.result().startswith("text, seed 0: stopped before its last epoch")
    [log] = no_runs.glob("*/log.txt")
    epochs = re.search(r"stopped after epoch (\d+) of 101\nresume with: python -m nayer_lib distill", log.read_text())
    assert launch._run("text", config, no_runs, None, Sweep("mine", {})) is None
    [card] = local_cards()
    assert card["status"] == "finished" and card["resumed"] == [int(epochs[1])] and card["threads"] == 1


@pytest.mark.slow
def test_a_sweep_on_a_local_ray(write, no_runs):
    """Its own process: Ray does not go away as long as the one that started it lives."""
    pytest.importorskip("ray")
    path = write(
        SPEC | {"seeds": [5], "arms": {"no pool": {"encoder": "nothing"}, "LTE": {"latent": "lte"}, "text": {}}}
    )
    done = subprocess.run(
        [sys.executable, "-m", "nayer_lib", "sweep", str(path), "--backend", "ray", "--jobs", "2"],
        capture_output=True,
        text=True,
        env=os.environ | {"RAY_USAGE_STATS_ENABLED": "0"},
    )
    assert done.returncode == 2 and "3 of 3 runs left, 2 at a time" in done.stdout, done.stdout + done.stderr
    assert "no pool, seed 5: unknown text encoder 'nothing'" in done.stdout.split("failed:")[1]
    assert {config.latent for config in finished(no_runs)} == {"lte", "noisy"}


# --- cards of arms


def test_the_cards_of_an_arm_come_in_the_order_of_its_seeds(write):
    read = read_sweep(write(SPEC | {"seeds": [2, 0, 1]}))
    cards = [card_of(tiny_config(seed=s, latent=x)) for s in (0, 1, 2) for x in ("noise", "noisy")]
    found = arm_cards(read, cards)
    assert list(found) == ["text", "z"]
    assert {arm: [card["id"] for card in cards] for arm, cards in found.items()} == {
        "text": ["noisy-2", "noisy-0", "noisy-1"],
        "z": ["noise-2", "noise-0", "noise-1"],
    }


def test_a_seed_that_was_not_run_is_left_out(write):
    read = read_sweep(write(SPEC))
    cards = [card_of(tiny_config(seed=1)), card_of(tiny_config(seed=0), "running"), card_of(tiny_config(epochs=9))]
    assert arm_cards(read, cards) == {"text": [cards[0]], "z": []}
    assert arm_cards(read, []) == {"text": [], "z": []}


def test_of_a_run_that_was_made_on_two_machines_the_sweep_takes_that_of_its_other_runs(write):
    """Another sweep may hold the same run."""
    read = read_sweep(write(SPEC))
    here = [card_of(tiny_config(seed=s, latent=x)) | {"device": "here"} for s in (0, 1) for x in ("noise", "noisy")]
    there = [card_of(tiny_config(seed=s)) | {"device": "there", "id": f"there-{s}"} for s in (0, 1)]
    for cards in (here + there, there + here):
        assert {card["device"] for found in arm_cards(read, cards).values() for card in found} == {"here"}
    assert [card["id"] for card in arm_cards(read, there)["text"]] == ["there-0", "there-1"]


def test_a_kept_sweep_is_one_file_of_finished_cards(write, tmp_path, monkeypatch, no_runs):
    monkeypatch.setenv("NAYER_DATA", str(copy_data(tmp_path)))
    read, before = read_sweep(write(SPEC, "latents.json")), kept_cards()
    finished = [card_of(tiny_config(seed=s), accuracy_last=0.5) for s in (1, 0)]
    for card in (*finished, card_of(tiny_config(latent="noise"), "running"), card_of(tiny_config(latent="lte"))):
        save_card(no_runs, card)
    path = keep_sweep(read)
    assert path == tmp_path / "data" / "runs" / "latents.jsonl"
    assert [json.loads(line) for line in path.read_text().splitlines()] == finished[::-1]
    assert [card for card in kept_cards() if card not in before] == finished[::-1]
    assert keep_sweep(read) == path and len(path.read_text().splitlines()) == 2  # again: the same file
    for folder in no_runs.iterdir():
        (folder / "card.json").unlink()
    assert keep_sweep(read) == path and len(path.read_text().splitlines()) == 2  # what was kept stays kept


def test_what_is_no_card_of_this_kit_stays_in_a_kept_sweep(write, tmp_path, monkeypatch, no_runs):
    """A newer kit's card, and a line that a merge left."""
    monkeypatch.setenv("NAYER_DATA", str(copy_data(tmp_path)))
    read, finished = read_sweep(write(SPEC, "latents.json")), card_of(tiny_config(seed=0), accuracy_last=0.5)
    save_card(no_runs, finished)
    path, newer = tmp_path / "data" / "runs" / "latents.jsonl", finished | {"versions": {"nayer_lib": "99.0"}}
    path.write_text(f"<<<<<<< HEAD\n{json.dumps(newer)}\n")
    with pytest.warns(UserWarning, match="left out"):
        keep_sweep(read)
    assert path.read_text().splitlines() == [json.dumps(finished), "<<<<<<< HEAD", json.dumps(newer)]
    path.write_bytes(b"\xff")
    with pytest.warns(UserWarning, match="left out"), pytest.raises(UserError, match="cannot be read as a run card"):
        keep_sweep(read)
    assert path.read_bytes() == b"\xff"


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_sweep_that_is_killed_has_kept_what_it_finished(write, tmp_path, monkeypatch, no_runs, jobs):
    """With two at a time, what ends later does not hold back what ended before it."""
    monkeypatch.setenv("NAYER_DATA", str(copy_data(tmp_path)))
    path, late = tmp_path / "data" / "runs" / "latents.jsonl", []

    def clone_cards() -> int:
        return len(path.read_text().splitlines()) if path.exists() else 0

    def until_kept(count):
        deadline = time.monotonic() + 20
        while clone_cards() < count and time.monotonic() < deadline:
            time.sleep(0.01)
        late.extend([count] if clone_cards() < count else [])

    def run(arm, config, *_):
        if config.seed:
            until_kept(2)
            raise KeyboardInterrupt
        if jobs == 2 and arm == "text":
            until_kept(1)
        save_card(no_runs, card_of(config))

    monkeypatch.setattr(launch, "_run", run)
    with pytest.raises(KeyboardInterrupt):
        run_sweep(read_sweep(write(SPEC, "latents.json")), jobs, keep=True)
    assert not late and clone_cards() == 2


# --- the kit's own files


OWN = sorted((files.data_dir() / "sweeps").glob("*.json"))
TURNS = set("repeats rounds warmup_rounds warmup_epochs epochs epochs_include_warmup".split())
TURNS |= {"generator_steps", "generator_batch", "student_steps"}  # trade places in a live method's equal budget
RATES = {"method", "generator_lr", "inner_lr", "vae_lr"}
MAY_DIFFER = {  # by the first word of a file's name
    "latents": {"latent", "latent_beta"},
    "embeddings": {"latent", "embedding"},
    "eq5": {"alpha_cls", "alpha_bn", "alpha_adv", "bn_momentum"},
    "table3": {"latent", "latent_beta", "generator_life"},
    "table4": {"encoder", "embedding"},
    "table5": {"prompt"},
    # All on the same bits; ZeroQ makes one batch in many steps, and what does not learn takes no steps.
    "table9": TURNS | {"method", "weight_bits", "activation_bits", "student_lr", "student_batch", "fine_tune"},
    "table10": {"memory_size"},
    "table11": {"method", "generator_steps", "nayer_generator"},
    "divergences": {"variant", *(field for row in DIVERGENCES.values() for field in row)},
    "redraw": {"latent", "alpha_adv"},
    "figure5": {"latent", "method", "alpha_adv"},
    "methods": RATES | TURNS | {"alpha_bn"},  # a control
    "rates": RATES | TURNS,
    "rates3": RATES | {"latent"},
    "published": TURNS | {"method", "protocol", "student_batch"},
    "hour": TURNS,
    "speed": {"latent"},
    "first": {"latent"},  # first_rounds
    "controls": {"latent", "embedding"},
    "inputs": TURNS | {"method", "latent", "embedding", "encoder"},  # real images have no rounds
    # What makes no images has no rounds, and stealing no warm-up.
    "noise": TURNS | {"method", "noise", "teacher_statistics"},
    "procedural": TURNS | {"method", "student_batch"} | {"noise", "teacher_statistics", "perturb"},
    "black": TURNS | {"method", "latent", "embedding", "answers"},
    "paper": {"variant", *(field for row in DIVERGENCES.values() for field in row)},
    "nayer": {"method", "exchange", "retention", "ema"},
    "cpnet": {"method", "coupled_generator", "alpha_x", "cutmix", "jitter", "alpha_align", "embedding"},
}
SHARED = "dataset teacher student profile protocol variant epochs warmup_epochs rounds warmup_rounds".split()
SHARED += "generator_steps generator_batch student_steps student_batch memory_size".split()  # by all methods of a sweep


def test_the_kit_has_sweeps():
    assert {"table3_digits", "methods_digits", "eq5_digits"} <= {path.stem for path in OWN}


@pytest.mark.parametrize("path", OWN, ids=lambda path: path.stem)
def test_arms_have_three_seeds_or_more_and_differ_in_nothing_but_what_the_sweep_is_about(path):
    read = read_sweep(path)
    seeds = [[config.seed for config in configs] for configs in read.arms.values()]
    shared = min(seeds, key=len)  # some arms have more
    assert len({*shared}) == len(shared) >= (3 if read.split == "test" else 1)  # to report
    assert all(own[: len(shared)] == shared and len({*own}) == len(own) for own in seeds)
    firsts = [dataclasses.asdict(configs[0]) for configs in read.arms.values()]
    for (config, *_), fields in zip(read.arms.values(), firsts, strict=True):
        if config.method == "spaceship" and config.memory_size >= config.total_rounds * config.generator_batch:
            fields["memory_size"] = None  # its bound holds all that is made
    allowed = MAY_DIFFER[path.stem.split("_")[0]]
    for method in {config["method"] for config in firsts}:
        own = [config for config in firsts if config["method"] == method]
        for name in own[0].keys() - allowed:  # so also all counts and sizes, networks, rates and the data set
            assert len({str(config[name]) for config in own}) == 1, name
    for name in set(SHARED) - allowed:
        assert len({str(config.get(name)) for config in firsts}) == 1, name  # a method may keep no memory


def test_the_registered_sweeps_have_seeds_that_nobody_has_seen():
    registered = {path.stem: read_sweep(path) for path in OWN if read_sweep(path).primary}
    on_cifar10 = {f"{name}_cifar10" for name in ("speed", "first_rounds", "controls", "inputs", "paper", "cpnet")}
    of_the_paper = ("table3", "eq5", "redraw", "table9")
    after_it = ("noise", "procedural", "black_box", "nayer_plus", "cpnet")
    on_digits = {f"{name}_digits" for name in of_the_paper + after_it}
    assert set(registered) == on_cifar10 | on_digits
    for read in registered.values():
        assert {config.seed for _, config in read.runs()} <= set(range(10, 30)) and read.split == "test"


@pytest.mark.parametrize("path", OWN, ids=lambda path: path.stem)
def test_no_two_arms_are_the_same_and_every_input_exists(path):
    arms = read_sweep(path).arms
    configs = [config for arm in arms.values() for config in arm]
    assert len(set(configs)) == len(configs)
    of_nayer = [config for config in configs if config.method == "nayer"]
    assert {config.latent for config in of_nayer} <= set(LATENTS)
    assert {config.embedding for config in of_nayer} <= set(EMBEDDINGS)
