"""The ablations as views of the cards of sweeps: Tables 3, 4, 5, 10 and 11 of the paper, the terms of Eq. 5, D1-D13.

A file data/sweeps/<stem>_<data set>.json holds the arms of one table on one problem. An arm that answers a printed row
bears that row's name; the other arms are ours. What the tables are about stands in docs/ablations.md.
"""

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .. import files
from ..config import Config
from ..errors import unknown
from ..methods import METHODS
from ..methods.inversion import Inversion
from ..runs.rule import RUNS, RUNS_ALONE, Contrast, contrasts
from ..runs.statistics import Cell, by_config, by_seed, seedless
from ..runs.sweep import Sweep, read_sweep
from . import paper

if TYPE_CHECKING:
    import pandas

# The data sets of the sweeps, each with the one of the paper that stands beside it where a table has several.
PROBLEMS = {"cifar10": "cifar10", "cifar100": "cifar100", "digits": "cifar10", "color_digits": "cifar100"}


DECIDED = ("shows", "does not show", "reproduced", "partly", "not", "gain", "loss", "no effect")


@dataclass(frozen=True)
class Line:
    """A row of the paper, an arm of ours, or both.

    Attributes:
        name, against: of the row, and of the one that it is compared with.
        row: as the paper prints it (`paper.rows`); None for an arm of our own.
        printed: the paper's difference between the two, in points; None where it has none.
        cell: our runs of one protocol; None if there are none.
        contrast: ours, of the same protocol; None for a reference and where one of the two has no runs.
        measured: further contrasts of the same two, by what was measured.
        silent: why there is no word about this row, whatever its numbers; "" for most.
        data_of_paper: whether the problem is one of the paper's own.
    """

    name: str
    against: str
    row: object | None
    printed: float | None
    cell: Cell | None
    contrast: Contrast | None = None
    measured: dict[str, Contrast] = field(default_factory=dict)
    silent: str = ""
    data_of_paper: bool = False

    @property
    def word(self) -> str:
        """What `rule` says of a printed row or an arm of our own, or why it says nothing."""
        if not self.cell:
            return "not run"
        if self.against == self.name:
            return "reference"
        if self.silent or not self.contrast:
            return self.silent or "no reference"
        of = self.contrast
        word = of.word if self.printed is None else of.shows(self.printed, self.data_of_paper)
        return f"{word}, n = {of.n}" if of.n < RUNS_ALONE and word in DECIDED else word

    @property
    def difference(self) -> str:
        """The difference, and from three runs on its interval; "" for none."""
        if not (of := self.contrast):
            return ""
        mean, low, high = (f"{round(x, 2) + 0.0:+.2f}" for x in (of.difference, of.low, of.high))  # never -0.00
        return f"{mean} [{low}, {high}]" if of.n >= RUNS else mean


Column = str | Callable[[Cell], str]  # one of the paper's by its name, or text about our cell


@dataclass(frozen=True)
class Measure:
    """What is compared beside the accuracy.

    Attributes:
        of: a card's metrics -> a number, or None.
        small: a difference that counts for none.
    """

    of: Callable[[dict], float | None]
    small: float

    def by_seed(self, cell: Cell) -> dict[int, float]:
        """Its numbers for the seeds of a cell that have one."""
        values = {card["config"]["seed"]: self.of(card.get("metrics", {})) for card in cell.cards}
        return {seed: value for seed, value in values.items() if value is not None}


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
        measures: what is compared beside the accuracy, heading -> measure.
        silent: the reason why a row of a name on a data set gets no word; "" for most.
    """

    stem: str
    title: str
    against: Callable[[str], str]
    table: int | None = None
    name: Callable[[object], str | None] | None = None
    columns: dict[str, Column] = field(default_factory=dict)
    measures: dict[str, Measure] = field(default_factory=dict)
    silent: Callable[[str, str], str] = lambda name, dataset: ""

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
        rows = self.rows(dataset)
        names = [*rows, *(arm for arm in sweep.arms if arm not in rows)]
        asked = {name: found.get(seedless(sweep.arms[name][0]), []) if name in sweep.arms else [] for name in names}
        ran = {name: {c.protocol: c for c in cells if c.split == sweep.split} for name, cells in asked.items()}
        references = {name: self.against(name) for name in names}
        compared = {}
        for protocol in {protocol for cells in ran.values() for protocol in cells}:
            cells = {name: cells[protocol] for name, cells in ran.items() if protocol in cells}
            compared[protocol] = self._contrasts(cells, references, sweep)
        lines = []
        for name, against in references.items():
            numbers = [getattr(rows.get(row), "accuracy", None) for row in (name, against)]
            printed = None if name == against or None in numbers else numbers[0] - numbers[1]
            about = {"silent": self.silent(name, dataset), "data_of_paper": _of_paper(sweep)}
            for protocol, cell in (ran[name] or {None: None}).items():
                contrast, measured = (x.get(name) for x in compared.get(protocol, ({}, {})))
                lines.append(Line(name, against, rows.get(name), printed, cell, contrast, measured or {}, **about))
        return lines

    def _contrasts(
        self, cells: dict[str, Cell], references: dict[str, str], sweep: Sweep
    ) -> tuple[dict[str, Contrast], dict[str, dict[str, Contrast]]]:
        """By row: the contrast in accuracy, and those of what else is measured, by its heading."""
        resolved = 100 / min(cell.cards[0]["test_split"]["images"] for cell in cells.values())
        accuracies = {name: by_seed(cell) for name, cell in cells.items()}
        of_accuracy = contrasts(accuracies, references, sweep.primary, floor=resolved)
        measured: dict[str, dict[str, Contrast]] = {}
        for heading, measure in self.measures.items():
            values = {name: measure.by_seed(cell) for name, cell in cells.items()}
            for name, contrast in contrasts(
                values, references, sweep.primary, measure.small, floor=measure.small / 10
            ).items():
                measured.setdefault(name, {})[heading] = contrast
        return of_accuracy, measured


def _of_paper(sweep: Sweep) -> bool:
    """Whether a sweep runs on a pair of networks and a data set of the paper's Table 1."""
    config = next(iter(sweep.arms.values()))[0]
    column = config.dataset, config.teacher, config.student
    return column in {(row.dataset, row.teacher, row.student) for row in paper.rows(1)}


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

    Columns: what the paper prints and its difference; our accuracy with its sd and n; our difference with its 95 %
    interval and Holm's p; the word, and the row against which it is said.
    """
    import pandas as pd

    lines = lines_of(stem, dataset, cards)

    def of(contrast: str) -> list[float | None]:
        return [getattr(line.contrast, contrast, None) for line in lines]

    columns = {
        "paper": [line.row and line.row.accuracy for line in lines],
        "paper diff": [line.printed for line in lines],
        "ours": [line.cell and line.cell.mean for line in lines],
        "sd": [line.cell and line.cell.spread for line in lines],
        "n": [len(line.cell.last) if line.cell else 0 for line in lines],
        "diff": of("difference"),
        "low": of("low"),
        "high": of("high"),
        "p": of("p"),
        "word": [line.word for line in lines],
        "against": ["" if line.against == line.name else line.against for line in lines],
    }
    types = {name: float for name in columns.keys() - {"n", "word", "against"}}
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
    """Steps to a cross-entropy, those of a round that fails counted as one more than it has; the share that reaches."""
    steps = _mean(cell, ".1f", "convergence", threshold, "restricted")
    return steps if steps == "–" else f"{steps} ({_mean(cell, '.0%', 'convergence', threshold, 'success')})"


def _steps_to(threshold: str) -> Measure:
    """Those steps; one step counts for none."""
    return Measure(lambda metrics: metrics.get("convergence", {}).get(threshold, {}).get("restricted"), 1.0)


def _log_diversity(where: str) -> Measure:
    """The logarithm of a diversity, of which 10 % count for none, and which a grey level of 255 bounds from below."""

    def of(metrics: dict) -> float | None:
        value = metrics.get("diversity", {}).get(where)
        return None if value is None else math.log(max(value, 1 / 255))

    return Measure(of, math.log(1.1))


def _diversity(cell: Cell) -> str:
    return " / ".join(_mean(cell, ".3f", "diversity", key) for key in ("within", "across"))


def _memory(cell: Cell) -> str:
    size, synthesized = cell.config.memory_size, cell.config.total_rounds * cell.config.generator_batch
    if size is None or size >= synthesized:
        return f"all {synthesized}"
    return f"{size} ({size / synthesized:.1%})"


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


UNTUNED = "untuned: no word"


def _untuned_sota(name: str, dataset: str) -> str:
    """SpaceshipNet's rate was chosen on the digits alone."""
    return UNTUNED if name == "SOTA" and dataset != "digits" else ""


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
        measures={
            "steps to CE < 1": _steps_to("1.0"),
            "diversity within": _log_diversity("within"),
            "diversity across": _log_diversity("across"),
        },
    ),
    Ablation(
        "table4", "Table 4", lambda name: "SBERT", 4, lambda row: row.encoder or row.method, silent=_untuned_sota
    ),
    Ablation("table5", "Table 5", lambda name: "P2", 5, lambda row: row.prompt or row.method, silent=_untuned_sota),
    Ablation("table10", "Table 10", _against_full, 10, _memory_name, {"ours: images in the memory": _memory}),
    Ablation(
        "table11",
        "Table 11",
        _against_nayer,
        11,
        lambda row: f"{row.method}, g = {row.generator_steps}",
        silent=lambda name, dataset: UNTUNED if name.startswith("FM") else "",
    ),
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
        silent=lambda name, dataset: UNTUNED if name in ("FM", "CMI", "DeepInv") else "",
    ),
    Ablation("divergences", "D1 to D13", lambda name: "released"),
    Ablation(
        "methods",
        "All systems of Table 1 on one budget",
        lambda name: "NAYER",
        table=1,
        name=_system_name,
        columns={"ours: images": _images, "generator's rate": lambda cell: f"{cell.config.generator_lr:g}"},
        silent=lambda name, dataset: "guessed weights: no word" if name == "MAD" else "",
    ),
    Ablation("rates", "The generator's learning rate, method by method", _at_the_middle_rate),
    Ablation("rates3", "The generator's learning rate, for each family of Table 3", _at_the_middle_rate),
)
BY_STEM = {ablation.stem: ablation for ablation in ABLATIONS}
