"""A sweep's arms as a table, for notebooks."""

import math
import statistics

import pytest
from tiny import like

from nayer_lib.report.tables import arms_table


def measured(card, seed, accuracy, ce, success=0.5, within=0.1, across=0.2) -> dict:
    metrics = {
        "ce_by_step": ce,
        "convergence": {"1.0": {"success": success, "mean": None, "restricted": 9.0}},
        "diversity": {"within": within, "across": across},
    }
    return like(card, seed=seed, accuracy_last=accuracy, metrics=metrics)


def test_an_arm_is_a_row_of_means_over_its_seeds(card):
    first, second = [float(21 - t) for t in range(1, 21)], [float(41 - t) for t in range(1, 21)]  # L_CE by step
    cards = [measured(card, 0, 0.9, first, 0.5), measured(card, 1, 0.96, second, 1.0, 0.3, 0.4)]
    table = arms_table({"text": cards, "z": cards[:1], "LTE": []})
    assert list(table.index) == ["text", "z", "LTE"] and list(table["n"]) == [2, 1, 0]
    assert table.index.name is None  # it would be a line of its own in print
    row = table.loc["text"].to_dict()
    assert row == pytest.approx(
        {
            "n": 2,
            "accuracy": 93,
            "sd": statistics.stdev([90, 96]),
            "CE 1": 30,
            "CE 5": 26,
            "CE 15": 16,
            "CE 20": 11,
            "CE < 1": 0.75,
            "within": 0.2,
            "across": 0.3,
        }
    )
    assert table["accuracy"]["z"] == 90 and math.isnan(table["sd"]["z"])  # one seed has no spread
    assert table.loc["LTE"].drop("n").isna().all()


def test_an_arm_whose_diversity_was_not_measured_has_none(card):
    cards = [measured(card, 0, 0.9, [2.0, 1.0], within=None), measured(card, 1, 0.9, [2.0, 1.0])]
    row = arms_table({"lte": cards}).loc["lte"]
    assert "within" not in row and row["across"] == 0.2
    assert [name for name in row.index if name.startswith("CE ")] == ["CE 1", "CE 2", "CE < 1"]
