"""The ablations as views of the cards of sweeps: Tables 3, 4, 5, 10 and 11 of the paper, the terms of Eq. 5, D1-D13.

A file data/sweeps/<stem>_<data set>.json holds the arms of one table on one problem. An arm that answers a printed row
bears that row's name; the other arms are ours. What the tables are about stands in docs/ablations.md.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .. import files
from ..config import Config
from ..errors import unknown
from ..methods import METHODS
from ..methods.inversion import Inversion
from ..runs.statistics import Cell, by_config, effect, paired, seedless, verdict
from ..runs.sweep import Sweep, read_sweep
from . import paper

if TYPE_CHECKING:
    import pandas

# The data sets of the sweeps, each with the one of the paper that stands beside it where a table has several.
PROBLEMS = {"cifar10": "cifar10", "cifar100": "cifar100", "digits": "cifar10", "color_digits": "cifar100"}


@dataclass(frozen=True)
class Line:
    """A row of the paper, an arm of ours, or both.

    Attributes:
        name, against: of the row, and of the one that it is compared with.
        row: as the paper prints it (`paper.rows`); None for an arm of our own.
        printed: the paper's difference between the two, in points; None where it has none.
        cell: our runs of one protocol; None if there are none.
        differences: ours, paired by seed, in points, of the same protocol; a reference has none.
    """

    name: str
    against: str
    row: object | None
    printed: float | None
    cell: Cell | None
    differences: list[float]

    @property
    def verdict(self) -> str:
        """`verdict` of a printed row, `effect` of an arm of our own; "reference" where nothing is compared."""
        if self.cell and self.against == self.name:
            return "reference"
        return effect(self.differences) if self.printed is None else verdict(self.differences, self.printed)

    @property
    def difference(self) -> str:
        """Mean and sample standard deviation of the differences, and how many there are; "" for none."""
        if not self.differences:
            return ""
        spread = f" ± {statistics.stdev(self.differences):.2f}" if len(self.differences) > 1 else ""
        return f"{statistics.mean(self.differences):+.2f}{spread} (n = {len(self.differences)})"


Column = str | Callable[[Cell], str]  # one of the paper's by its name, or text about our cell


@dataclass(frozen=True)
class Ablation:
    """A table: which rows it has, and what each is compared with.

    Attributes:
        stem: of its sweep files.
        title: its name in the summary, with which its heading in docs/ablations.md begins.
        against: the name of the row with which one of a name is compared; its own for a reference.
        table: its number in the paper; None if it is ours.
        name: the name of a printed row; None for one that has no arm here.
        columns: what it tells beside the accuracy, heading -> column.
    """

    stem: str
    title: str
    against: Callable[[str], str]
    table: int | None = None
    name: Callable[[object], str | None] | None = None
    columns: dict[str, Column] = field(default_factory=dict)

    def sweeps(self) -> dict[str, Sweep]:
        """Its sweep files: data set -> sweep."""
        paths = {dataset: files.data_dir() / "sweeps" / f"{self.stem}_{dataset}.json" for dataset in PROBLEMS}
        return {dataset: read_sweep(path) for dataset, path in paths.items() if path.is_file()}

    def rows(self, dataset: str) -> dict[str, object]:
        """The printed rows that stand beside a data set, by name."""
        rows = paper.rows(self.table) if self.table else []
        named = {self.name(row): row for row in rows if getattr(row, "dataset", None) in (None, PROBLEMS[dataset])}
        return {name: row for name, row in named.items() if name}

    def lines(self, dataset: str, sweep: Sweep, found: dict[Config, list[Cell]]) -> list[Line]:
        """Every printed row, then our own arms: a line for each protocol in which it ran, or one without a cell.

        Args:
            found: cells by their config without its seed.
        """

        def cells_of(arm: str) -> list[Cell]:
            asked = found.get(seedless(sweep.arms[arm][0]), []) if arm in sweep.arms else []
            return [cell for cell in asked if cell.split == sweep.split]

        rows, lines = self.rows(dataset), []
        for name in [*rows, *(arm for arm in sweep.arms if arm not in rows)]:
            against = self.against(name)
            numbers = [getattr(rows.get(row), "accuracy", None) for row in (name, against)]
            printed = None if name == against or None in numbers else numbers[0] - numbers[1]
            for cell in cells_of(name) or [None]:
                references = cells_of(against) if cell and name != against else []
                pairs = [difference for reference in references for difference in paired(cell, reference)]
                lines.append(Line(name, against, rows.get(name), printed, cell, pairs))
        return lines


def lines_of(stem: str, dataset: str, cards: list[dict]) -> list[Line]:
    """The lines of one table on one problem.

    Raises:
        UserError: no such table, or no sweep file of it on this data set; the nearest is named.
    """
    if stem not in BY_STEM:
        raise unknown("ablation", stem, BY_STEM)
    sweeps = BY_STEM[stem].sweeps()
    if dataset not in sweeps:
        raise unknown(f"problem of {stem}", dataset, sweeps)
    return BY_STEM[stem].lines(dataset, sweeps[dataset], by_config(cards))


def frame(stem: str, dataset: str, cards: list[dict]) -> "pandas.DataFrame":
    """`lines_of` as a table of numbers, for notebooks: a row a line; percent and points, nan where there is none.

    Columns: what the paper prints and its difference; our accuracy with its sd and n; our difference with its sd; the
    verdict.
    """
    import pandas as pd

    lines = lines_of(stem, dataset, cards)
    differences = [pd.Series(line.differences, dtype=float) for line in lines]
    columns = {
        "paper": [line.row and line.row.accuracy for line in lines],
        "paper diff": [line.printed for line in lines],
        "ours": [line.cell and line.cell.mean for line in lines],
        "sd": [line.cell and line.cell.spread for line in lines],
        "n": [len(line.cell.last) if line.cell else 0 for line in lines],
        "diff": [series.mean() for series in differences],
        "sd diff": [series.std() for series in differences],
        "verdict": [line.verdict for line in lines],
    }
    types = {name: float for name in columns.keys() - {"n", "verdict"}}
    return pd.DataFrame(columns, index=[line.name for line in lines]).astype(types)


# --- the tables


KTO1, KEPT = "NAYER(Kto1)", ", G kept"


def _against_kto1(name: str) -> str:
    """An arm whose generator is kept is compared with K-to-1 under a kept generator, and that one with K-to-1."""
    return KTO1 + KEPT if name.endswith(KEPT) and name != KTO1 + KEPT else KTO1


def _mean(cell: Cell, form: str, *entry: str) -> str:
    """The mean of an entry of the cards' metrics, over those that have a value: a card may have no metrics."""
    values = [card["metrics"] for card in cell.cards if "metrics" in card]
    for key in entry:
        values = [value[key] for value in values if key in value]
    values = [value for value in values if value is not None]
    return format(statistics.mean(values), form) if values else "–"


def _steps(cell: Cell, threshold: str) -> str:
    """Steps to a cross-entropy, the mean over the rounds that reach it, and the share of those."""
    steps = _mean(cell, ".1f", "convergence", threshold, "mean")
    return steps if steps == "–" else f"{steps} ({_mean(cell, '.0%', 'convergence', threshold, 'success')})"


def _diversity(cell: Cell) -> str:
    return " / ".join(_mean(cell, ".3f", "diversity", key) for key in ("within", "across"))


def _memory(cell: Cell) -> str:
    size, synthesized = cell.config.memory_size, cell.config.total_rounds * cell.config.generator_batch
    return f"all {synthesized}" if size is None else f"{size} ({size / synthesized:.1%})"


def _images(cell: Cell) -> str:
    """Images that the student could learn from: those kept, or those of all its steps, some of them replayed."""
    config = cell.config
    if issubclass(METHODS[config.method], Inversion):
        return f"{config.total_rounds * config.generator_batch} kept"
    return f"{config.repeats * config.distillation_epochs * config.student_steps * config.student_batch} fresh"


def _system_name(row) -> str | None:
    """A system's row of Table 1 in the column of the sweeps' pair; the reference rows have no arm."""
    if (row.teacher, row.student) != ("wrn40_2", "wrn16_2") or row.epochs not in (300, None):
        return None
    return None if row.method in ("Teacher", "Student") else row.method


def _at_the_middle_rate(name: str) -> str:
    """The arm of the same method at the middle one of its three rates."""
    method, _, _ = name.partition(",")
    return f"{method}, {0.1 if method in ('DeepInv', 'KAKR_MB', 'KAKR_GR') else 0.004:g}"


def _against_full(name: str) -> str:
    return f"{'NAYER' if name == 'SOTA' else name.partition(',')[0]}, Full"


def _against_nayer(name: str) -> str:
    return "NAYER, g = 40" if name.startswith("NAYER") else f"NAYER, {name.partition(', ')[2]}"


def _memory_name(row) -> str:
    size = f"{row.memory // 1000}k" if row.memory else "Full"
    return row.method if row.method == "SOTA" else f"{row.method}, {size}"


ABLATIONS = (
    Ablation(
        "table3",
        "Table 3",
        _against_kto1,
        table=3,
        name=lambda row: row.input,
        columns={
            "paper: steps to CE < 0.1": "steps",
            "ours: steps to CE < 0.1": lambda cell: _steps(cell, "0.1"),
            "to CE < 1": lambda cell: _steps(cell, "1.0"),
            "paper: diversity": "diversity",
            "ours: within / across rounds": _diversity,
        },
    ),
    Ablation("table4", "Table 4", lambda name: "SBERT", 4, lambda row: row.encoder or row.method),
    Ablation("table5", "Table 5", lambda name: "P2", 5, lambda row: row.prompt or row.method),
    Ablation("table10", "Table 10", _against_full, 10, _memory_name, {"ours: images in the memory": _memory}),
    Ablation("table11", "Table 11", _against_nayer, 11, lambda row: f"{row.method}, g = {row.generator_steps}"),
    Ablation("eq5", "The terms of Eq. 5", lambda name: "all terms"),
    Ablation(
        "redraw",
        "Redrawing, with and without an opponent",
        lambda name: name.replace("redrawn", "kept") if "redrawn" in name else "one layer, kept",
        columns={"within / across rounds": _diversity},
    ),
    Ablation(
        "figure5",
        "Figure 5",
        lambda name: "NAYER",
        columns={
            "score": lambda cell: _mean(cell, ".2f", "classifier_score", "mean"),
            "within / across rounds": _diversity,
        },
    ),
    Ablation("divergences", "D1 to D13", lambda name: "released"),
    Ablation(
        "methods",
        "All systems of Table 1 on one budget",
        lambda name: "NAYER",
        table=1,
        name=_system_name,
        columns={"ours: images": _images, "generator's rate": lambda cell: f"{cell.config.generator_lr:g}"},
    ),
    Ablation("rates", "The generator's learning rate, method by method", _at_the_middle_rate),
    Ablation("rates3", "The generator's learning rate, for each family of Table 3", _at_the_middle_rate),
)
BY_STEM = {ablation.stem: ablation for ablation in ABLATIONS}
