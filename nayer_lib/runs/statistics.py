"""What finished runs say: cells over seeds, differences paired by seed, their intervals, and the rules of all verdicts.

Accuracies and differences are in percent and points.
"""

import dataclasses
import math
import statistics
from collections.abc import Sequence

from ..compute import Compute, compute_of
from ..config import Config
from .card import card_config, split_of

SMALL = 1.0  # points: accuracies that differ by less are taken for equal
NEAR = 5.0  # points: as far apart as other groups' runs of public code are from the printed numbers


@dataclasses.dataclass(frozen=True)
class Cell:
    """Finished runs of one protocol, over their seeds.

    Attributes:
        config: of the first of them.
        protocol: hashes of teacher and test split, and the device with what is not plain in how it computed. Two cells
            must share it before their difference can be put down to their configs.
        split: that they were scored on.
        teacher: its accuracy.
        last, best: the accuracy of each one's last epoch, and of its best, chosen on the test set.
        cards: one a seed.
    """

    config: Config
    protocol: tuple[str, str, str]
    split: str
    teacher: float
    last: list[float]
    best: list[float]
    cards: list[dict]

    @property
    def device(self) -> str:
        """Its name, and in brackets what is not plain in how it computed."""
        return self.protocol[2]

    @property
    def ids(self) -> list[str]:
        """The runs' ids."""
        return [card["id"] for card in self.cards]

    @property
    def mean(self) -> float:
        """Mean last-epoch accuracy."""
        return statistics.mean(self.last)

    @property
    def spread(self) -> float | None:
        """Sample standard deviation of the last-epoch accuracy; None for one seed."""
        return statistics.stdev(self.last) if len(self.last) > 1 else None

    def seconds(self, clock: str) -> float:
        """Mean of a clock: "synthesis", "student", "evaluation", or the "total" of a run, which also draws."""
        return statistics.mean(card["seconds"][clock] for card in self.cards)


def cells(cards: list[dict]) -> list[Cell]:
    """Group finished cards by protocol; cards of different protocols are never averaged.

    Protocol: equal config but the seed, equal teacher, equal test split, equal device, equally computed (precision,
    memory layout, compilation). Of several runs of one seed the first counts: a seed that was run twice is not two.
    """
    groups: dict[tuple, dict[int, dict]] = {}
    for card in cards:
        if card["status"] == "finished":
            config = card_config(card)
            groups.setdefault((seedless(config), _protocol(card)), {}).setdefault(config.seed, card)
    found = []
    for (_, protocol), seeds in groups.items():
        first, *_ = group = list(seeds.values())
        teacher = 100 * first["teacher"]["accuracy"]
        last, best = ([100 * card[name] for card in group] for name in ("accuracy_last", "accuracy_best"))
        found.append(Cell(card_config(first), protocol, split_of(first), teacher, last, best, group))
    return found


def by_config(cards: list[dict]) -> dict[Config, list[Cell]]:
    """The cells of each config without its seed."""
    found: dict[Config, list[Cell]] = {}
    for cell in cells(cards):
        found.setdefault(seedless(cell.config), []).append(cell)
    return found


def seedless(config: Config) -> Config:
    """The config that the seeds of one cell share."""
    return dataclasses.replace(config, seed=0)


def _protocol(card: dict) -> tuple[str, str, str]:
    plain, how = dataclasses.asdict(Compute()), dataclasses.asdict(compute_of(card))
    special = ", ".join(f"{name} {value}" for name, value in how.items() if value != plain[name])
    device = f"{card['device']} ({special})" if special else card["device"]
    return card["teacher"]["sha256"], card["test_split"]["sha256"], device


def paired(cell: Cell, reference: Cell) -> list[float]:
    """Accuracy of the one minus that of the other for each seed that both have; none across protocols."""
    if cell.protocol != reference.protocol:
        return []
    by_seed, of_reference = (
        {card["config"]["seed"]: last for card, last in zip(c.cards, c.last, strict=True)} for c in (cell, reference)
    )
    return [by_seed[seed] - of_reference[seed] for seed in sorted(by_seed.keys() & of_reference.keys())]


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % confidence interval of a mean over seeds (Student's t); None for fewer than three seeds.

    Every "better", gain or loss of the kit rests on it: the interval must lie on one side of 0.
    """
    from scipy.stats import t

    n = len(values)
    if n < 3:
        return None
    mean, half = statistics.mean(values), float(t.ppf(0.975, n - 1)) * statistics.stdev(values) / math.sqrt(n)
    return mean - half, mean + half


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


def reached(cell: Cell, printed: float | None) -> str:
    """Whether a cell reaches the printed accuracy: "reproduced" from `SMALL` below it on, "partly" from `NEAR`, "not".

    Fewer than three seeds have no verdict, nor has a cell that the paper leaves out.
    """
    if printed is None:
        return ""
    if len(cell.last) < 3:
        return "n < 3: no verdict"
    missed = printed - cell.mean
    return "reproduced" if missed <= SMALL else "partly" if missed <= NEAR else "not"


def gap(cell: Cell, printed: float | None) -> str:
    """A cell's mean minus the printed accuracy, in points; "better" needs an `interval` of that above 0."""
    if printed is None:
        return ""
    sure = interval([last - printed for last in cell.last])
    return f"{cell.mean - printed:+.2f}" + (", better" if sure and sure[0] > 0 else "")
