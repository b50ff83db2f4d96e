"""Every figure of the kit, one function each: it takes an Axes and data, and returns the Axes.

Colours are seaborn's colour-blind-safe palette and never carry a meaning alone. Accuracies are in percent.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from nayer_lib.memory import newest_of_each

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from nayer_lib.methods.base import SynthesisReport

MARKERS = "os^DvP*X" * 3
CROSS_ENTROPY = "cross-entropy (nats)"
DPI, WIDEST = 110, 900  # pixels an inch, and those of the widest figure: a notebook shows it as large as it is


def new_figure(columns: int = 1, width: float = 6.0, height: float = 3.2) -> "tuple[Figure, list[Axes]]":
    """A figure in the kit's style with `columns` Axes side by side; width and height in inches, of one Axes.

    It is at most `WIDEST` pixels wide: its Axes get narrower.
    """
    import seaborn
    from matplotlib.figure import Figure

    seaborn.set_theme(context="notebook", style="whitegrid", palette="colorblind", font_scale=0.85)
    figure = Figure(figsize=(min(width * columns, WIDEST / DPI), height), dpi=DPI, layout="constrained")
    return figure, list(figure.subplots(1, columns, squeeze=False)[0])


def _labelled(ax: "Axes", x: str, y: str, legend: dict | None = None, whole: bool = False, **axes) -> "Axes":
    """Name the axes, say what lies on them, and add a legend with some options, {} for none; `whole`: x counts."""
    ax.set(xlabel=x, ylabel=y, **axes)
    if whole:
        ax.xaxis.get_major_locator().set_params(integer=True)
    if legend is not None:
        ax.legend(**legend)
    return ax


def _logarithmic(ax: "Axes", direction: str) -> "Axes":
    """Make the "x" or "y" axis logarithmic, with plain numbers beside it."""
    from matplotlib.ticker import LogLocator

    ax.set(**{f"{direction}scale": "log"})
    axis = getattr(ax, f"{direction}axis")
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7) if high < 100 * low else (1,)))
    axis.set_major_formatter("{x:g}")
    ax.minorticks_off()
    return ax


def one_legend(axes: "Sequence[Axes]") -> None:
    """One legend under the figure, in place of one in each of some Axes that show the same names."""
    for ax in axes:
        ax.get_legend().remove()
    lines, names = axes[0].get_legend_handles_labels()
    axes[0].figure.legend(lines, names, loc="outside lower center", ncols=len(names), fontsize=9)


def _mosaic(ax: "Axes", images: Tensor, columns: int) -> None:
    """Show images (N, C, H, W) in [0, 1] row by row, with white lines of a pixel between them."""
    from torchvision.utils import make_grid

    if len(images):
        grid = make_grid(images, nrow=columns, padding=1, pad_value=1.0)
        ax.imshow(grid.permute(1, 2, 0).numpy(), interpolation="nearest")


def image_grid(ax: "Axes", images: Tensor, labels: Tensor, names: Sequence[str], per_class: int = 10) -> "Axes":
    """The newest images of each class, one row a class (the idea of Fig. 7).

    `images`: (N, C, H, W), uint8 or in [0, 1]; `labels`: (N,). Later ones are newer. `names`: of the classes to show,
    by class id; a class without an image keeps an empty row.
    """
    _mosaic(ax, newest_of_each(images, labels, len(names), per_class), per_class)
    step = images.shape[2] + 1
    ax.set_yticks([step * k + step / 2 for k in range(len(names))], names)
    ax.set_xticks([])
    ax.grid(False)
    return ax


def learning_curve(
    ax: "Axes",
    epochs: Sequence,
    accuracy: Sequence,
    teacher: float,
    chance: float | None,
    label="student",
    line="-",
    band: tuple[Sequence, Sequence] | None = None,
) -> "Axes":
    """Test accuracy in percent after each epoch, with the teacher's and, if given, chance as lines (as in Fig. 1).

    `band`: the lowest and the highest of the seeds of which `accuracy` is the mean.
    """
    [curve] = ax.plot(epochs, accuracy, line, marker="o", markersize=4, label=label)
    if band:
        ax.fill_between(epochs, *band, color=curve.get_color(), alpha=0.15, linewidth=0)
    if not getattr(ax, "has_reference_lines", False):  # several curves share one pair of lines
        ax.axhline(teacher, color="black", linestyle="--", linewidth=1.2, label=f"teacher {teacher:.1f} %")
        if chance is not None:
            ax.axhline(chance, color="grey", linestyle=":", linewidth=1.2, label=f"chance {chance:.0f} %")
        ax.has_reference_lines = True
    return _labelled(ax, "epoch", "test accuracy (%)", {"loc": "lower right"}, whole=True, ylim=(0, 102))


def runs_by_epoch(ax: "Axes", arms: dict[str, Sequence[Sequence[float]]], teacher: float) -> "Axes":
    """Test accuracy in percent after each epoch, a line a run; the first arm, with which others compare, is grey."""
    for k, (arm, runs) in enumerate(arms.items()):
        for seed, accuracy in enumerate(runs):
            label, colour = (arm if seed == 0 else None), f"C{k}" if k else "grey"
            ax.plot(range(1, len(accuracy) + 1), accuracy, "--" if k else "-", color=colour, label=label)
    ax.axhline(teacher, color="black", linestyle=":", linewidth=1.2, label=f"teacher {teacher:.1f} %")
    return _labelled(ax, "epoch", "test accuracy (%)", {"loc": "lower right"}, whole=True, ylim=(0, 102))


def warmup_stripe(ax: "Axes", epochs: int) -> "Axes":
    """A grey stripe over the warm-up epochs: distillation epochs count from 1, those of the warm-up end at 0."""
    ax.axvspan(0.5 - epochs, 0.5, color="grey", alpha=0.15)
    return ax


def memory_growth(ax: "Axes", images: Sequence[int], warmup: int) -> "Axes":
    """Images in the memory M after each epoch, of which the first `warmup` lie in the grey stripe."""
    ax.bar(range(1 - warmup, len(images) + 1 - warmup), images)
    warmup_stripe(ax, warmup)
    return _labelled(ax, "epoch (grey: warm-up, synthesis alone)", "images in M", whole=True)


def ce_per_step(ax: "Axes", reports: "Sequence[SynthesisReport]", labels: Sequence[str]) -> "Axes":
    """L_CE before each generator step of some rounds (the first column of Fig. 5); every line ends in its label."""
    for report, label in zip(reports, labels, strict=True):
        ax.plot(range(1, len(report.ce_per_step) + 1), report.ce_per_step, marker=".", label=label)
    return _labelled(ax, "generator step g of the round", CROSS_ENTROPY, {}, whole=True, ylim=(0, None))


def disagreements(ax: "Axes", images: Tensor, labels: Tensor, teacher: Tensor, student: Tensor) -> "Axes":
    """Test images on which teacher and student differ, at most twelve, each with what both say.

    `images`: (N, C, H, W) uint8; `labels`, `teacher`, `student`: (N,) true and predicted classes.
    """
    chosen = (teacher != student).nonzero().flatten()[:12].tolist()
    captioned(ax, images[chosen], [f"is {labels[i]}: T {teacher[i]}, S {student[i]}" for i in chosen])
    ax.set_title("class and answers: T of the teacher, S of the student")
    return ax


def captioned(ax: "Axes", images: Tensor, words: Sequence[str], columns: int = 6) -> "Axes":
    """Images row by row, each with its words above it; images: (N, C, H, W) uint8."""
    room = images.shape[2] // 4  # white rows above each image, for the words
    shown = torch.nn.functional.pad(images.float() / 255, (0, 0, room, 0), value=1.0)
    _mosaic(ax, shown, columns)
    height, width = shown.shape[2] + 1, shown.shape[3] + 1
    for place, (caption, _) in enumerate(zip(words, images, strict=True)):
        row, column = divmod(place, columns)
        ax.text((column + 0.5) * width, (row + 0.02) * height, caption, va="top", ha="center", size=9)
    ax.axis("off")
    return ax


def per_class(ax: "Axes", names: Sequence[str], teacher: Tensor, student: Tensor) -> "Axes":
    """Accuracy of each class, teacher and student side by side; teacher and student: (K,) in [0, 1]."""
    places = range(len(names))
    ax.bar([k - 0.2 for k in places], (100 * teacher).tolist(), width=0.4, label="teacher", hatch="//")
    ax.bar([k + 0.2 for k in places], (100 * student).tolist(), width=0.4, label="student")
    ax.set_xticks(places, names, rotation=30, ha="right")
    above = {"loc": "lower right", "bbox_to_anchor": (1, 1), "ncols": 2}
    return _labelled(ax, "", "test accuracy (%)", above, ylim=(0, 102))


def arms(ax: "Axes", names: Sequence[str], means: Sequence[float], spreads: Sequence[float]) -> "Axes":
    """Last-epoch accuracy of a sweep's arms in percent, a dot an arm with its standard deviation over seeds."""
    ax.errorbar(means, range(len(names)), xerr=spreads, fmt="o", capsize=3)
    ax.set_yticks(range(len(names)), names)
    ax.invert_yaxis()
    return _labelled(ax, "accuracy, last epoch (%)", "")


def by_step(ax: "Axes", curves: dict[str, Sequence[float]], label: str = CROSS_ENTROPY) -> "Axes":
    """A metric, named by `label`, at each generator step, a line an arm, also told apart by dashes (Fig. 5).

    The axis of L_CE is logarithmic.
    """
    for (name, values), dashes in zip(curves.items(), ("-", "--", "-.", ":") * 3, strict=False):
        ax.plot(range(1, len(values) + 1), values, dashes, label=name)
    if label == CROSS_ENTROPY:
        _logarithmic(ax, "y")
    return _labelled(ax, "generator step g of the round", label, {"fontsize": 9})


def effects(ax: "Axes", names: Sequence[str], printed: Sequence, ours: Sequence, halves: Sequence) -> "Axes":
    """Differences of accuracy in points, a row an arm: the paper's hollow, ours filled with half of its interval.

    None or nan leaves a place empty. A legend is there where both are.
    """
    printed, ours, halves = (np.array(values, float) for values in (printed, ours, halves))
    ax.axvline(0, color="grey", linewidth=1)
    rows = range(len(names))
    ax.plot(printed, rows, "s", color="C0", fillstyle="none", markersize=8, label="paper")
    ax.errorbar(ours, rows, xerr=halves, fmt="o", color="C1", capsize=3, label="ours")
    ax.set_yticks(rows, names)
    ax.set_ylim(len(names) - 0.5, -0.5)
    both = not (np.isnan(printed).all() or np.isnan(ours).all())
    return _labelled(ax, "difference (points)", "", {"fontsize": 9} if both else None)


def accuracy_against(ax: "Axes", label: str, curves: dict[str, dict[float, tuple[float, float]]]) -> "Axes":
    """Accuracy in percent with its standard deviation against a setting, named by `label`, a line each.

    `curves`: name -> {setting: (mean, standard deviation; nan for none)}.
    """
    for (name, points), marker in zip(curves.items(), MARKERS, strict=False):
        means, spreads = zip(*points.values(), strict=True)
        ax.errorbar(list(points), means, spreads, fmt=f"{marker}-", capsize=3, markersize=5, label=name)
    _labelled(ax, label, "accuracy, last epoch (%)", {"fontsize": 9}, xscale="log")
    ax.set_xticks(ticks := sorted({x for points in curves.values() for x in points}), [f"{x:g}" for x in ticks])
    ax.minorticks_off()
    return ax


def accuracy_against_time(ax: "Axes", label: str, points: dict[str, Sequence[tuple[float, float, float]]]) -> "Axes":
    """Accuracy in percent against the time of a run, named by `label`; each method's name stands at its last point.

    `points`: method -> (time, mean accuracy, standard deviation; nan for none), some of them. The last method, a square
    with its name in bold, lies above the others.
    """
    for name, rows in points.items():
        times, means, spreads = zip(*rows, strict=True)
        look = "C1s-" if name == [*points][-1] else "C0o-"
        ax.errorbar(times, means, spreads, fmt=look, capsize=3, markersize=6, linewidth=1.2, label=name)
    _labelled(_logarithmic(ax, "x"), label, "accuracy (%)")
    ax.set_xlim(right=1.8 * ax.get_xlim()[1])  # room for the names
    ax.figure.draw_without_rendering()  # where a point lies in pixels is known from here on
    marks = ax.transData.transform([row[:2] for rows in points.values() for row in rows])
    placed: list[tuple[float, float]] = []
    for name, rows in sorted(points.items(), key=lambda method: -method[1][-1][1]):
        x, y = ax.transData.transform(rows[-1][:2])
        low = y
        while any(abs(x - left) < 90 and abs(low - other) < 15 for left, other in placed) or any(
            0 < right - x < 60 and abs(low - other) < 11 for right, other in marks
        ):
            low -= 1
        placed.append((x, low))
        where = {"xy": rows[-1][:2], "xytext": (12, (low - y) * 72 / DPI), "textcoords": "offset points"}
        words = {"fontsize": 9, "va": "center", "fontweight": "bold" if name == [*points][-1] else None}
        ax.annotate(name, **where, **words, arrowprops={"arrowstyle": "-", "color": "grey", "linewidth": 0.6})
    return ax


def family_tree(
    ax: "Axes", born: dict[str, int], parents: dict[str, Sequence[str]], families: dict[str, str]
) -> "Axes":
    """Methods by year, an arrow from each to those that took something from it; a band of rows a family.

    `born`: name -> year. `parents`: name -> names, of those that have any. `families`: name -> family, a row each in
    this order; those of one family stand together.
    """
    box, boxes = {"boxstyle": "round", "facecolor": "white", "edgecolor": "black"}, {}
    for row, name in enumerate(families):
        boxes[name] = ax.text(born[name], row, name, ha="center", va="center", size=9, bbox=box, zorder=3)
    for name, parent in ((name, parent) for name, older in parents.items() for parent in older):
        ends = {"patchA": boxes[parent].get_bbox_patch(), "patchB": boxes[name].get_bbox_patch()}
        arrow = {"arrowstyle": "-|>", "color": "dimgrey", "shrinkA": 0, "shrinkB": 1, **ends}
        arrow["connectionstyle"] = "arc3,rad=0.02"  # a little bent, it passes the corner of a box between the two
        ax.annotate("", boxes[name].get_position(), boxes[parent].get_position(), arrowprops=arrow, zorder=2)
    first, last = min(born.values()), max(born.values())
    for band, (family, members) in enumerate(groupby(families, key=families.get)):
        inside = [boxes[name].get_position()[1] for name in members]
        ax.axhspan(min(inside) - 0.5, max(inside) + 0.5, color="grey", alpha=0.06 if band % 2 else 0.14)
        ax.text(first - 2.0, sum(inside) / len(inside), family, va="center", size=9)
    ax.set(xlim=(first - 2.05, last + 0.5), ylim=(len(families) - 0.5, -0.5), yticks=[])
    ax.set_xticks(range(first, last + 1))
    ax.grid(False)
    return ax


def heat_maps(
    axes: "Sequence[Axes]", matrices: dict[str, Tensor], names: Sequence[str], low: float, high: float, label: str = ""
) -> None:
    """Named (K, K) matrices side by side: one order of rows, one range of colours; nan leaves a field empty.

    Of two at most the numbers are written too, in hundredths: for more there is no room.
    """
    import seaborn

    for place, (ax, (title, matrix)) in enumerate(zip(axes, matrices.items(), strict=True)):
        words = np.array([[f"{100 * value:z.0f}" for value in row] for row in matrix.tolist()])
        labels = {"xticklabels": names, "yticklabels": names if place == 0 else False, "annot_kws": {"size": 9}}
        colours = {"vmin": low, "vmax": high, "cmap": "viridis", "cbar": False, "square": True}
        seaborn.heatmap(matrix.numpy(), annot=words if len(axes) < 3 else False, fmt="", **labels, **colours, ax=ax)
        ax.set_title(title)
        ax.grid(False)
        ax.tick_params(axis="x", rotation=90)
        ax.tick_params(axis="y", rotation=0)
    written = f"{label} (numbers: in hundredths)" if label and len(axes) < 3 else label
    axes[0].figure.colorbar(axes[-1].collections[0], ax=axes, shrink=0.8, label=written)


def ranking(ax: "Axes", names: Sequence[str], values: Tensor) -> "Axes":
    """A bar for each name, the largest value on top; values: (N,)."""
    order = values.argsort().tolist()
    ax.barh([names[k] for k in order], values[order].tolist())
    return ax


def scatter(
    ax: "Axes", points: Tensor, groups: Sequence[str], words: Sequence[str] = (), inks: Sequence[str] = ()
) -> "Axes":
    """Points (N, 2) of a map, a colour and a marker for each group; `words` stand beside the points.

    A group that is named in `inks` has the colour of its name.
    """
    import seaborn

    kinds = list(dict.fromkeys(groups))
    colours = seaborn.color_palette("colorblind", len(kinds) if len(kinds) <= 10 else 10)
    for number, kind in enumerate(kinds):
        chosen = torch.tensor([group == kind for group in groups])
        marker = "osD^vP*X<>"[(number + number // 10) % 10]  # twenty groups: no two share both
        colour = kind if kind in inks else colours[number % len(colours)]
        edge = {"markeredgecolor": "black", "markeredgewidth": 0.4}  # light inks are seen by it
        ax.plot(*points[chosen].T, marker, color=colour, markersize=5, label=kind, **edge)
    for place, word in zip(points.tolist(), words, strict=False):
        ax.annotate(word, place, xytext=(3, 2), textcoords="offset points", size=9)
    ax.set(xticks=[], yticks=[])
    ax.margins(0.2, 0.1)  # room for the words
    return ax


def pairs(ax: "Axes", text: Tensor, images: Tensor, label: str) -> "Axes":
    """A dot for every pair of classes: their texts' distance against their images', (K (K - 1) / 2,) each."""
    ax.plot(text.tolist(), images.tolist(), ".", markersize=4, alpha=0.5)
    return _labelled(ax, "text: 1 - cosine", "images: L2 of class means", title=label)


def histograms(ax: "Axes", values: dict[str, Tensor], label: str) -> "Axes":
    """Some distributions over one axis, outlined and hatched: name -> (N,); `label` names the axis."""
    for (name, numbers), hatch in zip(values.items(), ("//", "..", "\\\\"), strict=False):
        ax.hist(numbers.tolist(), 30, density=True, histtype="stepfilled", alpha=0.5, hatch=hatch, label=name)
    return _labelled(ax, label, "density", {})


def shares(ax: "Axes", share: Tensor) -> "Axes":
    """What percentage of all squared length each dimension of a table (K, e) holds; share: (e,), adds up to 100."""
    ax.vlines(range(len(share)), 0, share.tolist(), linewidth=1)
    return _labelled(ax, "dimension", "% of squared length", ylim=(0, None))
