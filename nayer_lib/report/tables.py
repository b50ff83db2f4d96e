"""Cells, the README's tables and its picture as views of run cards, the paper's numbers beside ours."""

import dataclasses
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .. import files
from ..compute import Compute, compute_of
from ..config import PRESETS, Config, make_config
from ..errors import UserError
from ..methods import METHODS
from ..plots import learning_curve, new_figure
from ..runs.card import card_config, split_of
from . import paper

if TYPE_CHECKING:
    import pandas


@dataclasses.dataclass(frozen=True)
class Cell:
    """Finished runs of one protocol, over their seeds: percent and seconds.

    Protocol: equal config but the seed, equal teacher, equal test split, equal device, equally computed (precision,
    memory layout, compilation).
    """

    config: Config
    teacher: float
    last: list[float]
    best: list[float]
    seconds: list[float]
    synthesis: list[float]
    student: list[float]
    device: str
    cards: list[dict]

    @property
    def ids(self) -> list[str]:
        """The runs' ids."""
        return [card["id"] for card in self.cards]

    @property
    def protocol(self) -> tuple[str, ...]:
        """What two cells must share before their difference can be put down to their configs."""
        return _protocol(self.cards[0])

    @property
    def split(self) -> str:
        """The split that it was scored on."""
        return split_of(self.cards[0])

    @property
    def mean(self) -> float:
        """Mean last-epoch accuracy."""
        return statistics.mean(self.last)

    @property
    def spread(self) -> float | None:
        """Sample standard deviation of the last-epoch accuracy; None for one seed."""
        return statistics.stdev(self.last) if len(self.last) > 1 else None


def cells(cards: list[dict]) -> list[Cell]:
    """Group finished cards by protocol; cards of different protocols are never averaged.

    Of several runs of one seed the first counts: a seed that was run twice is not two seeds.
    """
    groups: dict[tuple, dict[int, dict]] = {}
    for card in cards:
        if card["status"] == "finished":
            config = card_config(card)
            groups.setdefault((seedless(config), *_protocol(card)), {}).setdefault(config.seed, card)
    found = []
    for (_, _, _, device), seeds in groups.items():
        first, *_ = group = list(seeds.values())
        found.append(
            Cell(
                config=card_config(first),
                teacher=100 * first["teacher"]["accuracy"],
                last=[100 * card["accuracy_last"] for card in group],
                best=[100 * card["accuracy_best"] for card in group],
                seconds=[card["seconds"]["total"] for card in group],
                synthesis=[card["seconds"]["synthesis"] for card in group],
                student=[card["seconds"]["student"] for card in group],
                device=device,
                cards=group,
            )
        )
    return found


def _protocol(card: dict) -> tuple[str, str, str]:
    """Teacher, test split, and the device with what is not plain in how it computed, of a card."""
    plain, how = dataclasses.asdict(Compute()), dataclasses.asdict(compute_of(card))
    told = ", ".join(f"{name} {value}" for name, value in how.items() if value != plain[name])
    device = f"{card['device']} ({told})" if told else card["device"]
    return card["teacher"]["sha256"], card["test_split"]["sha256"], device


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


SMALL = 1.0  # points: accuracies that differ by less are taken for equal
NEAR = 5.0  # points: as far apart as other groups' runs of public code are from the printed numbers

OURS = (
    "ours: last epoch | gap | verdict | teacher | best (chosen on the test set) | n | "
    "time a run: synthesis + student | device |"
)
OURS_LINE = "--:|--:|---|--:|--:|--:|--:|---|"


def ours(cell: Cell | None, printed: float | None) -> str:
    """Our part of a row, in the columns of `OURS`; `printed` is the paper's accuracy, None where it has none.

    The gap is ours minus the paper's, in points. "better" needs three seeds, and an `interval` of the gap above 0.
    """
    if cell is None:
        return "not run | | not run | | | 0 | | |"
    gap = "" if printed is None else f"{cell.mean - printed:+.2f}"
    sure = interval([last - printed for last in cell.last]) if gap else None
    if sure and sure[0] > 0:
        gap += ", better"
    return (
        f"{accuracy(cell)} | {gap} | {reached(cell, printed)} | {cell.teacher:.1f} | "
        f"{statistics.mean(cell.best):.1f} | {len(cell.last)} | {clocks(cell)} | {cell.device} |"
    )


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


def accuracy(cell: Cell) -> str:
    """Last-epoch accuracy over the seeds, mean and spread."""
    spread = "" if cell.spread is None else f" ± {cell.spread:.1f}"
    return f"**{cell.mean:.1f}{spread}**"


def clocks(cell: Cell) -> str:
    """Synthesis and student, and the whole run, which also scores and draws."""
    times = [statistics.mean(clock) for clock in (cell.synthesis, cell.student, cell.seconds)]
    if times[-1] < 3600:
        return "{:.0f} + {:.0f} of {:.0f} s".format(*times)
    return "{:.2f} + {:.2f} of {:.2f} h".format(*(seconds / 3600 for seconds in times))


def results_table(cards: list[dict]) -> str:
    """The README's table, in Markdown: our cells of unchanged presets, then NAYER's of the paper that were not run."""
    lines = [
        f"| data set | teacher → student | method, variant or schedule, profile | paper ({paper.EDITION}) | {OURS}",
        f"|---|---|---|--:|{OURS_LINE}",
    ]
    measured = standard_cells(cards)
    run = [seedless(cell.config) for cell in measured]
    rows = [(cell.config, cell) for cell in measured]
    rows += [(config, None) for config in _nayer_configs(epochs=300) if config not in run]
    for config, cell in rows:
        printed = _printed(config)
        lines.append(
            f"| {config.dataset} | {config.teacher} → {config.student} | {setting(config)} | {number(printed)} | "
            f"{ours(cell, printed)}"
        )
    return "\n".join(lines)


def standard_cells(cards: list[dict]) -> list[Cell]:
    """The cells of a method's own schedule in which nothing but the number of epochs was changed in a preset.

    Arms of sweeps have other tables, those of an equal budget among them.
    """
    return [cell for cell in cells(cards) if _is_standard(cell.config)]


def answers(config: Config, row) -> bool:
    """Whether a config in which nothing but epochs was changed runs what a row of the paper's Table 1 or 2 prints.

    A row without a number of epochs is answered by those of the method's own schedule.
    """
    method = METHODS[config.method]
    ran = (method.name, config.dataset, config.teacher, config.student)
    asked = (row.method, row.dataset, row.teacher, row.student)
    epochs = row.epochs or method.published.get("epochs")
    return config.profile == "full" and ran == asked and config.epochs == epochs


PROTOCOL_WORDS = {"equal": "NAYER's budget", "published": "its own schedule for CIFAR-10"}


def setting(config: Config) -> str:
    """What was run, in a few words: NAYER's variant, another method's protocol."""
    how = config.variant if config.method == "nayer" else PROTOCOL_WORDS[config.protocol]
    return f"{METHODS[config.method].name}, {how}, {config.profile}, E = {config.epochs}"


def number(printed: float | None) -> str:
    """A printed number, or a dash where the paper has none."""
    return "–" if printed is None else f"{printed:.2f}"


MARKERS = ("<!-- results: made by `python -m nayer_lib report` -->", "<!-- /results -->")


BENCH_MARKERS = ("<!-- bench: made by `python -m nayer_lib report` -->", "<!-- /bench -->")


def with_table(text: str, table: str, markers: tuple[str, str] = MARKERS) -> str:
    """A text with `table` between its two markers.

    Raises:
        UserError: the text does not have each marker once.
    """
    begin, end = markers
    if text.count(begin) != 1 or text.count(end) != 1:
        raise UserError(f"the text must hold {begin!r} and {end!r} once each.")
    return text[: text.index(begin) + len(begin)] + f"\n{table}\n" + text[text.index(end) :]


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
        rows = [row for row in card["curve"] if row["accuracy"] is not None]
        accuracy = [100 * row["accuracy"] for row in rows]
        teacher = 100 * card["teacher"]["accuracy"]
        seed = card["config"]["seed"]
        learning_curve(right, [row["epoch"] for row in rows], accuracy, teacher, 10.0, f"student, seed {seed}")
    right.set_title("and what it learned: real test digits")
    with files.replacing(path) as temporary:
        figure.savefig(temporary, format="png")


def _nayer_configs(epochs: int) -> list[Config]:
    """The configs behind Table 1's NAYER cells, in its order."""
    configs = (make_config(name, profile="full", epochs=epochs) for name in PRESETS)
    return [config for config in configs if _printed(config) is not None]


def _is_standard(config: Config) -> bool:
    if (config.method == "nayer") != (config.protocol == "equal"):  # Table 8 is NAYER's own schedule
        return False
    asked = (config.variant, config.profile, config.method, config.protocol)
    made = (make_config(name, *asked) for name in PRESETS)
    return seedless(config) in [dataclasses.replace(preset, epochs=config.epochs) for preset in made]


def seedless(config: Config) -> Config:
    """The config that the seeds of one cell share."""
    return dataclasses.replace(config, seed=0)


def _printed(config: Config) -> float | None:
    """The accuracy in the paper's Table 1 for a config in which nothing but epochs was changed."""
    return next((row.accuracy for row in paper.rows(1) if answers(config, row)), None)


def bench_table(card: dict) -> str:
    """The README's bench table, in Markdown, from a card of `make bench`."""
    lines = [
        f"| {card['device']}, torch {card['versions']['torch']}, {card['clock']} time | ours, ms | plain, ms | ratio "
        f"(min – max of {card['repeats']}) |",
        "|---|--:|--:|--:|",
    ]
    for name, row in card["phases"].items():
        images = card["draw"] if name == "memory draw" else card["batch"]
        lines.append(
            f"| {name}, {images} images | {row['ours_ms']:.1f} | {row['plain_ms']:.1f} | "
            f"**{row['ratio']:.1f}** ({row['ratio_min']:.1f} – {row['ratio_max']:.1f}) |"
        )
    return "\n".join(lines)


def arms_table(arms: dict[str, list[dict]]) -> "pandas.DataFrame":
    """A sweep's arms, one a row, from its cards (`sweep.arm_cards`): mean over seeds, and the spread of the accuracy.

    Columns: n (seeds); accuracy (last epoch, percent) and its sample sd; the mean L_CE at the first, fifth, fifteenth
    and last generator step; the share of rounds that reach CE < 1; diversity within and across rounds.
    """
    import pandas as pd

    rows = {}
    for arm, cards in arms.items():
        if not cards:
            rows[arm] = {"n": 0}
            continue
        accuracy = [100 * card["accuracy_last"] for card in cards]
        ce = [statistics.mean(step) for step in zip(*(card["metrics"]["ce_by_step"] for card in cards), strict=True)]
        rows[arm] = {
            "n": len(cards),
            "accuracy": statistics.mean(accuracy),
            "sd": statistics.stdev(accuracy) if len(accuracy) > 1 else None,
            **{f"CE {t}": ce[t - 1] for t in (1, 5, 15) if t < len(ce)},
            f"CE {len(ce)}": ce[-1],
            "CE < 1": statistics.mean(card["metrics"]["convergence"]["1.0"]["success"] for card in cards),
            **{
                key: statistics.mean(card["metrics"]["diversity"][key] for card in cards)
                for key in ("within", "across")
                if all(card["metrics"]["diversity"][key] is not None for card in cards)
            },
        }
    return pd.DataFrame.from_dict(rows, orient="index")
