"""Run folders and cards are whole whatever happens to a run, and cards stay readable when fields are added."""

import csv
import dataclasses
import json
import math
import re
import shutil
import statistics

import pytest
import torch
from tiny import copy_data, read_json, tiny_setup

from nayer_lib import files
from nayer_lib.base_config import NayerConfig
from nayer_lib.classifiers.teacher import load_classifier
from nayer_lib.config import fields_of, make_config
from nayer_lib.errors import MissingFile, UserError
from nayer_lib.methods.base import NonFiniteLoss
from nayer_lib.metrics import convergence, diversity
from nayer_lib.runs.card import card_config, device_name, keep, kept_cards, local_cards, read_card
from nayer_lib.runs.new_card import commit
from nayer_lib.runs.run import CURVE, Run

BEST = "best_epoch (chosen on the test set)"


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Run:
    run = Run(tiny_setup(seed=3), tmp_path_factory.mktemp("finished") / "run")
    run.epochs = list(run)
    return run


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A folder with data/, README.md and runs/ of its own."""
    monkeypatch.setenv("NAYER_DATA", str(copy_data(tmp_path)))
    monkeypatch.setenv("NAYER_RUNS", str(tmp_path / "runs"))
    return tmp_path


def rows_of(folder) -> list[dict]:
    with open(folder / "curve.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def files_of(folder) -> dict[str, bytes]:
    """What a run folder holds beside the card."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in ("card.json", ".lock")}


# --- a run that ends well


def test_a_run_folder_holds_card_curve_student_and_images(finished):
    assert sorted(path.name for path in finished.folder.iterdir()) == [
        "card.json",
        "curve.csv",
        "images.png",
        "student.safetensors",
    ]
    assert (finished.folder / "images.png").read_bytes().startswith(b"\x89PNG")


def test_the_curve_has_a_header_and_a_line_an_epoch(finished):
    rows = rows_of(finished.folder)
    assert tuple(rows[0]) == CURVE
    assert [int(row["epoch"]) for row in rows] == [0, 1, 2]
    assert rows[0]["accuracy"] == rows[0]["student_loss"] == ""  # warm-up
    for row, epoch in zip(rows[1:], finished.epochs[1:], strict=True):
        assert float(row["accuracy"]) == epoch.scores.accuracy and float(row["kl"]) == epoch.scores.kl
        assert float(row["ce_last"]) == epoch.rounds[-1].ce_per_step[-1] and int(row["images"]) == epoch.images


def test_the_card_holds_what_is_needed_to_repeat_or_doubt_the_run(finished):
    card = read_card(finished.folder)
    config, method = finished.setup.method.config, finished.setup.method
    assert card["status"] == "finished" and "-nayer-digits-wrn10_1-wrn10_half-released-quick-" in card["id"]
    assert card["id"].endswith(f"-{config.hash[:6]}-s3")  # so that two arms of a sweep differ in their names
    assert card_config(card) == config
    assert {"variant", "profile", "seed", "dataset"} <= set(card["config"])
    assert card["config_sha256"] == config.hash
    assert card["test_split"]["images"] == 500 and len(card["test_split"]["sha256"]) == 64
    assert card["teacher"]["sha256"] == files.tensors_hash(method.teacher.net.state_dict())
    assert card["teacher"]["accuracy"] == finished.setup.evaluate.teacher.accuracy
    assert {"encoder", "model", "prompt", "labels_sha256"} <= set(card["lte"])
    assert re.fullmatch(r"([0-9a-f]{40}\+?)?", card["commit"])
    assert card["versions"]["torch"] == torch.__version__.split("+")[0] and "python" in card["versions"]
    assert card["device"] and card["threads"] >= 1
    assert set(card["seconds"]) == {"synthesis", "student", "evaluation", "total"}
    assert min(card["seconds"].values()) > 0
    assert sum(card["seconds"].values()) <= 2 * card["seconds"]["total"]
    assert [set(row) for row in card["curve"]] == 3 * [set(CURVE)]


def test_the_card_holds_the_metrics_of_the_rounds_after_warm_up(finished):
    ce = [report.ce_per_step for epoch in finished.epochs if epoch.scores for report in epoch.rounds]
    told, memory = finished.card["metrics"], finished.setup.method.memory
    assert len(ce) == 2 * finished.setup.method.config.rounds  # of two epochs; warm-up's round is not among them
    assert told["ce_by_step"] == [statistics.mean(step) for step in zip(*ce, strict=True)]
    assert set(told["convergence"]) == {"0.1", "0.5", "1.0"}
    for threshold, measured in told["convergence"].items():
        assert_same(measured, convergence(ce, float(threshold)))
    assert_same(told["diversity"], diversity(memory.images, memory.labels, memory.rounds))


@pytest.mark.parametrize("judges", [{"digits": "resnet8"}, {}])
def test_the_last_epoch_is_traced_only_where_a_judge_scores_it(judges, tmp_path, monkeypatch):
    """The images of every step of an epoch: 15 GB on ImageNet, which has no judge."""
    monkeypatch.setattr("nayer_lib.runs.run.JUDGES", judges)
    run, traced = Run(tiny_setup(), tmp_path / "run"), []
    for _ in run:
        traced.append(len(run.setup.method.trace or []))
    assert traced == [0, 0, run.setup.config.rounds if judges else 0]
    assert (run.setup.method.trace is None) == (not judges)


def assert_same(told: dict, measured) -> None:
    """A dataclass as a card tells it: null for nan, which JSON does not have."""
    expected = dataclasses.asdict(measured)
    assert set(told) == set(expected)
    for name, value in expected.items():
        assert told[name] == (None if math.isnan(value) else value)


def test_a_cards_json_has_no_nan(tmp_path):
    """One image of a class in every round: nothing to compare within, and no round reaches L_CE < 0.1 in one step."""
    run = Run(tiny_setup(generator_batch=10, generator_steps=1), tmp_path / "run")
    list(run)

    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    metrics = json.loads((run.folder / "card.json").read_text(), parse_constant=refuse)["metrics"]
    assert metrics["diversity"]["within"] is None and metrics["diversity"]["across"] > 0
    assert metrics["convergence"]["0.1"] == {"success": 0, "mean": None, "restricted": 2}


def test_the_headline_is_the_last_epoch_and_the_best_is_labelled(finished):
    card = finished.card
    last, scored = card["curve"][-1], [row for row in card["curve"] if row["accuracy"] is not None]
    assert card["accuracy_last"] == last["accuracy"] == finished.epochs[-1].scores.accuracy
    assert card["nll_last"] == last["nll"] == finished.epochs[-1].scores.nll
    assert card["agreement_last"] == last["agreement"] and card["images"] == last["images"]
    assert card["accuracy_best"] == max(row["accuracy"] for row in scored) >= card["accuracy_last"]
    assert card["curve"][card[BEST]]["accuracy"] == card["accuracy_best"]


def test_the_best_epoch_is_not_the_last_when_the_last_is_worse(tmp_path):
    setup = tiny_setup(epochs=3)
    real, accuracies = setup.evaluate.score, iter([0.4, 0.6, 0.5, 0.7])  # the fourth is transductive
    run = Run(setup, tmp_path / "run")
    setup.evaluate.score = lambda logits: dataclasses.replace(real(logits), accuracy=next(accuracies))
    list(run)
    card = read_card(run.folder)
    assert (card["accuracy_last"], card["accuracy_best"], card[BEST]) == (0.5, 0.6, 2)
    assert card["transductive"]["accuracy"] == 0.7


def test_the_saved_student_scores_what_the_card_says(finished):
    student = load_classifier(finished.folder / "student.safetensors")
    scores = finished.setup.evaluate(student)
    assert (scores.accuracy, scores.agreement) == (finished.card["accuracy_last"], finished.card["agreement_last"])
    header = files.load_tensors(finished.folder / "student.safetensors")[1]
    assert (header["run"], header["dataset"], header["epoch"]) == (finished.id, "digits", 2)
    assert header["class_names"] == list(student.class_names) and header["mean"] == list(student.mean)


def test_every_epoch_is_on_disk_before_it_is_yielded(tmp_path):
    run = Run(tiny_setup(), tmp_path / "run")
    assert read_card(run.folder)["status"] == "running" and rows_of(run.folder) == []
    for epoch in run:
        assert [int(row["epoch"]) for row in rows_of(run.folder)] == list(range(epoch.epoch + 1))
        if epoch.scores:
            header = files.load_tensors(run.folder / "student.safetensors")[1]
            assert (header["epoch"], header["accuracy"]) == (epoch.epoch, epoch.scores.accuracy)


def test_without_a_folder_a_run_makes_its_own_where_runs_go(tmp_path, monkeypatch):
    monkeypatch.setenv("NAYER_RUNS", str(tmp_path / "deep" / "runs"))
    run = Run(tiny_setup())
    assert run.folder == tmp_path / "deep" / "runs" / run.id and (run.folder / "card.json").is_file()


def test_a_folder_among_the_runs_names_its_run_so_that_keep_finds_it(clone):
    (clone / "runs").mkdir()
    named = Run(tiny_setup(), clone / "runs" / "mine")
    assert named.id == read_card(named.folder)["id"] == "mine"
    assert re.match(r"\d{8}-\d{6}-nayer-digits-", Run(tiny_setup(), clone / "elsewhere" / "mine").id)
    list(named)
    assert keep("mine") == clone / "data" / "runs" / "mine.json"


def test_the_device_is_told_by_its_name(monkeypatch):
    assert re.search(r"\(\d+ cores\)$", device_name(torch.device("cpu")))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device.index}")
    assert device_name(torch.device("cuda", 1)) == "GPU 1"


def test_outside_a_git_clone_the_commit_is_what_the_environment_says(clone, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(clone.parent))
    monkeypatch.delenv("NAYER_COMMIT", raising=False)
    assert commit() == ""
    monkeypatch.setenv("NAYER_COMMIT", "ad1efa0+")
    assert commit() == "ad1efa0+"
    monkeypatch.setenv("PATH", "")  # no git at all
    assert commit() == "ad1efa0+"
    monkeypatch.delenv("NAYER_COMMIT")
    assert commit() == ""


def test_in_a_clone_the_commit_is_gits_whatever_the_environment_says(monkeypatch):
    said = commit()
    if not said:
        pytest.skip("no git, or no clone")
    monkeypatch.setenv("NAYER_COMMIT", "another")
    assert commit() == said


# --- a run that does not


def test_an_existing_run_is_not_written_over(finished):
    before = (finished.folder / "card.json").read_bytes()
    with pytest.raises(UserError, match="holds a run already: resume it, choose another folder"):
        Run(finished.setup, finished.folder)
    assert (finished.folder / "card.json").read_bytes() == before


def test_a_folder_that_cannot_be_written_is_told_at_once(tmp_path, finished):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot write .*: .* Choose a folder you can write to"):
        Run(finished.setup, tmp_path / "file" / "run")


def test_a_run_that_fails_says_why_and_leaves_its_last_good_epoch(tmp_path):
    setup = tiny_setup()
    run = Run(setup, tmp_path / "run")
    synthesize = setup.method.synthesize

    def failing(epoch):
        if epoch == 2:
            raise NonFiniteLoss("L_CE became NaN.")
        return synthesize(epoch)

    setup.method.synthesize = failing
    with pytest.raises(NonFiniteLoss):
        for epoch in run:
            kept, last = files_of(run.folder), epoch
    assert last.epoch == 1
    card = read_card(run.folder)
    assert card["status"] == "failed: L_CE became NaN." and card["seconds"]["total"] > 0
    assert files_of(run.folder) == kept and set(kept) == {"curve.csv", "student.safetensors", "state.pt", "memory.bin"}
    assert len(rows_of(run.folder)) == 2
    saved = load_classifier(run.folder / "student.safetensors")
    assert card["accuracy_last"] == last.scores.accuracy == setup.evaluate(saved).accuracy


def test_a_run_that_its_caller_stops_says_so(tmp_path):
    run = Run(tiny_setup(), tmp_path / "run")
    epochs = iter(run)
    next(epochs)
    epochs.close()
    card = read_card(run.folder)
    assert card["status"] == "stopped before its last epoch" and len(card["curve"]) == 1
    assert "accuracy_last" not in card


def test_a_curve_that_cannot_be_written_any_more_stops_the_run_with_a_sentence(tmp_path):
    run = Run(tiny_setup(), tmp_path / "run")
    (run.folder / "curve.csv").unlink()
    (run.folder / "curve.csv").mkdir()
    with pytest.raises(UserError, match="cannot write to .*The last epoch's files are whole"):
        next(iter(run))
    assert read_card(run.folder)["status"].startswith("failed: cannot write")


# --- reading and keeping cards


def test_reading_says_what_is_wrong_with_a_card(tmp_path, finished):
    assert (
        read_card(finished.folder)
        == read_card(finished.folder / "card.json")
        == finished.card | {"config": read_json(finished.folder / "card.json")["config"]}
    )
    with pytest.raises(MissingFile, match="no run card at"):
        read_card(tmp_path)
    path = tmp_path / "card.json"
    for text in ('{"id": "x", "sta', '{"id": "x"}', "[]", "\x00"):
        path.write_text(text)
        with pytest.raises(UserError, match="is not a whole run card"):
            read_card(path)


def test_keep_copies_a_finished_run_to_where_the_tables_look(clone, finished):
    shutil.copytree(finished.folder, clone / "runs" / finished.id)
    before = len(kept_cards())
    path = keep(finished.id)
    assert path == clone / "data" / "runs" / f"{finished.id}.json"
    assert read_card(path) == read_card(finished.folder) and read_card(path) in kept_cards()
    assert len(kept_cards()) == before + 1
    assert path.with_suffix(".png").read_bytes() == (finished.folder / "images.png").read_bytes()
    assert not path.with_suffix(".safetensors").exists()


def test_keep_also_copies_the_student_as_float16_when_asked(clone, finished):
    shutil.copytree(finished.folder, clone / "runs" / finished.id)
    path = keep(finished.id, student=True).with_suffix(".safetensors")
    ours, kept = (load_classifier(file).net.state_dict() for file in (finished.folder / "student.safetensors", path))
    assert all(torch.equal(kept[name], ours[name].half().to(ours[name].dtype)) for name in ours)
    assert path.stat().st_size < (finished.folder / "student.safetensors").stat().st_size
    assert files.load_tensors(path)[1] == files.load_tensors(finished.folder / "student.safetensors")[1]


def test_keep_refuses_what_is_unknown_or_unfinished(clone, finished):
    shutil.copytree(finished.folder, clone / "runs" / "one")
    with pytest.raises(UserError, match="unknown run 'on'. Did you mean 'one'"):
        keep("on")
    for status in ("running", "failed: L_CE became NaN.", "stopped before its last epoch"):
        (clone / "runs" / "one" / "card.json").write_text(json.dumps(finished.card | {"status": status}))
        with pytest.raises(UserError, match="only finished runs are kept"):
            keep("one")
    assert not (clone / "data" / "runs" / "one.json").exists()


def test_the_cards_come_oldest_first(clone, finished):
    (clone / "data" / "runs").mkdir(exist_ok=True)
    for name in ("20300101-000000-b", "20290101-000000-a"):
        (clone / "data" / "runs" / f"{name}.json").write_text(json.dumps(finished.card | {"id": name}))
    assert [card["id"] for card in kept_cards()][-2:] == ["20290101-000000-a", "20300101-000000-b"]


def test_the_cards_of_kept_sweeps_stand_among_the_others_and_no_run_twice(clone, finished):
    """A sweep's cards stand one a line in one file; two sweeps may share a run."""
    before = [card["id"] for card in kept_cards()]
    first, second = (finished.card | {"id": name} for name in ("20290101-000000-a", "20300101-000000-b"))
    (clone / "data" / "runs" / "one.jsonl").write_text(json.dumps(second) + "\n")
    (clone / "data" / "runs" / "two.jsonl").write_text(f"{json.dumps(second)}\n{json.dumps(first)}\n")
    assert [card["id"] for card in kept_cards()] == [*before, first["id"], second["id"]]
    assert kept_cards()[-1] == json.loads(json.dumps(second))


def test_the_local_cards_are_those_of_the_runs_folder_oldest_first(clone, finished):
    assert local_cards() == []
    for name in ("20300101-000000-b", "20290101-000000-a"):
        shutil.copytree(finished.folder, clone / "runs" / name)
        (clone / "runs" / name / "card.json").write_text(json.dumps(finished.card | {"id": name, "status": "running"}))
    (clone / "runs" / "demo" / "run").mkdir(parents=True)  # a folder without a card
    assert [card["id"] for card in local_cards()] == ["20290101-000000-a", "20300101-000000-b"]


# --- the config of a card


NEWER = {"latent_beta", "latent_concat", "embedding"}


def test_a_cards_config_is_the_config_that_ran(finished):
    config = finished.setup.method.config
    assert card_config(finished.card) == card_config(read_card(finished.folder)) == config
    assert hash(card_config(read_card(finished.folder))) == hash(config)  # tuples, not lists: it is a key of dicts


def test_fields_newer_than_a_card_have_their_defaults(finished):
    card = read_card(finished.folder)
    old = {name: value for name, value in card["config"].items() if name not in NEWER}
    assert len(old) == len(card["config"]) - len(NEWER)
    config = card_config(card | {"config": old})
    assert config == finished.setup.method.config
    assert {name: getattr(config, name) for name in NEWER} == {name: getattr(NayerConfig(), name) for name in NEWER}
    assert card_config(card | {"config": old | {"rounds": 7}}).rounds == 7


def test_fields_that_a_cards_method_does_not_read_are_dropped(finished):
    """Cards of other methods once held NAYER's as well."""
    other = make_config("digits", method="deepinv")
    old = dataclasses.asdict(make_config("digits")) | dataclasses.asdict(other)
    assert old.keys() > fields_of("deepinv")
    assert card_config(finished.card | {"config": old}) == other


def test_the_kept_cards_of_the_presets_are_still_those_of_todays_presets():
    """However many fields were added since: what they ran with is what the preset says today."""
    today = {make_config("digits"), make_config("color_digits")}
    ran = {dataclasses.replace(card_config(card), seed=0) for card in kept_cards()}
    assert today <= ran


# --- the kept cards themselves


def strings(value) -> list[str]:
    """All texts in a JSON value, keys included."""
    if isinstance(value, dict):
        return [text for pair in value.items() for part in pair for text in strings(part)]
    if isinstance(value, list):
        return [text for part in value for text in strings(part)]
    return [value] if isinstance(value, str) else []


def test_kept_cards_are_finished_and_name_no_folder_of_any_machine():
    assert kept_cards()
    machine = re.compile(r"(^|[\s'\"=])(/[\w.-]+/|~/|[A-Za-z]:\\)")
    for card in kept_cards():
        assert card["status"] == "finished"
        assert not [text for text in strings(card) if machine.search(text)]
    for path in (files.data_dir() / "runs").glob("*.json"):
        assert read_card(path)["id"] == path.stem
