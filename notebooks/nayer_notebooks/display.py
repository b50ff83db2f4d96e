"""What notebooks use to show things: source, tables, figures, a live curve. Only this file knows IPython."""

import base64
import contextlib
import html
import inspect
import io
import os
import platform
import re
import sys
import textwrap
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from nayer_lib.base_config import NayerConfig
from nayer_lib.config import PROFILES, TABLE8, Config, differences
from nayer_lib.distill import Epoch
from nayer_lib.errors import unknown
from nayer_lib.runs.forecast import free_memory
from nayer_lib.runs.interrupts import asks_to
from nayer_lib.runs.run import Run

from .plots import image_grid, learning_curve, new_figure, warmup_stripe

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

    from nayer_lib.methods.base import Method

JOINED = {"sd": "{} ± {}", "n": "{} ({})", "low": "{} [{}", "high": "{}, {}]"}  # columns that join the one before them
MISSING = "–"
# Behind the rule's words: blue where the effect is there, orange where it is not or is a loss, grey for no effect.
TINTS = dict.fromkeys(("gain", "more", "shows", "reproduced"), "background: #cfe3f3; color: black")
TINTS |= dict.fromkeys(("loss", "less", "does not show", "not", "partly"), "background: #f9dcbc; color: black")
TINTS["no effect"] = "background: #e2e2e2; color: black"


def profile() -> str:
    """The profile that `NAYER_PROFILE` names; "quick" if it is not set.

    Raises:
        UserError: unknown profile (the nearest is named).
    """
    name = os.environ.get("NAYER_PROFILE") or "quick"
    if name not in PROFILES:
        raise unknown("profile (NAYER_PROFILE)", name, PROFILES)
    return name


def show(thing: Any) -> None:
    """Print the source of a function or class in the cell, and where it stands: the library is the text book."""
    from IPython.display import Code, display

    lines, first = inspect.getsourcelines(thing)
    path = Path(inspect.getfile(inspect.unwrap(thing)))  # of a decorated function, as its source
    where = f"# {'/'.join(path.parts[-2:])}, lines {first} to {first + len(lines) - 1}" if path.is_file() else ""
    display(Code(f"{where}\n{textwrap.dedent(''.join(lines))}".lstrip(), language="python"))


def table(
    frame: "pandas.DataFrame",
    title: str,
    units: dict[str, str] | None = None,
    best: Sequence[str] = (),
    digits: dict[str, int] | None = None,
) -> None:
    """Display a frame as HTML, the rule's words in colour, and beside it as plain text, which nbval compares.

    A column sd, n, low or high joins the one before it: mean ± sd (n), difference [low, high]. What is missing or empty
    is a dash.

    Args:
        frame: with an index in which no name stands twice.
        units: column -> its unit, in the head.
        best: columns whose largest value is bold.
        digits: column -> digits after the point, also of those that join it; one for the others.
    """
    import pandas as pd
    from IPython.display import display

    heads = {name: f"{name} ({unit})" for name, unit in (units or {}).items()}
    cells, head, after = pd.DataFrame(index=frame.index.rename(None)), "", 1
    for name, values in frame.items():
        joins = name in JOINED and head
        head, after = (head, after) if joins else (heads.get(name, name), (digits or {}).get(name, 1))
        told = [f"{value:z.{after}f}" if isinstance(value, float) else str(value) for value in values]
        told = [MISSING if pd.isna(value) or value == "" else text for value, text in zip(values, told, strict=True)]
        if joins:
            told = [a if a == MISSING else JOINED[name].format(a, b) for a, b in zip(cells[head], told, strict=True)]
        cells[head] = told
    looks = cells.map(lambda text: TINTS.get(text.partition(",")[0], ""))
    for name in best:
        looks.loc[frame[name].idxmax(), heads.get(name, name)] = "font-weight: bold"
    styled = cells.style.set_caption(html.escape(title)).set_uuid(re.sub(r"\W+", "-", title)).format(escape="html")
    styled.apply(lambda _: looks, axis=None).format_index(escape="html", axis=0).format_index(escape="html", axis=1)
    page = re.sub(r'(?=class="(row|col)_heading)', r'scope="\1" ', styled.to_html())
    display({"text/html": page, "text/plain": f"{title}\n{cells.to_string()}"}, raw=True)


def figure(drawn: "Figure", alt: str) -> None:
    """Display a figure as PNG with alternative text, one sentence that says what is to be seen."""
    from IPython.display import display

    display(Picture(drawn, alt))


class Picture:
    """A figure as an HTML image with alternative text: viewers and exports pass over what stands in the metadata.

    It is reduced to 128 colours, which in these figures cannot be seen; notebooks are two thirds as large with it.
    """

    def __init__(self, drawn: "Figure", alt: str):
        from PIL import Image

        png, small = io.BytesIO(), io.BytesIO()
        drawn.savefig(png, format="png")
        Image.open(png).convert("RGB").quantize(128).save(small, "png", optimize=True)
        self.png, self.alt = small.getvalue(), alt

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, str]:
        data = base64.b64encode(self.png).decode("ascii")
        image = f'<img alt="{html.escape(self.alt)}" src="data:image/png;base64,{data}">'
        return {"text/html": image, "text/plain": self.alt}


def environment() -> dict[str, str]:
    """This machine, fact by fact; the last one names the profiles that make sense on it."""
    gpu = torch.cuda.is_available()
    none = "Apple's, not supported" if torch.backends.mps.is_available() else "none that torch can use"
    return {
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "CPU": f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()}",
        "memory": _memory(),
        "GPU": torch.cuda.get_device_name() if gpu else none,
        "Colab": "yes" if "google.colab" in sys.modules else "no",
        "profiles": ", ".join(PROFILES) if gpu else "quick, hour",
    }


def table8_differences(config: Config) -> str:
    """How a config differs from its data set's row of Table 8 as the released code runs it, a line a field."""
    row = NayerConfig(**TABLE8[config.dataset])
    pairs = differences(config, row).items()
    return "\n".join(f"{name:26} {ours!s:>10}   released: {theirs}" for name, (ours, theirs) in pairs)


class Stopped(KeyboardInterrupt):
    """A run was interrupted: the cells below do not run. A notebook shows one line of it, and no traceback."""

    def _render_traceback_(self) -> list[str]:
        return [f"stopped: {self}"]


def watch(
    epochs: Iterable[Epoch], config: Config, teacher_accuracy: float, earlier: Sequence[dict] = ()
) -> list[Epoch]:
    """Run to the end; in one place, after every epoch, the newest images (of a `Run`), the curve and how far it is.

    In CI there is the end alone. Distillation epochs count from 1, warm-up is the grey part left of them.

    Args:
        earlier: of a run that goes on, the rows of its card's curve.

    Returns:
        the epochs that were run now.

    Raises:
        Stopped: the run was asked to stop before its last epoch, or what is no `Run` was interrupted.
    """
    quiet = bool(os.environ.get("CI"))
    points = [(row["epoch"], 100 * row["accuracy"]) for row in earlier if row["accuracy"] is not None]
    seen: list[Epoch] = []
    picture, told, begun = _Place(), _Place(), time.perf_counter()
    run = epochs if isinstance(epochs, Run) else None
    with asks_to(run.stop) if run else _one_line():
        for epoch in epochs:
            seen.append(epoch)
            if epoch.scores:
                points.append((epoch.epoch, 100 * epoch.scores.accuracy))
            done, last = epoch.epoch + 1, epoch.epoch + 1 == config.total_epochs
            if quiet and not last:
                continue
            method = run.setup.method if run else None
            picture.show(_progress(config, points, 100 * teacher_accuracy, method))
            if not quiet:
                seconds = (time.perf_counter() - begun) / len(seen) * (config.total_epochs - done)
                left = "done" if last else "stopped" if run and run.stopped else f"about {seconds:.0f} s left"
                words = f"epoch {done} of {config.total_epochs}, warm-up included; {left}"
                told.show({"text/plain": words}, raw=True)
    if run and run.stopped:
        raise Stopped(f"{len(earlier) + len(seen)} of {config.total_epochs} epochs are saved; run the cell to go on.")
    return seen


@contextlib.contextmanager
def _one_line() -> Iterator[None]:
    """An interrupt of what saves nothing, shown as one line."""
    try:
        yield
    except KeyboardInterrupt:
        raise Stopped("nothing of it is kept; run the cell again to start over.") from None


class _Place:
    """One place of a cell's output: what is shown there replaces what was there before."""

    def __init__(self) -> None:
        self.handle = None

    def show(self, thing: Any, **how) -> None:
        from IPython.display import display

        if self.handle is None:
            self.handle = display(thing, display_id=True, **how)
        else:
            self.handle.update(thing, **how)


def _progress(config: Config, points: list[tuple[int, float]], teacher: float, method: "Method | None") -> "Picture":
    """The newest images, where there is a method to ask, and the curve on the axes of the whole run."""
    drawn, axes = new_figure(columns=1 + (method is not None), width=6.0 if method is None else 4.0)
    if method is not None:
        shown = method.examples()
        image_grid(axes[0], shown.images.cpu(), shown.labels.cpu(), method.teacher.class_names[:10])
    warmup, ax = config.warmup_epochs, axes[-1]
    numbers, accuracy = [epoch + 1 - warmup for epoch, _ in points], [percent for _, percent in points]
    classes = len(method.teacher.class_names) if method is not None else 0
    learning_curve(ax, numbers, accuracy, teacher, 100 / classes if classes else None)
    ax.set_xlim(0.5 - warmup, config.distillation_epochs + 0.5)
    if warmup:
        warmup_stripe(ax, warmup)
    alt = f"Student test accuracy by epoch, now at {accuracy[-1]:.1f} %;" if points else "Warm-up, nothing scored yet;"
    return Picture(drawn, f"{alt} teacher {teacher:.1f} %.")


def _memory() -> str:
    """What is free where Linux tells it, else what there is."""
    if free := free_memory(torch.device("cpu")):
        return f"{free / 1e9:.1f} GB free"
    try:
        return f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 1e9:.1f} GB in all"
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return "unknown"
