"""Cards of other kits: an older one is read without what is gone, a newer one is left out; both are said once."""

import copy
import json
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import clone_cards, copy_data, over, tiny_setup

from nayer_lib import __version__, files
from nayer_lib.classifiers.teacher import load_classifier
from nayer_lib.config import make_config
from nayer_lib.errors import UserError
from nayer_lib.runs.card import NewerCard, card_config, keep, kept_cards, local_cards, read_card, resumable
from nayer_lib.runs.forecast import projected
from nayer_lib.runs.new_card import new_card
from nayer_lib.runs.run import Run
from nayer_lib.runs.sweep import Sweep, arm_cards
from nayer_notebooks.statistics import cells


@pytest.fixture
def card() -> dict:
    """A kept card."""
    return copy.deepcopy(clone_cards()[0])


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
        assert card_config(card) == card_config(clone_cards()[0])
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
        ids = [card["id"] for card in kept_cards()]
        assert len(ids) == len(before) + 1 and "older" in ids and local_cards() == []
    said = [str(warning.message) for warning in caught]
    assert len(said) == 2 and "mixed.jsonl" in said[0] and "one" in said[1]
    assert all(f"a card of kit {version}, and this is {__version__}: bring the kit up to date" in line for line in said)
    with pytest.raises(NewerCard, match="bring the kit up to date"):
        read_card(tmp_path / "runs" / "one")


def test_a_card_of_this_kit_or_an_older_one_is_read(card, tmp_path):
    for version in (__version__, "0.0.9", "0"):
        (tmp_path / "card.json").write_text(newer(card, version))
        assert read_card(tmp_path)["id"] == f"of {version}"


BAD = {  # what stands where a card should -> what is said of it
    '{"id": "a", "sta': "Unterminated string",
    "[]": "no JSON object",
    "[" * 100_000: "recursion",
    '{"id": "a", "status": "running", "config": []}': "no config",
    '{"id": "a", "status": "running", "config": {"method": "of another kit"}}': "unknown method",
    '{"id": "a", "status": "running", "config": {"method": "nayer", "rounds": {}}}': "rounds must",
    '{"id": "a", "status": "running", "config": {"method": "nayer", "dataset": "../../x"}}': "dataset must be a name",
    '{"id": "a", "status": "running", "config": {"method": "nayer"}, "compute": {"gears": 5}}': "gears",
    '{"id": "a", "status": "finished", "config": {"method": "nayer"}}': "no teacher",
}


@pytest.mark.parametrize("text", [*BAD, b"\xff\xfe"])
def test_one_bad_card_stops_nothing_and_is_one_line(text, tmp_path, monkeypatch):
    monkeypatch.setenv("NAYER_DATA", str(copy_data(tmp_path)))
    monkeypatch.setenv("NAYER_RUNS", str(tmp_path / "runs"))
    (tmp_path / "runs" / "bad").mkdir(parents=True)
    before = kept_cards()
    for path in (tmp_path / "runs" / "bad" / "card.json", tmp_path / "data" / "runs" / "bad.jsonl"):
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert kept_cards() == before and local_cards() == [] and resumable(make_config("digits")) is None
    said = [str(warning.message) for warning in caught if "left out" in str(warning.message)]
    assert len(said) == 3 and "bad.jsonl" in said[0] and "card.json" in said[1]
    assert all(BAD.get(text, "cannot be read") in line and "\n" not in line for line in said)
    with pytest.raises(UserError, match="remove it, or copy it anew"):
        read_card(tmp_path / "runs" / "bad")


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)


@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_a_card_with_any_entry_changed_is_read_whole_or_refused_in_one_sentence(tmp_path_factory, data):
    """What is read goes through what reads cards: cells, a sweep's arms, what a run will take."""
    card = read_card(next((files.data_dir() / "runs").glob("*.json")))
    place, name = card, data.draw(st.sampled_from(sorted(card)))
    while isinstance(place[name], dict) and place[name] and data.draw(st.booleans()):
        place = place[name]
        name = data.draw(st.sampled_from(sorted(place)))
    if data.draw(st.booleans()):
        place[name] = data.draw(anything)
    else:
        del place[name]
    path = tmp_path_factory.mktemp("card") / "card.json"
    path.write_text(json.dumps(card))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        try:
            read = read_card(path)
        except UserError as error:
            assert "\n" not in str(error)
            return
        cells([read])
        arm_cards(Sweep("any", {"arm": [make_config("digits")]}), [read])
        if read["status"] == "finished":
            projected(card_config(read), [(card_config(read), read)])


@pytest.mark.parametrize("given", ["one", "one/", "./one", "{runs}/one"])
def test_keep_understands_a_run_by_its_folder_too(given, card, tmp_path, monkeypatch):
    monkeypatch.setenv("NAYER_DATA", str(copy_data(tmp_path)))
    monkeypatch.setenv("NAYER_RUNS", str(tmp_path / "runs"))
    (tmp_path / "runs" / "one").mkdir(parents=True)
    (tmp_path / "runs" / "one" / "card.json").write_text(json.dumps(card))
    assert keep(given.format(runs=tmp_path / "runs")) == tmp_path / "data" / "runs" / "one.json"  # without a picture


@pytest.mark.parametrize("given", ["", ".", "/", "../x", "one/sub", ".hidden", "/tmp", "one/../../x"])
def test_keep_takes_nothing_but_runs(given, card, tmp_path, monkeypatch):
    monkeypatch.setenv("NAYER_RUNS", str(tmp_path / "runs"))
    for folder in ("runs/one/sub", "x", "runs/.hidden"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "card.json").write_text(json.dumps(card))
    with pytest.raises(UserError, match="unknown run"):
        keep(given)


@pytest.mark.parametrize("method", ["rounding", "with_data", "nayer"])
def test_a_card_of_a_quantised_student_says_its_size_and_what_rounding_alone_gives(tmp_path, method):
    setup = tiny_setup(**over({"student_lr": 1e-3}, {"method": method, "student": "wrn10_1", "weight_bits": 3}))
    floor = setup.evaluate(setup.method.student).accuracy
    run = Run(setup, tmp_path / "run")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert list(run)
    said = read_card(run.folder)["quantised"]
    assert (said["layers"], said["accuracy_before_learning"]) == (10, floor)
    assert said["kib_float"] / 11 < said["kib"] < said["kib_float"] / 5  # 3 of 32 bits, and what stays float
    assert "problems" not in run.card and load_classifier(run.folder / "student.safetensors").quantisation
    assert "quantised" not in new_card(tiny_setup(), "another")
