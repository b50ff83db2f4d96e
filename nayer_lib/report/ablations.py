"""The ablations as views of the cards of sweeps: Tables 3, 4, 5, 10 and 11 of the paper, the terms of Eq. 5, D1-D13.

A file data/sweeps/<stem>_<data set>.json holds the arms of one table on one problem. An arm that answers a printed row
bears that row's name; the other arms are ours.
"""

import re
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .. import files
from ..config import DIVERGENCES, Config
from ..errors import UserError, unknown
from ..methods import METHODS
from ..methods.inversion import Inversion
from ..runs.card import kept_files
from ..runs.sweep import Sweep, read_sweep
from . import paper
from .comparison import mark
from .tables import SMALL, Cell, accuracy, cells, clocks, interval, number, seedless

if TYPE_CHECKING:
    import pandas

# The data sets of the sweeps, each with the one of the paper that stands beside it where a table has several.
PROBLEMS = {"cifar10": "cifar10", "cifar100": "cifar100", "digits": "cifar10", "color_digits": "cifar100"}


def effect(differences: Sequence[float]) -> str:
    """What a change does to the accuracy, from its paired differences in points, one a seed.

    "not run" without any, "n < 3: no verdict" for fewer than three. "gain" or "loss": their 95 % confidence interval
    lies on one side of 0, and their mean is `SMALL` or more. "no effect": the whole interval is smaller than `SMALL`.
    Else "open": these seeds do not decide.
    """
    sure = interval(differences)
    if sure is None:
        return "n < 3: no verdict" if differences else "not run"
    (low, high), mean = sure, statistics.mean(differences)
    if low > 0 and mean >= SMALL:
        return "gain"
    if high < 0 and mean <= -SMALL:
        return "loss"
    return "no effect" if low > -SMALL and high < SMALL else "open"


def verdict(differences: Sequence[float], printed: float) -> str:
    """Whether our paired differences, one a seed, show the difference that the paper prints; all in points.

    The paper's is a gain or a loss if it is `SMALL` or more, else no effect. "not": ours is another `effect`. "partly":
    the same, of less than half its size. "reproduced": the same, of at least half its size, or no effect in both.
    Where our seeds do not decide, or there are too few, it says that as `effect` does.
    """
    ours = effect(differences)
    if ours not in ("gain", "loss", "no effect"):
        return ours
    if ours != ("no effect" if abs(printed) < SMALL else "gain" if printed > 0 else "loss"):
        return "not"
    return "reproduced" if ours == "no effect" or 2 * abs(statistics.mean(differences)) >= abs(printed) else "partly"


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


@dataclass(frozen=True)
class Ablation:
    """A table: which rows it has, and what each is compared with.

    Attributes:
        stem: of its sweep files.
        table: its number in the paper; None if it is ours.
        name: the name of a printed row; None for one that has no arm here.
        against: the name of the row with which one of a name is compared; its own for a reference.
        columns: what it tells beside the accuracy, heading -> text of a line.
    """

    stem: str
    title: str
    note: str
    against: Callable[[str], str]
    table: int | None = None
    name: Callable[[object], str | None] | None = None
    columns: dict[str, Callable[[Line], str]] = field(default_factory=dict)

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
        rows, lines = self.rows(dataset), []
        for name in [*rows, *(arm for arm in sweep.arms if arm not in rows)]:
            against = self.against(name)
            numbers = [getattr(rows.get(row), "accuracy", None) for row in (name, against)]
            printed = None if name == against or None in numbers else numbers[0] - numbers[1]
            for cell in _cells_of(sweep, name, found) or [None]:
                references = _cells_of(sweep, against, found) if cell and name != against else []
                pairs = [_differences(cell, other) for other in references if other.protocol == cell.protocol]
                lines.append(Line(name, against, rows.get(name), printed, cell, sum(pairs, [])))
        return lines


def _cells_of(sweep: Sweep, arm: str, found: dict[Config, list[Cell]]) -> list[Cell]:
    if arm not in sweep.arms:
        return []
    return [cell for cell in found.get(seedless(sweep.arms[arm][0]), []) if cell.split == sweep.split]


def _differences(cell: Cell, other: Cell) -> list[float]:
    """Accuracy of the one minus that of the other for each seed that both have."""
    ours, theirs = (dict(zip((card["config"]["seed"] for card in c.cards), c.last, strict=True)) for c in (cell, other))
    return [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]


def lines_of(stem: str, dataset: str, cards: list[dict]) -> list[Line]:
    """The lines of one table on one problem.

    Raises:
        UserError: no such table, or no sweep file of it on this data set; the nearest is named.
    """
    tables = {ablation.stem: ablation for ablation in ABLATIONS}
    if stem not in tables:
        raise unknown("ablation", stem, tables)
    sweeps = tables[stem].sweeps()
    if dataset not in sweeps:
        raise unknown(f"problem of {stem}", dataset, sweeps)
    return tables[stem].lines(dataset, sweeps[dataset], _by_config(cards))


def frame(stem: str, dataset: str, cards: list[dict]) -> "pandas.DataFrame":
    """`lines_of` as a table of numbers, for notebooks: a row a line; percent and points, nan where there is none.

    Columns: what the paper prints and its difference; our accuracy with its sd and n; our difference with its sd; the
    verdict.
    """
    import pandas as pd

    def numbers(line: Line) -> dict:
        cell, apart = line.cell, line.differences
        return {
            "paper": line.row and line.row.accuracy,
            "paper diff": line.printed,
            "ours": cell and cell.mean,
            "sd": cell and cell.spread,
            "n": len(cell.last) if cell else 0,
            "diff": statistics.mean(apart) if apart else None,
            "sd diff": statistics.stdev(apart) if len(apart) > 1 else None,
            "verdict": line.verdict,
        }

    lines = lines_of(stem, dataset, cards)
    table = pd.DataFrame([numbers(line) for line in lines], index=[line.name for line in lines])
    return table.astype({name: float for name in ("paper", "paper diff", "ours", "sd", "diff", "sd diff")})


def _by_config(cards: list[dict]) -> dict[Config, list[Cell]]:
    found: dict[Config, list[Cell]] = {}
    for cell in cells(cards):
        found.setdefault(seedless(cell.config), []).append(cell)
    return found


# --- the tables -------------------------------------------------------------------------------------------------------


def _ours(told: Callable[[Cell], str]) -> Callable[[Line], str]:
    """A column of ours: empty where nothing ran."""
    return lambda line: told(line.cell) if line.cell else ""


# Heading -> text of a line. PRINTED only in tables of the paper; a table's own columns stand before TIME.
NAME = {"row": lambda line: line.name}
PRINTED = {
    "paper: accuracy": lambda line: number(line.row.accuracy) + mark(line.row) if line.row else "–",
    "paper: difference": lambda line: "" if line.printed is None else f"{line.printed:+.2f}",
}
OURS = {
    "ours: last epoch": lambda line: f"{accuracy(line.cell)} (n = {len(line.cell.last)})" if line.cell else "not run",
    "ours: difference": lambda line: line.difference,
    "against": lambda line: "" if line.against == line.name else line.against,
    "verdict": lambda line: line.verdict,
}
TIME = {"time a run: synthesis + student": _ours(clocks), "device": _ours(lambda cell: cell.device)}
WORDS = ("row", "against", "verdict", "device")  # columns to the left; the others are numbers

KTO1, KEPT = "NAYER(Kto1)", ", G kept"


def _against_kto1(name: str) -> str:
    """An arm whose generator is kept is compared with K-to-1 under a kept generator, and that one with K-to-1."""
    return KTO1 + KEPT if name.endswith(KEPT) and name != KTO1 + KEPT else KTO1


def _printed(column: str) -> Callable[[Line], str]:
    """A column of the paper's table."""

    def told(line: Line) -> str:
        value = getattr(line.row, column, None)
        return "–" if value is None else f"{value:g}"

    return told


def _measured(cell: Cell, metric: str) -> list[dict]:
    """A metric of each run; the oldest cards have none."""
    return [card["metrics"][metric] for card in cell.cards if "metrics" in card]


def _mean(values: Iterable[float | None], text: str) -> str:
    """Over the seeds that have a value."""
    values = [value for value in values if value is not None]
    return format(statistics.mean(values), text) if values else "–"


def _steps(cell: Cell, threshold: str) -> str:
    """Steps to a cross-entropy, the mean over the rounds that reach it, and the share of those."""
    seeds = [seed[threshold] for seed in _measured(cell, "convergence")]
    share = _mean((seed["success"] for seed in seeds), ".0%")
    return f"{_mean((seed['mean'] for seed in seeds), '.1f')} ({share})" if any(s["success"] for s in seeds) else "–"


def _diversity(cell: Cell) -> str:
    seeds = _measured(cell, "diversity")
    return " / ".join(_mean((seed[key] for seed in seeds), ".3f") for key in ("within", "across"))


def _memory(cell: Cell) -> str:
    size, made = cell.config.memory_size, cell.config.total_rounds * cell.config.generator_batch
    return f"all {made}" if size is None else f"{size} ({size / made:.1%})"


def _images_made(cell: Cell) -> str:
    """Images that the student could learn from: those kept, or those of all its steps, some of them replayed."""
    config = cell.config
    if issubclass(METHODS[config.method], Inversion):
        return f"{config.total_rounds * config.generator_batch} kept"
    steps = config.repeats * config.distillation_epochs * config.student_steps
    return f"{steps * config.student_batch} fresh"


def _system_name(row) -> str | None:
    """A system's row of Table 1 in the column of the sweeps' pair; the reference rows have no arm."""
    if (row.teacher, row.student) != ("wrn40_2", "wrn16_2") or row.epochs not in (300, None):
        return None
    return None if row.method in ("Teacher", "Student") else row.method


def _at_the_middle_rate(name: str) -> str:
    """The arm of the same method at the middle one of its three rates."""
    method, _, _ = name.partition(",")
    return f"{method}, {0.1 if method in ('DeepInv', 'KAKR_MB', 'KAKR_GR') else 0.004:g}"


def _memory_name(row) -> str:
    size = f"{row.memory // 1000}k" if row.memory else "Full"
    return row.method if row.method == "SOTA" else f"{row.method}, {size}"


ABLATIONS = (
    Ablation(
        "table3",
        "Table 3: what enters the generator",
        """\
The paper: CIFAR-10 (m12), wrn40_2 → wrn16_2, E = 100. Steps to a cross-entropy are generator steps of a round (m13), on
average over the rounds that reach it; ours have the share of those beside them. The paper's diversity has no formula;
ours is the root mean square distance a pixel between two images of a class, from one round / from two rounds.
NAYER(woRI) has K-to-1's heads and never redraws them. "G kept": the generator is never rebuilt either (D5).""",
        _against_kto1,
        table=3,
        name=lambda row: row.input,
        columns={
            "paper: steps to CE < 0.1": _printed("steps"),
            "ours: steps to CE < 0.1": _ours(lambda cell: _steps(cell, "0.1")),
            "to CE < 1": _ours(lambda cell: _steps(cell, "1.0")),
            "paper: diversity": _printed("diversity"),
            "ours: within / across rounds": _ours(_diversity),
        },
    ),
    Ablation(
        "table4",
        "Table 4: the text encoder",
        """\
The paper: wrn40_2 → wrn16_2, E = 300; SOTA is SpaceshipNet, ours at its own rate and on NAYER's budget. All rows are
compared with SBERT, whose embeddings every problem has; the digits have none of CLIP. Ours, in place of SBERT's
vectors: "orthogonal" are random ones without structure, "permuted text" are its own given to the wrong classes,
"two-hot" has the classes' structure (ink and digit, superclass and class) without language.""",
        lambda name: "SBERT",
        table=4,
        name=lambda row: row.encoder or row.method,
    ),
    Ablation(
        "table5",
        "Table 5: the prompt",
        """\
The paper: wrn40_2 → wrn16_2, E = 300; SOTA is SpaceshipNet. P1 is "A class of {name}.", P2 the same without the full
stop, P3 "A photo of class {index}". Ours: "a {name}", as the released embeddings have it (D9), and "a photo of a
{name}". The encoder is SBERT on the digits, CLIP on CIFAR.""",
        lambda name: "P2",
        table=5,
        name=lambda row: row.prompt or row.method,
    ),
    Ablation(
        "table10",
        "Table 10: the size of the memory",
        """\
The paper: CIFAR-10, wrn40_2 → wrn16_1, E = 300 (m21); SOTA is SpaceshipNet. On our problems a row's memory is the same
share of all images as in the paper, where the released code makes 320,000 in 300 epochs.""",
        lambda name: f"{'NAYER' if name == 'SOTA' else name.partition(',')[0]}, Full",
        table=10,
        name=_memory_name,
        columns={"ours: images in the memory": _ours(_memory)},
    ),
    Ablation(
        "table11",
        "Table 11: generator steps a round",
        """\
The paper: CIFAR-100, wrn40_2 → wrn16_2, E = 300 (m23). NAYER is compared with itself at g = 40, FM with NAYER at the
same g. FM has NAYER's generator, with the further linear layer; ours beside it: with its own. Runs of different g have
different budgets; that is what the table is about.""",
        lambda name: "NAYER, g = 40" if name.startswith("NAYER") else f"NAYER, {name.partition(', ')[2]}",
        table=11,
        name=lambda row: f"{row.method}, g = {row.generator_steps}",
    ),
    Ablation(
        "eq5",
        "The terms of Eq. 5",
        "Ours; the paper has no such table. BN momentum is D8 of [divergences.md](divergences.md).",
        lambda name: "all terms",
    ),
    Ablation(
        "redraw",
        "Redrawing, with and without an opponent",
        """\
Ours. Where does redrawing the noisy layer show? G is never rebuilt here, so that nothing else is redrawn. "One layer":
one head for the whole batch, which then varies across rounds alone. On color_digits a batch holds each of the 50
classes once: NAYER's K-to-1 is one layer. "No L_KL": the generator does not play against the student.""",
        lambda name: name.replace("redrawn", "kept") if "redrawn" in name else "one layer, kept",
        columns={"within / across rounds": _ours(_diversity)},
    ),
    Ablation(
        "figure5",
        "Figure 5: generation strategies",
        """\
The paper draws cross-entropy, inception score and diversity at each generator step; notebook 05 does, from these runs.
Ours: the score is a judge's on 1,000 images, from 1 to K; the diversity as under Table 3.""",
        lambda name: "NAYER",
        columns={
            "score": _ours(lambda cell: _mean((m["mean"] for m in _measured(cell, "classifier_score")), ".2f")),
            "within / across rounds": _ours(_diversity),
        },
    ),
    Ablation(
        "divergences",
        "D1 to D13: the paper's text against the released code",
        """\
Ours: each row of [divergences.md](divergences.md) alone, as the paper has it and the released code does not, and all of
them at once ("paper"). D4 and D6 change how much is spent.""",
        lambda name: "released",
    ),
    Ablation(
        "methods",
        "All systems of Table 1 on one budget",
        """\
The paper: Table 1, wrn40_2 → wrn16_2, each system on its own schedule and code. Ours: one loop, one teacher, one
generator, one evaluation, and NAYER's budget for everyone: as many student steps and student images, as many images
through the teacher in synthesis. Loss weights are each method's own. On the digits one rate of each is the best of
three on the validation split (next table); on CIFAR-10 all are the methods' own. A verdict here is on the direction:
how many points lie between two methods depends on problem and budget.

What holds the weakest down on the digits: without L_BN the images are far from the data (all methods without it end
below 83 %, and DFQ loses as much when it is taken away). CMI starts its generator over in every round, and 20 steps are
few for that. KAKR_GR replays what its VAE makes, and 256 steps teach that little. DFAD's generator outruns the student
if it has as many steps, so it keeps its own turn of one to five; ZSKT and DFAD have nothing but an opponent, and their
seeds lie far apart. MAD's weights are guesses: it has no public code. DAFL and DFAD are not in the paper's table. Rows
on each method's own schedule, as far as they were run, stand in [tables.md](tables.md).""",
        lambda name: "NAYER",
        table=1,
        name=_system_name,
        columns={
            "ours: images": _ours(_images_made),
            "generator's rate": _ours(lambda cell: f"{cell.config.generator_lr:g}"),
        },
    ),
    Ablation(
        "rates",
        "The generator's learning rate, method by method",
        """\
Ours: how the rates of the table above were chosen, on the validation split. The teacher was trained on its images too;
the student sees none of them. One seed an arm: enough to choose by, not to compare by. DeepInv's rate is that of its
pixels, KAKR's that of its inner step (its generator has that of MBDFKD and PREKD).""",
        _at_the_middle_rate,
    ),
    Ablation(
        "rates3",
        "The generator's learning rate, for each family of Table 3",
        """\
Ours, on the validation split: a random input, a constant one, their sum and a redrawn layer, each at three rates. Table
3 is run at 0.004, the released code's.""",
        _at_the_middle_rate,
    ),
)

HEAD = f"""\
# The paper's ablations, and ours

Made by `python -m nayer_lib report` from the cards in [data/runs](../data/README.md) and the numbers in data/paper,
which are those of the {paper.EDITION}, not of the CVPR version. Accuracies are in percent, differences in points.

- **Ours** is the accuracy of the **last epoch**, mean and standard deviation over n seeds.
- **Difference**: to the row named under "against". Ours is paired by seed: mean and standard deviation of the seeds'
  differences, between runs of one teacher, test split, device and precision; others have lines of their own.
- **Our effect** is a *gain* or a *loss* if the 95 % confidence interval of the mean difference (Student's t, three
  seeds or more) lies on one side of 0 and the mean is {SMALL:g} point or more; *no effect* if the whole interval lies
  within ±{SMALL:g} point; else *open*: these seeds do not decide.
- **Verdict** on a row that the paper prints; its own effect is a gain or a loss from {SMALL:g} point on. *Reproduced*:
  ours is the same effect; *partly*: the same, but less than half its size; *not*: another one; *open* as above. A row
  that is ours alone has our effect here. *Not run*: no cards of the row, or of the one that it is compared with.
- The digits are our laptop problems: a verdict there says whether the effect shows on a small problem. Beside digits
  stand the paper's CIFAR-10 numbers, beside color_digits those of CIFAR-100, where it prints both.
- **Time** is that of a whole run on the device named, with its two clocks: synthesis, and the student's steps. Most of
  the laptop runs shared their two cores with other work: compare the two clocks of a run, not the times of two runs.
- A dash is a number that the paper does not print, or a cross-entropy that no round reached. (m1) and the like are
  [misprints](../data/paper/misprints.csv)."""

VERDICTS = ("reproduced", "partly", "not", "gain", "loss", "no effect", "open", "n < 3: no verdict", "not run")


def ablations_page(cards: list[dict]) -> str:
    """docs/ablations.md: how many rows came out how, then every table on every problem that has a sweep file.

    Args:
        cards: those scored on the test split, and for sweeps that choose a setting those on the validation split.
    """
    found, where, parts = _by_config(cards), kept_files(), []
    summary = ["| table | problem | printed rows | rows of ours |", "|---|---|---|---|"]
    for ablation in ABLATIONS:
        parts += [f"## {ablation.title}", ablation.note]
        for dataset, sweep in ablation.sweeps().items():
            lines = ablation.lines(dataset, sweep, found)
            title, _, _ = ablation.title.partition(":")
            printed, own = (_counts(line for line in lines if (line.row is None) == ours) for ours in (False, True))
            summary.append(f"| {title} | {dataset} | {printed} | {own} |")
            config = next(iter(sweep.arms.values()))[0]
            parts += [
                f"### {dataset}: {config.teacher} → {config.student}, {config.profile}, E = {config.epochs}",
                _table(ablation, lines),
                _foot(sweep, lines, where),
            ]
    return "\n\n".join([HEAD, "## How many rows", "\n".join(summary), *parts]) + "\n"


def _counts(lines: Iterable[Line]) -> str:
    """How many of some lines have which verdict; references are not counted."""
    times = Counter(line.verdict for line in lines)
    return ", ".join(f"{times[word]} {word}" for word in VERDICTS if times[word])


def _table(ablation: Ablation, lines: list[Line]) -> str:
    columns = NAME | (PRINTED if ablation.table else {}) | OURS | ablation.columns | TIME
    rows = [list(columns), ["---" if heading in WORDS else "--:" for heading in columns]]
    rows += [[told(line) for told in columns.values()] for line in lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _foot(sweep: Sweep, lines: list[Line], where: dict[str, list[str]]) -> str:
    """Where its numbers come from: the sweep file, and the files of its cards, the sweep's own first."""
    own = f"{sweep.name}.jsonl"
    held = [where[i] for line in lines if line.cell for i in line.cell.ids if i in where]
    names = sorted({own if own in names else names[0] for names in held}, key=lambda name: (name != own, name))
    cards = ", ".join(f"[data/runs/{name}](../data/runs/{name})" for name in names)
    file = f"data/sweeps/{sweep.name}.json"
    return f"Cards: {cards or 'none yet'}. Sweep: [{file}](../{file})."


def with_effects(text: str, cards: list[dict]) -> str:
    """docs/divergences.md with what the cards of the sweeps of D1-D13 say in the last cell of each row.

    Raises:
        UserError: the text does not have each of D1-D13 once.
    """
    [ablation] = (ablation for ablation in ABLATIONS if ablation.stem == "divergences")
    told: dict[str, list[str]] = {name: [] for name in DIVERGENCES}
    for dataset in ablation.sweeps():
        for line in lines_of("divergences", dataset, cards):
            if line.name in told and line.differences:
                config = line.cell.config
                problem = f"{dataset}, {config.profile}, E = {config.epochs}"
                told[line.name].append(f"{problem}: {line.difference}, {line.verdict}")
    for name, effects in told.items():
        cell = f"| {'; '.join(effects) or 'not measured'} |"
        text, times = re.subn(rf"^(\| {name} \|.*)\|[^|\n]*\|$", lambda m, c=cell: m[1] + c, text, flags=re.MULTILINE)
        if times != 1:
            raise UserError(f"docs/divergences.md must hold one row of {name}, not {times}.")
    return text
