"""One name an arm in the notebooks, and means of what the runs of a table measured."""

import pandas as pd
import pytest
from tiny import like

from nayer_lib.generator.latents import COLUMNS
from nayer_lib.runs.card import kept_cards
from nayer_notebooks import ablations
from nayer_notebooks.tables import SHORT, measured, named, short


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("NAYER(woRI), G kept", "K-to-1, kept, G kept"),
        ("OH", "one-hot"),
        ("sum(0.5)", "sum(0.5)"),
        ("NAYER, g = 2", "NAYER, g = 2"),  # a method beside FM
        ("", ""),
    ],
)
def test_an_arm_has_one_name(name, shown):
    assert short(name) == shown


def test_every_setting_of_latent_has_a_name():
    assert {*COLUMNS, "noise"} <= SHORT.keys()


def test_the_papers_name_stands_in_a_column_of_its_own():
    rows = {"paper": [93.48, 14.82, None], "against": ["", "NAYER(Kto1)", "NAYER(Kto1)"]}
    frame = named(pd.DataFrame(rows, index=["NAYER(Kto1)", "NAYER(woRI)", "one layer, redrawn"]))
    assert list(frame.index) == ["K-to-1", "K-to-1, kept", "one layer, redrawn"]
    assert list(frame["in the paper"]) == ["NAYER(Kto1)", "NAYER(woRI)", ""]
    assert list(frame["against"]) == ["", "K-to-1", "K-to-1"]


def test_a_further_contrast_of_a_row_is_named_by_both():
    rows = {"paper": [90.14, 13.52, 13.52], "against": ["NAYER(Kto1)", "NAYER(Kto1)", "Z"]}
    assert list(named(pd.DataFrame(rows, index=["Z", "LTE", "LTE"])).index) == ["z", "LTE", "LTE, against z"]


def test_a_metric_is_the_mean_over_the_seeds_of_an_arm_of_which_all_have_it():
    [line] = [line for line in ablations.lines_of("eq5", "digits", kept_cards()) if line.name == "no L_BN"]
    card = line.cell.cards[0]
    entries = [{"ce_by_step": [3.0, 1.0]}, {"ce_by_step": [1.0, 2.0]}]
    cards = [like(card, seed=10 + place, metrics=metrics) for place, metrics in enumerate(entries)]
    found = measured("eq5", "digits", cards, "ce_by_step")
    assert list(found) == ["no L_BN"] and found["no L_BN"].tolist() == [2.0, 1.5]
    assert measured("eq5", "digits", cards, "by_step", "score") == {}
