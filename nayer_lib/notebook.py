"""What notebooks use to show things: source code, figures with alt text, a live curve. Only this file knows IPython."""

import inspect
import io
import os
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from .config import PROFILES, TABLE8, Config, differences
from .distill import Epoch
from .errors import unknown
from .results.figures import learning_curve, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
    """Print the source of a function or class in the cell: the library is the text book."""
    from IPython.display import Code, display

    display(Code(inspect.getsource(thing), language="python"))


def figure(drawn: "Figure", alt: str) -> None:
    """Display a figure as PNG with alternative text, one sentence that says what is to be seen."""
    from IPython.display import display

    display(_picture(drawn, alt))


def table8_differences(config: Config) -> str:
    """How a config differs from its data set's row of Table 8 as the released code runs it, a line a field."""
    row = Config(**TABLE8[config.dataset])
    pairs = differences(config, row).items()
    return "\n".join(f"{name:26} {ours!s:>10}   released: {theirs}" for name, (ours, theirs) in pairs)


def watch(epochs: Iterable[Epoch], config: Config, teacher_accuracy: float) -> list[Epoch]:
    """Run to the end with a bar and a curve that grows after every epoch; in CI neither, at the end the curve.

    Returns:
        all epochs.
    """
    from IPython.display import display
    from tqdm.auto import tqdm

    quiet = bool(os.environ.get("CI"))
    seen: list[Epoch] = []
    handle = None
    classes = None
    bar = tqdm(epochs, total=config.total_epochs, unit="epoch", leave=False, disable=quiet, file=sys.stdout)
    for epoch in bar:
        seen.append(epoch)
        scored = [e for e in seen if e.scores]
        last = epoch.epoch + 1 == config.total_epochs
        if not scored or (quiet and not last):
            continue
        classes = len(scored[-1].scores.per_class)
        accuracy = [100 * e.scores.accuracy for e in scored]
        drawn, [ax] = new_figure()
        learning_curve(ax, [e.epoch for e in scored], accuracy, 100 * teacher_accuracy, 100 / classes)
        alt = f"Student test accuracy by epoch, rising to {accuracy[-1]:.1f} %; teacher {100 * teacher_accuracy:.1f} %."
        if handle is None:
            handle = display(_picture(drawn, alt), display_id=True)
        else:
            handle.update(_picture(drawn, alt))
    return seen


def _picture(drawn: "Figure", alt: str):
    from IPython.display import Image

    png = io.BytesIO()
    drawn.savefig(png, format="png")
    return Image(png.getvalue(), format="png", alt=alt)
