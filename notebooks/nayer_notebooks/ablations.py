"""The ablations as views of the cards of sweeps: Tables 3, 4, 5, 9, 10 and 11 of the paper, Eq. 5's terms, D1-D13, and
what came after the paper.

A file data/sweeps/<stem>_<data set>.json holds the arms of one table on one problem. An arm that answers a printed row
bears that row's name; the other arms are ours. What the tables are about stands in docs/ablations.md.
"""

import math
import statistics
from typing import TYPE_CHECKING

from nayer_lib.errors import unknown

from .lines import Ablation, Line, Measure, metric
from .statistics import by_config

if TYPE_CHECKING:
    import pandas


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

    Columns: what the paper prints and its difference; our accuracy, or what the table is about, with its sd and n; our
    difference with its 95 % interval and Holm's p; the word, and the row against which it is said.
    """
    import pandas as pd

    lines = lines_of(stem, dataset, cards)

    ours = [[*BY_STEM[stem].values(line.cell).values()] if line.cell else [] for line in lines]

    def of(contrast: str) -> list[float | None]:
        return [getattr(line.contrast, contrast, None) for line in lines]

    columns = {
        "paper": [line.row and line.row.accuracy for line in lines],
        "paper diff": [line.printed for line in lines],
        "ours": [statistics.mean(values) if values else None for values in ours],
        "sd": [statistics.stdev(values) if len(values) > 1 else None for values in ours],
        "n": [len(values) for values in ours],
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


# The steps of a round that never reaches it are counted as one more than it has; one step counts for none.
STEPS = {"steps to CE < 1": Measure(lambda card: metric(card, "convergence", "1.0", "restricted"), 1.0)}


def _log_diversity(where: str) -> Measure:
    """The logarithm of a diversity, of which 10 % count for none, and which a grey level of 255 bounds from below."""

    def of(card: dict) -> float | None:
        value = metric(card, "diversity", where)
        return None if value is None else math.log(max(value, 1 / 255))

    return Measure(of, math.log(1.1))


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


def _against_text(name: str) -> str:
    """Of a black box what enters G is compared with text, labels with logits, and these with the white box."""
    other = {"text, logits": "NAYER, white box", "text, labels": "text, logits"}.get(name)
    return other or (name if name.endswith("white box") else f"text, {name.partition(', ')[2]}")


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
        measures={
            **STEPS,
            "diversity within": _log_diversity("within"),
            "diversity across": _log_diversity("across"),
        },
        further=(("cat", "LTE"), ("sum(1)", "Z"), ("NAYER(woRI)", "LTE")),  # C5, C7
    ),
    Ablation(
        "table4", "Table 4", lambda name: "SBERT", 4, lambda row: row.encoder or row.method, silent=_untuned_sota
    ),
    Ablation("table5", "Table 5", lambda name: "P2", 5, lambda row: row.prompt or row.method, silent=_untuned_sota),
    Ablation("table10", "Table 10", _against_full, 10, _memory_name),
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
    ),
    Ablation(
        "figure5",
        "Figure 5",
        lambda name: "NAYER",
        silent=lambda name, dataset: UNTUNED if name.partition(",")[0] in ("FM", "CMI", "DeepInv") else "",
    ),
    Ablation(
        "speed",
        "Convergence on CIFAR-10 images",
        lambda name: {"NAYER": "LTE", "Z": "NAYER", "LTE": "OH"}.get(name, name),
        measures=STEPS,
        headline="steps to CE < 1",
    ),
    Ablation(
        "first_rounds",
        "Convergence in a generator's first rounds",
        lambda name: {"NAYER": "LTE", "Z": "NAYER"}.get(name, name),
        measures=STEPS,
        headline="steps to CE < 1",
    ),
    Ablation(
        "controls_pilot",
        "A pilot on CIFAR-10 images: text against z",
        lambda name: "text",
        silent=lambda name, dataset: "pilot: no word",
    ),
    Ablation(
        "controls",
        "Text on CIFAR-10 images",
        lambda name: "text" if name in ("permuted text", "orthogonal") else "Z",
        measures={"agreement": Measure(lambda card: 100 * card["agreement_last"], 1.0)},
    ),
    Ablation("table9", "Table 9 on a laptop problem", lambda name: f"NAYER, {name.rpartition(', ')[2]}"),
    Ablation("noise", "Noise in place of a generator", lambda name: "NAYER"),
    Ablation(
        "procedural",
        "Drawn pictures in place of a generator",
        lambda name: "noise" if name in ("noise", "procedural") else "procedural",
        silent=lambda name, dataset: UNTUNED if name == "DFAD" else "",
    ),
    Ablation("nayer_plus", "NAYER+, the paper's future work", lambda name: "NAYER"),
    Ablation(
        "cpnet",
        "CPNet, taken apart",
        lambda name: "all" if name == "all but the coupling" else "NAYER",
        further=(("all but the text", "all"),),
    ),
    Ablation(
        "black_box",
        "A teacher that only answers",
        _against_text,
        silent=lambda name, dataset: UNTUNED if name == "text, logits" else "",  # whose reference has a chosen rate
    ),
    Ablation("divergences", "D1 to D13", lambda name: "released"),
    Ablation(
        "methods",
        "All systems of Table 1 on one budget",
        lambda name: "NAYER",
        table=1,
        name=_system_name,
        silent=lambda name, dataset: {"MAD": "guessed weights: no word", "DFQ, no L_BN": UNTUNED}.get(name, ""),
    ),
    Ablation("rates", "The generator's learning rate, method by method", _at_the_middle_rate),
    Ablation("rates3", "The generator's learning rate, for each family of Table 3", _at_the_middle_rate),
    Ablation(
        "table9_rates", "The quantised student's learning rate", lambda name: f"{name.rpartition(', ')[0]}, 0.001"
    ),
)
BY_STEM = {ablation.stem: ablation for ablation in ABLATIONS}
