"""`make report`: renders README.md and docs/ anew from the kept cards, the paper's numbers beside ours.

The README gets its table of results and its picture; docs/ Tables 1, 2 and 9 (tables.md) and Figure 1 (figure1.png),
the ablations (ablations.md), what D1-D13 do (divergences.md), the findings (findings.md), the bench and what number
formats do (speed.md). Only what stands between a page's markers is written anew: its prose is its own.
"""

import json
import math
import sys
from pathlib import Path

from ablation_tables import ablations_page, with_effects
from findings import findings_page
from result_tables import bench_table, column_of, fill, formats_table, full_cells, results_table, tables_page

from nayer_lib import files
from nayer_lib.config import make_config
from nayer_lib.errors import UserError
from nayer_lib.runs.card import card_config, kept_cards
from nayer_notebooks import paper
from nayer_notebooks.plots import accuracy_against_time, learning_curve, new_figure
from nayer_notebooks.statistics import seedless


def pages(kept: list[dict]) -> dict[str, str]:
    """Every page with its new text, by its path in the clone.

    Args:
        kept: the kept cards that were scored on the test split.
    """
    root = files.data_dir().parent

    def read(name: str) -> str:
        return (root / name).read_text(encoding="utf-8")

    speed = {
        "bench": bench_table(json.loads(read("data/bench.json"))),
        "formats": formats_table([json.loads(line) for line in read("data/formats.jsonl").splitlines()]),
    }
    return {
        "README.md": fill(read("README.md"), {"results": results_table(kept)}),
        "docs/speed.md": fill(read("docs/speed.md"), speed),
        "docs/findings.md": findings_page(read("docs/findings.md"), kept),
        "docs/tables.md": tables_page(read("docs/tables.md"), kept),
        "docs/ablations.md": ablations_page(read("docs/ablations.md"), [*kept, *kept_cards("validation")]),
        "docs/divergences.md": with_effects(read("docs/divergences.md"), kept),
    }


def draw_results(cards: list[dict], path: Path) -> None:
    """The README's picture: what the student saw, and its accuracy over the seeds of the kept quick run on digits."""
    import matplotlib.image

    chosen = [card for card in cards if seedless(card_config(card)) == make_config("digits")]
    pictures = [files.data_dir() / "runs" / f"{card['id']}.png" for card in chosen]
    pictures = [picture for picture in pictures if picture.is_file()]
    if not pictures:
        raise UserError("no kept run of the quick profile on digits to draw: keep one with `python -m nayer_lib runs`.")
    figure, [left, right] = new_figure(columns=2, width=4.6, height=4.2)
    left.imshow(matplotlib.image.imread(pictures[0]))
    left.set_title("what the student learned from (10 of each class)")
    left.axis("off")
    for card in chosen:
        points = [(row["epoch"], 100 * row["accuracy"]) for row in card["curve"] if row["accuracy"] is not None]
        label = f"student, seed {card['config']['seed']}"
        learning_curve(right, *zip(*points, strict=True), 100 * card["teacher"]["accuracy"], 10.0, label)
    right.set_title("and what it learned: real test digits")
    with files.replacing(path) as temporary:
        figure.savefig(temporary, format="png")


def draw_figure_1(cards: list[dict], path: Path) -> None:
    """docs/figure1.png: the paper's points from Table 2, and our full runs of its pair, where there are any."""
    figure, axes = new_figure(columns=2, width=4.5, height=4)
    rows = [row for row in paper.rows(2) if row.hours]
    for ax, column in zip(axes, dict.fromkeys(map(column_of, rows)), strict=True):
        points: dict[str, list[tuple[float, float, float]]] = {}
        for row in rows:
            if column_of(row) == column:
                points.setdefault(row.method, []).append((row.hours, row.accuracy, math.nan))
        for cell in full_cells(cards):
            if column_of(cell.config) == column:
                spread = math.nan if cell.spread is None else cell.spread
                name = f"ours, E = {cell.config.epochs}, {cell.device.split(' (')[0].removeprefix('NVIDIA ')}"
                points[name] = [(cell.seconds("total") / 3600, cell.mean, spread)]
        accuracy_against_time(ax, "hours of a run (paper: on an A100)", points)
        ax.set_title("{}: {} → {}".format(*column))
    with files.replacing(path) as temporary:
        figure.savefig(temporary, format="png")


def main() -> None:
    root, kept = files.data_dir().parent, kept_cards()
    texts = pages(kept)
    draw_results(kept, root / "docs" / "results.png")
    draw_figure_1(kept, root / "docs" / "figure1.png")
    for name, text in texts.items():
        files.write_text(root / name, text)
    print(results_table(kept))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"report: {error}")
