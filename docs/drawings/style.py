"""Boxes, arrows and colours of the drawings. A unit is ten pixels: a canvas of width 90 is 900 pixels wide."""

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle
from PIL import Image

WIDTH = 90
FROZEN, TRAINED, RANDOM, DATA, LOSS, PAPER = "#d6dce5", "#cfe8cf", "#ffd8a8", "#ffffff", "#f6cfd3", "#f7f7f5"
INK, GRADIENT = "#222222", "#b3261e"


class Canvas:
    """A figure to draw on, `height` units high; the origin is at the lower left."""

    def __init__(self, height: float):
        self.figure = Figure(figsize=(WIDTH / 10, height / 10), dpi=100)
        self.axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set(xlim=(0, WIDTH), ylim=(0, height))
        self.axes.axis("off")

    def box(self, x: float, y: float, width: float, height: float, words: str, colour: str, size: float = 10) -> None:
        """A box with its words in the middle; x and y are its lower left corner."""
        shape = FancyBboxPatch(
            (x, y), width, height, boxstyle="round,pad=0,rounding_size=0.6", facecolor=colour, edgecolor=INK
        )
        self.axes.add_patch(shape)
        self.words(x + width / 2, y + height / 2, words, size)

    def panel(self, x: float, y: float, width: float, height: float, title: str, dashed: bool = False) -> None:
        """A frame behind boxes, with its title inside at the upper left."""
        line = "--" if dashed else "-"
        self.axes.add_patch(
            Rectangle((x, y), width, height, facecolor=PAPER, edgecolor="#888888", linestyle=line, zorder=0)
        )
        self.words(x + 0.8, y + height - 1.5, title, across="left", weight="bold")

    def words(
        self, x: float, y: float, words: str, size: float = 10, across: str = "center", colour: str = INK, **more
    ) -> None:
        self.axes.text(x, y, words, fontsize=size, ha=across, va="center", color=colour, linespacing=1.25, **more)

    def arrow(self, *points: tuple[float, float], gradient: bool = False) -> None:
        """An arrow along the points, its head at the last one; a gradient's is dashed and red."""
        colour, line = (GRADIENT, "--") if gradient else (INK, "-")
        self.axes.plot(*zip(*points[:-1], strict=True), color=colour, linestyle=line, linewidth=1.3)
        head = {"arrowstyle": "-|>", "color": colour, "linestyle": line, "linewidth": 1.3, "shrinkA": 0, "shrinkB": 0}
        self.axes.annotate("", points[-1], points[-2], arrowprops=head)

    def key(self, x: float, y: float, entries: dict[str, str], step: float) -> None:
        """What the colours mean, side by side from (x, y)."""
        for k, (words, colour) in enumerate(entries.items()):
            self.axes.add_patch(Rectangle((x + k * step, y - 0.9), 2.4, 1.8, facecolor=colour, edgecolor=INK))
            self.words(x + k * step + 3.2, y, words, across="left")


def picture(canvas: Canvas) -> Image.Image:
    """What is drawn, in 64 colours: a third of the size of a file with all of them."""
    agg = FigureCanvasAgg(canvas.figure)
    agg.draw()
    return Image.fromarray(np.asarray(agg.buffer_rgba())).convert("RGB").quantize(64)


def save(canvas: Canvas, script: str) -> None:
    """Write the picture beside the script that draws it."""
    picture(canvas).save(Path(script).with_suffix(".png"), optimize=True)
