"""The paper's Tables 1, 2 and 9 and Figure 1: every printed cell once, ours beside it, and nothing that was not run."""

import copy
import dataclasses
import math
import re
from pathlib import Path

import pytest
import render
import result_tables
from tiny import clone_cards

from nayer_lib.config import make_config
from nayer_notebooks import paper

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "tables.md").read_text(encoding="utf-8")
COLUMNS = list(dict.fromkeys((row.dataset, row.teacher, row.student) for row in paper.rows(1)))


def tables_page(cards: list[dict]) -> str:
    """The page of these cards, without its markers."""
    return re.sub(r"<!-- .+ -->\n", "", result_tables.tables_page(PAGE, cards))


@pytest.fixture
def run():
    """A finished full run, as a kept card would tell it."""
    first = clone_cards()[0]

    def made(
        preset="cifar10-wrn40_2-wrn16_2", seed=0, accuracy=0.93, hours=2.0, compute=None, device="a GPU", **config
    ):
        card = copy.deepcopy(first) | {"device": device, "accuracy_last": accuracy, "accuracy_best": accuracy + 0.001}
        card["id"] = f"{preset} {seed} {config} {compute} {device}"
        card["config"] = dataclasses.asdict(make_config(preset, seed=seed, **{"profile": "full", **config}))
        card["teacher"]["accuracy"] = 0.949
        card["seconds"] = {"synthesis": 1800 * hours, "student": 1440 * hours, "evaluation": 9.0, "total": 3600 * hours}
        return card | ({"compute": compute} if compute else {})

    return made


def sections(page: str) -> dict[str, list[list[str]]]:
    """Heading -> rows of cells of the first table under it, without its two head lines."""
    found = {}
    for part in page.split("\n## ")[1:]:
        for piece in ("## " + part).split("\n### "):
            title, _, text = piece.lstrip("# ").partition("\n")
            first = [block for block in text.split("\n\n") if block.strip().startswith("|")][:1]
            rows = [line.strip("|").split("|") for block in first for line in block.strip().splitlines()[2:]]
            found[title] = [[cell.strip() for cell in row] for row in rows]
    return found


def title(column) -> str:
    return "{}: {} → {}".format(*column)


def test_every_row_of_table_1_stands_in_each_of_its_columns():
    page = sections(tables_page([]))
    for column in COLUMNS:
        printed = [row for row in paper.rows(1) if (row.dataset, row.teacher, row.student) == column]
        shown = page[title(column)]
        assert len(shown) == len(printed) == 16
        for row, (name, number, *own) in zip(printed, shown, strict=True):
            assert name == (f"NAYER, E = {row.epochs}" if row.method == "NAYER" else row.method)
            mark = f" ({row.misprint})" if row.misprint else ""
            assert number == ("–" if row.accuracy is None else f"{row.accuracy:.2f}{mark}")
            assert own == ["not run", "", "not run", "", "", "0", "", ""]


def test_every_row_of_table_2_stands_with_its_hours_and_its_speed_up():
    page = tables_page([])
    shown = sections(page)["Table 2: time, wrn40_2 → wrn16_2"]
    printed = [row for row in paper.rows(2) if row.dataset != "average"]
    assert [row[1:5] for row in shown] == [
        [r.dataset, f"{r.accuracy:.2f}" + (f" ({r.misprint})" if r.misprint else ""), f"{r.hours:.2f}", "not run"]
        for r in printed
    ]
    for row in paper.rows(2):
        if row.dataset == "average":
            name = f"{row.method}, E = {row.epochs}" if row.epochs else row.method
            mark = f" ({row.misprint})" if row.misprint else ""
            assert f"\n| {name} | {row.speed_up:.2f}{mark} | not run |\n" in page


def test_all_lines_of_a_table_have_equal_columns(run):
    for block in tables_page([run(seed=s) for s in range(3)]).split("\n\n"):
        if block.startswith("|"):
            assert len({line.count("|") for line in block.splitlines()}) == 1


def test_our_runs_stand_beside_the_cell_that_they_answer_and_nowhere_else(run):
    before, page = sections(tables_page([])), sections(tables_page([run(seed=s, epochs=100) for s in range(3)]))
    ours = ["**93.0 ± 0.0**", "-0.48 [-0.48, -0.48]", "reproduced", "94.9", "93.1", "3"]
    ours += ["1.00 + 0.80 of 2.00 h", "a GPU"]
    here = "cifar10: wrn40_2 → wrn16_2"
    changed = {name: [row for row in rows if row not in before[name]] for name, rows in page.items()}
    assert {name: rows for name, rows in changed.items() if rows} == {
        here: [
            ["Teacher", "94.87", "94.9", "", "", "", "", "", "", ""],
            ["NAYER, released, full, E = 100", "93.48", *ours],
        ],
        "Table 2: time, wrn40_2 → wrn16_2": [["NAYER, released, full, E = 100", "cifar10", "93.48", "2.05", *ours]],
    }
    assert [row[0] for row in page[here]][-3:] == ["NAYER, released, full, E = 100", "NAYER, E = 200", "NAYER, E = 300"]


def test_every_protocol_has_its_own_line(run):
    cards = [
        run(epochs=100),
        run(epochs=100, compute={"precision": "bf16"}),
        run(epochs=100, device="another GPU"),
        run(epochs=100, variant="paper"),
        run(epochs=100, seed=1),
    ]
    rows = [row for row in sections(tables_page(cards))["cifar10: wrn40_2 → wrn16_2"] if "E = 100" in row[0]]
    assert [(row[0].split(", ")[1], row[7], row[9]) for row in rows] == [
        ("released", "2", "a GPU"),
        ("released", "1", "a GPU (precision bf16)"),
        ("released", "1", "another GPU"),
        ("paper", "1", "a GPU"),
    ]
    assert "better" not in "".join(map("".join, rows))


@pytest.mark.parametrize(
    "change",
    [{"profile": "lab"}, {"epochs": 50}, {"generator_steps": 3}, {"latent": "noise"}, {"student": "wrn10_1"}],
    ids=str,
)
def test_what_is_no_cell_of_the_paper_has_no_line(run, change):
    text = tables_page([run(**{"epochs": 300, **change})])
    assert "a GPU" not in text


def test_every_row_of_table_9_stands_with_its_drop_from_its_own_float_teacher():
    shown = sections(tables_page([]))["Table 9: quantised networks"]
    printed = paper.rows(9)
    assert [(row[0], row[1], row[2], float(row[4])) for row in shown] == [
        (r.dataset, r.network, r.bits, r.accuracy) for r in printed
    ]
    assert [row[5] for row in shown[5:10]] == ["", "-0.80", "-0.83", "-0.43", "-0.34"]  # VGG19 in Table 9
    assert [row[6] for row in shown] == 4 * ["", *4 * ["not run"]]


@pytest.mark.parametrize(
    ("method", "change", "named"),
    [
        ("NAYER, E = 300", {"epochs": 300}, "NAYER, released, full, E = 300"),
        ("DFQ", {"method": "dfq_nagel", "protocol": "published"}, "DFQ (Nagel), its own schedule for CIFAR-10"),
        ("ZeroQ", {"method": "zeroq", "protocol": "published"}, "ZeroQ, its own schedule for CIFAR-10, full, E = 1"),
    ],
)
def test_a_quantised_run_stands_beside_its_cell_by_its_drop(run, method, change, named):
    """A student two points below its teacher of 94.9 %, whatever the paper's accuracy is."""
    cards = [run("cifar100-resnet20_b-w5a5", accuracy=0.929, seed=s, **change) for s in range(3)]
    before, page = tables_page([]), tables_page(cards)
    [new] = set(page.splitlines()) - set(before.splitlines())
    [old] = set(before.splitlines()) - set(page.splitlines())
    drop = {"NAYER, E = 300": -1.35, "DFQ": -10.16, "ZeroQ": -3.88}[method]
    assert f"| cifar100 | resnet20 | W5A5 | {method} |" in old and f"| W5A5 | {named}" in new
    assert f"| {drop:+.2f} | **92.9 ± 0.0** | {-2 - drop:+.2f} [" in new


def test_another_method_of_the_kit_answers_its_own_row(run):
    cards = [run(method="fm", protocol="published", epochs=200, seed=s) for s in range(2)]
    page = sections(tables_page(cards))
    [line] = [row for row in page["cifar10: wrn40_2 → wrn16_2"] if row[0].startswith("FM")]
    assert line[:4] == ["FM, its own schedule for CIFAR-10, full, E = 200", "92.45", "**93.0 ± 0.0**", "+0.55"]
    [line] = [row for row in page["Table 2: time, wrn40_2 → wrn16_2"] if "FM, its own" in row[0]]
    assert line[1:4] == ["cifar10", "92.05", "3.98"]  # the row of its own epochs
    assert [row[2] for row in page["cifar10: wrn40_2 → wrn16_2"] if row[0].startswith("NAYER")] == ["not run"] * 3


def test_a_run_on_another_budget_than_its_own_answers_no_row_of_the_paper(run):
    equal = [run(method=name, epochs=200, seed=s) for name in ("fm", "zskt") for s in range(3)]
    published = run(protocol="published", epochs=100)  # NAYER's own schedule is Table 8, by whichever name
    assert tables_page([*equal, published]) == tables_page([])


def test_our_speed_up_needs_both_methods_on_both_data_sets_and_one_device(run):
    presets = ("cifar10-wrn40_2-wrn16_2", "cifar100-wrn40_2-wrn16_2")
    slow = [
        run(preset, hours=hours, method="deepinv", protocol="published")
        for preset, hours in zip(presets, (6.0, 8.0), strict=True)
    ]
    fast = [run(preset, hours=2.0, epochs=100) for preset in presets]

    def line(cards):
        return next(line for line in tables_page(cards).splitlines() if line.startswith("| NAYER, E = 100 | 14.88"))

    assert line([*slow, *fast]) == "| NAYER, E = 100 | 14.88 | 3.50 (a GPU) |"  # (6 / 2 + 8 / 2) / 2
    elsewhere = [run(preset, hours=2.0, epochs=100, device="another") for preset in presets]
    for cards in (fast, slow, [*slow, fast[0]], [slow[0], *fast], [*slow, *elsewhere]):
        assert line(cards).endswith("| not run |")


# --- Figure 1


def test_figure_1_has_the_papers_points_and_our_full_runs_of_its_pair(run, tmp_path, monkeypatch):
    drawn, real = [], render.accuracy_against_time
    monkeypatch.setattr(render, "accuracy_against_time", lambda *a: drawn.append(a[2]) or real(*a))
    others = [run("cifar10-wrn40_2-wrn16_1"), run(profile="lab"), run(latent="noise")]
    cards = [run(seed=0, accuracy=0.92), run(seed=1, accuracy=0.94), run(seed=0, epochs=61), *others]
    render.draw_figure_1(cards, tmp_path / "docs" / "figure1.png")
    assert (tmp_path / "docs" / "figure1.png").read_bytes().startswith(b"\x89PNG")
    cifar10, cifar100 = drawn
    for dataset, points in (("cifar10", cifar10), ("cifar100", cifar100)):
        rows = [row for row in paper.rows(2) if row.dataset == dataset]
        printed = {name: some for name, some in points.items() if not name.startswith("ours")}
        assert [p[:2] for some in printed.values() for p in some] == [(row.hours, row.accuracy) for row in rows]
        assert list(printed) == list(dict.fromkeys(row.method for row in rows))
    (one, [(*_, alone)]), (two, [(hours, accuracy, spread)]) = sorted(
        ((name, some) for name, some in cifar10.items() if name.startswith("ours")), reverse=True
    )
    assert (one, two) == ("ours, E = 61, a GPU", "ours, E = 100, a GPU") and cifar100 == printed
    assert (hours, accuracy, spread) == (pytest.approx(2), pytest.approx(93), pytest.approx(2**0.5))
    assert math.isnan(alone)  # one seed has no spread
