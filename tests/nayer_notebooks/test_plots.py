"""Every figure takes the Axes it is given and returns it, shows what it was given, and needs no display."""

import math

import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from nayer_lib.methods.base import SynthesisReport
from nayer_notebooks.plots import (
    CROSS_ENTROPY,
    accuracy_against,
    accuracy_against_time,
    by_step,
    captioned,
    ce_per_step,
    disagreements,
    effects,
    family_tree,
    heat_maps,
    histograms,
    image_grid,
    learning_curve,
    memory_growth,
    new_figure,
    one_legend,
    pairs,
    per_class,
    ranking,
    runs_by_epoch,
    scatter,
    shares,
)

NAMES = ("zero", "one")


@pytest.fixture
def ax():
    return new_figure()[1][0]


def shown(ax) -> torch.Tensor:
    """The picture that an Axes shows."""
    [image] = ax.get_images()
    return torch.as_tensor(image.get_array())


def report(ce) -> SynthesisReport:
    return SynthesisReport(len(ce), 20, ce, 1.0, 0.0, 0.1)


def draw(ax):
    FigureCanvasAgg(ax.figure).draw()


# Three methods: years, who took from whom, families.
FAMILY = (
    {"DAFL": 2019, "DeepInv": 2020, "CMI": 2021},
    {"CMI": ["DeepInv"]},
    {"DeepInv": "pixels", "CMI": "pixels", "DAFL": "plays on"},
)

CALLS = {
    "image_grid": lambda ax: image_grid(ax, torch.rand(4, 1, 3, 3), torch.tensor([0, 1, 0, 1]), NAMES),
    "learning_curve": lambda ax: learning_curve(ax, [1, 2], [50.0, 90.0], 99.0, 10.0),
    "runs_by_epoch": lambda ax: runs_by_epoch(ax, {"as it is": [[50.0, 90.0]], "changed": [[40.0, 80.0]]}, 99.8),
    "memory_growth": lambda ax: memory_growth(ax, [20, 40, 60], 1),
    "ce_per_step": lambda ax: ce_per_step(ax, [report([2.0, 1.0])], ["round 1"]),
    "disagreements": lambda ax: disagreements(
        ax, torch.zeros(3, 1, 8, 8, dtype=torch.uint8), torch.arange(3), torch.arange(3), torch.tensor([0, 2, 1])
    ),
    "captioned": lambda ax: captioned(ax, torch.zeros(2, 1, 8, 8, dtype=torch.uint8), ["zero", "one"], columns=1),
    "accuracy_against_time": lambda ax: accuracy_against_time(ax, "s", {"FM": [(30.0, 97.0, 0.5)]}),
    "family_tree": lambda ax: family_tree(ax, *FAMILY),
    "per_class": lambda ax: per_class(ax, NAMES, torch.tensor([1.0, 0.9]), torch.tensor([0.95, 0.6])),
    "ranking": lambda ax: ranking(ax, NAMES, torch.tensor([0.2, 0.1])),
    "scatter": lambda ax: scatter(ax, torch.rand(3, 2), ["x", "y", "x"], ["one", "two", "three"]),
    "pairs": lambda ax: pairs(ax, torch.rand(4), torch.rand(4), "an encoder"),
    "histograms": lambda ax: histograms(ax, {"before": torch.rand(9), "after": torch.rand(9)}, "cosine"),
    "shares": lambda ax: shares(ax, torch.rand(5)),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_figure_takes_an_axes_and_returns_it_drawn(name, ax, monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    assert CALLS[name](ax) is ax
    assert ax.has_data()
    draw(ax)


# Figures of notebooks 01, 02 and 04 in which smaller words stand inside a cell or at a point.
SMALL_WORDS = ("captioned", "disagreements", "heat_map", "scatter")


@pytest.mark.parametrize("name", [name for name in CALLS if name not in SMALL_WORDS])
def test_no_word_is_smaller_than_9_points(name, ax):
    words = CALLS[name](ax).findobj(Text)
    assert [word.get_text() for word in words if word.get_text() and word.get_fontsize() < 9] == []


def test_a_figure_is_never_wider_than_900_pixels():
    figure, axes = new_figure(columns=4, width=3)
    assert len(axes) == 4 and figure.get_figwidth() * figure.dpi == 900


def test_a_new_figure_has_its_axes_side_by_side_and_opens_no_window():
    from matplotlib import pyplot

    figure, axes = new_figure(columns=3, width=2, height=1)
    assert len(axes) == 3 and figure.axes == axes
    assert figure.get_size_inches().tolist() == [6, 1]
    assert pyplot.get_fignums() == []  # pyplot does not know it: nothing to show, nothing to leak


def test_one_legend_stands_under_all_axes():
    figure, axes = new_figure(columns=2)
    for ax in axes:
        by_step(ax, {"a": [2.0, 1.0], "b": [3.0, 2.0]})
    one_legend(axes)
    [legend] = figure.legends
    assert [word.get_text() for word in legend.get_texts()] == ["a", "b"]
    assert [ax.get_legend() for ax in axes] == [None, None]


# --- pictures of images


def test_images_stand_row_by_row_between_white_lines(ax):
    grey = torch.tensor([0, 51, 102], dtype=torch.uint8).view(3, 1, 1, 1).expand(3, 1, 4, 4)
    captioned(ax, grey, ["a", "b", "c"], columns=2)
    picture = (shown(ax)[:, :, 0] * 255).round()
    assert picture.shape == (13, 11)  # two rows of 1 + 4 pixels, two columns of 4, and lines of one
    assert picture[4].tolist() == [255, *4 * [0], 255, *4 * [51], 255]
    assert picture[10].tolist() == [255, *4 * [102], *6 * [255]]
    assert (picture[[0, 1, 6, 7, 12]] == 255).all()


def test_pictures_keep_colours(ax):
    image = torch.tensor([10, 100, 200], dtype=torch.uint8).view(1, 3, 1, 1).expand(2, 3, 4, 4)
    captioned(ax, image, ["a", "b"])
    assert (shown(ax)[3, 3] * 255).round().tolist() == [10, 100, 200]


@pytest.mark.parametrize("as_bytes", [True, False])
def test_an_image_grid_shows_the_newest_of_each_class_first(as_bytes, ax):
    grey = torch.tensor([0, 51, 102, 153, 204], dtype=torch.uint8)
    images = grey.view(5, 1, 1, 1) if as_bytes else grey.view(5, 1, 1, 1) / 255
    image_grid(ax, images, torch.tensor([0, 1, 0, 0, 1]), ("zero", "one", "two"), per_class=2)
    picture = (shown(ax)[1::2, 1::2, 0] * 255).round()
    assert picture.tolist() == [[153, 102], [204, 51], [255, 255]]  # no image of class two: an empty row
    assert [label.get_text() for label in ax.get_yticklabels()] == ["zero", "one", "two"]
    assert ax.get_yticks().tolist() == [1, 3, 5]  # the middle of each row


def test_disagreements_are_the_images_on_which_both_differ_with_what_both_say(ax):
    images = torch.arange(4, dtype=torch.uint8).view(4, 1, 1, 1).expand(4, 1, 4, 4) * 10
    labels, teacher, student = torch.tensor([5, 6, 7, 8]), torch.tensor([5, 6, 7, 1]), torch.tensor([5, 2, 7, 8])
    disagreements(ax, images, labels, teacher, student)
    assert [text.get_text() for text in ax.texts] == ["is 6: T 6, S 2", "is 8: T 1, S 8"]
    assert "T of the teacher, S of the student" in ax.get_title()
    assert {round(value * 255) for value in shown(ax).unique().tolist()} == {10, 30, 255}


def test_at_most_twelve_disagreements_are_shown(ax):
    images = torch.zeros(20, 3, 8, 8, dtype=torch.uint8)
    disagreements(ax, images, torch.zeros(20), torch.zeros(20), torch.ones(20))
    assert len(ax.texts) == 12 and shown(ax).shape == (2 * 11 + 1, 6 * 9 + 1, 3)
    draw(ax)


def test_without_a_disagreement_there_is_an_empty_picture(ax):
    same = torch.zeros(3, dtype=torch.long)
    disagreements(ax, torch.zeros(3, 1, 8, 8, dtype=torch.uint8), same, same, same)
    assert not ax.texts and not ax.images
    draw(ax)


def test_every_image_has_its_words_above_it(ax):
    images = torch.tensor([10, 20, 30], dtype=torch.uint8).view(3, 1, 1, 1).expand(3, 1, 4, 4)
    captioned(ax, images, ["a", "b", "c"], columns=2)
    assert [(text.get_text(), text.get_position()) for text in ax.texts] == [
        ("a", (2.5, 0.12)),
        ("b", (7.5, 0.12)),
        ("c", (2.5, 6.12)),
    ]
    picture = (shown(ax)[..., 0] * 255).round()
    assert [picture[5, 2], picture[5, 7], picture[11, 2]] == [10, 20, 30]
    assert picture[1, 2] == 255  # white, where the words stand
    with pytest.raises(ValueError, match="argument"):
        captioned(ax, images, ["a"])


# --- curves and bars


def test_a_learning_curve_has_the_teachers_line_and_chance_once(ax):
    learning_curve(ax, [1, 2, 3], [20.0, 60.0, 90.0], 99.0, 10.0, "seed 0")
    learning_curve(ax, [1, 2, 3], [30.0, 70.0, 95.0], 99.0, 10.0, "seed 1")
    told = [text.get_text() for text in ax.get_legend().get_texts()]
    assert sorted(told) == ["chance 10 %", "seed 0", "seed 1", "teacher 99.0 %"]
    assert ax.get_lines()[0].get_xydata().tolist() == [[1, 20], [2, 60], [3, 90]]
    assert len(ax.get_lines()) == 4


def test_a_mean_of_seeds_has_their_band(ax):
    learning_curve(ax, [1, 2], [20.0, 60.0], 99.0, None, band=([10.0, 50.0], [30.0, 70.0]))
    [band] = ax.collections
    assert {(1, 10), (1, 30), (2, 50), (2, 70)} <= set(map(tuple, band.get_paths()[0].vertices.astype(int).tolist()))


def test_curves_can_be_told_apart_without_colour(ax):
    learning_curve(ax, [1, 2], [20.0, 60.0], 99.0, 10.0, "live")
    learning_curve(ax, [1, 2], [30.0, 70.0], 99.0, 10.0, "kept", "-.")
    assert [curve.get_linestyle() for curve in ax.get_lines() if curve.get_label() in ("live", "kept")] == ["-", "-."]


def test_runs_of_an_arm_share_one_name_and_colour_and_the_first_arm_is_grey(ax):
    runs_by_epoch(ax, {"as it is": [[50.0, 90.0], [55.0, 91.0]], "changed": [[40.0, 80.0]]}, 99.8)
    *runs, teacher = ax.get_lines()
    assert [line.get_color() for line in runs[:2]] == ["grey", "grey"] != [runs[2].get_color()] * 2
    assert list(runs[0].get_xdata()) == [1, 2] and list(teacher.get_ydata()) == [99.8, 99.8]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["as it is", "changed", "teacher 99.8 %"]


def test_the_memorys_epochs_count_from_1_and_those_of_the_warm_up_are_grey(ax):
    memory_growth(ax, [20, 40, 60], warmup=2)
    *bars, stripe = ax.patches
    assert [bar.get_height() for bar in bars] == [20, 40, 60]
    assert [bar.get_x() + bar.get_width() / 2 for bar in bars] == pytest.approx([-1, 0, 1])
    assert [stripe.get_x(), stripe.get_x() + stripe.get_width()] == [-1.5, 0.5]  # the first two


def test_cross_entropy_is_drawn_from_step_1_for_each_round(ax):
    ce_per_step(ax, [report([3.0, 2.0]), report([1.0])], ["first", "second"])
    assert [line.get_xydata().tolist() for line in ax.get_lines()] == [[[1, 3], [2, 2]], [[1, 1]]]
    with pytest.raises(ValueError, match="argument"):
        ce_per_step(ax, [report([3.0])], [])


def test_per_class_bars_are_percent_and_begin_at_0(ax):
    per_class(ax, NAMES, torch.tensor([1.0, 0.9]), torch.tensor([0.95, 0.6]))
    assert [round(bar.get_height()) for bar in ax.patches] == [100, 90, 95, 60]
    assert ax.get_ylim()[0] == 0
    assert {bool(bar.get_hatch()) for bar in ax.patches[:2]} == {True}  # told apart without colour


# --- embeddings


def ticks(axis) -> list[str]:
    return [label.get_text() for label in axis.get_ticklabels()]


def test_heat_maps_share_one_order_of_rows_and_one_range_of_colours():
    matrix = torch.tensor([[1.0, -0.25], [0.5, float("nan")]])
    figure, axes = new_figure(columns=2)
    heat_maps(axes, {"text": matrix, "control": matrix / 2}, ("cat", "dog"), -1, 1, "cosine")
    assert [ax.get_title() for ax in axes] == ["text", "control"]
    assert [ticks(ax.xaxis) for ax in axes] == 2 * [["cat", "dog"]]
    assert ticks(axes[0].yaxis) == ["cat", "dog"] and not ticks(axes[1].yaxis)  # said once
    assert {ax.collections[0].get_clim() for ax in axes} == {(-1, 1)}
    assert [text.get_text() for text in axes[0].texts] == ["100", "-25", "50"]  # nan: no word
    *_, bar = figure.axes
    assert len(figure.axes) == 3 and bar.get_ylabel() == "cosine (numbers: in hundredths)"
    FigureCanvasAgg(figure).draw()


def test_a_ranking_has_the_largest_on_top(ax):
    ranking(ax, ("low", "high", "middle"), torch.tensor([0.1, 0.9, 0.5]))
    assert ticks(ax.yaxis) == ["low", "middle", "high"]
    assert [bar.get_width() for bar in ax.patches] == pytest.approx([0.1, 0.5, 0.9])


def test_no_two_of_twenty_groups_share_both_colour_and_marker(ax):
    groups = [str(k) for k in range(20)]
    scatter(ax, torch.rand(20, 2), groups)
    looks = {(line.get_marker(), tuple(line.get_color())) for line in ax.lines}
    assert len(looks) == 20 and [line.get_label() for line in ax.lines] == groups


def test_inks_have_their_own_colours_and_every_point_a_dark_edge(ax):
    scatter(ax, torch.rand(3, 2), ["red", "yellow", "other"], inks=("red", "yellow", "blue"))
    assert [line.get_color() for line in ax.lines][:2] == ["red", "yellow"]
    assert {line.get_markeredgecolor() for line in ax.lines} == {"black"}


def test_words_stand_at_their_points(ax):
    points = torch.tensor([[0.0, 1.0], [2.0, 3.0]])
    scatter(ax, points, ["x", "y"], ["one", "two"])
    assert [(text.get_text(), tuple(text.xy)) for text in ax.texts] == [("one", (0.0, 1.0)), ("two", (2.0, 3.0))]


def test_every_dimension_has_a_line_as_high_as_its_share(ax):
    shares(ax, torch.tensor([36.0, 64.0]))
    assert [segment[1][1] for segment in ax.collections[0].get_segments()] == pytest.approx([36.0, 64.0])


@pytest.mark.parametrize(("label", "scale"), [(CROSS_ENTROPY, "log"), ("judge's score", "linear")])
def test_metrics_by_step_start_at_step_1_and_no_two_lines_look_alike(ax, label, scale):
    by_step(ax, {f"arm {k}": [3.0, 2.0, k + 1.0] for k in range(4)}, label)
    assert [list(line.get_xdata()) for line in ax.lines] == 4 * [[1, 2, 3]]
    assert len({line.get_linestyle() for line in ax.lines}) == 4
    assert ax.get_yscale() == scale and ax.get_ylabel() == label
    if scale == "log":
        draw(ax)
        assert [word for word in ticks(ax.yaxis) if word] == sorted((w for w in ticks(ax.yaxis) if w), key=float)


def test_effects_leave_a_place_empty_where_there_is_no_number(ax):
    effects(ax, ["a", "b"], [1.0, None], [None, -2.0], [None, 0.5])
    printed = next(line for line in ax.lines if line.get_label() == "paper")
    assert printed.get_fillstyle() == "none"
    assert list(printed.get_xdata())[0] == 1.0 and math.isnan(list(printed.get_xdata())[1])
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["a", "b"] and ax.yaxis_inverted()
    assert [word.get_text() for word in ax.get_legend().get_texts()] == ["paper", "ours"]


def test_effects_of_one_kind_need_no_legend(ax):
    effects(ax, ["a", "b"], [None, None], [1.0, -2.0], [0.5, 0.5])
    assert ax.get_legend() is None


def test_accuracy_against_a_setting_has_a_tick_at_every_size(ax):
    curves = {"NAYER": {2: (50.0, 1.0), 30: (97.0, float("nan"))}, "FM": {2: (40.0, 2.0), 5: (60.0, 1.0)}}
    accuracy_against(ax, "g", curves)
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["2", "5", "30"] and ax.get_xscale() == "log"
    assert len(ax.containers) == 2 and len({c.lines[0].get_marker() for c in ax.containers}) == 2


def test_every_method_has_its_name_at_its_last_point_and_the_last_one_is_in_bold(ax):
    nan = float("nan")
    points = {"FM": [(20.0, 91.0, nan), (30.0, 97.0, 0.5)], "DFQ": [(31.0, 97.0, nan)], "NAYER": [(32.0, 97.0, nan)]}
    accuracy_against_time(ax, "hours", points)
    assert {word.get_text(): word.xy for word in ax.texts} == {name: rows[-1][:2] for name, rows in points.items()}
    assert [word.get_text() for word in ax.texts if word.get_fontweight() == "bold"] == ["NAYER"]
    heights = sorted(word.xyann[1] for word in ax.texts)
    assert heights[-1] <= -7  # not on another point
    assert all(high - low >= 9 for low, high in zip(heights, heights[1:], strict=False))
    assert [tick.get_text() for tick in ax.get_xticklabels() if 19 < tick.get_position()[0] < 40] == ["20", "30"]


def test_a_family_tree_has_a_row_a_method_a_band_a_family_and_a_line_a_debt(ax):
    family_tree(ax, *FAMILY)
    placed = {word.get_text(): word.get_position() for word in ax.texts if word.get_text()}
    assert [placed[name] for name in ("DeepInv", "CMI", "DAFL")] == [(2020, 0), (2021, 1), (2019, 2)]
    assert {"pixels", "plays on"} <= set(placed) and len(ax.patches) == 2
    [line] = [word for word in ax.texts if not word.get_text()]
    assert line.xy == (2021, 1) and line.get_position() == (2020, 0)
    ends = [box for box in ax.texts if box.get_text() in ("DeepInv", "CMI")]  # it begins and ends at their boxes
    assert [line.arrow_patch.patchA, line.arrow_patch.patchB] == [box.get_bbox_patch() for box in ends]
