"""Tables and the README's picture as views of run cards, the paper's numbers beside ours."""

import dataclasses
import statistics
from pathlib import Path
from typing import TYPE_CHECKING

from .. import files
from ..config import PRESETS, Config, make_config
from ..errors import UserError
from . import paper
from .figures import learning_curve, new_figure
from .runs import card_config

if TYPE_CHECKING:
    import pandas


@dataclasses.dataclass(frozen=True)
class Cell:
    """Finished runs of one protocol, over their seeds: percent and seconds.

    Protocol: equal config but the seed, equal teacher, equal test split, equal device.
    """

    config: Config
    teacher: float
    last: list[float]
    best: list[float]
    seconds: list[float]
    device: str
    ids: list[str]

    @property
    def mean(self) -> float:
        """Mean last-epoch accuracy."""
        return statistics.mean(self.last)

    @property
    def spread(self) -> float | None:
        """Sample standard deviation of the last-epoch accuracy; None for one seed."""
        return statistics.stdev(self.last) if len(self.last) > 1 else None


def cells(cards: list[dict]) -> list[Cell]:
    """Group finished cards by protocol; cards of different protocols are never averaged."""
    groups: dict[tuple, list[dict]] = {}
    for card in cards:
        if card["status"] == "finished":
            config = dataclasses.replace(card_config(card), seed=0)
            protocol = (config, card["teacher"]["sha256"], card["test_split"]["sha256"], card["device"])
            groups.setdefault(protocol, []).append(card)
    return [
        Cell(
            config=card_config(group[0]),
            teacher=100 * group[0]["teacher"]["accuracy"],
            last=[100 * card["accuracy_last"] for card in group],
            best=[100 * card["accuracy_best"] for card in group],
            seconds=[card["seconds"]["total"] for card in group],
            device=group[0]["device"],
            ids=[card["id"] for card in group],
        )
        for group in groups.values()
    ]


def results_table(cards: list[dict]) -> str:
    """The README's table, in Markdown: our cells of unchanged presets, then the paper's cells that were not run."""
    lines = [
        f"| data set | teacher → student | variant, profile | paper ({paper.EDITION}) | ours: last epoch | "
        "teacher | best on test | n | time a run | device |",
        "|---|---|---|--:|--:|--:|--:|--:|--:|---|",
    ]
    measured = [cell for cell in cells(cards) if _is_standard(cell.config)]
    for cell in measured:
        lines.append(_row(cell.config.dataset, cell.config, _printed(cell.config), cell))
    for config in _paper_configs("released", epochs=(300,)):
        if config not in [_seedless(cell.config) for cell in measured]:
            lines.append(
                f"| {config.dataset} | {config.teacher} → {config.student} | released, full, E = 300 | "
                f"{_printed(config)} | not run | | | 0 | | |"
            )
    return "\n".join(lines)


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

    chosen = [card for card in cards if _seedless(card_config(card)) == make_config("digits")]
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


def _paper_configs(variant: str, epochs: tuple[int, ...] = (100, 200, 300)) -> list[Config]:
    """The configs behind Table 1's NAYER cells, in its order."""
    presets = [name for name, row in PRESETS.items() if row["dataset"] in set(paper.table(1)["dataset"])]
    return [make_config(name, variant, "full", epochs=e) for name in presets for e in epochs]


def _is_standard(config: Config) -> bool:
    """Whether nothing but the number of epochs was changed in a preset; arms of sweeps have tables of their own."""
    made = (make_config(name, config.variant, config.profile) for name in PRESETS)
    return _seedless(config) in [dataclasses.replace(preset, epochs=config.epochs) for preset in made]


def _seedless(config: Config) -> Config:
    return dataclasses.replace(config, seed=0)


def _printed(config: Config) -> str:
    """The paper's number for a config, or a dash where it has none: only unchanged full runs are compared with it."""
    value = None
    if _seedless(config) in _paper_configs(config.variant):
        value = paper.accuracy("NAYER", config.dataset, config.teacher, config.student, config.epochs)
    return "–" if value is None else f"{value:.2f}"


def _row(dataset: str, config: Config, printed: str, cell: Cell) -> str:
    spread = "" if cell.spread is None else f" ± {cell.spread:.1f}"
    return (
        f"| {dataset} | {config.teacher} → {config.student} | {config.variant}, {config.profile} | {printed} | "
        f"**{cell.mean:.1f}{spread}** | {cell.teacher:.1f} | {statistics.mean(cell.best):.1f} | {len(cell.last)} | "
        f"{statistics.mean(cell.seconds):.0f} s | {cell.device} |"
    )


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
