"""The helpers of the notebooks, without one: what they display is caught."""

import base64
import inspect
import io
import os
import platform
import re
import sys
from pathlib import Path

import pytest
import torch
from bs4 import BeautifulSoup
from IPython.core.formatters import DisplayFormatter
from nbconvert import HTMLExporter
from nbformat.v4 import new_code_cell, new_notebook, new_output
from PIL import Image
from tiny import tiny_config, tiny_setup

from nayer_beyond.black_box import BlackBox
from nayer_lib.base_config import NayerConfig
from nayer_lib.config import PROFILES, VARIANTS, make_config
from nayer_lib.distill import distill
from nayer_lib.errors import UserError
from nayer_lib.generator.noisy_layer import NoisyLayer
from nayer_lib.losses import classification
from nayer_lib.runs.run import Run
from nayer_notebooks import display
from nayer_notebooks.exercises import one_line
from nayer_notebooks.plots import new_figure


class Handle:
    def __init__(self, updates):
        self.updates = updates

    def update(self, thing, raw=False):
        self.updates.append(thing)


@pytest.fixture
def displayed(monkeypatch) -> list:
    """Everything shown, the first picture of a live figure and its updates alike."""
    things = []

    def display(thing, display_id=False, raw=False):
        things.append(thing)
        return Handle(things) if display_id else None

    monkeypatch.setattr("IPython.display.display", display)
    return things


def png_and_alt(picture) -> tuple[bytes, str]:
    """Of the one picture in what a notebook stores."""
    stored = picture._repr_mimebundle_()
    image = BeautifulSoup(stored["text/html"], "html.parser").img
    head, data = image["src"].split(",")
    assert head == "data:image/png;base64" and stored["text/plain"] == image["alt"] and len(stored) == 2
    return base64.b64decode(data), image["alt"]


@pytest.mark.parametrize("value", [*PROFILES, None, ""])
def test_the_profile_is_what_the_environment_names_else_quick(value, monkeypatch):
    monkeypatch.delenv("NAYER_PROFILE")
    if value is not None:
        monkeypatch.setenv("NAYER_PROFILE", value)
    assert display.profile() == (value or "quick")


def test_an_unknown_profile_is_refused_with_the_nearest(monkeypatch):
    monkeypatch.setenv("NAYER_PROFILE", "Ful")
    with pytest.raises(UserError, match=r"unknown profile \(NAYER_PROFILE\) 'Ful'. Did you mean 'full'"):
        display.profile()


def test_show_displays_the_source_as_it_stands_in_the_library(displayed):
    display.show(NoisyLayer.redraw)
    display.show(distill)
    first, second = displayed
    assert "def redraw(self" in first.data and "self.weight.normal_" in first.data
    where, line, *_ = second.data.splitlines()
    assert line.startswith("def distill(") and second.language == "python"
    first, last = map(int, re.fullmatch(r"# nayer_lib/distill\.py, lines (\d+) to (\d+)", where).groups())
    source = Path(inspect.getfile(distill)).read_text(encoding="utf-8").splitlines()
    assert source[first - 1 : last] == second.data.splitlines()[1:]
    display.show(BlackBox.forward)  # decorated: not the decorator's file
    assert displayed[-1].data.startswith("# nayer_beyond/black_box.py, lines ")


def test_show_displays_a_function_that_stands_in_no_file_as_it_is(displayed):
    display.show(one_line(classification, "return", "return 2 *"))
    [shown] = displayed
    assert shown.data.startswith("def classification(") and "return 2 *" in shown.data


def test_a_table_has_a_title_units_a_dash_for_what_is_missing_and_the_rules_words_in_colour(displayed):
    import pandas as pd

    columns = {"CE < 1": [0.123, None], "ours": [98.26, 95.0], "sd": [0.1, None], "n": [3, 1], "diff": [None, -3.26]}
    columns |= {"low": [None, -4.0], "high": [None, -2.5], "word": ["reference", "loss, n = 3"], "against": ["", "a"]}
    frame = pd.DataFrame(columns, index=["a", "b"])
    display.table(frame, "Inputs & words", units={"ours": "%"}, best=["ours"], digits={"CE < 1": 2})
    [shown] = displayed
    assert shown["text/plain"].splitlines()[0] == "Inputs & words"
    page = BeautifulSoup(shown["text/html"], "html.parser")
    rows = [[cell.get_text(strip=True) for cell in row.find_all(["th", "td"])] for row in page.find_all("tr")]
    assert page.caption.get_text() == "Inputs & words" and rows == [
        ["", "CE < 1", "ours (%)", "diff", "word", "against"],
        ["a", "0.12", "98.3 ± 0.1 (3)", "–", "reference", "–"],
        ["b", "–", "95.0 ± – (1)", "-3.3 [-4.0, -2.5]", "loss, n = 3", "a"],
    ]
    for row in rows[1:]:
        assert all(cell in shown["text/plain"] for cell in row)
    assert [cell["scope"] for cell in page.find_all("th") if cell.get_text(strip=True)] == 5 * ["col"] + 2 * ["row"]
    assert ">CE &lt; 1<" in shown["text/html"]
    styles = page.style.get_text()
    assert re.search(r"row0_col1 \{\s*font-weight: bold;", styles) and re.search(r"row1_col3 \{\s*background:", styles)
    assert styles.count("{") == 2  # nothing else is marked


def test_a_figure_is_shown_as_png_with_its_alternative_text(displayed):
    drawn, [ax] = new_figure()
    ax.plot([1, 2])
    display.figure(drawn, 'A "line" that rises from < 1 to 2.')
    [picture] = displayed
    png, alt = png_and_alt(picture)
    assert png.startswith(b"\x89PNG") and alt == 'A "line" that rises from < 1 to 2.'
    assert len(Image.open(io.BytesIO(png)).getcolors()) <= 128


def test_a_figures_alternative_text_is_in_the_exported_page():
    drawn, [ax] = new_figure()
    ax.plot([1, 2])
    data, metadata = DisplayFormatter().format(display.Picture(drawn, "A line that rises from 1 to 2."))
    cell = new_code_cell("figure()", outputs=[new_output("display_data", data, metadata=metadata)])
    page, _ = HTMLExporter(template_name="lab").from_notebook_node(new_notebook(cells=[cell]))
    [image] = BeautifulSoup(page, "html.parser").find_all("img")
    assert image["alt"] == "A line that rises from 1 to 2." and image["src"].startswith("data:image/png;base64,")


def test_in_ci_watch_draws_the_curve_once_and_gives_back_all_epochs(displayed, monkeypatch, capsys):
    monkeypatch.setenv("CI", "1")
    setup = tiny_setup(epochs=3)
    epochs = display.watch(distill(setup.method, setup.evaluate), setup.method.config, 0.998)
    assert [epoch.epoch for epoch in epochs] == [0, 1, 2, 3]
    assert len(displayed) == 1
    last = 100 * epochs[-1].scores.accuracy
    assert re.fullmatch(rf"Student test accuracy .* {last:.1f} %; teacher 99.8 %\.", png_and_alt(displayed[0])[1])
    assert capsys.readouterr() == ("", "")


def test_elsewhere_watch_draws_after_every_epoch_and_says_how_far_it_is(displayed, monkeypatch, capsys):
    monkeypatch.delenv("CI", raising=False)
    setup = tiny_setup(epochs=3)
    display.watch(distill(setup.method, setup.evaluate), setup.method.config, 0.998)
    pictures, told = displayed[::2], [words["text/plain"] for words in displayed[1::2]]
    assert len({png_and_alt(picture)[0] for picture in pictures}) == 4
    assert png_and_alt(pictures[0])[1].startswith("Warm-up, nothing scored yet;")
    assert re.fullmatch(r"epoch 1 of 4, warm-up included; about \d+ s left", told[0])
    assert told[-1] == "epoch 4 of 4, warm-up included; done"
    assert capsys.readouterr() == ("", "")


def test_an_interrupt_of_what_saves_nothing_is_one_line(displayed):
    def epochs():
        yield from ()
        raise KeyboardInterrupt

    with pytest.raises(display.Stopped, match="nothing of it is kept; run the cell again to start over") as told:
        display.watch(epochs(), tiny_setup().config, 0.998)
    assert len(told.value._render_traceback_()) == 1


def test_a_runs_newest_images_stand_beside_its_curve_on_the_axes_of_the_whole_run(tmp_path, displayed, monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    drawn = []
    monkeypatch.setattr(display, "Picture", lambda figure, alt: drawn.append(figure.axes))
    setup = tiny_setup(epochs=3)
    display.watch(Run(setup, tmp_path / "run"), setup.config, 0.998)
    assert [len(axes) for axes in drawn] == 4 * [2]
    for _, curve in drawn:
        assert curve.get_xlim() == (-0.5, 3.5) and curve.get_ylim() == (0, 102)  # one warm-up epoch, then 1 to 3
    assert list(drawn[-1][1].get_lines()[0].get_xdata()) == [1, 2, 3]


CELL = """
import os, sys
os.environ["NAYER_RUNS"] = {runs!r}
sys.path.insert(0, {tests!r})
from tiny import tiny_setup
from nayer_notebooks.display import watch
from nayer_lib.losses import classification
from nayer_lib.runs.run import Run

setup = tiny_setup(epochs=12, student_steps=40, rounds=4)
run = Run(setup, {folder!r}, resume=True)
done = watch(run, setup.config, 0.998, earlier=run.card["curve"])
print([epoch.epoch for epoch in done][0], run.card["status"], next(setup.method.student.parameters()).sum().item())
"""


@pytest.mark.slow
def test_a_cell_that_is_interrupted_and_run_again_goes_on_to_the_same_student(tmp_path):
    """In a real kernel, as JupyterLab would."""
    from jupyter_client.manager import start_new_kernel

    def cell(folder: str) -> str:
        return CELL.format(runs=str(tmp_path), tests=str(Path(__file__).parents[1]), folder=str(tmp_path / folder))

    manager, client = start_new_kernel(env={**os.environ, "CI": "", "OMP_NUM_THREADS": "1"})
    try:

        def run(code: str, interrupt_at: str = "") -> str:
            said, asked = [], client.execute(code)
            while True:
                message = client.get_iopub_msg(timeout=120)
                kind, content = message["msg_type"], message["content"]
                if message["parent_header"].get("msg_id") != asked:
                    continue
                said.append(content.get("text") or content.get("data", {}).get("text/plain", ""))
                said += content.get("traceback", [])
                if interrupt_at and interrupt_at in said[-1]:
                    interrupt_at = ""
                    manager.interrupt_kernel()
                if (kind, content.get("execution_state")) == ("status", "idle"):
                    return "\n".join(said)

        whole = run(cell("whole")).strip().splitlines()[-1]
        stopped = run(cell("stopped"), interrupt_at="epoch 2 of 13")
        assert re.search(r"stopped: \d+ of 13 epochs are saved; run the cell to go on\.", stopped)
        assert "Traceback" not in stopped and "0%" not in stopped
        first, status, total = run(cell("stopped")).strip().splitlines()[-1].split()
        assert int(first) >= 2 and [status, total] == whole.split()[1:]
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def test_the_environment_is_what_python_and_torch_say(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    told = display.environment()
    assert told["Python"] == platform.python_version() and told["torch"] == torch.__version__
    assert told["CPU"] == f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()}"
    assert (told["GPU"], told["Colab"], told["profiles"]) == ("none that torch can use", "no", "quick, hour")
    assert re.fullmatch(r"\d+\.\d GB (free|in all)", told["memory"])


def test_with_a_gpu_every_profile_makes_sense_and_colab_is_seen(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")
    monkeypatch.setitem(sys.modules, "google.colab", object())
    told = display.environment()
    assert (told["GPU"], told["Colab"]) == ("Some GPU", "yes")
    assert told["profiles"].split(", ") == list(PROFILES)


def test_apples_gpu_is_named_as_one_that_is_not_used(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert display.environment()["GPU"] == "Apple's, not supported"


def test_where_linux_does_not_tell_its_memory_the_total_or_nothing_is_told(monkeypatch):
    monkeypatch.setattr(display, "free_memory", lambda device: None)
    monkeypatch.setattr(os, "sysconf", {"SC_PHYS_PAGES": 2_000_000, "SC_PAGE_SIZE": 4096}.__getitem__, raising=False)
    assert display.environment()["memory"] == "8.2 GB in all"
    monkeypatch.delattr(os, "sysconf")
    assert display.environment()["memory"] == "unknown"


def test_table_8_as_released_has_no_difference_and_the_text_those_of_d1_to_d13():
    assert display.table8_differences(make_config("cifar10-wrn40_2-wrn16_2", "released", "full")) == ""
    lines = display.table8_differences(make_config("cifar10-wrn40_2-wrn16_2", "paper", "full")).splitlines()
    assert {line.split()[0] for line in lines} == set(VARIANTS["paper"]) | {"variant"}


def test_the_differences_from_table_8_are_told_a_line_a_field():
    config = make_config()
    lines = display.table8_differences(config).splitlines()
    assert [line.split() for line in lines] == [
        [name, str(value), "released:", str(getattr(NayerConfig(), name))]
        for name, value in [("profile", "quick"), *order(PROFILES["quick"])]
        if name == "profile" or value < getattr(NayerConfig(), name)  # an epoch without repeats has none to shrink
    ]


def order(changes: dict) -> list[tuple]:
    """Changes in the order of the config's fields."""
    return [(name, changes[name]) for name in NayerConfig.__dataclass_fields__ if name in changes]


def test_overrides_show_among_the_differences():
    told = display.table8_differences(tiny_config(alpha_bn=0.0, memory_size=10))
    assert re.search(r"^alpha_bn +0.0   released: 10.0$", told, re.M)
    assert re.search(r"^memory_size +10   released: None$", told, re.M)
