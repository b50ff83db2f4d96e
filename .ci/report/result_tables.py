"""Tables 1, 2 and 9 and the README's results as views of run cards, the paper's numbers beside ours."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import replace

from nayer_lib.config import PRESETS, Config, make_config
from nayer_lib.errors import UserError
from nayer_lib.methods import KINDS
from nayer_lib.runs.card import card_config
from nayer_notebooks import paper
from nayer_notebooks.rule import LEVEL, RUNS, SMALL
from nayer_notebooks.statistics import Cell, cells, seedless

# Our part of a row: heading -> how the column is aligned.
OURS = {"ours: last epoch": "--:", "gap [95 %]": "--:", "word": "---", "teacher": "--:"}
BEST = "best (chosen on the test set)"
OURS |= {BEST: "--:", "n": "--:", "time a run: synthesis + student": "--:", "device": "---"}
BESIDE_PAPER = ("gap [95 %]", "word")
NOT_RUN_SHOWN = {("cifar10", "wrn16_2"), ("cifar100", "wrn16_2"), ("imagenet", "resnet50")}
NOT_RUN = ["not run", None, "not run", None, None, "0", None, None]
NEAR = 5.0  # points: a limit of our own
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
        begin, end = f"<!-- {name}: made by `make report` -->", f"<!-- /{name} -->"
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
    n, best = str(len(cell.cards)), statistics.mean(100 * card["accuracy_best"] for card in cell.cards)
    judged = [gap(cell, printed), reached(cell, printed)]
    return [accuracy(cell), *judged, f"{cell.teacher:.1f}", f"{best:.1f}", n, clocks(cell), cell.device]


def reached(cell: Cell, printed: float | None) -> str:
    """Whether a cell is the printed accuracy, by its `gap`.

    "reproduced": two one-sided tests find the gap smaller than `SMALL`. "partly": it is at most `NEAR`, with "above" on
    that side. "not": it is farther. Fewer than three seeds have no word, nor has a cell that the paper leaves out.
    """
    from statsmodels.stats.weightstats import DescrStatsW

    if printed is None:
        return ""
    if len(cell.last) < RUNS:
        return f"n < {RUNS}: no word"
    missed = cell.mean - printed
    if abs(missed) > NEAR:
        return "not"
    runs = DescrStatsW(cell.last)
    equal = runs.ttost_mean(printed - SMALL, printed + SMALL)[0] < LEVEL if cell.spread else abs(missed) < SMALL
    if equal:
        return "reproduced"
    return "partly, above" if missed > 0 else "partly"


def gap(cell: Cell, printed: float | None) -> str:
    """A cell's mean minus the printed accuracy, in points, with its 95 % interval from three seeds on."""
    from scipy.stats import ttest_1samp

    if printed is None:
        return ""
    missed = f"{cell.mean - printed:+.2f}"
    if len(cell.last) < RUNS:
        return missed
    low, high = ttest_1samp(cell.last, printed).confidence_interval() if cell.spread else (cell.mean, cell.mean)
    return f"{missed} [{low - printed:+.2f}, {high - printed:+.2f}]"


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
    return seedless(config) in [p if p.epochs == config.epochs else replace(p, epochs=config.epochs) for p in presets]


def answers(config: Config, row) -> bool:
    """Whether a config in which nothing but epochs was changed runs what a row of the paper's Table 1 or 2 prints.

    A row without a number of epochs is answered by those of the method's own schedule.
    """
    method = KINDS[config.method]
    epochs = row.epochs or method.published.get("epochs")
    names = (row.method, *column_of(row)) == (method.name, *column_of(config))
    return config.profile == "full" and names and config.epochs == epochs


def setting(config: Config) -> str:
    """What was run, in a few words: NAYER's variant, another method's protocol."""
    how = config.variant if config.method == "nayer" else PROTOCOLS[config.protocol]
    return f"{KINDS[config.method].name}, {how}, {config.profile}, E = {config.epochs}"


def column_of(of) -> tuple[str, str, str]:
    """The column of Table 1 in which a row or a config stands."""
    return of.dataset, of.teacher, of.student


# --- the README


def results_table(cards: list[dict]) -> str:
    """Two short tables: our unchanged presets on problems of our own; then rows of the paper's Table 1, NAYER's.

    What was run is there, and of the rest the rows of `NOT_RUN_SHOWN`; how many more there are stands below.
    """
    columns = {"data set": "---", "teacher → student": "---", "NAYER": "---"}
    plain = {heading: aligned for heading, aligned in OURS.items() if heading not in (*BESIDE_PAPER, BEST)}
    beside = {heading: aligned for heading, aligned in OURS.items() if heading != BEST}
    found = [(cell.config, cell) for cell in standard_cells(cards)]
    run = [seedless(config) for config, _ in found]
    asked = [make_config(name, profile="full", epochs=300) for name in PRESETS] + [make_config(profile="hour")]
    found += [(config, None) for config in asked if config not in run]
    own, of_paper, more = [], [], 0
    for c, cell in found:
        part = dict(zip(OURS, ours(cell, _printed(c)), strict=True))
        head = [c.dataset, f"{c.teacher} → {c.student}", setting(c).removeprefix("NAYER, ")]
        if _printed(c) is None:
            longer = any(one.epochs > c.epochs and replace(one, epochs=c.epochs) == seedless(c) for one in run)
            if (cell or c.profile == "hour") and not longer:  # a sweep may run a preset with fewer epochs
                own.append([*head, *(part[heading] for heading in plain)])
        elif cell or (c.dataset, c.student) in NOT_RUN_SHOWN:
            of_paper.append((cell, [*head, number(_printed(c)), *(part[heading] for heading in beside)]))
        else:
            more += 1
    count = f"{sum(cell is not None for cell, _ in of_paper)} of {len(of_paper) + more}"
    return (
        f"{markdown(columns | plain, own)}\n\n"
        f"**NAYER in Table 1, each pair at E = 300 epochs or as it was run: {count} cells have been run.**\n\n"
        + markdown(columns | {f"paper ({paper.EDITION})": "--:"} | beside, [row for _, row in of_paper])
        + f"\n\n{more} more of its cells that were not run: [docs/tables.md](docs/tables.md)."
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
    others = card.get("formats", {})  # of a CPU, where they were tried
    if not others:
        return markdown(columns, rows)
    steps = sorted({step for ratios in others.values() for step in ratios})
    shares = [[name, *(f"{r[step]:.2f}" if step in r else "" for step in steps)] for name, r in others.items()]
    headings = {"our steps: time over that in 32 bits, contiguous": "---"} | dict.fromkeys(steps, "--:")
    return markdown(columns, rows) + "\n\n" + markdown(headings, shares)


def formats_table(cards: list[dict]) -> str:
    """What computing in bfloat16 does to the student: runs of one config and one seed each in both formats."""
    found: dict[Config, dict[str, dict[int, float]]] = {}
    for card in cards:
        config = card_config(card)
        by_format = found.setdefault(seedless(config), {}).setdefault(card["compute"]["precision"], {})
        by_format[config.seed] = 100 * card["accuracy_last"]
    columns = {"last epoch, in percent": "---", "32 bits": "--:", "bfloat16": "--:", "seed by seed": "--:"}
    rows = []
    for config, by_format in found.items():
        plain, half = by_format["fp32"], by_format["bf16"]
        means = [f"{statistics.mean(x.values()):.1f} ± {statistics.stdev(x.values()):.1f}" for x in (plain, half)]
        apart = ", ".join(f"{half[seed] - plain[seed] + 0.0:+.1f}" for seed in sorted(plain))
        rows.append([f"{config.dataset}: {config.teacher} → {config.student}, {config.profile}", *means, apart])
    return markdown(columns, rows)


# --- docs/tables.md


def tables_page(page: str, cards: list[dict]) -> str:
    """docs/tables.md: every row of Table 1 for each of its columns, then Tables 2 and 9; what was not run says so."""
    found, table1, table2 = full_cells(cards), paper.rows(1), paper.rows(2)
    parts = []
    for column in dict.fromkeys(map(column_of, table1)):
        rows = [line for row in table1 if column_of(row) == column for line in _lines(row, [], found)]
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
            "table9": _table9(found),
        },
    )


def full_cells(cards: list[dict]) -> list[Cell]:
    """The standard cells of the full profile, which alone is the paper's."""
    return [cell for cell in standard_cells(cards) if cell.config.profile == "full"]


def _lines(row, beside: list[str], found: list[Cell]) -> list[list[str | None]]:
    """The lines of a row of the paper: one for each protocol in which we ran it, or one that says "not run".

    Args:
        beside: what stands before and after the printed accuracy, in Table 2.
    """
    printed = [*beside[:1], number(row.accuracy, row), *beside[1:]]
    teachers = {f"{cell.teacher:.1f}" for cell in found if column_of(cell.config) == column_of(row)}
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


# The column "DFQ" cites Choi et al. and describes Nagel et al.; "resnet20" is the network of ZAQ's program.
TABLE9_METHODS = {"DFQ": "DFQ (Nagel)"}
TABLE9_NETWORKS = {"resnet20": "resnet20_b"}


def _table9(found: list[Cell]) -> str:
    """Table 9: a quantised network's drop from its own float teacher beside the printed drop, never its accuracy."""
    printed, lines = paper.rows(9), []
    for row in printed:
        place = (row.dataset, row.network, row.bits)
        [top] = [r.accuracy for r in printed if r.method == "Float32" and (r.dataset, r.network) == place[:2]]
        if row.method == "Float32":
            lines.append([*place, "Float32", number(top), *[None] * (1 + len(OURS))])
            continue
        beside, drop = [number(row.accuracy), f"{row.accuracy - top:+.2f}"], row.accuracy - top
        ran = [cell for cell in found if _answers9(cell.config, row)]
        lines += [[*place, setting(cell.config), *beside, *ours(cell, cell.teacher + drop)] for cell in ran]
        lines += [] if ran else [[*place, _name(row), *beside, *ours(None, None)]]
    columns = dict.fromkeys(("data set", "network", "bits", "method"), "---")
    return markdown(columns | dict.fromkeys(("paper", "paper: drop"), "--:") | OURS, lines)


def _answers9(config: Config, row) -> bool:
    """Whether a config in which nothing but epochs was changed runs a row of Table 9."""
    network, method = TABLE9_NETWORKS.get(row.network, row.network), TABLE9_METHODS.get(row.method, row.method)
    bits = f"W{config.weight_bits}A{config.activation_bits}"
    ran = (config.dataset, config.teacher, bits, KINDS[config.method].name)
    return ran == (row.dataset, network, row.bits, method) and row.epochs in (None, config.epochs)


def _name(row) -> str:
    """A row's label, as Table 1 has it."""
    return f"{row.method}, E = {row.epochs}" if row.epochs else row.method
