"""What may be averaged: cells of one protocol, a seed once, finished runs only."""

import dataclasses
import statistics

import pytest
from tiny import like

from nayer_lib.compute import Compute
from nayer_notebooks.statistics import cells

# --- cells: what may be averaged


def test_seeds_of_one_protocol_are_one_cell(card):
    cards = [like(card, seed=s, id=str(s), accuracy_last=a) for s, a in ((0, 0.90), (1, 0.92), (2, 0.97))]
    [cell] = cells(cards)
    assert cell.last == pytest.approx([90, 92, 97]) and cell.ids == ["0", "1", "2"]
    assert cell.mean == pytest.approx(93) and cell.spread == pytest.approx(statistics.stdev([90, 92, 97]))
    assert cell.teacher == 100 * card["teacher"]["accuracy"] and cell.device == card["device"]
    assert cell.config.seed == 0 and isinstance(cell.config.generator_betas, tuple)
    for clock in ("synthesis", "student", "total"):
        assert cell.seconds(clock) == pytest.approx(card["seconds"][clock])


def test_a_seed_that_was_run_twice_is_one_seed(card):
    first, again = like(card, id="a", accuracy_last=0.9), like(card, id="b", accuracy_last=0.99)
    [cell] = cells([first, like(card, seed=4, id="c", accuracy_last=0.8), again])
    assert cell.ids == ["a", "c"] and cell.last == pytest.approx([90, 80])  # the first, not the luckier


def test_one_seed_has_no_spread(card):
    [cell] = cells([card])
    assert cell.spread is None


@pytest.mark.parametrize(
    "change",
    [
        {"teacher": {"sha256": "another", "accuracy": 0.9}},
        {"test_split": {"sha256": "another", "images": 500}},
        {"device": "another"},
        {"compute": {"precision": "bf16"}},
        {"config": {"epochs": 3}},
        {"config": {"variant": "paper"}},
        {"config": {"method": "fm"}},
        {"config": {"protocol": "published"}},
    ],
    ids=lambda change: ", ".join(change.get("config", change)),
)
def test_different_protocols_are_never_averaged(card, change):
    cards = [card, like(card, seed=4), like(card, **change)]
    assert [len(cell.last) for cell in cells(cards)] == [2, 1]


def test_how_a_card_was_computed_is_told_beside_its_device(card):
    kinds = [{"precision": "bf16", "steps": "graphs"}, {"precision": "bf16"}, {"steps": "compiled"}, {"steps": "eager"}]
    cards = [like(card, seed=s, compute=kind) for kind in kinds for s in (0, 1)]
    found = cells([*cards, like(cards[0], seed=2, compute={"steps": "graphs", "precision": "bf16"})])
    assert [len(cell.last) for cell in found] == [3, 2, 2, 2]  # the order in a card does not matter
    beside = [" (precision bf16, steps graphs)", " (precision bf16)", " (steps compiled)", ""]
    assert [cell.device for cell in found] == [card["device"] + words for words in beside]


def test_a_card_with_the_switch_of_old_stands_with_those_of_today(card):
    """Before there were graphs steps were "compiled" or not."""
    for old, new in ((False, "eager"), (True, "compiled")):
        same = [
            like(card, seed=8, compute={"precision": "fp32", "channels_last": False, "compiled": old}),
            like(card, seed=9, compute=dataclasses.asdict(Compute(steps=new))),
        ]
        assert [len(cell.last) for cell in cells(same)] == [2]


def test_a_card_from_before_the_compute_entry_stands_with_those_computed_plainly(card):
    """A CPU run: 32 bits, nothing compiled, then as now."""
    old, new = like(card, seed=8), like(card, seed=9, compute=dataclasses.asdict(Compute()))
    old.pop("compute", None)
    [cell] = cells([old, new])
    assert cell.device == card["device"] and cell.protocol == cells([new])[0].protocol


def test_only_finished_runs_count(card):
    others = [like(card, seed=s, status=status) for s, status in enumerate(("running", "failed: x", "stopped"))]
    assert [cell.ids for cell in cells([card, *others])] == [[card["id"]]]
    assert cells(others) == []


def test_the_config_decides_and_not_its_stored_hash(card):
    """Fields that are added later change the hash of one and the same config."""
    same = [like(card, seed=s, config_sha256=word) for s, word in enumerate(("one", "two", "three"))]
    assert [len(cell.last) for cell in cells(same)] == [3]
    different = [card, like(card, config={"latent": "lte"})]  # with one stored hash
    assert [len(cell.last) for cell in cells(different)] == [1, 1]


def test_a_card_from_before_a_field_stands_with_those_that_have_its_default(card):
    new = like(card, seed=8, config={"latent_beta": 1.0, "latent_concat": 100, "embedding": "text"})
    old = like(card, seed=9)
    for name in ("latent_beta", "latent_concat", "embedding"):
        old["config"].pop(name, None)
    assert [len(cell.last) for cell in cells([old, new])] == [2]
    assert [len(cell.last) for cell in cells([old, like(new, config={"latent_beta": 0.1})])] == [1, 1]
