"""Cards of other kits: an older one is read without what is gone, a newer one is left out; both are said once."""

import copy
import json
import warnings

import pytest
from tiny import copy_data

from nayer_lib import __version__
from nayer_lib.config import make_config
from nayer_lib.errors import UserError
from nayer_lib.runs.card import NewerCard, card_config, kept_cards, kept_files, local_cards, read_card
from nayer_lib.runs.statistics import cells


@pytest.fixture
def card() -> dict:
    """A kept card."""
    return copy.deepcopy(kept_cards()[0])


def test_a_field_that_is_gone_is_read_without_and_said_once(card):
    config = card_config(card)
    card["config"]["sharpness"] = 3
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        assert [card_config(card) for _ in range(3)] == 3 * [config]
    [said] = caught
    assert str(said.message) == "older run cards are read without fields that are gone: sharpness."


def test_a_card_with_a_field_that_is_gone_stands_in_the_cell_of_the_others(card):
    older = copy.deepcopy(card)
    older["config"] |= {"sharpness": 3, "seed": 77}
    with pytest.warns(UserWarning, match="sharpness"):
        [cell] = cells([card, older])
    assert len(cell.last) == 2


def test_a_field_of_another_method_is_no_field_that_is_gone(card):
    card["config"] |= {"bank_size": 5}  # CMI's
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert card_config(card) == card_config(kept_cards()[0])
        assert card_config(card) in (make_config("digits"), make_config("color_digits"))


def newer(card: dict, version: str) -> str:
    return json.dumps(card | {"id": f"of {version}", "versions": card["versions"] | {"nayer_lib": version}})


@pytest.mark.parametrize("version", ["99.0", f"{__version__}.1", "0.10.0"])
def test_a_newer_kits_card_is_left_out_with_one_line_a_file(card, version, tmp_path, monkeypatch):
    monkeypatch.setenv("NAYER_DATA", str(copy_data(tmp_path)))
    monkeypatch.setenv("NAYER_RUNS", str(tmp_path / "runs"))
    before = kept_cards()
    lines = [newer(card, version), json.dumps(card | {"id": "older"}), newer(card, version)]
    (tmp_path / "data" / "runs" / "mixed.jsonl").write_text("\n".join(lines))
    (tmp_path / "runs" / "one").mkdir(parents=True)
    (tmp_path / "runs" / "one" / "card.json").write_text(lines[0])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        assert len(kept_cards()) == len(before) + 1 and "older" in kept_files() and local_cards() == []
    said = [str(warning.message) for warning in caught]
    assert len(said) == 2 and "mixed.jsonl" in said[0] and "one" in said[1]
    assert all(f"a card of kit {version}, and this is {__version__}: bring the kit up to date" in line for line in said)
    with pytest.raises(NewerCard, match="bring the kit up to date"):
        read_card(tmp_path / "runs" / "one")


def test_a_card_of_this_kit_or_an_older_one_is_read(card, tmp_path):
    for version in (__version__, "0.0.9", "0"):
        (tmp_path / "card.json").write_text(newer(card, version))
        assert read_card(tmp_path)["id"] == f"of {version}"


def test_a_line_that_is_no_card_is_told_with_its_file(tmp_path, monkeypatch):
    monkeypatch.setenv("NAYER_DATA", str(copy_data(tmp_path)))
    (tmp_path / "data" / "runs" / "cut.jsonl").write_text('{"id": "a", "sta')
    with pytest.raises(UserError, match=r"cut\.jsonl is not a whole run card"):
        kept_cards()
