"""The tables of sweeps as the notebooks show them: one name an arm, and the paper's name in a column of its own."""

from typing import TYPE_CHECKING

import numpy as np

from . import ablations
from .lines import metric

if TYPE_CHECKING:
    import pandas

# The arms of Table 3 and Figure 5, which sweep files call as the paper does, and the settings of `latent`.
NAMES = {
    "K-to-1": ("NAYER(Kto1)", "NAYER", "noisy"),
    "K-to-1, kept": ("NAYER(woRI)", "noisy_kept"),
    "1-to-1": ("NAYER(1to1)", "noisy_1to1"),
    "one layer, redrawn": ("noisy_one",),
    "z": ("Z", "noise"),
    "LTE": ("lte",),
    "one-hot": ("OH", "onehot"),
    "cat": ("cat(LTE,Z)", "cat_lte"),
    "cat, one-hot": ("cat(OH,Z)", "cat_onehot"),
    "sum": ("sum_lte",),
    "sum, one-hot": ("sum_onehot",),
    "sum(1)": ("sum(LTE,Z)",),
    "sum(1), one-hot": ("sum(OH,Z)",),
}
SHORT = {other: name for name, others in NAMES.items() for other in others}


def short(name: str) -> str:
    """The notebooks' name of an arm, or of a setting of `latent`; any other name stays."""
    arm, comma, rest = name.partition(", G kept")
    return SHORT.get(arm, arm) + comma + rest


def named(frame: "pandas.DataFrame") -> "pandas.DataFrame":
    """`ablations.frame` with the notebooks' names, and beside them what the paper calls a row that it prints.

    A registered contrast of two other rows, which is a line of its own, is named by both.
    """
    import pandas as pd

    made = frame.rename(index=short)
    made["against"] = [short(name) for name in frame["against"]]
    both = made.index + ", against " + pd.Index(made["against"])
    made.index = made.index.where(~made.index.duplicated(), both)
    made.insert(0, "in the paper", frame.index.where(frame["paper"].notna(), ""))
    return made


def measured(stem: str, dataset: str, cards: list[dict], *entry: str) -> dict[str, np.ndarray | float]:
    """An entry of the cards' metrics, by its path: the mean over seeds, for each arm of which every run has it."""
    lines = [line for line in ablations.lines_of(stem, dataset, cards) if line.cell]
    values = {short(line.name): [metric(card, *entry) for card in line.cell.cards] for line in lines}
    return {name: np.mean(found, axis=0) for name, found in values.items() if None not in found}
