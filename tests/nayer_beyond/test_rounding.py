"""The control below every quantised student: rounding alone."""

import copy

import pytest
from tiny import run_all, same, tiny_setup

from nayer_beyond.quantised import Quantisation, quantised
from nayer_lib.config import fields_of, make_config
from nayer_lib.errors import UserError
from nayer_lib.methods import CONTROLS, METHODS


def test_it_is_a_control_and_reads_what_is_quantised_alone():
    assert "rounding" in CONTROLS and "rounding" not in METHODS
    names = {"dataset", "teacher", "student", "method", "protocol", "variant", "profile", "seed"}
    bits = {"weight_bits", "activation_bits", "edge_bits", "weight_scale"}
    assert fields_of("rounding") == names | bits
    with pytest.raises(UserError, match="^rounding does not read epochs"):
        make_config("digits", method="rounding", epochs=3)


def test_it_scores_the_rounded_teacher_and_leaves_it():
    setup = tiny_setup(method="rounding", weight_bits=3, activation_bits=3)
    before = copy.deepcopy(setup.method.student.state_dict())
    floor = setup.evaluate(setup.method.student).accuracy
    [epoch] = run_all(setup)
    assert (epoch.rounds, epoch.images, epoch.student_loss) == ([], 0, 0.0)
    assert same(before, setup.method.student.state_dict()) and epoch.scores.accuracy == floor
    how = Quantisation(3, 3, None, "channel", "frozen", 0.1)
    again = quantised(setup.method.teacher, how, (1, 8, 8), seed=0)
    assert same(again.state_dict(), setup.method.student.state_dict())
    assert 0.9 < floor < setup.evaluate.teacher.accuracy  # the specification's prototype: 96.2 %


def test_two_bits_cost_what_the_prototype_found():
    [epoch] = run_all(tiny_setup(method="rounding", weight_bits=2, activation_bits=4))
    assert epoch.scores.accuracy == pytest.approx(0.424, abs=0.03)


def test_no_images():
    batch = tiny_setup(method="rounding").method.sample(5)
    assert batch.images.shape == (0, 1, 8, 8) and batch.labels is None
