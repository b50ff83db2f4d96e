"""The lines of an ablation's table: what the paper prints, what our runs say beside it, and with which word."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from nayer_lib import files
from nayer_lib.config import Config
from nayer_lib.runs.card import split_of
from nayer_lib.runs.sweep import Sweep, read_sweep

from . import paper
from .rule import RUNS_ALONE, SMALL, Contrast, contrasts
from .statistics import Cell, seedless

# The data sets of the sweeps, each with the one of the paper that stands beside it where a table has several.
PROBLEMS = {"cifar10": "cifar10", "cifar100": "cifar100", "digits": "cifar10", "color_digits": "cifar100"}


MORE = {"gain": "more", "loss": "less"}  # of what is counted
DECIDED = ("shows", "does not show", "reproduced", "partly", "not", "gain", "loss", "no effect", *MORE.values())


@dataclass(frozen=True)
class Line:
    """A row of the paper, an arm of ours, or both.

    Attributes:
        name, against: of the row, and of the one that it is compared with.
        row: as the paper prints it (`paper.rows`); None for an arm of our own.
        printed: the paper's difference between the two, in points; None where it has none.
        cell: our runs of one protocol; None if there are none.
        contrast: ours, of the same protocol; None for a reference and where one of the two has no runs.
        measured: all contrasts of the same two, by the heading of what was measured ("": the accuracy).
        silent: why there is no word about this row, whatever its numbers; "" for most.
        data_of_paper: whether the problem is one of the paper's own.
        counted: whether less and more is said of it, and not loss and gain.
        exploratory: whether the contrast was not registered before the runs.
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
    counted: bool = False
    exploratory: bool = False

    @property
    def decided(self) -> bool:
        """Whether its word is one that these runs decide."""
        return self.word.partition(",")[0] in DECIDED

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
        word = MORE.get(word, word) if self.counted else word
        if word not in DECIDED:
            return word
        return word + (f", n = {of.n}" if of.n < RUNS_ALONE else "") + (", exploratory" if self.exploratory else "")


@dataclass(frozen=True)
class Measure:
    """What is compared.

    Attributes:
        of: a card -> a number, or None.
        small: a difference that counts for none.
    """

    of: Callable[[dict], float | None]
    small: float

    def by_seed(self, cell: Cell) -> dict[int, float]:
        """Its numbers for the seeds of a cell that have one."""
        values = {card["config"]["seed"]: self.of(card) for card in cell.cards}
        return {seed: value for seed, value in values.items() if value is not None}


ACCURACY = Measure(lambda card: 100 * card["accuracy_last"], SMALL)


def metric(card: dict, *entry: str) -> float | None:
    """An entry of a card's metrics, by its path; None where it has none: measuring failed, or had no value for it."""
    value = card.get("metrics")
    for key in entry:
        value = (value or {}).get(key)
    return value


@dataclass(frozen=True)
class Ablation:
    """A table: which rows it has, and what each is compared with.

    Attributes:
        stem: of its sweep files.
        title: its name in docs/ablations.md, with which its heading there begins.
        against: the name of the row with which one of a name is compared; its own for a reference.
        table: its number in the paper; None if it is ours.
        name: the name of a printed row; None for one that has no arm here.
        measures: what is compared beside the accuracy, heading -> measure.
        headline: the one of these that the table is about, in place of the accuracy; "" for most.
        silent: the reason why a row of a name on a data set gets no word; "" for most.
        further: pairs of rows, (one, its reference), that a claim compares beside what a sweep registered.
    """

    stem: str
    title: str
    against: Callable[[str], str]
    table: int | None = None
    name: Callable[[object], str | None] | None = None
    measures: dict[str, Measure] = field(default_factory=dict)
    headline: str = ""
    silent: Callable[[str, str], str] = lambda name, dataset: ""
    further: tuple[tuple[str, str], ...] = ()

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

        Registered and further contrasts of two other rows follow, a line each.

        Args:
            found: cells by their config without its seed.
        """
        rows = self.rows(dataset)
        names = [*rows, *(arm for arm in sweep.arms if arm not in rows)]
        asked = {name: found.get(seedless(sweep.arms[name][0]), []) if name in sweep.arms else [] for name in names}
        asked = {name: [own for cell in cells if (own := _own(cell, sweep, name))] for name, cells in asked.items()}
        ran = {name: {cell.protocol: cell for cell in cells} for name, cells in asked.items()}
        pairs = [(name, self.against(name)) for name in names]
        more = (*sweep.primary, *self.further) if sweep.primary else ()
        pairs += [pair for pair in more if not {pair, pair[::-1]} & {*pairs} and {*pair} <= {*names}]
        compared = {}
        for protocol in {protocol for cells in ran.values() for protocol in cells}:
            cells = {name: cells[protocol] for name, cells in ran.items() if protocol in cells}
            compared[protocol] = self._contrasts(cells, pairs, sweep)
        lines = []
        for name, against in pairs:
            numbers = [getattr(rows.get(row), "accuracy", None) for row in (name, against)]
            printed = None if name == against or None in numbers else numbers[0] - numbers[1]
            about = {"data_of_paper": _of_paper(sweep), "counted": bool(self.headline)}
            for protocol, cell in (ran[name] or {None: None}).items():
                if cell and name == against and not compared[protocol] and any(compared.values()):
                    continue  # another table ran the reference alone, on another machine
                measured = compared.get(protocol, {}).get((name, against), {})
                contrast = measured.get(self.headline)
                about["silent"] = self.silent(name, dataset) or _incomplete(sweep, ran, protocol, (name, against))
                about["exploratory"] = bool(contrast and not contrast.primary)
                lines.append(Line(name, against, rows.get(name), printed, cell, contrast, measured, **about))
        return lines

    def _contrasts(
        self, cells: dict[str, Cell], pairs: list[tuple[str, str]], sweep: Sweep
    ) -> dict[tuple[str, str], dict[str, Contrast]]:
        """Of each pair the contrasts of all that is measured, by its heading."""
        images = min(cell.cards[0]["test_split"]["images"] for cell in cells.values())
        found: dict[tuple[str, str], dict[str, Contrast]] = {}
        for heading, measure in self._all_measures().items():
            values = {name: measure.by_seed(cell) for name, cell in cells.items()}
            floor = 100 / images if measure is ACCURACY else measure.small / 10  # an accuracy resolves one test image
            for pair, contrast in contrasts(values, pairs, sweep.primary, measure.small, floor).items():
                found.setdefault(pair, {})[heading] = contrast
        return found

    def values(self, cell: Cell) -> dict[int, float]:
        """What the table is about, by seed: the accuracy, or its headline's measure."""
        return self._all_measures()[self.headline].by_seed(cell)

    def _all_measures(self) -> dict[str, Measure]:
        """By heading; under the headline what the table is about, which is the accuracy where it has none."""
        return {self.headline: ACCURACY, **self.measures}


def _own(cell: Cell, sweep: Sweep, arm: str) -> Cell | None:
    """The runs of a cell that are an arm's: of its split and seeds and, where contrasts were registered, of these."""
    if split_of(cell.cards[0]) != sweep.split:
        return None
    seeds = {config.seed for config in sweep.arms[arm]}
    own = [card for card in cell.cards if card["config"]["seed"] in seeds]
    if sweep.registration:
        own = [card for card in own if sweep.registration in (card.get("registration") or "")]
    return replace(cell, cards=own) if own else None


def _incomplete(sweep: Sweep, ran: dict[str, dict[tuple, Cell]], protocol: tuple | None, pair: tuple[str, str]) -> str:
    """What stands in a word's place while a registered sweep has fewer runs of a pair of arms than it said."""
    arms = {name for name in pair if sweep.registration and name in sweep.arms}
    asked = sum(len(sweep.arms[name]) for name in arms)
    have = sum(len(ran[name][protocol].last) for name in arms if protocol in ran[name])
    return f"{have} of {asked} run" if have < asked else ""


def _of_paper(sweep: Sweep) -> bool:
    """Whether a sweep runs on a pair of networks and a data set of the paper's Table 1."""
    config = next(iter(sweep.arms.values()))[0]
    column = config.dataset, config.teacher, config.student
    return column in {(row.dataset, row.teacher, row.student) for row in paper.rows(1)}
