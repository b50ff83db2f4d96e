"""docs/ablations.md and docs/divergences.md: what stands there between the markers, from the cards of the sweeps."""

import re
import statistics
from collections import Counter
from collections.abc import Callable, Iterable

from result_tables import accuracy, clocks, fill, markdown, number

from nayer_lib.config import DIVERGENCES
from nayer_lib.errors import UserError
from nayer_lib.files import data_dir
from nayer_lib.methods import KINDS
from nayer_lib.methods.inversion import Inversion
from nayer_lib.runs.sweep import Sweep
from nayer_notebooks.ablations import ABLATIONS, BY_STEM, lines_of
from nayer_notebooks.lines import MORE, Ablation, Line, metric
from nayer_notebooks.rule import RUNS, Contrast
from nayer_notebooks.statistics import Cell, by_config

ORDER = ("reproduced", "partly", "shows", "does not show", "not", "gain", "loss", "no effect", "open")
WORDS = ("row", "against", "word", "device")  # columns to the left; the others are numbers


# --- the columns of a table of its own: heading -> one of the paper's by its name, or text about our cell

Column = str | Callable[[Cell], str]


def _mean(cell: Cell, form: str, *entry: str) -> str:
    """The mean of an entry of the cards' metrics, over those that have a value."""
    values = [value for card in cell.cards if (value := metric(card, *entry)) is not None]
    return format(statistics.mean(values), form) if values else "–"


def _steps(cell: Cell, threshold: str) -> str:
    """Steps to a cross-entropy, those of a round that fails counted as one more than it has; the share that reaches."""
    steps = _mean(cell, ".1f", "convergence", threshold, "restricted")
    return steps if steps == "–" else f"{steps} ({_mean(cell, '.0%', 'convergence', threshold, 'success')})"


def _diversity(cell: Cell) -> str:
    return " / ".join(_mean(cell, ".3f", "diversity", key) for key in ("within", "across"))


def _memory(cell: Cell) -> str:
    size, synthesized = cell.config.memory_size, cell.config.total_rounds * cell.config.generator_batch
    if size is None or size >= synthesized:
        return f"all {synthesized}"
    return f"{size} ({size / synthesized:.1%})"


def _images(cell: Cell) -> str:
    """Images that the student could learn from: those kept, or those of all its steps, some of them replayed."""
    config = cell.config
    if issubclass(KINDS[config.method], Inversion):
        return f"{config.total_rounds * config.generator_batch} kept"
    return f"{config.repeats * config.distillation_epochs * config.student_steps * config.student_batch} fresh"


def _transductive(cell: Cell) -> str:
    """The accuracy in percent with the statistics of each test batch, and the images of a batch."""
    scores = [card["transductive"] for card in cell.cards]
    return f"{statistics.mean(100 * score['accuracy'] for score in scores):.1f} (batches of {scores[0]['batch']})"


def _of_student(cell: Cell, entry: str, times: float = 1.0) -> float:
    """The mean of an entry of the cards about their quantised student."""
    return statistics.mean(times * card["quantised"][entry] for card in cell.cards)


SPEED: dict[str, Column] = {
    "rounds that reach it": lambda cell: _mean(cell, ".0%", "convergence", "1.0", "success"),
    "steps to CE < 0.1": lambda cell: _steps(cell, "0.1"),
    "within / across rounds": _diversity,
    "judge's score": lambda cell: _mean(cell, ".2f", "classifier_score", "mean"),
}
COLUMNS: dict[str, dict[str, Column]] = {
    "table3": {
        "paper: steps to CE < 0.1": "steps",
        "ours: steps to CE < 0.1": lambda cell: _steps(cell, "0.1"),
        "to CE < 1": lambda cell: _steps(cell, "1.0"),
        "paper: diversity": "diversity",
        "ours: within / across rounds": _diversity,
    },
    "table10": {"ours: images in the memory": _memory},
    "redraw": {"within / across rounds": _diversity},
    "figure5": {
        "score": lambda cell: _mean(cell, ".2f", "classifier_score", "mean"),
        "within / across rounds": _diversity,
    },
    "speed": SPEED,
    "first_rounds": SPEED,
    "controls": {
        "agreement": lambda cell: f"{statistics.mean(100 * card['agreement_last'] for card in cell.cards):.1f}",
        "NLL": lambda cell: f"{statistics.mean(card['nll_last'] for card in cell.cards):.3f}",
        "steps to CE < 1": lambda cell: _steps(cell, "1.0"),
        "within / across rounds": _diversity,
    },
    "noise": {"by each test batch's own statistics (transductive)": _transductive},
    "table9": {
        "drop from the teacher": lambda cell: f"{cell.mean - cell.teacher:+.2f}",
        "before learning": lambda cell: f"{_of_student(cell, 'accuracy_before_learning', 100):.1f}",
        "KiB (float)": lambda cell: f"{_of_student(cell, 'kib'):.1f} ({_of_student(cell, 'kib_float'):.1f})",
    },
    "methods": {"ours: images": _images, "generator's rate": lambda cell: f"{cell.config.generator_lr:g}"},
}


# --- docs/ablations.md


def ablations_page(page: str, cards: list[dict]) -> str:
    """docs/ablations.md: how many rows came out how, then every table on every problem that has a sweep file.

    Args:
        cards: those scored on the test split, and for sweeps that choose a setting those on the validation split.
    """
    found, where, parts, summary, tested = by_config(cards), _files_of_cards(), {}, [], []
    for ablation in ABLATIONS:
        blocks = []
        for dataset, sweep in ablation.sweeps().items():
            lines = ablation.lines(dataset, sweep, found)
            tested += [line for line in lines if line.contrast and line.contrast.n >= RUNS]
            counts = [_counts(line for line in lines if _is_printed(line) == printed) for printed in (True, False)]
            summary.append([ablation.title, dataset, *counts])
            config, rows = next(iter(sweep.arms.values()))[0], [_row(ablation, line) for line in lines]
            epochs = max(own.epochs for own, *_ in sweep.arms.values())  # an arm that learns nothing has one
            aligned = {heading: " --- " if heading in WORDS else " --: " for heading in rows[0]}
            blocks += [
                f"### {dataset}: {config.teacher} → {config.student}, {config.profile}, E = {epochs}",
                markdown(aligned, [list(row.values()) for row in rows]),
                _foot(sweep, lines, where),
            ]
        parts[ablation.stem] = "\n\n".join(blocks)
    headings = dict.fromkeys(("table", "problem", "printed rows", "rows of ours"), "---")
    decided, alone = sum(line.decided for line in tested), sum(line.contrast.own for line in tested)
    foot = f"{len(tested)} differences rest on {RUNS} runs or more; {decided} of them are decided, {alone} stand on a "
    foot += "spread of their own (Welch's test). Steps and diversities come on top."
    return fill(page, {"summary": f"{markdown(headings, summary)}\n\n{foot}", **parts})


def _row(ablation: Ablation, line: Line) -> dict[str, str]:
    """A line of a page, heading -> text."""
    cell, row = line.cell, line.row

    def text(column: Column) -> str:
        if not isinstance(column, str):
            return column(cell) if cell else ""
        return "–" if (value := getattr(row, column, None)) is None else f"{value:g}"

    beside = [heading for heading in ablation.measures if heading != ablation.headline]
    printed = {
        "paper: accuracy": number(row.accuracy, row) if row else "–",
        "paper: difference": "" if line.printed is None else f"{line.printed:+.2f}",
    }
    return {
        "row": line.name,
        **(printed if ablation.table else {}),
        ablation.headline or "ours: last epoch": _mean_of(ablation, cell) if cell else "not run",
        "ours: difference [95 %]": difference_in_words(line.contrast),
        "p (Holm)": _p(line.contrast),
        **({"ours / paper": _ratio(line)} if ablation.table else {}),
        "word": line.word,
        "against": "" if line.against == line.name else line.against,
        **{heading: text(column) for heading, column in COLUMNS.get(ablation.stem, {}).items()},
        **{f"{heading}: word": more_or_less(line.measured.get(heading)) for heading in beside},
        "time a run: synthesis + student": text(clocks),
        "device": text(lambda cell: cell.device),
    }


def _mean_of(ablation: Ablation, cell: Cell) -> str:
    """Mean and spread of what a table is about, with the number of runs."""
    if not ablation.headline:
        return f"{accuracy(cell)} (n = {len(cell.last)})"
    values = [*ablation.values(cell).values()]
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"**{statistics.mean(values):.1f}{spread}** (n = {len(values)})"


def difference_in_words(contrast: Contrast | None) -> str:
    """The difference, and from three runs on its interval."""
    if not contrast:
        return ""
    numbers = contrast.difference, contrast.low, contrast.high
    mean, low, high = (f"{round(x, 2) + 0.0:+.2f}" for x in numbers)  # never -0.00
    return f"{mean} [{low}, {high}]" if contrast.n >= RUNS else mean


def _p(contrast: Contrast | None) -> str:
    """The adjusted p of the test for a difference; W marks Welch's."""
    if not contrast or contrast.n < RUNS:
        return ""
    return (f"{contrast.p:.3f}" if contrast.p >= 0.001 else "< 0.001") + (" W" if contrast.own else "")


def _ratio(line: Line) -> str:
    """Ours over the paper's difference, where the paper's is a point or more; beyond a factor of two with a word."""
    ratio = line.contrast.ratio(line.printed) if line.contrast and line.printed is not None else None
    if ratio is None:
        return ""
    return f"{ratio:.2f}" + (" larger" if ratio > 2 else " smaller" if 0 <= ratio < 0.5 else "")


def more_or_less(contrast: Contrast | None) -> str:
    """The rule's word about what is counted."""
    return MORE.get(contrast.word, contrast.word) if contrast else ""


def _is_printed(line: Line) -> bool:
    """Whether the paper prints an accuracy for it: a dash is no number to compare with."""
    return line.row is not None and line.row.accuracy is not None


def _counts(lines: Iterable[Line]) -> str:
    """How many of some lines have which word, without its n; references are not counted."""
    times = Counter(re.sub(r", n = \d+", "", line.word).replace(", exploratory", " (exploratory)") for line in lines)
    words = sorted(times.keys() - {"reference"}, key=lambda word: (word == "not run", (*ORDER, word).index(word), word))
    return "; ".join(f"{times[word]} × {word}" for word in words)


def _files_of_cards() -> dict[str, list[str]]:
    """Where each kept card lies: its id -> names of files in data/runs."""
    folder, found = data_dir() / "runs", {}
    for path in [*sorted(folder.glob("*.json")), *sorted(folder.glob("*.jsonl"))]:
        for name in re.findall(r'"id": "([^"]+)"', path.read_text(encoding="utf-8")):
            found.setdefault(name, []).append(path.name)
    return found


def _foot(sweep: Sweep, lines: list[Line], where: dict[str, list[str]]) -> str:
    """Where its numbers come from: the sweep file, the files of its cards, the sweep's own first, and their commits."""
    first = f"{sweep.name}.jsonl"
    held = [where[i] for line in lines if line.cell for i in line.cell.ids if i in where]
    names = sorted({first if first in names else names[0] for names in held}, key=lambda name: (name != first, name))
    cards = ", ".join(f"[data/runs/{name}](../data/runs/{name})" for name in names)
    commits = sorted({card["commit"][:7] for line in lines if line.cell for card in line.cell.cards})
    ran = f", run at {' and '.join(commits)}" if commits else ""
    file = f"data/sweeps/{sweep.name}.json"
    return f"Cards: {cards or 'none yet'}{ran}. Sweep: [{file}](../{file})."


# --- docs/divergences.md


def with_effects(page: str, cards: list[dict]) -> str:
    """docs/divergences.md with what the cards of the sweeps of D1-D13 say in the last cell of each row.

    Raises:
        UserError: the page does not have each of D1-D13 once.
    """
    effects: dict[str, list[str]] = {name: [] for name in DIVERGENCES}
    for dataset in BY_STEM["divergences"].sweeps():
        for line in lines_of("divergences", dataset, cards):
            if line.name in effects and line.contrast:
                problem = f"{dataset}, {line.cell.config.profile}, E = {line.cell.config.epochs}"
                word = line.word.partition(", n =")[0]
                said = f"{difference_in_words(line.contrast)} (n = {line.contrast.n}), {word}"
                effects[line.name].append(f"{problem}: {said}")
    for name, found in effects.items():
        cell = f"| {'; '.join(found) or 'not measured'} |"
        page, times = re.subn(rf"^(\| {name} \|.*)\|[^|\n]*\|$", lambda m, c=cell: m[1] + c, page, flags=re.MULTILINE)
        if times != 1:
            raise UserError(f"docs/divergences.md must hold one row of {name}, not {times}.")
    return page
