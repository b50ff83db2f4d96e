"""Many runs from one file: what a file may say, what is run and in which order, and what is skipped or fails."""

import dataclasses
import json

import pytest
from tiny import TINY, copy_data, tiny_config

from nayer_lib import cli, files, sweep
from nayer_lib.classifiers.teacher import load_classifier
from nayer_lib.config import Config, make_config
from nayer_lib.errors import MissingFile, UserError
from nayer_lib.generator.latents import EMBEDDINGS, LATENTS
from nayer_lib.results.runs import card_config, kept_cards, local_cards
from nayer_lib.sweep import Sweep, arm_cards, keep_sweep, read_sweep, run_sweep

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
    return {"id": f"{config['latent']}-{config['seed']}", "status": status, "config": config, **facts}


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
    spec = SPEC | {"variant": "released", "common": {**TINY, "rounds": 3}}
    spec["arms"] = {"as all": {}, "its own": {"rounds": 1}, "the text": {"variant": "paper"}}
    arms = read_sweep(write(spec)).arms
    assert [configs[0].rounds for configs in arms.values()] == [3, 1, 3]
    assert [configs[0].variant for configs in arms.values()] == ["released", "released", "paper"]


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
        ("arms", {"latnt": "noise"}, "unknown config field 'latnt'. Did you mean 'latent'"),
        ("arms", {"latent_beta": 0}, "latent_beta must be a positive number, not 0"),
        ("common", {"epochs": 0}, "epochs must be a whole number from 1 up, not 0"),
        ("common", {"student_lr": "high"}, "student_lr must be a positive number"),
    ],
)
def test_a_wrong_override_is_told_before_anything_runs(write, where, override, sentence):
    spec = SPEC | {"arms": {"good": {}, "bad": override}} if where == "arms" else SPEC | {where: override}
    with pytest.raises(UserError, match=sentence):
        read_sweep(write(spec))


@pytest.mark.parametrize("name", ["preset", "variant", "profile"])
def test_an_unknown_preset_variant_or_profile_is_told(write, name):
    with pytest.raises(UserError, match=f"unknown {name} 'digit'"):
        read_sweep(write(SPEC | {name: "digit"}))


# --- what is run


@pytest.fixture
def asked(monkeypatch):
    """(arm, seed) of every run that was asked for, in order; nothing runs."""
    seen = []
    monkeypatch.setattr(sweep, "_run", lambda arm, config: seen.append((arm, config.seed)))
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
    kept = [card_config(card) for card in kept_cards()]
    assert make_config(seed=0) in kept
    run_sweep(Sweep("mine", {"preset": [make_config(seed=0), make_config(seed=77)]}))
    assert asked == [("preset", 77)]


def test_a_sweep_that_is_done_runs_nothing(write, no_runs, asked):
    read = read_sweep(write(SPEC))
    for i, config in enumerate(config for configs in read.arms.values() for config in configs):
        save_card(no_runs, card_of(config) | {"id": str(i)})
    assert run_sweep(read) == [] and asked == []


# --- for real


def test_a_sweep_runs_skips_what_is_done_and_tells_what_failed(write, no_runs, capsys):
    """An arm without a pool fails, in the first place; the others run all the same."""
    arms = {"no pool": {"encoder": "nothing"}, "LTE": {"latent": "lte"}, "text": {}}
    path = write(SPEC | {"seeds": [5], "arms": arms})
    read = read_sweep(path)
    [sentence] = run_sweep(read)
    assert sentence.startswith("no pool, seed 5: unknown text encoder") and "\n" not in sentence
    cards = arm_cards(read, local_cards())
    assert [len(found) for found in cards.values()] == [0, 1, 1]
    [lte], [text] = cards["LTE"], cards["text"]
    assert (lte["config"]["latent"], text["config"]["latent"]) == ("lte", "noisy")
    assert "metrics" in lte and lte["id"] != text["id"]
    assert load_classifier(no_runs / lte["id"] / "student.safetensors").class_names[0] == "zero"
    told = [f"{arm}, seed 5: {100 * card['accuracy_last']:.1f} %" for arm, card in (("LTE", lte), ("text", text))]
    assert capsys.readouterr().out.splitlines() == told

    before = sorted(path.name for path in no_runs.iterdir())
    assert cli.main(["sweep", "--file", str(path)]) == 2  # again: only the one without a card
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("nayer_lib: 1 runs failed: no pool, seed 5: unknown text encoder")
    assert said.err.count("\n") == 1 and sorted(path.name for path in no_runs.iterdir()) == before


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


# --- the kit's own files


OWN = sorted((files.data_dir() / "sweeps").glob("*.json"))
MAY_DIFFER = {"latent", "latent_beta", "embedding", "alpha_cls", "alpha_bn", "alpha_adv", "bn_momentum"}


def test_the_kit_has_sweeps():
    assert {"latents_digits", "embeddings_color_digits", "eq5_digits"} <= {path.stem for path in OWN}


@pytest.mark.parametrize("path", OWN, ids=lambda path: path.stem)
def test_arms_have_three_seeds_or_more_and_equal_budgets(path):
    read = read_sweep(path)
    seeds = {tuple(config.seed for config in configs) for configs in read.arms.values()}
    assert len(seeds) == 1 and len(set(*seeds)) == len(*seeds) >= 3
    firsts = [dataclasses.asdict(configs[0]) for configs in read.arms.values()]
    for name in firsts[0]:
        if name not in MAY_DIFFER:  # so also all counts and sizes, networks, rates and the data set
            assert len({str(config[name]) for config in firsts}) == 1, name


@pytest.mark.parametrize("path", OWN, ids=lambda path: path.stem)
def test_no_two_arms_are_the_same_and_every_input_exists(path):
    arms = read_sweep(path).arms
    configs = [config for arm in arms.values() for config in arm]
    assert len(set(configs)) == len(configs)
    assert {config.latent for config in configs} <= set(LATENTS)
    assert {config.embedding for config in configs} <= set(EMBEDDINGS)
