"""Tables 1 and 2, Figure 1 and the README's results as views of run cards, the paper's numbers beside ours."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from .. import files
from ..config import PRESETS, Config, make_config
from ..errors import UserError
from ..methods import KINDS
from ..plots import accuracy_against_hours, learning_curve, new_figure
from ..runs.card import card_config
from ..runs.statistics import Cell, cells, gap, reached, seedless
from . import paper

if TYPE_CHECKING:
    import pandas

# Our part of a row: heading -> how the column is aligned.
OURS = {"ours: last epoch": "--:", "gap [95 %]": "--:", "word": "---", "teacher": "--:"}
OURS |= {"best (chosen on the test set)": "--:", "n": "--:", "time a run: synthesis + student": "--:", "device": "---"}
BESIDE_PAPER = ("gap [95 %]", "word")
NOT_RUN = ["not run", None, "not run", None, None, "0", None, None]
PROTOCOLS = {"equal": "NAYER's budget", "published": "its own schedule for CIFAR-10"}


# --- Markdown


def markdown(columns: dict[str, str], rows: Iterable[Sequence[str | None]]) -> str:
    """A table in Markdown; columns: heading -> "---" for words, "--:" for numbers."""
    lines = [[f" {cell} " if cell is not None else " " for cell in row] for row in (list(columns), *rows)]
    return "\n".join(f"|{'|'.join(line)}|" for line in (lines[0], columns.values(), *lines[1:]))


def fill(page: str, parts: dict[str, str]) -> str:
    """A page with each part between its own two markers.

    Raises:
        UserError: the page does not have each marker once.
    """
    for name, part in parts.items():
        begin, end = f"<!-- {name}: made by `python -m nayer_lib report` -->", f"<!-- /{name} -->"
        if page.count(begin) != 1 or page.count(end) != 1:
            raise UserError(f"the text must hold {begin!r} and {end!r} once each.")
        page = page[: page.index(begin) + len(begin)] + f"\n{part}\n" + page[page.index(end) :]
    return page


def number(printed: float | None, row=None) -> str:
    """A printed number, or a dash where the paper has none; with the misprint of its row, where that has one."""
    mark = getattr(row, "misprint", "")
    return ("–" if printed is None else f"{printed:.2f}") + (f" ({mark})" if mark else "")


def accuracy(cell: Cell) -> str:
    """Last-epoch accuracy over the seeds, mean and spread."""
    return f"**{cell.mean:.1f}{'' if cell.spread is None else f' ± {cell.spread:.1f}'}**"


def clocks(cell: Cell) -> str:
    """Synthesis and student, and the whole run, which also scores and draws."""
    times = [cell.seconds(clock) for clock in ("synthesis", "student", "total")]
    if times[-1] < 3600:
        return "{:.0f} + {:.0f} of {:.0f} s".format(*times)
    return "{:.2f} + {:.2f} of {:.2f} h".format(*(seconds / 3600 for seconds in times))


def ours(cell: Cell | None, printed: float | None) -> list[str | None]:
    """Our part of a row, in the columns of `OURS`; `printed` is the paper's accuracy, None where it has none."""
    if cell is None:
        return NOT_RUN
    best, n = f"{statistics.mean(cell.best):.1f}", str(len(cell.last))
    judged = [gap(cell, printed), reached(cell, printed)]
    return [accuracy(cell), *judged, f"{cell.teacher:.1f}", best, n, clocks(cell), cell.device]


# --- which cells answer the paper's


def standard_cells(cards: list[dict]) -> list[Cell]:
    """The cells of a method's own schedule in which nothing but the number of epochs was changed in a preset.

    Arms of sweeps have other tables, those of an equal budget among them.
    """
    return [cell for cell in cells(cards) if _is_standard(cell.config)]


def _is_standard(config: Config) -> bool:
    if (config.method == "nayer") != (config.protocol == "equal"):  # Table 8 is NAYER's own schedule
        return False
    words = (config.variant, config.profile, config.method, config.protocol)
    presets = (make_config(name, *words) for name in PRESETS)
    return seedless(config) in [replace(preset, epochs=config.epochs) for preset in presets]


def answers(config: Config, row) -> bool:
    """Whether a config in which nothing but epochs was changed runs what a row of the paper's Table 1 or 2 prints.

    A row without a number of epochs is answered by those of the method's own schedule.
    """
    method = KINDS[config.method]
    epochs = row.epochs or method.published.get("epochs")
    names = (row.method, *_column(row)) == (method.name, *_column(config))
    return config.profile == "full" and names and config.epochs == epochs


def setting(config: Config) -> str:
    """What was run, in a few words: NAYER's variant, another method's protocol."""
    how = config.variant if config.method == "nayer" else PROTOCOLS[config.protocol]
    return f"{KINDS[config.method].name}, {how}, {config.profile}, E = {config.epochs}"


def _column(of) -> tuple[str, str, str]:
    """The column of Table 1 in which a row or a config stands."""
    return of.dataset, of.teacher, of.student


# --- the README


def readme(page: str, cards: list[dict], bench: dict) -> str:
    """README.md with the table of results and that of a card of `make bench`."""
    return fill(page, {"results": results_table(cards), "bench": bench_table(bench)})


def results_table(cards: list[dict]) -> str:
    """Two tables: our cells of unchanged presets on problems of our own; then NAYER's rows of the paper's Table 1."""
    columns = {"data set": "---", "teacher → student": "---", "method, variant or schedule, profile": "---"}
    found = [(cell.config, cell) for cell in standard_cells(cards)]
    run = [seedless(config) for config, _ in found]
    asked = [make_config(name, profile="full", epochs=300) for name in PRESETS]
    found += [(config, None) for config in asked if config not in run]
    own, of_paper = [], []
    for c, cell in found:
        head = [c.dataset, f"{c.teacher} → {c.student}", setting(c)]
        part = dict(zip(OURS, ours(cell, _printed(c)), strict=True))
        if _printed(c) is not None:
            of_paper.append([*head, number(_printed(c)), *part.values()])
        elif cell:
            own.append([*head, *(text for heading, text in part.items() if heading not in BESIDE_PAPER)])
    plain = {heading: aligned for heading, aligned in OURS.items() if heading not in BESIDE_PAPER}
    count = f"{sum(row[4] != 'not run' for row in of_paper)} of {len(of_paper)}"
    return (
        f"{markdown(columns | plain, own)}\n\n**{count} rows of the paper have been run:**\n\n"
        + markdown(columns | {f"paper ({paper.EDITION})": "--:"} | OURS, of_paper)
    )


def _printed(config: Config) -> float | None:
    """The accuracy in the paper's Table 1 for a config in which nothing but epochs was changed."""
    return next((row.accuracy for row in paper.rows(1) if answers(config, row)), None)


def bench_table(card: dict) -> str:
    """What `make bench` measured."""
    where = f"{card['device']}, torch {card['versions']['torch']}, {card['clock']} time"
    columns = {where: "---", "ours, ms": "--:", "plain, ms": "--:", f"ratio (min – max of {card['repeats']})": "--:"}
    rows = []
    for name, row in card["phases"].items():
        images = card["draw"] if name == "memory draw" else card["batch"]
        ratio = "**{ratio:.1f}** ({ratio_min:.1f} – {ratio_max:.1f})".format(**row)
        rows.append([f"{name}, {images} images", f"{row['ours_ms']:.1f}", f"{row['plain_ms']:.1f}", ratio])
    return markdown(columns, rows)


def draw_results(cards: list[dict], path: Path) -> None:
    """The README's picture: what the student saw, and its accuracy over the seeds of the kept quick run on digits."""
    import matplotlib.image

    chosen = [card for card in cards if seedless(card_config(card)) == make_config("digits")]
    if not chosen:
        raise UserError("no kept run of the quick profile on digits to draw: keep one with `python -m nayer_lib runs`.")
    figure, [left, right] = new_figure(columns=2, width=4.6, height=4.2)
    pictures = (files.data_dir() / "runs" / f"{card['id']}.png" for card in chosen)
    left.imshow(matplotlib.image.imread(next(path for path in pictures if path.is_file())))
    left.set_title("what the student learned from (10 of each class)")
    left.axis("off")
    for card in chosen:
        points = [(row["epoch"], 100 * row["accuracy"]) for row in card["curve"] if row["accuracy"] is not None]
        label = f"student, seed {card['config']['seed']}"
        learning_curve(right, *zip(*points, strict=True), 100 * card["teacher"]["accuracy"], 10.0, label)
    right.set_title("and what it learned: real test digits")
    with files.replacing(path) as temporary:
        figure.savefig(temporary, format="png")


# --- docs/tables.md


def tables_page(page: str, cards: list[dict]) -> str:
    """docs/tables.md: every row of Table 1 for each of its columns, then Table 2; what was not run says so."""
    found, table1, table2 = _full_cells(cards), paper.rows(1), paper.rows(2)
    parts = []
    for column in dict.fromkeys(map(_column, table1)):
        rows = [line for row in table1 if _column(row) == column for line in _lines(row, [], found)]
        parts += ["### {}: {} → {}".format(*column), markdown({"method": "---", "paper": "--:", **OURS}, rows)]
    hours = [row for row in table2 if row.hours]  # the others are averages of the data sets
    columns = {"method": "---", "paper: data set": "---", "accuracy": "--:", "hours (A100)": "--:", **OURS}
    rows = [line for row in hours for line in _lines(row, [row.dataset, number(row.hours)], found)]
    speeds = [
        [_name(row), number(row.speed_up, row), _speed_up(row, hours, found)] for row in table2 if row not in hours
    ]
    return fill(
        page,
        {
            "table1": "\n\n".join(parts),
            "table2": markdown(columns, rows),
            "speed-up": markdown({"method": "---", "paper": "--:", "ours, on one device": "--:"}, speeds),
        },
    )


def _full_cells(cards: list[dict]) -> list[Cell]:
    return [cell for cell in standard_cells(cards) if cell.config.profile == "full"]


def _lines(row, beside: list[str], found: list[Cell]) -> list[list[str | None]]:
    """The lines of a row of the paper: one for each protocol in which we ran it, or one that says "not run".

    Args:
        beside: what stands before and after the printed accuracy, in Table 2.
    """
    printed = [*beside[:1], number(row.accuracy, row), *beside[1:]]
    teachers = {f"{cell.teacher:.1f}" for cell in found if _column(cell.config) == _column(row)}
    if row.method == "Teacher" and teachers:
        return [["Teacher", *printed, ", ".join(sorted(teachers)), *[None] * 7]]
    ran = [(setting(cell.config), cell) for cell in found if answers(cell.config, row)]
    return [[name, *printed, *ours(cell, row.accuracy)] for name, cell in ran or [(_name(row), None)]]


def _speed_up(average, hours: list, found: list[Cell]) -> str:
    """How many times as fast as DeepInv a method is, the mean over the data sets, on each device that ran them all."""

    def seconds(method: str, epochs: int | None) -> list[dict[str, float]]:
        """Of each data set, by device."""
        ran = [cell for cell in found if cell.config.variant == "released"]
        rows = [row for row in hours if (row.method, row.epochs) == (method, epochs)]
        return [{cell.device: cell.seconds("total") for cell in ran if answers(cell.config, row)} for row in rows]

    pairs = list(zip(seconds(average.method, average.epochs), seconds("DeepInv", None), strict=True))
    devices = set.intersection(*(set(by_device) for pair in pairs for by_device in pair))
    times = {device: statistics.mean(slow[device] / fast[device] for fast, slow in pairs) for device in devices}
    return ", ".join(f"{times[device]:.2f} ({device})" for device in sorted(devices)) or "not run"


def _name(row) -> str:
    """A row's label, as Table 1 has it."""
    return f"{row.method}, E = {row.epochs}" if row.epochs else row.method


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
            f"{setting(cell.config)}, {cell.device}": (cell.seconds("total") / 3600, cell.mean, cell.spread)
            for cell in _full_cells(cards)
            if _column(cell.config) == column
        }
        accuracy_against_hours(ax, printed, measured)
        ax.set_title("{}: {} → {} (paper: one A100)".format(*column))
    with files.replacing(path) as temporary:
        figure.savefig(temporary, format="png")


# --- for notebooks


def arms_table(arms: dict[str, list[dict]]) -> "pandas.DataFrame":
    """A sweep's arms, one a row, from its cards (`sweep.arm_cards`): mean over seeds, and the spread of the accuracy.

    Columns: n (seeds); accuracy (last epoch, percent) and its sample sd; the mean L_CE at the first, fifth, fifteenth
    and last generator step; the share of rounds that reach CE < 1; diversity within and across rounds.
    """
    import pandas as pd

    runs = []
    for arm, card in ((arm, card) for arm, cards in arms.items() for card in cards):
        run = {"arm": arm, "accuracy": 100 * card["accuracy_last"]}
        if "metrics" in card:  # else measuring failed, and the card says why
            ce, metrics = card["metrics"]["ce_by_step"], card["metrics"]
            run |= {f"CE {t}": ce[t - 1] for t in (1, 5, 15, len(ce)) if t <= len(ce)}
            run |= {"CE < 1": metrics["convergence"]["1.0"]["success"], **metrics["diversity"]}
        runs.append(run)
    groups = pd.DataFrame(runs).groupby("arm", sort=False)
    whole = groups.count().eq(groups.size(), axis=0)  # one seed without a value, and the arm has no mean
    table = groups.mean().where(whole).dropna(axis=1, how="all")
    table.insert(1, "sd", groups["accuracy"].std())
    table.insert(0, "n", groups.size())
    return table.reindex(list(arms)).rename_axis(None).fillna({"n": 0}).astype({"n": int})
