"""What can be checked of the transcription without the paper: its own arithmetic and the cells it prints twice."""

import pandas as pd
import pytest

from nayer_lib.errors import UserError
from nayer_notebooks import paper

ROWS = {1: 16 * 12, 2: 11 * 3, 3: 10, 4: 2 * 4, 5: 2 * 4, 6: 7, 7: 11, 8: 4, 9: 4 * 5, 10: 2 * 7 + 1, 11: 2 * 7}
W162, W161 = ("wrn40_2", "wrn16_2"), ("wrn40_2", "wrn16_1")
CIFARS = ("cifar10", "cifar100")


def pick(number, column="accuracy", **where):
    """The one cell of a table whose row has these values."""
    rows = paper.table(number)
    for name, value in where.items():
        rows = rows[rows[name] == value]
    return rows[column].item()


def table_1(method, dataset, teacher, student, epochs=None):
    """The accuracy in one cell of Table 1."""
    [row] = [r for r in paper.rows(1) if r[:5] == (method, epochs, dataset, teacher, student)]
    return row.accuracy


def best_and_gap(rows, group):
    """NAYER's accuracy minus the best other method's, for each group."""
    ours = rows[rows.method == "NAYER"].groupby(group).accuracy.max()
    return ours - rows[rows.method != "NAYER"].groupby(group).accuracy.max()


@pytest.fixture(scope="module")
def marked():
    """Misprint id -> the rows that carry it, over all tables."""
    rows = [row for n in paper.TABLES for _, row in paper.table(n).assign(table=n).iterrows() if row.get("misprint")]
    return {name: [row for row in rows if row["misprint"] == name] for name in {row["misprint"] for row in rows}}


@pytest.mark.parametrize("number", paper.TABLES)
def test_every_table_loads_with_each_cell_once(number):
    table = paper.table(number)
    words = table.select_dtypes(exclude="number")
    assert len(table) == ROWS[number]
    assert words.notna().all(axis=None) and not (words == "-").any(axis=None)
    if number not in (6, 7):  # layers repeat, cells do not
        values = ["accuracy", "hours", "speed_up", "misprint", "source"]
        assert not table.drop(columns=values, errors="ignore").duplicated().any()
    if "accuracy" in table:
        assert table.accuracy.dropna().between(0, 100).all()


def test_table_1_is_whole():
    table = paper.table(1)
    columns = table.groupby(["dataset", "teacher", "student"], sort=False)
    assert len(columns) == 12 and (columns.size() == 16).all()
    assert table.accuracy.isna().sum() == 53
    assert set(table.source) == {"", *"abcde"}
    assert set(table.epochs.dropna()) == {100, 200, 300} and set(table[table.epochs.notna()].method) == {"NAYER"}


def test_a_network_has_one_accuracy_in_the_reference_rows_but_for_m1():
    table = paper.table(1)
    for row, network in (("Teacher", "teacher"), ("Student", "student")):
        rows = table[(table.method == row) & (table.misprint != "m1")]
        assert (rows.groupby(["dataset", network]).accuracy.nunique() == 1).all()
    assert table_1("Teacher", "cifar100", *W162) != table_1("Teacher", "cifar100", *W161)


def test_nayer_is_best_everywhere_but_in_the_pair_of_m7():
    table = paper.table(1)
    gap = best_and_gap(table[~table.method.isin(["Teacher", "Student"])], ["dataset", "teacher", "student"])
    assert list(gap[gap < 0].index) == [("cifar10", "resnet34", "resnet18")] and len(gap) == 12
    gap = best_and_gap(paper.table(9).query("method != 'Float32'"), ["dataset", "network"])
    assert (gap > 0).all() and len(gap) == 4


def test_more_epochs_are_better():
    nayer = paper.table(1).query("method == 'NAYER' and dataset != 'imagenet'")
    for _, cells in nayer.groupby(["dataset", "teacher", "student"]):
        assert cells.sort_values("epochs").accuracy.is_monotonic_increasing


def test_speed_ups_follow_from_the_hours_but_for_m8():
    table = paper.table(2)
    hours = table.dropna(subset="hours").assign(epochs=lambda t: t.epochs.fillna(0))
    hours = hours.pivot(index=["method", "epochs"], columns="dataset", values="hours")
    recomputed = (hours.loc[("DeepInv", 0)] / hours).mean(axis=1)
    wrong = {}
    for _, row in table[table.dataset == "average"].iterrows():
        ours = recomputed[row.method, 0 if pd.isna(row.epochs) else row.epochs]
        if abs(ours - row.speed_up) > 0.0051:
            wrong[row.misprint] = (row.method, row.speed_up, round(ours, 2))
    assert wrong == {"m8": ("DFQ", 9.73, 9.44)}


def test_m11_is_the_range_of_table_2():
    hours = paper.table(2).dropna(subset="hours").set_index(["method", "epochs", "dataset"]).hours
    over_fm = hours["FM"] / hours["NAYER"]
    speed_up = paper.table(2).query("dataset == 'average' and method == 'NAYER'").speed_up
    expected = paper.misprints().set_index("id").expected["m11"]
    for number in (speed_up.min(), speed_up.max(), over_fm.min(), over_fm.max()):
        assert f"{number:.2f}" in expected


@pytest.mark.parametrize("dataset", CIFARS)
def test_table_2_repeats_table_1_but_for_m9(dataset):
    for _, row in paper.table(2).query("dataset == @dataset and method != 'FM'").iterrows():
        epochs = None if pd.isna(row.epochs) else row.epochs
        assert row.accuracy == table_1(row.method, dataset, *W162, epochs)
    assert pick(2, method="FM", dataset=dataset, epochs=100) != table_1("FM", dataset, *W162)


def test_table_3_holds_cifar10_numbers():
    assert pick(3, input="NAYER(Kto1)") == table_1("NAYER", "cifar10", *W162, 100) == 93.48
    assert pick(2, method="NAYER", dataset="cifar10", epochs=100) == 93.48
    assert pick(3, "steps", input="NAYER(Kto1)") > pick(3, "steps", input="NAYER(1to1)")  # m14
    assert paper.table(3).steps.max() < 30  # m13


@pytest.mark.parametrize("dataset", CIFARS)
def test_tables_4_and_5_repeat_table_1(dataset):
    headline = table_1("NAYER", dataset, *W162, 300)
    assert headline == pick(4, dataset=dataset, encoder="CLIP") == pick(5, dataset=dataset, prompt="P2")
    sota = table_1("SpaceshipNet", dataset, *W162)
    assert sota == pick(4, dataset=dataset, method="SOTA") == pick(5, dataset=dataset, method="SOTA")


def test_tables_10_and_11_repeat_the_columns_of_table_1_they_do_not_name():
    table = paper.table(10)
    unbounded = table[table.memory.isna()].set_index("method").accuracy
    assert unbounded["SOTA"] == table_1("SpaceshipNet", "cifar10", *W161) == 90.38
    assert unbounded["NAYER"] == table_1("NAYER", "cifar10", *W161, 300)
    column = paper.table(1).query("dataset == 'cifar10' and student == 'wrn16_1'")
    assert table[table.method == "MBDFKD"].accuracy.max() < column.accuracy.min()  # m20
    steps = pick(8, "generator_steps", dataset="cifar100")
    assert pick(11, method="NAYER", generator_steps=steps) == table_1("NAYER", "cifar100", *W162, 300)
    assert pick(11, method="FM", generator_steps=10) == table_1("FM", "cifar100", *W162)  # m22


@pytest.mark.parametrize(("number", "doublings"), [(6, 2), (7, 4)])
def test_the_generators_double_up_to_the_image(number, doublings):
    table = paper.table(number)
    assert table.layers.str.startswith("UpSample").sum() == doublings
    assert table.output[1] == f"128 × h/{2**doublings} × w/{2**doublings}" and table.output.iloc[-1] == "3 × h × w"


@pytest.mark.parametrize("number", paper.TABLES)
def test_rows_are_those_of_the_table_with_none_for_what_is_missing(number):
    table, rows = paper.table(number), paper.rows(number)
    assert len(rows) == len(table) and rows[0]._fields == tuple(table.columns)
    for name in table.columns:
        values = [getattr(row, name) for row in rows]
        assert [value is None for value in values] == table[name].isna().to_list()
        assert [value for value in values if value is not None] == table[name].dropna().to_list()


def test_misprints_and_cells_name_each_other(marked):
    misprints = paper.misprints().set_index("id")
    assert list(misprints.index) == [f"m{i}" for i in range(1, len(misprints) + 1)]
    assert misprints.table.isin(paper.TABLES).all() and (misprints.evidence != "").all()
    kinds = misprints["where"].str.extract(r"^(cells?|column|caption|text)\b")[0]
    assert kinds.notna().all()
    assert set(marked) == set(misprints.index[kinds.isin(["cell", "cells"])])
    for name, rows in marked.items():
        assert {row["table"] for row in rows} == {misprints.table[name]}
        for printed, row in zip(misprints.printed[name].split("; "), rows, strict=True):
            assert float(printed) in row[row.index.isin(["accuracy", "speed_up"])].to_list()


def test_a_cell_that_the_paper_leaves_out_is_missing():
    assert table_1("MAD", "imagenet", "resnet50", "resnet50") is None
    assert table_1("NAYER", "imagenet", "resnet50", "resnet50", 300) == 68.92
    assert paper.EDITION == "ICLR-2024 submission"


@pytest.mark.parametrize("number", [0, 12, -1, "one"])
def test_an_unknown_table_is_refused(number):
    with pytest.raises(UserError, match="unknown table of the paper"):
        paper.table(number)
