"""The rule of every word: one model a table, tests for a difference and for none, Holm, and what decides nothing."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from nayer_notebooks.rule import Contrast, contrasts

RNG = np.random.default_rng(0)
START = RNG.bit_generator.state


@pytest.fixture(autouse=True)
def no_test_depends_on_those_before():
    RNG.bit_generator.state = START


def drawn(mean: float, n: int = 10, sd: float = 0.5, first: int = 0) -> dict[int, float]:
    """n values with exactly this mean and standard deviation, by seed."""
    values = RNG.normal(size=n)
    values = (values - values.mean()) / values.std(ddof=1)
    return {first + seed: mean + sd * value for seed, value in enumerate(values)}


def against(reference: str, values: dict, **options) -> dict[str, Contrast]:
    """The contrast of each arm with one of them."""
    found = contrasts(values, [(arm, reference) for arm in values], **options)
    return {arm: contrast for (arm, _), contrast in found.items()}


def words(values: dict, **options) -> dict[str, str]:
    return {arm: contrast.word for arm, contrast in against("reference", values, **options).items()}


def contrast(**changes) -> Contrast:
    facts = {"difference": -3.0, "low": -4.0, "high": -2.0, "p": 0.001, "p_equal": 0.9, "n": 10, "own": False}
    return Contrast(**(facts | {"freedom": 27.0, "primary": False, "small": 1.0} | changes))


def test_ten_seeds_tell_a_loss_a_gain_and_no_effect():
    values = {"reference": drawn(97), "lower": drawn(94), "higher": drawn(98.5), "equal": drawn(97.05)}
    assert words(values) == {"lower": "loss", "higher": "gain", "equal": "no effect"}


def test_a_difference_that_is_there_but_small_is_no_effect_and_one_that_is_neither_is_open():
    values = {"reference": drawn(97, sd=0.2), "small": drawn(96.5, sd=0.2), "between": drawn(96.05, sd=0.2)}
    assert words(values) == {"small": "no effect", "between": "open"}


def test_the_model_is_the_one_of_a_fit_done_elsewhere():
    """Least squares of value on arm and seed by numpy alone; an unbalanced table."""
    values = {"reference": drawn(97), "a": drawn(95, n=8), "b": drawn(96, n=5, first=3)}
    rows = [(arm, seed, x) for arm, of_arm in values.items() for seed, x in of_arm.items()]
    arms, seeds = list(values), sorted({seed for _, seed, _ in rows})
    design = np.array([[arm == a for a in arms] + [seed == s for s in seeds[1:]] for arm, seed, _ in rows], float)
    y = np.array([x for *_, x in rows])
    beta = np.linalg.lstsq(design, y, rcond=None)[0]
    freedom = len(y) - design.shape[1]
    variance = ((y - design @ beta) ** 2).sum() / freedom
    found = against("reference", values)
    p = {}
    for arm in ("a", "b"):
        c = np.array([(name == arm) * 1.0 - (name == "reference") for name in [*arms, *seeds[1:]]])
        error = math.sqrt(variance * c @ np.linalg.inv(design.T @ design) @ c)
        half = stats.t.ppf(0.975, freedom) * error
        assert found[arm].difference == pytest.approx(c @ beta)
        assert (found[arm].low, found[arm].high) == pytest.approx((c @ beta - half, c @ beta + half))
        p[arm] = 2 * stats.t.sf(abs(c @ beta) / error, freedom)
    small, large = sorted(p, key=p.get)
    assert found[small].p == pytest.approx(2 * p[small])  # Holm: the smallest of two counts twice
    assert found[large].p == pytest.approx(max(2 * p[small], p[large]))


def test_two_one_sided_tests_are_the_half_widths_of_a_90_percent_interval():
    values = {"reference": drawn(97, sd=0.7), "arm": drawn(97.4, sd=0.7)}
    [found] = against("reference", values).values()
    half = (found.high - found.low) / 2 * stats.t.ppf(0.95, found.freedom) / stats.t.ppf(0.975, found.freedom)
    assert (found.p_equal < 0.05) == (found.difference + half < 1)
    below = found.difference + half * 1.0001  # a bound just beyond the 90 % interval is where p_equal is 5 %
    [at_bound] = against("reference", values, small=below).values()
    assert at_bound.p_equal == pytest.approx(0.05, abs=1e-3)


def test_primary_rows_are_a_family_of_their_own():
    arms = {f"arm {k}": drawn(96.3) for k in range(9)}
    values = {"reference": drawn(97)} | arms
    together = against("reference", values)
    apart = against("reference", values, primary=[("arm 0", "reference")])
    assert apart["arm 0"].primary and not apart["arm 1"].primary
    assert apart["arm 0"].p == pytest.approx(together["arm 0"].p / 9)  # Holm: nine equal ones count nine times each
    assert apart["arm 1"].p == pytest.approx(together["arm 1"].p * 8 / 9)


def test_a_spread_of_its_own_is_tested_by_welch():
    values = {"reference": drawn(97, sd=0.3), "wild": drawn(92, sd=5), "a": drawn(97, sd=0.3), "b": drawn(96, sd=0.3)}
    found = against("reference", values, primary=[("wild", "reference")])
    assert found["wild"].own and not found["a"].own and not found["b"].own
    test = stats.ttest_ind([*values["wild"].values()], [*values["reference"].values()], equal_var=False)
    low, high = test.confidence_interval()
    assert (found["wild"].low, found["wild"].high) == pytest.approx((low, high))
    assert found["wild"].difference == pytest.approx(-5) and found["wild"].p == pytest.approx(test.pvalue)
    wild, calm = ([*values[arm].values()] for arm in ("wild", "reference"))
    sides = [(1, "greater"), (-1, "less")]
    tests = [stats.ttest_ind([x + s for x in wild], calm, equal_var=False, alternative=a) for s, a in sides]
    assert found["wild"].p_equal == pytest.approx(max(one.pvalue for one in tests))
    calm = against("reference", {arm: of for arm, of in values.items() if arm != "wild"})
    assert (found["b"].low, found["b"].high) == (calm["b"].low, calm["b"].high)  # one wild arm widens no other row


def test_a_few_runs_with_a_spread_of_their_own_decide_nothing():
    values = {"reference": drawn(97, 4, 0.3), "wild": drawn(60, 4, 5), "a": drawn(97, 4, 0.3), "b": drawn(96, 4, 0.3)}
    assert words(values)["wild"] == "open"


def test_what_the_measurement_cannot_resolve_is_no_spread_of_its_own():
    """Ten runs that are as good as equal: their spread counts as one test image."""
    values = {"reference": drawn(97, sd=0.3), "equal": drawn(97, sd=0.001), "a": drawn(97, sd=0.3)}
    assert not against("reference", values, floor=0.2)["equal"].own
    assert against("reference", values, floor=0.05)["equal"].own


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({}, "loss"),
        ({"difference": 3.0}, "gain"),
        ({"n": 2}, "n < 3: no word"),
        ({"freedom": 5.0}, "fewer than 6 degrees of freedom: no word"),
        ({"freedom": 5.0, "own": True}, "loss"),
        ({"n": 4, "own": True}, "open"),
        ({"p": 0.051}, "open"),
        ({"difference": -0.9}, "open"),
        ({"p_equal": 0.049}, "no effect"),
        ({"p_equal": 0.051}, "loss"),
        ({"difference": -0.9, "small": 0.5}, "loss"),
    ],
)
def test_words_of_arms_of_ours(changes, word):
    assert contrast(**changes).word == word


@pytest.mark.parametrize(
    ("changes", "printed", "shows", "on_its_data"),
    [
        ({}, -3.0, "shows", "reproduced"),
        ({}, -1.5, "shows", "reproduced"),
        ({}, -1.4, "shows", "partly"),
        ({}, -6.1, "shows", "partly"),
        ({}, -0.9, "does not show", "not"),
        ({}, 3.0, "does not show", "not"),
        ({"p_equal": 0.01}, 0.3, "shows", "reproduced"),
        ({"p_equal": 0.01}, -2.0, "does not show", "not"),
        ({"p": 0.2}, -3.0, "open", "open"),
        ({"n": 2}, -3.0, "n < 3: no word", "n < 3: no word"),
    ],
)
def test_words_beside_a_printed_difference(changes, printed, shows, on_its_data):
    assert contrast(**changes).shows(printed) == shows
    assert contrast(**changes).shows(printed, data_of_paper=True) == on_its_data


def test_the_ratio_stands_where_the_paper_prints_a_point():
    assert contrast().ratio(-1.5) == 2 and contrast().ratio(0.99) is None


def test_arms_may_be_called_like_seeds():
    named = {"reference": drawn(97), "arm": drawn(95)}
    [by_name] = contrasts(named, [("arm", "reference")]).values()
    [by_number] = contrasts({0: named["reference"], 1: named["arm"]}, [(1, 0)]).values()
    assert (by_number.low, by_number.high) == pytest.approx((by_name.low, by_name.high))


def test_what_was_not_run_has_no_contrast():
    pairs = [("a", "reference"), ("reference", "reference"), ("b", "a")]
    assert contrasts({"a": {}, "reference": drawn(97)}, pairs) == {}
    assert contrasts({}, [("a", "b")]) == {}


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 6), st.integers(1, 12), st.floats(0.05, 5), st.integers(0, 999))
def test_any_table_gives_each_row_one_word_and_a_whole_interval(arms, n, sd, seed):
    rng = np.random.default_rng(seed)
    values = {f"arm {k}": dict(enumerate(rng.normal(95, sd, n))) for k in range(arms)}
    found = against("arm 0", values)
    assert len(found) == arms - 1
    for arm, of in found.items():
        assert of.difference == pytest.approx(pd.Series(values[arm]).mean() - pd.Series(values["arm 0"]).mean())
        means = {"gain": of.difference >= 1 and of.p < 0.05, "loss": of.difference <= -1 and of.p < 0.05}
        assert (means | {"no effect": abs(of.difference) < 1}).get(of.word, True)
        if n >= 3:
            assert of.low <= of.difference <= of.high and 0 <= of.p <= 1 and 0 <= of.p_equal <= 1
