"""The checks of exercises and the change of one line: what they accept, and the sentence for each common mistake."""

import inspect

import pytest
import torch
from tiny import tiny_setup

from nayer_lib.algorithm1 import algorithm1
from nayer_lib.errors import UserError
from nayer_notebooks.exercises import Wrong, check, one_line


@pytest.mark.parametrize(
    ("yours", "expected"),
    [
        (10.34, torch.tensor(10.34)),
        (torch.ones(2, 3), torch.ones(2, 3) + 1e-5),
        ([1000.0, 0.0], torch.tensor([1000.01, 0.01])),
        (True, True),
        ("truck", "truck"),
    ],
)
def test_what_is_right_passes_and_both_are_printed(yours, expected, capsys):
    check("L_S", yours, expected)
    assert capsys.readouterr().out.startswith("L_S: right")


@pytest.mark.parametrize(
    ("yours", "sentence"),
    [
        (..., "not written yet"),
        (None, "not written yet"),
        (-10.34, r"yours -10.34, expected 10.34 \(the sign is turned round\)"),
        (10.34 / 400, r"expected 10.34 \(without T\^2\)"),
        (10.3, "yours 10.3, expected 10.34"),
        (torch.ones(3), r"yours has the shape \(3,\), expected \(\)"),
        ("ten", "yours is a str; numbers are expected"),
    ],
)
def test_what_is_wrong_is_said_with_the_mistake_that_makes_it(yours, sentence):
    with pytest.raises(Wrong, match=sentence) as raised:
        check("L_S", yours, 10.34, mistakes={400: "without T^2"})
    assert raised.value._render_traceback_() == [str(raised.value)]


def test_a_wrong_word_is_said():
    with pytest.raises(Wrong, match="nearest: yours is 'cat', expected 'truck'"):
        check("nearest", "cat", "truck")


def test_a_few_numbers_are_shown_and_more_are_counted_or_told_by_their_shape_and_mean(capsys):
    few = "(0.5, 0.5, 0.5, 0.5)"
    for size, told in ((2, f"yours {few}, expected {few}"), (40, "all 1,600 numbers as expected")):
        check("Z(e)", torch.full((size, size), 0.5), torch.full((size, size), 0.5))
        assert capsys.readouterr().out == f"Z(e): right ({told})\n"
    with pytest.raises(Wrong, match=r"yours \(3, 3\) numbers with mean 1, expected \(3, 3\) numbers with mean 0.5;"):
        check("Z(e)", torch.ones(3, 3), torch.full((3, 3), 0.5))


def test_numbers_of_one_mean_are_told_apart():
    with pytest.raises(Wrong, match=r"yours \(1, 4\), expected \(2, 3\)\.$"):
        check("interval", (1.0, 4.0), (2.0, 3.0))
    with pytest.raises(Wrong, match=r"expected \(3, 2\) \(the right numbers in another order\)\.$"):
        check("pair", (2, 3), (3, 2))
    rows = torch.arange(10.0)
    with pytest.raises(Wrong, match=r"mean 4.5; most of all at \(0,\): 9, expected 0 \(the right numbers in another"):
        check("rows", rows.flip(0), rows)
    with pytest.raises(Wrong, match=r"\(one over the expected\)\.$"):
        check("factors", 1 / (rows + 1), rows + 1)


def last_weights(function) -> torch.Tensor:
    """The first layer of the student after a tiny run of an Algorithm 1."""
    method = tiny_setup().method
    for _ in function(method.config, method.teacher, method.student, method.table, method.facts):
        pass
    return next(method.student.parameters()).detach()


def test_one_line_is_changed_and_the_function_runs(capsys):
    changed = one_line(algorithm1, "t = teacher(x)", "t = 0 * teacher(x)")
    assert capsys.readouterr().out == "- t = teacher(x)\n+ t = 0 * teacher(x)\n"
    assert "t = 0 * teacher(x)" in inspect.getsource(changed) and "0 * teacher" not in inspect.getsource(algorithm1)
    assert not torch.equal(last_weights(changed), last_weights(algorithm1))
    again = one_line(changed, "0 * teacher(x)", "teacher(x)")
    assert torch.equal(last_weights(again), last_weights(algorithm1))


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("Z.redraw", "pass", "'Z.redraw' occurs 2 times: copy more of the one line"),
        ("G.redraw", "pass", "'G.redraw' occurs 0 times: copy less of the one line"),
        ("y = torch.cat([", "y = ((", "the changed line is no Python"),
    ],
)
def test_a_change_that_cannot_be_made_is_refused(old, new, sentence):
    with pytest.raises(UserError, match=sentence):
        one_line(algorithm1, old, new)
