"""The paper's ablations: every printed row once, ours beside it, and one rule for every word."""

import copy
import dataclasses
import json
import random
import re
import statistics
from collections.abc import Iterator
from pathlib import Path

import ablation_tables
import pytest
from ablation_tables import with_effects
from tiny import clone_cards

from nayer_lib import files
from nayer_lib.classifiers.teacher import teacher_path
from nayer_lib.config import DIVERGENCES, Config, differences, make_config
from nayer_lib.errors import UserError
from nayer_lib.generator.latents import COLUMNS
from nayer_lib.methods import KINDS
from nayer_lib.runs.forecast import budget
from nayer_lib.runs.sweep import Sweep, arm_cards
from nayer_lib.text.lte_pool import pool_path
from nayer_lib.text.prompts import PROMPTS
from nayer_notebooks import paper
from nayer_notebooks.ablations import ABLATIONS, BY_STEM, frame, lines_of
from nayer_notebooks.lines import PROBLEMS, Ablation
from nayer_notebooks.rule import FREEDOM, LEVEL, RUNS, RUNS_ALONE, SMALL, UNEQUAL
from nayer_notebooks.statistics import by_config

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "ablations.md").read_text(encoding="utf-8")
SWEEPS = {(stem, dataset): s for stem, ablation in BY_STEM.items() for dataset, s in ablation.sweeps().items()}
_TABLE3 = SWEEPS["table3", "digits"]
_ARMS = {arm: [dataclasses.replace(c[0], seed=seed) for seed in range(10)] for arm, c in _TABLE3.arms.items()}
SWEEPS["table3", "digits"] = dataclasses.replace(_TABLE3, arms=_ARMS, primary=(), registration=None)
CONTROLS = {
    "table3": {"one layer, redrawn", "LTE, G kept", "NAYER(woRI), G kept", "NAYER(Kto1), G kept"},
    "table4": {"orthogonal", "permuted text", "two-hot"},
    "table5": {"a", "photo"},
    "table10": set(),
    "table11": {f"FM with its own G, g = {g}" for g in (2, 5, 10, 20, 30, 40, 50)},
}


def ablations_page(cards: list[dict]) -> str:
    """The page of these cards, without its markers."""
    return re.sub(r"<!-- .+ -->\n", "", ablation_tables.ablations_page(PAGE, cards))


def test_the_pages_head_states_the_rule_with_its_numbers():
    head = PAGE.split("\n## ")[0]
    assert f"within ±{SMALL:g} point" in head and f"{SMALL:g} point or more" in head and paper.EDITION in head
    assert f"adjusted p below {LEVEL:g}" in head and f"fewer than {RUNS} runs" in head
    assert f"{UNEQUAL} times" in head and f"below {RUNS_ALONE} runs" in head and f"{FREEDOM} degrees of freedom" in head


def test_every_table_has_a_heading_that_begins_with_its_name_in_the_summary():
    headings = re.findall(r"^## (.+)$", PAGE, re.M)[1:]
    assert [heading[: len(ablation.title)] for heading, ablation in zip(headings, ABLATIONS, strict=True)] == [
        ablation.title for ablation in ABLATIONS
    ]


# --- the sweep files


def config_of(sweep: Sweep, arm: str) -> Config:
    return sweep.arms[arm][0]


def printed_names(stem: str, dataset: str) -> set[str]:
    return set(BY_STEM[stem].rows(dataset))


def test_every_problem_that_the_paper_prints_has_a_sweep():
    printed = {"table3": {"cifar10"}, "table10": {"cifar10"}, "table11": {"cifar100"}}  # misprints m12, m21, m23
    printed |= {f"table{n}": set(paper.table(n)["dataset"]) for n in (4, 5)}
    for stem, datasets in printed.items():
        assert {(stem, dataset) for dataset in datasets} <= set(SWEEPS) and (stem, "digits") in SWEEPS
    assert {"cifar10", "digits"} <= {dataset for stem, dataset in SWEEPS if stem == "divergences"}


# A pilot, rows of docs/tables.md, what other tables took over, and studies on CIFAR-10 of which no run was made.
ON_NO_PAGE = {"hour_pilot_cifar10", "published_cifar10", "inputs_cifar10", "paper_cifar10"}

OF_OURS = {"speed", "first_rounds", "controls_pilot", "controls", "cpnet"}  # studies on CIFAR-10 for a CPU


def test_every_sweep_file_is_on_the_page_or_listed():
    stems = {path.stem for path in (files.data_dir() / "sweeps").glob("*.json")}
    assert stems == {f"{stem}_{dataset}" for stem, dataset in SWEEPS} | ON_NO_PAGE


@pytest.mark.parametrize(("stem", "dataset"), [key for key in SWEEPS if key[0] in CONTROLS], ids=str)
def test_an_arm_is_a_printed_row_or_a_listed_control(stem, dataset):
    arms, printed = set(SWEEPS[stem, dataset].arms), printed_names(stem, dataset)
    assert arms <= printed | CONTROLS[stem]
    without = {"table4": {"CLIP"}}.get(stem, set()) if "digits" in dataset else set()  # no pool of CLIP for them
    others = {name for name in printed if name.startswith(("SOTA", "MBDFKD", "FM"))}
    assert printed - others - arms == without
    assert BY_STEM[stem].against(next(iter(arms))) in arms


@pytest.mark.parametrize(("stem", "dataset"), SWEEPS, ids=str)
def test_a_sweep_runs_the_problem_of_its_name_in_the_papers_pair(stem, dataset):
    pair = {"cifar10": "wrn40_2 wrn16_2", "cifar100": "wrn40_2 wrn16_2"}.get(dataset)
    pair = "wrn40_2 wrn16_1" if (stem, dataset) == ("table10", "cifar10") else pair
    pair = None if stem in OF_OURS else pair
    for configs in SWEEPS[stem, dataset].arms.values():
        for config in configs:
            assert config.dataset == dataset and config.method in KINDS
            assert config.profile == ("quick" if pair is None else "lab")
            assert pair in (None, f"{config.teacher} {config.student}")


def test_the_laptop_sweeps_need_nothing_that_is_not_in_the_clone():
    for sweep in SWEEPS.values():
        for config in (configs[0] for configs in sweep.arms.values() if configs[0].profile == "quick"):
            if KINDS[config.method].reads_text:
                assert pool_path(config.dataset, config.encoder, config.prompt).is_file()
            assert teacher_path(config.dataset, config.teacher).is_file()


@pytest.mark.parametrize("dataset", [dataset for stem, dataset in SWEEPS if stem == "table3"])
def test_table_3s_arms_are_its_inputs(dataset):
    sweep = SWEEPS["table3", dataset]
    expected = {"OH": "onehot", "Z": "noise", "LTE": "lte", "cat": "cat_lte", "NAYER(woRI)": "noisy_kept"}
    expected |= {"NAYER(1to1)": "noisy_1to1", "NAYER(Kto1)": "noisy", "one layer, redrawn": "noisy_one"}
    expected |= {f"sum({beta})": "sum_lte" for beta in ("0.1", "0.5", "1")}
    for arm in sweep.arms:
        name, kept, _ = arm.partition(", G kept")
        config = config_of(sweep, arm)
        assert config.latent == expected[name] and (config.generator_life is None) == bool(kept)
        if name.startswith("sum"):
            assert config.latent_beta == float(name[4:-1])
    assert not COLUMNS[config_of(sweep, "NAYER(woRI)").latent].redrawn


@pytest.mark.parametrize("dataset", [dataset for stem, dataset in SWEEPS if stem == "table4"])
def test_table_4s_arms_are_its_encoders_and_the_controls_are_of_sbert(dataset):
    for arm in set(SWEEPS["table4", dataset].arms) - {"SOTA"}:
        config = config_of(SWEEPS["table4", dataset], arm)
        assert config.encoder == (arm.lower() if arm in ("Doc2Vec", "CLIP") else "sbert")
        controls = {"permuted text": "permuted", "two-hot": "two_hot", "orthogonal": "orthogonal"}
        assert config.embedding == controls.get(arm, "text")


@pytest.mark.parametrize("dataset", [dataset for stem, dataset in SWEEPS if stem == "table5"])
def test_table_5s_arms_are_its_prompts(dataset):
    sweep = SWEEPS["table5", dataset]
    arms = set(sweep.arms) - {"SOTA"}
    assert {arm: config_of(sweep, arm).prompt for arm in arms} == {arm: arm.lower() for arm in arms}
    assert {arm.lower() for arm in arms} <= set(PROMPTS)


@pytest.mark.parametrize("dataset", [dataset for stem, dataset in SWEEPS if stem == "table10"])
def test_table_10s_memories_are_the_papers_shares_of_all_images(dataset):
    whole = make_config("cifar10-wrn40_2-wrn16_1", profile="full", epochs=300)
    assert whole.total_rounds * whole.generator_batch == 320_000
    sweep, rows = SWEEPS["table10", dataset], BY_STEM["table10"].rows(dataset)
    for arm in set(sweep.arms) - {"SOTA"}:
        config, printed = config_of(sweep, arm), rows[arm].memory
        share = printed and printed / 320_000 * config.total_rounds * config.generator_batch
        assert config.memory_size == (share and pytest.approx(share, abs=0.51))


@pytest.mark.parametrize("key", [key for key in SWEEPS if "SOTA" in SWEEPS[key].arms], ids=str)
def test_the_state_of_the_art_is_spaceshipnet(key):
    assert {config.method for config in SWEEPS[key].arms["SOTA"]} == {"spaceship"}


@pytest.mark.parametrize("dataset", [dataset for stem, dataset in SWEEPS if stem == "table11"])
def test_table_11s_arms_are_its_steps(dataset):
    sweep, rows = SWEEPS["table11", dataset], BY_STEM["table11"].rows(dataset)
    for arm in sweep.arms:
        config, row = config_of(sweep, arm), rows[arm.replace(" with its own G", "")]
        assert config.generator_steps == row.generator_steps and config.method == row.method.lower()
        assert config.method == "nayer" or config.nayer_generator == (arm in rows)  # the paper's FM has NAYER's


@pytest.mark.parametrize("dataset", [dataset for stem, dataset in SWEEPS if stem == "divergences"])
def test_each_arm_of_the_divergences_is_exactly_its_row(dataset):
    sweep = SWEEPS["divergences", dataset]
    assert list(sweep.arms) == ["released", *DIVERGENCES, "paper"]
    base = config_of(sweep, "released")
    assert base.variant == "released"
    rows = {**DIVERGENCES, "paper": {f: v for row in DIVERGENCES.values() for f, v in row.items()}}
    rows["paper"] |= {"variant": "paper"}
    for arm, row in rows.items():
        changed = {name: new for name, (new, _) in differences(config_of(sweep, arm), base).items()}
        assert changed == row, arm
    assert base.rounds > 1  # else D13 changes nothing
    assert base.generator_life < base.total_epochs  # else D5
    spent = {arm: budget(config_of(sweep, arm)) for arm in sweep.arms}
    assert {arm for arm in spent if spent[arm] != spent["released"]} == {"D4", "D6", "paper"}


# --- the page


@pytest.fixture(scope="module")
def empty() -> str:
    """The page before anything was run."""
    return ablations_page([])


@pytest.fixture
def run():
    """A finished run of a config, as a kept card would tell it."""
    first = clone_cards()[0]

    def made(config: Config, accuracy: float, device: str = "a device", **facts) -> dict:
        card = copy.deepcopy(first) | {"device": device, "accuracy_last": accuracy, "accuracy_best": accuracy}
        card |= {"id": f"{config} {device}", "config": dataclasses.asdict(config)}
        card.pop("metrics", None)
        card["seconds"] = {"synthesis": 30.0, "student": 10.0, "evaluation": 2.0, "total": 42.0}
        return card | facts

    return made


def runs_of(run, sweep: Sweep, accuracies: dict[str, list[float]], **facts) -> list[dict]:
    """Cards of some arms: arm -> accuracy of each seed, in the order of its seeds."""
    return [
        run(config, accuracy, **facts)
        for arm, values in accuracies.items()
        for config, accuracy in zip(sweep.arms[arm], values, strict=False)
    ]


def sections(page: str) -> dict[tuple[str, str], list[dict[str, str]]]:
    """(title, data set) -> the rows of its table, each heading -> cell."""
    found = {}
    for part in page.split("\n## ")[2:]:
        title = part.split("\n")[0].split(":")[0]
        for piece in part.split("\n### ")[1:]:
            heading, *rows = [line for line in piece.split("\n") if line.startswith("|")]
            names = [cell.strip() for cell in heading.strip("|").split("|")]
            cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[1:]]
            found[title, piece.split(":")[0]] = [dict(zip(names, row, strict=True)) for row in cells]
    return found


def row_of(page: str, title: str, dataset: str, name: str) -> dict[str, str]:
    [row] = [row for row in sections(page)[title, dataset] if row["row"] == name]
    return row


def title_of(stem: str) -> str:
    return BY_STEM[stem].title


@pytest.mark.parametrize(("stem", "dataset"), [key for key in SWEEPS if key[0] in CONTROLS], ids=str)
def test_every_printed_row_stands_once_with_its_number_and_says_that_it_was_not_run(stem, dataset, empty):
    shown = sections(empty)[title_of(stem), dataset]
    printed = [
        row for row in paper.rows(BY_STEM[stem].table) if getattr(row, "dataset", None) in (None, PROBLEMS[dataset])
    ]
    assert len({row["row"] for row in shown}) == len(shown)
    assert len(shown) == len(printed) + len(CONTROLS[stem] & set(SWEEPS[stem, dataset].arms))
    for row, cells in zip(printed, shown, strict=False):
        mark = f" ({row.misprint})" if getattr(row, "misprint", "") else ""
        assert cells["paper: accuracy"] == f"{row.accuracy:.2f}{mark}"
    for cells in shown:
        assert cells["ours: last epoch"] == cells["word"] == "not run" and cells["ours: difference [95 %]"] == ""
    assert {cells["paper: accuracy"] for cells in shown[len(printed) :]} <= {"–"}


def test_the_papers_differences_are_to_its_own_rows(empty):
    for title, dataset, name, against, gap in (
        ("Table 3", "digits", "NAYER(woRI)", "NAYER(Kto1)", 14.82 - 93.48),
        ("Table 4", "cifar100", "CLIP", "SBERT", 71.72 - 71.63),
        ("Table 4", "color_digits", "CLIP", "SBERT", 71.72 - 71.63),  # beside it stands CIFAR-100
        ("Table 5", "digits", "P3", "P2", 93.72 - 94.07),
        ("Table 10", "cifar10", "NAYER, 5k", "NAYER, Full", 90.41 - 91.94),
        ("Table 10", "cifar10", "MBDFKD, 5k", "MBDFKD, Full", 73.33 - 70.72),
        ("Table 10", "cifar10", "SOTA", "NAYER, Full", 90.38 - 91.94),
        ("Table 11", "digits", "NAYER, g = 2", "NAYER, g = 40", 59.23 - 71.72),
        ("Table 11", "cifar100", "FM, g = 5", "NAYER, g = 5", 63.83 - 65.14),
    ):
        row = row_of(empty, title, dataset, name)
        assert (row["against"], row["paper: difference"]) == (against, f"{gap:+.2f}")


WIDE = [-0.008, 0.0, 0.008] * 3 + [0.0]  # what ten runs leave about their mean


def ten(mean: float) -> list[float]:
    """Ten accuracies, in an order of their own: what all arms share would be the seeds' part."""
    return [mean + left for left in random.Random(mean).sample(WIDE, 10)]


@pytest.fixture
def sweep() -> Sweep:
    """Table 3 on digits, with ten seeds."""
    return SWEEPS["table3", "digits"]


@pytest.fixture(autouse=True, scope="module")
def without_registration() -> Iterator[None]:
    """What is made up here is no registered run: of Table 3 on digits the arms alone are read from its file."""
    real = Ablation.sweeps

    def sweeps(ablation: Ablation) -> dict[str, Sweep]:
        return real(ablation) | ({"digits": SWEEPS["table3", "digits"]} if ablation.stem == "table3" else {})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ablation, "sweeps", sweeps)
        yield


def test_a_row_has_its_difference_with_interval_p_ratio_and_word(run, sweep):
    arms = {"NAYER(Kto1)": ten(0.97), "Z": ten(0.93), "LTE": ten(0.97), "cat": ten(0.93)}
    page = ablations_page(runs_of(run, sweep, arms)[::-1])
    row = row_of(page, "Table 3", "digits", "Z")
    assert row["ours: last epoch"] == "**93.0 ± 0.7** (n = 10)" and row["against"] == "NAYER(Kto1)"
    assert re.fullmatch(r"-4\.00 \[-4\.\d\d, -3\.\d\d\]", row["ours: difference [95 %]"])
    said = ("< 0.001", "1.20", "shows, exploratory")  # the paper has -3.34
    assert (row["p (Holm)"], row["ours / paper"], row["word"]) == said
    assert (row["time a run: synthesis + student"], row["device"]) == ("30 + 10 of 42 s", "a device")
    assert row_of(page, "Table 3", "digits", "LTE")["word"] == "does not show, exploratory"  # the paper has -79.96
    assert row_of(page, "Table 3", "digits", "cat")["ours / paper"] == "0.05 smaller"
    reference = row_of(page, "Table 3", "digits", "NAYER(Kto1)")
    assert (reference["ours: difference [95 %]"], reference["against"], reference["word"]) == ("", "", "reference")
    assert row_of(page, "Table 3", "digits", "OH")["word"] == "not run"


def test_a_word_of_few_runs_carries_their_number_and_two_have_none(run):
    arms = {"NAYER(Kto1)": [0.969, 0.97, 0.971], "Z": [0.899, 0.9, 0.901], "LTE": [0.9, 0.902], "OH": [0.95] * 3}
    page = ablations_page(runs_of(run, SWEEPS["table3", "digits"], arms | {"cat": [0.8, 0.801, 0.802]}))
    assert row_of(page, "Table 3", "digits", "Z")["word"] == "shows, n = 3, exploratory"
    few = row_of(page, "Table 3", "digits", "LTE")
    assert (few["word"], few["p (Holm)"]) == ("n < 3: no word", "")
    assert re.fullmatch(r"-6\.\d\d", few["ours: difference [95 %]"])  # no interval


def test_runs_of_different_protocols_are_never_compared(run, sweep):
    cards = runs_of(run, sweep, {"NAYER(Kto1)": ten(0.9), "Z": ten(0.8)})
    elsewhere = runs_of(run, sweep, {"Z": ten(0.7)}, device="another")
    precise = runs_of(run, sweep, {"LTE": ten(0.7)}, compute={"precision": "bf16"})
    page = ablations_page(cards + elsewhere + precise)
    rows = [row for row in sections(page)["Table 3", "digits"] if row["row"] == "Z"]
    assert [(row["device"], row["ours: difference [95 %]"][:6], row["word"]) for row in rows] == [
        ("a device", "-10.00", "shows, exploratory"),
        ("another", "", "no reference"),
    ]
    assert row_of(page, "Table 3", "digits", "LTE")["ours: difference [95 %]"] == ""


def test_a_reference_that_ran_alone_elsewhere_has_no_line_for_it(run, sweep):
    cards = runs_of(run, sweep, {"NAYER(Kto1)": ten(0.9), "Z": ten(0.8)})
    cards += runs_of(run, sweep, {"NAYER(Kto1)": ten(0.95)}, device="another")
    rows = [row for row in sections(ablations_page(cards))["Table 3", "digits"] if row["row"] == "NAYER(Kto1)"]
    assert [row["device"] for row in rows] == ["a device"]
    alone = [row for row in sections(ablations_page(cards[-10:]))["Table 3", "digits"] if row["row"] == "NAYER(Kto1)"]
    assert [row["device"] for row in alone] == ["another"]


def test_an_arm_with_a_kept_generator_is_compared_with_k_to_1_under_one(run, sweep):
    kept = ", G kept"
    arms = {"NAYER(Kto1)": ten(0.98), f"NAYER(Kto1){kept}": ten(0.96), f"NAYER(woRI){kept}": ten(0.91)}
    page = ablations_page(runs_of(run, sweep, arms))
    row = row_of(page, "Table 3", "digits", f"NAYER(woRI){kept}")
    assert (row["against"], row["ours: difference [95 %]"][:5]) == (f"NAYER(Kto1){kept}", "-5.00")
    assert row["word"] == "loss, exploratory" and row["paper: accuracy"] == "–"
    assert row_of(page, "Table 3", "digits", f"NAYER(Kto1){kept}")["against"] == "NAYER(Kto1)"


def test_a_registered_table_counts_its_own_runs_and_speaks_when_all_are_there(run):
    sweep = SWEEPS["speed", "cifar10"]

    def cards(arm, steps, seeds, registration=sweep.registration):
        for config, left in list(zip(sweep.arms[arm], (-0.2, 0.0, 0.2), strict=True))[:seeds]:
            reached = {"success": 1.0, "mean": steps + left, "restricted": steps + left}
            metrics = {"convergence": {"0.1": reached, "1.0": reached}, "diversity": {"within": 0.1, "across": 0.1}}
            yield run(config, 0.1, metrics=metrics, registration=registration)

    made = [*cards("NAYER", 9.0, 3), *cards("LTE", 3.0, 3), *cards("OH", 3.0, 3), *cards("Z", 9.0, 3)]
    page = ablations_page(made)
    rows = {row["row"]: row for row in sections(page)[title_of("speed"), "cifar10"]}
    assert rows["NAYER"]["steps to CE < 1"] == "**9.0 ± 0.2** (n = 3)" and rows["NAYER"]["against"] == "LTE"
    assert (rows["NAYER"]["word"], rows["LTE"]["word"]) == ("more, n = 3", "no effect, n = 3")
    assert (rows["Z"]["word"], rows["OH"]["word"]) == ("no effect, n = 3", "reference")
    fewer = ablations_page([*made[:-1], *cards("Z", 1.0, 3, registration="another")])
    assert row_of(fewer, title_of("speed"), "cifar10", "Z")["word"] == "5 of 6 run"  # its own and its reference's
    nayer = next(line for line in lines_of("speed", "cifar10", made) if line.name == "NAYER")
    assert nayer.contrast.primary and not nayer.exploratory
    assert dataclasses.replace(nayer, exploratory=True).word == "more, n = 3, exploratory"
    speed = frame("speed", "cifar10", made)
    assert speed["ours"]["NAYER"] == pytest.approx(9) and speed["diff"]["NAYER"] == pytest.approx(6)


def test_a_table_holds_the_runs_of_its_own_seeds(run):
    """Another table may run an equal config with other seeds."""
    sweep = SWEEPS["eq5", "digits"]
    configs, registered = sweep.arms["all terms"], {"registration": sweep.registration}
    cards = [run(config, 0.9, **registered) for config in configs]
    cards.append(run(dataclasses.replace(configs[0], seed=40), 0.1, **registered))
    line = next(line for line in lines_of("eq5", "digits", cards) if line.name == "all terms")
    assert line.cell.last == pytest.approx(len(configs) * [90])


def test_a_registered_contrast_of_two_other_rows_is_a_line_of_its_own(run, sweep):
    sweep = dataclasses.replace(sweep, primary=(("LTE", "Z"), ("NAYER(Kto1)", "LTE")), registration="a b")
    arms = {"NAYER(Kto1)": ten(0.97), "Z": ten(0.93), "LTE": ten(0.95), "cat": ten(0.9)}
    cells = by_config(runs_of(run, sweep, arms, registration="a b"))
    lines = [line for line in BY_STEM["table3"].lines("digits", sweep, cells) if line.contrast]
    assert [(line.name, line.against, line.word) for line in lines] == [
        ("Z", "NAYER(Kto1)", "shows, exploratory"),
        ("LTE", "NAYER(Kto1)", "shows"),  # registered the other way round
        ("cat", "NAYER(Kto1)", "shows, exploratory"),
        ("LTE", "Z", "does not show"),
        ("cat", "LTE", "does not show, exploratory"),  # asked by a claim
    ]
    assert lines[-2].printed == pytest.approx(13.52 - 90.14) and lines[-2].contrast.difference > 0


def test_an_untuned_method_has_numbers_and_no_word(run):
    sweep = SWEEPS["table4", "color_digits"]
    arms = {"SBERT": [0.9, 0.901, 0.902], "SOTA": [0.7, 0.701, 0.702], "Doc2Vec": [0.9, 0.9, 0.901]}
    row = row_of(ablations_page(runs_of(run, sweep, arms)), "Table 4", "color_digits", "SOTA")
    assert row["word"] == "untuned: no word" and row["ours: difference [95 %]"].startswith("-20.00 [")


def test_a_row_that_the_paper_leaves_out_is_an_arm_of_ours(run):
    sweep = SWEEPS["methods", "digits"]
    dashes = [name for name, row in BY_STEM["methods"].rows("digits").items() if row.accuracy is None]
    arms = {arm: [0.98, 0.981, 0.982] for arm in sweep.arms} | {name: [0.7, 0.701, 0.702] for name in dashes}
    page = ablations_page(runs_of(run, sweep, arms))
    words = {row["row"]: row["word"].partition(",")[0] for row in sections(page)[title_of("methods"), "digits"]}
    assert dashes and {words[name] for name in dashes} <= {"gain", "loss", "no effect", "open"}
    [line] = [line for line in page.splitlines() if line.startswith(f"| {title_of('methods')} | digits |")]
    printed, ours = line.split("|")[3:5]
    assert "loss" not in printed and "gain" not in printed and "loss" in ours


def test_table_3_has_convergence_and_diversity(run):
    def metrics(mean, success, within):
        reached = {"success": success, "mean": mean, "restricted": 30.0}
        never = {"success": 0.0, "mean": None, "restricted": 31.0}
        diversity = {"within": within, "across": 0.25}
        return {"convergence": {"0.1": never, "0.5": never, "1.0": reached}, "diversity": diversity}

    configs = SWEEPS["table3", "digits"].arms["LTE"][:3]
    seen = [metrics(10.0, 0.5, 0.1), metrics(20.0, 1.0, 0.2), metrics(None, 0.0, 0.3)]
    row = row_of(
        ablations_page([run(c, 0.9, metrics=m) for c, m in zip(configs, seen, strict=True)]), "Table 3", "digits", "LTE"
    )
    assert (row["paper: steps to CE < 0.1"], row["ours: steps to CE < 0.1"]) == ("8.72", "31.0 (0%)")
    assert row["to CE < 1"] == "30.0 (50%)"  # restricted means
    assert (row["paper: diversity"], row["ours: within / across rounds"]) == ("0.016", "0.200 / 0.250")
    one = [
        run(c, 0.9, metrics=m | {"diversity": {"within": None, "across": None}})
        for c, m in zip(configs, seen, strict=True)
    ]
    old = [run(c, 0.9) for c in configs]  # cards from before there were metrics
    for cards in (one, old):
        assert row_of(ablations_page(cards), "Table 3", "digits", "LTE")["ours: within / across rounds"] == "– / –"
    assert row_of(ablations_page(old), "Table 3", "digits", "LTE")["to CE < 1"] == "–"


def test_steps_and_diversity_have_words_of_their_own(run, sweep):
    def metrics(steps, within):
        reached = {"success": 1.0, "mean": steps, "restricted": steps}
        return {"convergence": {"1.0": reached}, "diversity": {"within": within, "across": 0.25}}

    def cards(arm, steps, within):
        left = [-0.5, 0.0, 0.5] * 3 + [0.0]
        pairs = zip(sweep.arms[arm], left, strict=True)
        return [run(c, 0.9 + x / 100, metrics=metrics(steps + x, within * (1 + x / 50))) for c, x in pairs]

    made = cards("NAYER(Kto1)", 29.0, 0.4) + cards("LTE", 4.0, 0.0) + cards("Z", 29.2, 0.41)
    page = ablations_page(made)
    lte, z = (row_of(page, "Table 3", "digits", name) for name in ("LTE", "Z"))
    assert (lte["steps to CE < 1: word"], lte["diversity within: word"]) == ("less", "less")
    assert (z["steps to CE < 1: word"], z["diversity within: word"]) == ("no effect", "no effect")


def test_table_10_tells_our_memory_and_its_share(run):
    sweep = SWEEPS["table10", "digits"]
    page = ablations_page(runs_of(run, sweep, {"NAYER, 40k": [0.9], "NAYER, Full": [0.9]}))
    config = config_of(sweep, "NAYER, 40k")
    made = config.total_rounds * config.generator_batch
    told = [row_of(page, "Table 10", "digits", f"NAYER, {x}")["ours: images in the memory"] for x in ("40k", "Full")]
    assert told == [f"{config.memory_size} (12.5%)", f"all {made}"]


def test_a_memory_that_is_never_full_holds_all(run):
    """No share is above 100 %."""
    page = ablations_page(clone_cards())
    told = [row["ours: images in the memory"] for row in sections(page)["Table 10", "digits"]]
    shares = [float(share) for text in told for share in re.findall(r"\(([\d.]+)%\)", text)]
    assert shares and max(shares) < 100


def test_table_9_tells_the_drop_the_floor_and_the_size(run):
    sweep = SWEEPS["table9", "digits"]
    quantised = {"layers": 10, "kib": 24.04, "kib_float": 304.9, "accuracy_before_learning": 0.416}
    facts = {"quantised": quantised, "registration": sweep.registration, "teacher": {"accuracy": 0.998, "sha256": "a"}}
    page = ablations_page(runs_of(run, sweep, {"NAYER, W2A4": [0.90, 0.92], "ZAQ, W2A4": [0.4]}, **facts))
    row = row_of(page, "Table 9 on a laptop problem", "digits", "NAYER, W2A4")
    assert row["drop from the teacher"] == "-8.80" and row["before learning"] == "41.6"
    assert row["KiB (float)"] == "24.0 (304.9)" and row["word"] == "reference"
    assert row_of(page, "Table 9 on a laptop problem", "digits", "ZAQ, W2A4")["word"] == "3 of 20 run"


def test_a_run_stands_in_every_table_that_it_answers_and_in_no_other_problem(run):
    config = make_config("digits", **{"epochs": 8, "warmup_rounds": 2, "generator_steps": 30, "student_steps": 40})
    shown = {
        (title, dataset, row["row"])
        for (title, dataset), rows in sections(ablations_page([run(config, 0.9)])).items()
        for row in rows
        if row["word"] != "not run"
    }
    same = {
        (title_of(stem), dataset, arm)
        for (stem, dataset), sweep in SWEEPS.items()
        for arm, configs in sweep.arms.items()
        if config in configs and sweep.split == "test"
    }
    assert shown == same and ("Table 11", "digits", "NAYER, g = 30") in shown


def test_every_table_tells_where_its_numbers_come_from():
    cards = clone_cards()
    page = ablations_page(cards)
    for sweep in SWEEPS.values():
        [foot] = [line for line in page.splitlines() if f"Sweep: [data/sweeps/{sweep.name}.json]" in line]
        named = re.findall(r"\(\.\./data/runs/(\S+)\)", foot)
        held = "".join((files.data_dir() / "runs" / name).read_text(encoding="utf-8") for name in named)
        used = [card["id"] for cards in arm_cards(sweep, cards).values() for card in cards]
        assert all(f'"id": "{name}"' in held for name in used)
        assert bool(named) == bool(used) == ("none yet" not in foot)


def test_a_tables_own_file_of_cards_is_named_before_others_that_hold_them(clone, run):
    sweep = SWEEPS["table5", "digits"]
    cards = runs_of(run, sweep, {"P1": [0.9], "P2": [0.9], "P3": [0.9]})
    for name, held in (("another", cards[:2]), (sweep.name, cards[1:2]), ("a third", cards[2:])):
        lines = "".join(json.dumps(card) + "\n" for card in held)
        (clone / "data" / "runs" / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    [foot] = [line for line in ablations_page(cards).splitlines() if f"data/sweeps/{sweep.name}.json" in line]
    assert re.findall(r"\[data/runs/(.+?)\]", foot) == [f"{sweep.name}.jsonl", "a third.jsonl", "another.jsonl"]


def test_the_summary_counts_the_words_without_the_references(run, sweep):
    arms = {"NAYER(Kto1)": ten(0.98), "Z": ten(0.95), "LTE": ten(0.90), "NAYER(1to1)": ten(0.98)}
    arms |= {"sum(1)": ten(0.98), "OH": ten(0.975), "cat": [0.9], "one layer, redrawn": ten(0.9)}
    page = ablations_page(runs_of(run, sweep, arms))
    [line] = [line for line in page.splitlines() if line.startswith("| Table 3 | digits |")]
    assert line == (
        "| Table 3 | digits | 1 × open; 1 × does not show (exploratory); 1 × n < 3: no word; 3 × shows (exploratory); "
        "3 × not run | 1 × loss (exploratory); 3 × not run |"
    )
    assert "| Table 10 | cifar10 | 15 × not run |  |" in page and "| D1 to D13 | digits |  | 15 × not run |" in page


def test_all_lines_of_a_table_have_equal_columns(run):
    for block in ablations_page(clone_cards()).split("\n\n"):
        if block.startswith("|"):
            assert len({line.count("|") for line in block.splitlines()}) == 1


# --- docs/divergences.md

DOCUMENT = "# Title\n\n| id | what | effect measured |\n|---|---|---|\n{}\n\nWords | and words.\n"
ROWS = [f"| {name} | what {name} is | not measured |" for name in DIVERGENCES]


def test_only_the_last_cells_of_the_document_are_filled(run):
    sweep = SWEEPS["divergences", "digits"]
    arms = {name: [0.98, 0.981, 0.979] for name in ("released", "D1", "paper")}
    arms |= {"D8": [0.93, 0.931, 0.929], "D13": [0.98, 0.99]}
    text = DOCUMENT.format("\n".join(ROWS))
    filled = with_effects(text, runs_of(run, sweep, arms))
    where = "digits, quick, E = {}".format(config_of(sweep, "D8").epochs)
    rows = dict(zip(DIVERGENCES, filled.splitlines()[4:], strict=False))
    said = {name: row.split(" | ")[-1].removesuffix(" |") for name, row in rows.items()}
    assert re.fullmatch(rf"{where}: -5\.0\d \[-5\.\d\d, -[45]\.\d\d\] \(n = 3\), loss", said["D8"])
    assert re.fullmatch(rf"{where}: \+0\.00 \[.*\] \(n = 3\), (no effect|open)", said["D1"])
    assert re.fullmatch(rf"{where}: \+0\.\d\d \(n = 2\), n < 3: no word", said["D13"])
    assert {said[name] for name in DIVERGENCES if name not in arms} == {"not measured"}
    assert with_effects(filled, []) == text  # what has no cards is not measured


def test_every_problem_has_its_part_of_a_cell(run):
    arms = {name: [0.9, 0.901, 0.899] for name in ("released", "D2", "D3", "D5")} | {"D1": [0.8, 0.801, 0.799]}
    cards = [card for dataset in ("digits", "cifar10") for card in runs_of(run, SWEEPS["divergences", dataset], arms)]
    [line] = [x for x in with_effects(DOCUMENT.format("\n".join(ROWS)), cards).splitlines() if x.startswith("| D1 |")]
    first, second = line.split(" | ")[-1].split("; ")
    assert first.startswith("cifar10, lab, E = ") and second.startswith("digits, quick, E = ")
    assert "(n = 3), not" not in line and "-10.00 [" in first and "(n = 3), loss" in first and "loss" in second


@pytest.mark.parametrize("rows", [[], ROWS[:-1], [*ROWS, ROWS[3]]], ids=len)
def test_a_document_without_each_row_once_is_told(rows):
    with pytest.raises(UserError, match=r"docs/divergences.md must hold one row of D\d+, not [02]"):
        with_effects(DOCUMENT.format("\n".join(rows)), [])


# --- for notebooks


def test_a_frame_has_the_numbers_of_the_lines():
    cards = clone_cards()
    lines, table = lines_of("table5", "digits", cards), frame("table5", "digits", cards)
    assert list(table.index) == [line.name for line in lines]
    assert (table["word"] == [line.word for line in lines]).all()
    assert set(table["against"]) == {"P2", ""}
    p3, reference = (next(line for line in lines if line.name == name) for name in ("P3", "P2"))
    row = table.loc["P3"]
    assert row["paper"] == p3.row.accuracy and row["paper diff"] == pytest.approx(93.72 - 94.07)
    assert row["ours"] == pytest.approx(statistics.mean(p3.cell.last)) and row["n"] == len(p3.cell.last)
    assert row["diff"] == pytest.approx(p3.cell.mean - reference.cell.mean)
    assert (row["low"], row["high"], row["p"]) == (p3.contrast.low, p3.contrast.high, p3.contrast.p)


def test_a_frame_without_cards_has_the_papers_numbers_alone():
    table = frame("table11", "cifar100", [])
    assert table["paper"].notna().all() and table["ours"].isna().all() and (table["n"] == 0).all()
    assert set(table["word"]) <= {"not run"}


@pytest.mark.parametrize(("stem", "dataset"), [("table33", "digits"), ("table3", "digit")])
def test_an_unknown_table_or_problem_names_the_nearest(stem, dataset):
    with pytest.raises(UserError, match="Did you mean '(table3|digits)'"):
        lines_of(stem, dataset, [])
