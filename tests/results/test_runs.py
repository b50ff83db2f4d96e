"""Run folders and cards are whole whatever happens to a run, and tables say what was run and what was not."""

import copy
import csv
import dataclasses
import json
import re
import shutil
import statistics

import pytest
import torch
from tiny import copy_data, read_json, tiny_setup

from nayer_lib import files
from nayer_lib.classifiers.teacher import load_classifier
from nayer_lib.config import make_config
from nayer_lib.errors import MissingFile, UserError
from nayer_lib.methods.base import NonFiniteLoss
from nayer_lib.results import paper, runs
from nayer_lib.results.runs import CURVE, MARKERS, Run, cells, keep, kept_cards, read_card, results_table, with_table

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
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "card.json"}


def like(card: dict, seed: int | None = None, **changes) -> dict:
    """A card with other values; `config` is merged and hashed again."""
    card = copy.deepcopy(card)
    config = changes.pop("config", {}) | ({} if seed is None else {"seed": seed})
    card["config"] |= config
    card["config_sha256"] = runs.Config(**card["config"]).hash
    return card | changes


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
    assert card["status"] == "finished" and card["id"].endswith("-nayer-digits-wrn10_1-wrn10_half-released-quick-s3")
    assert runs.Config(**card["config"] | {"generator_betas": tuple(card["config"]["generator_betas"])}) == config
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


def test_the_headline_is_the_last_epoch_and_the_best_is_labelled(finished):
    card = finished.card
    last, scored = card["curve"][-1], [row for row in card["curve"] if row["accuracy"] is not None]
    assert card["accuracy_last"] == last["accuracy"] == finished.epochs[-1].scores.accuracy
    assert card["agreement_last"] == last["agreement"] and card["images"] == last["images"]
    assert card["accuracy_best"] == max(row["accuracy"] for row in scored) >= card["accuracy_last"]
    assert card["curve"][card[BEST]]["accuracy"] == card["accuracy_best"]


def test_the_best_epoch_is_not_the_last_when_the_last_is_worse(tmp_path):
    setup = tiny_setup(epochs=3)
    real, accuracies = setup.evaluate.score, iter([0.4, 0.6, 0.5])
    run = Run(setup, tmp_path / "run")
    setup.evaluate.score = lambda logits: dataclasses.replace(real(logits), accuracy=next(accuracies))
    list(run)
    card = read_card(run.folder)
    assert (card["accuracy_last"], card["accuracy_best"], card[BEST]) == (0.5, 0.6, 2)


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


def test_the_device_is_told_by_its_name(monkeypatch):
    assert re.search(r"\(\d+ cores\)$", runs.device_name(torch.device("cpu")))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device.index}")
    assert runs.device_name(torch.device("cuda", 1)) == "GPU 1"


def test_outside_a_git_clone_the_commit_is_empty(clone, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(clone.parent))
    assert runs._commit() == ""
    monkeypatch.setenv("PATH", "")  # no git at all
    assert runs._commit() == ""


# --- a run that does not


def test_an_existing_run_is_not_written_over(finished):
    before = (finished.folder / "card.json").read_bytes()
    with pytest.raises(UserError, match="holds a run already: choose another folder"):
        Run(finished.setup, finished.folder)
    assert (finished.folder / "card.json").read_bytes() == before


def test_a_folder_that_cannot_be_written_is_told_at_once(tmp_path, finished):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot write .*card.json: .* Choose a folder you can write to"):
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
    assert files_of(run.folder) == kept and set(kept) == {"curve.csv", "student.safetensors"}
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
        (clone / "data" / "runs" / f"{name}.json").write_text(json.dumps(like(finished.card, id=name)))
    assert [card["id"] for card in kept_cards()][-2:] == ["20290101-000000-a", "20300101-000000-b"]


# --- cells: what may be averaged


def test_seeds_of_one_protocol_are_one_cell(finished):
    cards = [like(finished.card, seed=s, id=str(s), accuracy_last=a) for s, a in ((0, 0.90), (1, 0.92), (2, 0.97))]
    [cell] = cells(cards)
    assert cell.last == pytest.approx([90, 92, 97]) and cell.ids == ["0", "1", "2"]
    assert cell.mean == pytest.approx(93) and cell.spread == pytest.approx(statistics.stdev([90, 92, 97]))
    assert cell.teacher == 100 * finished.card["teacher"]["accuracy"] and cell.device == finished.card["device"]
    assert cell.config.seed == 0 and isinstance(cell.config.generator_betas, tuple)


def test_one_seed_has_no_spread(finished):
    [cell] = cells([finished.card])
    assert cell.spread is None and "±" not in results_table([finished.card])


@pytest.mark.parametrize(
    "change",
    [
        {"teacher": {"sha256": "another", "accuracy": 0.9}},
        {"test_split": {"sha256": "another", "images": 500}},
        {"device": "another"},
        {"config": {"epochs": 3}},
        {"config": {"variant": "paper"}},
        {"config": {"method": "another"}},
    ],
    ids=lambda change: ", ".join(change.get("config", change)),
)
def test_different_protocols_are_never_averaged(finished, change):
    cards = [finished.card, like(finished.card, seed=4), like(finished.card, **change)]
    assert [len(cell.last) for cell in cells(cards)] == [2, 1]


def test_only_finished_runs_count(finished):
    others = [
        like(finished.card, seed=s, status=status) for s, status in enumerate(("running", "failed: x", "stopped"))
    ]
    assert [cell.ids for cell in cells([finished.card, *others])] == [[finished.id]]
    assert cells(others) == []


# --- the table


def nayer_e300():
    table = paper.table(1)
    return [row for row in table.itertuples() if row.method == "NAYER" and row.epochs == 300]


def full_card(card, dataset="cifar10", teacher="wrn40_2", student="wrn16_2", **config):
    made = make_config(f"{dataset}-{teacher}-{student}", profile="full", **{"epochs": 300, **config})
    return like(card, config=dataclasses.asdict(made))


def not_run() -> list[str]:
    """The lines of the table where nothing was run, in the order of Table 1."""
    return [
        f"| {row.dataset} | {row.teacher} → {row.student} | released, full, E = 300 | {row.accuracy:.2f} | "
        "not run | | | 0 | | |"
        for row in nayer_e300()
    ]


def test_a_cell_that_was_not_run_says_so(finished):
    lines = [line for line in results_table([finished.card]).splitlines() if "not run" in line]
    assert sorted(lines) == sorted(not_run()) and len(lines) == 12


def test_the_cells_stand_in_the_order_of_table_1(finished):
    assert [line for line in results_table([finished.card]).splitlines() if "not run" in line] == not_run()


def test_the_table_names_the_papers_edition_and_has_equal_columns(finished):
    lines = results_table([finished.card, full_card(finished.card)]).splitlines()
    assert paper.EDITION in lines[0]
    assert {line.count("|") for line in lines} == {lines[0].count("|")}


def test_a_run_of_ours_stands_with_its_gap_beside_the_papers_number(finished):
    lines = results_table([full_card(finished.card, seed=s) for s in range(3)]).splitlines()
    [ours] = [line for line in lines if "cifar10 | wrn40_2 → wrn16_2" in line]
    assert "| 94.07 |" in ours and "not run" not in ours and "± 0.0" in ours and "| 3 |" in ours
    assert sum("not run" in line for line in lines) == 11


def test_a_small_run_is_not_compared_with_the_paper(finished):
    small = like(finished.card, config=dataclasses.asdict(make_config(profile="lab")))
    [line] = [line for line in results_table([small]).splitlines() if "released, lab" in line]
    assert line.startswith("| cifar10 | wrn40_2 → wrn16_2 | released, lab | – |")
    assert sum("not run" in line for line in results_table([small]).splitlines()) == 12


def test_the_papers_number_is_that_of_the_runs_own_epochs(finished):
    [line] = [x for x in results_table([full_card(finished.card, epochs=100)]).splitlines() if "**" in x]
    assert "| 93.48 |" in line


@pytest.mark.parametrize("config", [{"epochs": 100}, {"variant": "paper"}, {"generator_steps": 1}], ids=str)
def test_another_run_does_not_stand_for_the_e300_cell(finished, config):
    table = results_table([full_card(finished.card, **config)])
    assert table.count("not run") == 12


@pytest.mark.parametrize("config", [{"epochs": 50}, {"student": "wrn10_1"}, {"generator_steps": 1}], ids=str)
def test_a_full_run_that_the_paper_has_no_cell_for_has_a_dash(finished, config):
    made = make_config("cifar10-wrn40_2-wrn16_2", profile="full", **config)
    assert results_table([like(finished.card, config=dataclasses.asdict(made))]).count("| – |") == 1


def test_the_table_goes_between_the_markers_and_nowhere_else():
    begin, end = MARKERS
    text = f"before\n{begin}\nold\n{end}\nafter"
    assert with_table(text, "new") == f"before\n{begin}\nnew\n{end}\nafter"
    assert with_table(with_table(text, "new"), "new") == with_table(text, "new")
    for broken in ("", begin, text + text, text.replace(end, "")):
        with pytest.raises(UserError, match="once each"):
            with_table(broken, "new")


def test_the_readmes_picture_is_drawn_from_kept_cards(clone, finished):
    shutil.copytree(finished.folder, clone / "runs" / finished.id)
    keep(finished.id)
    runs.draw_results([read_card(finished.folder)], clone / "docs" / "results.png")
    assert (clone / "docs" / "results.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UserError, match="no kept run of the quick profile on digits"):
        runs.draw_results([], clone / "docs" / "none.png")
    assert not (clone / "docs" / "none.png").exists()


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
    for path in sorted((files.data_dir() / "runs").glob("*.json")):
        card = read_card(path)
        assert card["status"] == "finished" and card["id"] == path.stem
        machine = re.compile(r"(^|[\s'\"=])(/[\w.-]+/|~/|[A-Za-z]:\\)")
        assert not [text for text in strings(card) if machine.search(text)]


def test_every_cell_of_kept_cards_has_a_picture_and_every_picture_a_card():
    folder = files.data_dir() / "runs"
    assert all(any((folder / f"{name}.png").is_file() for name in cell.ids) for cell in cells(kept_cards()))
    assert {path.stem for path in folder.glob("*.png")} <= {path.stem for path in folder.glob("*.json")}


def test_kept_cards_are_hashed_as_their_config_says():
    for card in kept_cards():
        config = card["config"] | {"generator_betas": tuple(card["config"]["generator_betas"])}
        assert runs.Config(**config).hash == card["config_sha256"], card["id"]


def test_the_stated_target_is_met_by_three_seeds_of_the_quick_profile():
    """The student of the laptop run comes within two points of its teacher on average, and never misses by three."""
    [cell] = [cell for cell in cells(kept_cards()) if cell.config.hash == make_config().hash]
    assert len(cell.last) >= 3 and cell.teacher >= 98
    assert cell.teacher - cell.mean <= 2.0
    assert max(cell.teacher - last for last in cell.last) <= 3.0


def test_the_bars_that_were_measured_for_color_digits_hold():
    """50 classes, the same laptop budget: 94.0 % was measured for a teacher of 99.5 %."""
    [cell] = [cell for cell in cells(kept_cards()) if cell.config.hash == make_config("color_digits").hash]
    assert len(cell.last) >= 3 and cell.teacher >= 97
    assert cell.teacher - cell.mean <= 7.0
    assert max(cell.teacher - last for last in cell.last) <= 9.0
