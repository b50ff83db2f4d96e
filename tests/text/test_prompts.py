"""Prompts: the exact texts of Table 5 and Section 3.2, and what a template may hold."""

import csv

import pytest

from nayer_lib.errors import UserError
from nayer_lib.files import data_dir
from nayer_lib.text.prompts import PROMPTS, fill, template

NAMES = ("cat", "dog")


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ("p1", ["A class of cat.", "A class of dog."]),
        ("p2", ["A class of cat", "A class of dog"]),
        ("p3", ["A photo of class 0", "A photo of class 1"]),
    ],
)
def test_table_5(prompt, texts):
    assert fill(prompt, NAMES) == texts


def test_table_5_has_no_other_prompt():
    with open(data_dir() / "paper" / "table5.csv", newline="", encoding="utf-8") as file:
        named = {row["prompt"].lower() for row in csv.DictReader(file) if row["prompt"]}
    assert named == {"p1", "p2", "p3"} <= set(PROMPTS)


def test_the_prompt_of_section_3_2():
    assert fill("photo", NAMES) == ["a photo of a cat", "a photo of a dog"]


def test_the_prompts_of_the_released_code():
    """D9: the article is "a" before a vowel too."""
    assert fill("a", ["airplane", "cat"]) == ["a airplane", "a cat"]
    assert fill("image", ["airplane", "cat"]) == ["a image of airplane", "a image of cat"]


def test_there_are_these_six():
    assert sorted(PROMPTS) == ["a", "image", "p1", "p2", "p3", "photo"]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_every_prompt_tells_all_classes_apart(prompt):
    assert len(set(fill(prompt, [f"class {k}" for k in range(100)]))) == 100


def test_a_template_of_ones_own():
    assert fill("{index}: a sketch of {name}", NAMES) == ["0: a sketch of cat", "1: a sketch of dog"]
    assert template("the {name}") == "the {name}"
    assert template("p2") == "A class of {name}"


def test_a_name_with_braces_is_left_as_it_is():
    assert fill("a {name}", ["{index}", "b"]) == ["a {index}", "a b"]


@pytest.mark.parametrize(("typed", "meant"), [("phot", "photo"), ("P2", "p2"), ("a image", "image")])
def test_a_text_without_a_slot_is_taken_for_a_mistyped_id(typed, meant):
    with pytest.raises(UserError, match=rf"unknown prompt .*'{typed}'. Did you mean '{meant}'"):
        fill(typed, NAMES)


@pytest.mark.parametrize("prompt", ["a {label}", "a {}", "a {0}", "a {name", "a {name:d}", "{name.kind}", "{name[a]}"])
def test_another_slot_is_told(prompt):
    with pytest.raises(UserError, match="slot that is neither {name} nor {index}"):
        fill(prompt, NAMES)


def test_a_template_without_a_slot_is_refused():
    with pytest.raises(UserError, match="gives all classes the same text: it needs a {name} or {index} slot"):
        fill("a class {{}}", NAMES)


@pytest.mark.parametrize(
    ("prompt", "names", "told"),
    [
        ("a {name:.0}", NAMES, "'a ' and 'a '"),
        ("a {name}", ["fox", "Cardigan", "cardigan", "owl"], "'a Cardigan' and 'a cardigan'"),
        ("A photo of {name}", ["X", "fox", "x"], "'A photo of X' and 'A photo of x'"),
    ],
    ids=["the slot cuts the name", "ImageNet's two cardigans", "not neighbours"],
)
def test_two_classes_with_one_text_are_refused_and_both_are_named(prompt, names, told):
    """Up to case: the encoders have lower-case vocabularies."""
    with pytest.raises(UserError, match=f"two classes get the same text, {told}: tell their names apart"):
        fill(prompt, names)


@pytest.mark.parametrize("prompt", ["", "  \n", None, 3])
def test_what_is_no_text_is_no_prompt(prompt):
    with pytest.raises(UserError) as raised:
        fill(prompt, NAMES)
    assert str(raised.value) == f"a prompt is a text with a {{name}} or {{index}} slot, not {prompt!r}."
