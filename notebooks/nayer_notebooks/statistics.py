"""What finished runs say: cells over seeds, accuracies in percent.

What a difference between two cells says, `rule` decides.
"""

import dataclasses
import statistics

from nayer_lib.compute import Compute, compute_of
from nayer_lib.config import Config
from nayer_lib.runs.card import card_config


@dataclasses.dataclass(frozen=True)
class Cell:
    """Finished runs of one protocol, over their seeds.

    Attributes:
        config: of the first of them.
        protocol: hashes of teacher and test split, and the device with what is not plain in how it computed. Two cells
            must share it before their difference can be put down to their configs.
        cards: one a seed.
    """

    config: Config
    protocol: tuple[str, str, str]
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
    def teacher(self) -> float:
        """The teacher's accuracy."""
        return 100 * self.cards[0]["teacher"]["accuracy"]

    @property
    def last(self) -> list[float]:
        """The accuracy of each run's last epoch."""
        return [100 * card["accuracy_last"] for card in self.cards]

    @property
    def mean(self) -> float:
        """Mean last-epoch accuracy."""
        return statistics.mean(self.last)

    @property
    def spread(self) -> float | None:
        """Sample standard deviation of the last-epoch accuracy; None for one seed."""
        return statistics.stdev(self.last) if len(self.cards) > 1 else None

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
    runs = [(protocol, list(seeds.values())) for (_, protocol), seeds in groups.items()]
    return [Cell(card_config(found[0]), protocol, found) for protocol, found in runs]


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
