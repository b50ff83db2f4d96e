"""The rule of every word about a difference: one model a table, tests for a difference and for none, Holm's adjustment.

Values are accuracies in percent, differences in points, unless an argument says otherwise.
"""

import gc
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas

SMALL = 1.0  # points: a difference below this counts for none
LEVEL = 0.05  # of the adjusted p of a test
UNEQUAL = 3  # ratio of two spreads from which on they are not pooled
RUNS, RUNS_ALONE, FREEDOM = 3, 5, 6  # fewest runs for a word; with a spread of their own; residual degrees of freedom


@dataclass(frozen=True)
class Contrast:
    """An arm minus its reference: the difference of their means with its 95 % interval, which is not adjusted.

    Attributes:
        p: of the t test for a difference, adjusted over the rows of its family.
        p_equal: of the two one-sided tests for a difference smaller than `small`, likewise.
        n: runs, of the one that has fewer.
        own: whether the spread is that of the two alone, and not the table's (marked W, Welch's test).
        freedom: residual degrees of freedom.
        primary: whether it was registered before the runs; all others are exploratory.
        small: what counts for no difference.
    """

    difference: float
    low: float
    high: float
    p: float
    p_equal: float
    n: int
    own: bool
    freedom: float
    primary: bool
    small: float

    @property
    def word(self) -> str:
        """What an arm of our own does: "gain", "loss", "no effect", "open" (these runs do not decide), or no word."""
        if self.n < RUNS:
            return f"n < {RUNS}: no word"
        if self.freedom < FREEDOM and not self.own:
            return f"fewer than {FREEDOM} degrees of freedom: no word"
        if self.own and self.n < RUNS_ALONE:
            return "open"
        if self.p_equal < LEVEL:
            return "no effect"
        if self.p < LEVEL and abs(self.difference) >= self.small:
            return "gain" if self.difference > 0 else "loss"
        return "open"

    def shows(self, printed: float, data_of_paper: bool = False) -> str:
        """Whether this is the difference that the paper prints, in points: "shows", "does not show", or as `word`.

        The paper's is a gain or a loss from `SMALL` on, else no effect. On the paper's own data the words are
        "reproduced", for a size that is half to twice the printed one "partly" for any other, and "not".
        """
        if self.word not in ("gain", "loss", "no effect"):
            return self.word
        if self.word != ("no effect" if abs(printed) < SMALL else "gain" if printed > 0 else "loss"):
            return "not" if data_of_paper else "does not show"
        if not data_of_paper:
            return "shows"
        ratio = self.ratio(printed)
        return "reproduced" if ratio is None or 0.5 <= ratio <= 2 else "partly"

    def ratio(self, printed: float) -> float | None:
        """Our difference over the paper's; None where the paper's is below `SMALL`."""
        return self.difference / printed if abs(printed) >= SMALL else None


def contrasts(
    values: Mapping[str, Mapping[int, float]],
    pairs: Collection[tuple[str, str]],
    primary: Collection[tuple[str, str]] = (),
    small: float = SMALL,
    floor: float = 0.0,
) -> dict[tuple[str, str], Contrast]:
    """What the arms of a table do against their references, for all rows at once.

    The model is value ~ arm + seed; what it leaves is one spread for all arms. Arms whose own spread is another
    (`_with_own_spread`) are left out of it: they are tested by Welch's test, with their reference alone.

    Args:
        values: arm -> seed -> value.
        pairs: the rows, (arm, reference); one of an arm with itself, or without values, has no contrast.
        primary: the registered contrasts, (arm, reference), either way round.
        floor: the smallest spread (sd) that the measurement resolves.
    """
    import pandas as pd
    from statsmodels.regression.linear_model import OLS

    pairs = [(a, b) for a, b in pairs if a != b and values.get(a) and values.get(b)]
    if not pairs:
        return {}
    data = pd.DataFrame([(a, seed, x) for a in values for seed, x in values[a].items()], columns=["arm", "seed", "x"])
    own = _with_own_spread(data, floor)
    pooled = data[~data["arm"].isin(own)]
    arms = pd.get_dummies(pooled["arm"], dtype=float)
    seeds = pd.get_dummies(pooled["seed"], prefix="seed", dtype=float)  # an arm may be called 0
    model = OLS(pooled["x"], pd.concat([arms, seeds.iloc[:, 1:]], axis=1)).fit()
    rows = []
    for arm, reference in pairs:
        two = [[*values[name].values()] for name in (arm, reference)]
        alone = bool(own & {arm, reference})
        test = _alone(*two, small) if alone else _pooled(model, arm, reference, small)
        registered = {(arm, reference), (reference, arm)} & set(primary)
        rows.append((*test, min(map(len, two)), alone, model.df_resid, bool(registered), small))
    table = pd.DataFrame(rows, columns=[*Contrast.__dataclass_fields__])
    for p in ("p", "p_equal"):
        table[p] = table.groupby("primary")[p].transform(_holm)
    return {pair: Contrast(*row) for pair, row in zip(pairs, table.itertuples(index=False), strict=True)}


def _holm(family: "pandas.Series") -> np.ndarray:
    """The p of a family of rows, adjusted for their number."""
    from statsmodels.stats.multitest import multipletests

    gc.freeze()  # multipletests collects garbage: a third of a second where hundreds of cards lie in memory
    try:
        return multipletests(family, method="holm")[1]
    finally:
        gc.unfreeze()


def _with_own_spread(data: "pandas.DataFrame", floor: float) -> set[str]:
    """The arms whose spread is more than `UNEQUAL` times larger or smaller than that of the others together.

    The one that is farthest off first: the others are then looked at without it.
    """
    by_arm, own = data.groupby("arm")["x"].agg(["var", "count"]).query("count > 1"), set()
    while len(by_arm) > 1:
        freedom = by_arm["count"] - 1
        squares = by_arm["var"] * freedom
        others = (squares.sum() - squares) / (freedom.sum() - freedom)
        widths = [np.log(np.maximum(floor or 1e-9, np.sqrt(variance))) for variance in (by_arm["var"], others)]
        off = (widths[0] - widths[1]).abs()
        if off.max() <= np.log(UNEQUAL):
            break
        own.add(off.idxmax())
        by_arm = by_arm.drop(off.idxmax())
    return own


def _pooled(model, arm: str, reference: str, small: float) -> tuple[float, float, float, float, float]:
    """Difference, low, high, p and p_equal by the model's spread."""
    from scipy.stats import t

    difference = float(model.params[arm] - model.params[reference])
    if model.df_resid < 1:  # one seed an arm
        return difference, -np.inf, np.inf, 1.0, 1.0
    test = model.t_test([float(name == arm) - float(name == reference) for name in model.params.index])
    (low, high), error = test.conf_int()[0], float(test.sd[0, 0])
    p_equal = t.sf((small - abs(difference)) / error, model.df_resid) if error else float(abs(difference) >= small)
    return difference, float(low), float(high), float(test.pvalue), float(p_equal)


def _alone(ours: list[float], theirs: list[float], small: float) -> tuple[float, float, float, float, float]:
    """The same by the spreads of the two alone."""
    from scipy.stats import ttest_ind
    from statsmodels.stats.weightstats import ttost_ind

    difference = float(np.mean(ours) - np.mean(theirs))
    if len({*ours}) == len({*theirs}) == 1:  # no spread at all, and for a test a division by 0
        return difference, difference, difference, float(not difference), float(abs(difference) >= small)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of one that has no spread
        test = ttest_ind(ours, theirs, equal_var=False)
        p_equal = ttost_ind(ours, theirs, -small, small, usevar="unequal")[0]
    low, high = test.confidence_interval()
    return difference, float(low), float(high), float(test.pvalue), float(p_equal)
