"""Tables 1 and 2 and Figure 1 of the paper, with our kept runs beside every printed number."""

import statistics
from pathlib import Path

from .. import files
from ..plots import accuracy_against_hours, new_figure
from . import paper
from .tables import NEAR, OURS, OURS_LINE, SMALL, Cell, answers, number, ours, setting, standard_cells

HEAD = f"""\
# Tables 1 and 2 of the paper, and what we ran

Made by `python -m nayer_lib report` from the cards in [data/runs](../data/README.md) and the numbers in data/paper,
which are those of the {paper.EDITION}, not of the CVPR version. Accuracies are in percent, gaps in points.

- **Ours** is the accuracy of the **last epoch**, mean and standard deviation over n seeds. "Best" is the maximum over
  epochs, chosen on the test set, as the authors' code reports it. "Better" is written from three seeds on, and only
  where the 95 % confidence interval of the gap (Student's t) lies above 0.
- **Verdict**, from three seeds on: *reproduced* where the mean is at most {SMALL:g} point below the printed number,
  *partly* up to {NEAR:g} points (as far as other groups' runs of public code lie from it), else *not*.
- **Time** is that of a whole run on the device named, with its two clocks: synthesis, and the student's steps. Times
  on different devices cannot be compared, nor can the paper's hours with those of its sources (misprint m10).
- Only full runs of unchanged presets stand here, each method on its own published schedule (that for CIFAR-10). All
  methods on one budget stand in [ablations.md](ablations.md#all-systems-of-table-1-on-one-budget).
- Runs of different protocols (config, teacher, test split, device, precision, compilation) are never averaged: each has
  its own line.
- A dash is a cell that the paper leaves out. (m1) and the like are [misprints](../data/paper/misprints.csv)."""
FIGURE = """\
## Figure 1: accuracy against time

![Test accuracy against hours of training on a logarithmic axis, CIFAR-10 on the left and CIFAR-100 on the right. \
Hollow markers are the paper's methods; filled ones are ours, where there are any.](figure1.png)"""


def tables_page(cards: list[dict]) -> str:
    """docs/tables.md: every row of Table 1 for each of its columns, then Table 2; what was not run says so."""
    cells, rows = _full_cells(cards), paper.rows(1)
    parts = [HEAD, "## Table 1: accuracy"]
    for column in dict.fromkeys(map(_column, rows)):
        lines = [f"| method | paper | {OURS}", f"|---|--:|{OURS_LINE}"]
        for row in rows:
            if _column(row) == column:
                lines += _lines(row, f"{number(row.accuracy)}{mark(row)}", cells)
        parts += ["### {}: {} → {}".format(*column), "\n".join(lines)]
    return "\n\n".join([*parts, *_table_2(cells), FIGURE]) + "\n"


def draw_figure_1(cards: list[dict], path: Path) -> None:
    """docs/figure1.png: the paper's points from Table 2, and our full runs of its pair, where there are any."""
    figure, axes = new_figure(columns=2, width=5.5, height=4.5)
    rows = [row for row in paper.rows(2) if row.hours]
    for ax, column in zip(axes, dict.fromkeys(map(_column, rows)), strict=True):
        printed: dict[str, list[tuple[float, float]]] = {}
        for row in rows:
            if _column(row) == column:
                printed.setdefault(row.method, []).append((row.hours, row.accuracy))
        measured = {
            f"{setting(cell.config)}, {cell.device}": (statistics.mean(cell.seconds) / 3600, cell.mean, cell.spread)
            for cell in _full_cells(cards)
            if _column(cell.config) == column
        }
        accuracy_against_hours(ax, printed, measured)
        ax.set_title("{}: {} → {} (paper: one A100)".format(*column))
    with files.replacing(path) as temporary:
        figure.savefig(temporary, format="png")


def _full_cells(cards: list[dict]) -> list[Cell]:
    return [cell for cell in standard_cells(cards) if cell.config.profile == "full"]


def _column(of) -> tuple[str, str, str]:
    """The column of Table 1 in which a row or a config stands."""
    return of.dataset, of.teacher, of.student


def _lines(row, printed: str, cells: list[Cell]) -> list[str]:
    """The lines of a row of the paper: one for each protocol in which we ran it, or one that says "not run"."""
    teachers = {f"{cell.teacher:.1f}" for cell in cells if _column(cell.config) == _column(row)}
    if row.method == "Teacher" and teachers:
        return [f"| Teacher | {printed} | {', '.join(sorted(teachers))} | | | | | | | |"]
    found = [cell for cell in cells if answers(cell.config, row)]
    named = [(setting(cell.config), cell) for cell in found] or [(_name(row), None)]
    return [f"| {name} | {printed} | {ours(cell, row.accuracy)}" for name, cell in named]


def _table_2(cells: list[Cell]) -> list[str]:
    """Table 2 in two parts: what a method reaches in its hours, and how many times as fast as DeepInv it is."""
    rows = paper.rows(2)
    lines = [f"| method | paper: data set | accuracy | hours (A100) | {OURS}", f"|---|---|--:|--:|{OURS_LINE}"]
    speeds = ["| method | paper | ours, on one device |", "|---|--:|--:|"]
    for row in rows:
        if row.hours:
            lines += _lines(row, f"{row.dataset} | {number(row.accuracy)}{mark(row)} | {number(row.hours)}", cells)
        else:  # the average of the data sets
            fast = [r for r in rows if r.hours and (r.method, r.epochs) == (row.method, row.epochs)]
            slow = [r for r in rows if r.hours and r.method == "DeepInv"]
            speeds.append(f"| {_name(row)} | {number(row.speed_up)}{mark(row)} | {_speed_up(fast, slow, cells)} |")
    title = "## Table 2: time, {1} → {2}".format(*_column(rows[0]))
    average = "Times as fast as DeepInv, mean over both data sets (ours: released variant, the same device for both):"
    return [title, "\n".join(lines), average, "\n".join(speeds)]


def _speed_up(fast: list, slow: list, cells: list[Cell]) -> str:
    """Our speed-up on each device on which rows `fast` and rows `slow` were run, a row a data set."""

    def seconds(row) -> dict[str, float]:
        ran = [cell for cell in cells if answers(cell.config, row) and cell.config.variant == "released"]
        return {cell.device: statistics.mean(cell.seconds) for cell in ran}

    times = [(seconds(a), seconds(b)) for a, b in zip(fast, slow, strict=True)]
    devices = set.intersection(*(set(by_device) for pair in times for by_device in pair))
    told = [f"{statistics.mean(b[device] / a[device] for a, b in times):.2f} ({device})" for device in sorted(devices)]
    return ", ".join(told) or "not run"


def _name(row) -> str:
    """A row's label, as Table 1 has it."""
    return f"{row.method}, E = {row.epochs}" if row.epochs else row.method


def mark(row) -> str:
    """The misprint of a row of the paper, in brackets; the files of some tables have no such column."""
    return f" ({row.misprint})" if getattr(row, "misprint", "") else ""
