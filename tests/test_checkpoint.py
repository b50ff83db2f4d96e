"""Exact resume: interrupted is uninterrupted, whatever interrupts, and nothing is half written."""

import functools
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny import TINY, over, tiny_config, tiny_setup

from nayer_lib import cli, files
from nayer_lib.checkpoint import IMAGES, STATE, VERSION
from nayer_lib.classifiers.teacher import load_classifier
from nayer_lib.config import make_config
from nayer_lib.distill import prepare
from nayer_lib.errors import UserError
from nayer_lib.methods.base import NonFiniteLoss
from nayer_lib.runs import run as run_module
from nayer_lib.runs.card import read_card, resumable
from nayer_lib.runs.interrupts import asks_to
from nayer_lib.runs.run import CUT_OFF, Run

LONGER = {"epochs": 4, "generator_life": 2, "student_steps": 3}
SET = [f"{name}={value}" for name, value in {**TINY, **LONGER}.items()]


def started(folder, resume=False, save_after=0.0, max_minutes=None, **overrides) -> Run:
    """A run that is scored as often as the command's; it saves after every epoch, however short."""
    setup = prepare(tiny_config(**over(LONGER, overrides)), device="cpu")
    return Run(setup, folder, resume, save_after, max_minutes)


def left(folder) -> tuple:
    """What a run leaves, without the clocks: its curve, its student, its metrics, its picture."""
    card = read_card(folder)
    curve = [{name: value for name, value in row.items() if name != "seconds"} for row in card["curve"]]
    student = load_classifier(folder / "student.safetensors").net.state_dict()
    status, student = card["status"], files.tensors_hash(student)
    if "problems" in card:
        return status, curve, student
    return status, curve, student, card["metrics"], (folder / "images.png").read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    list(started(folder))
    return left(folder)


def interrupted_after(folder, epochs: int, **overrides) -> Run:
    run = started(folder, **overrides)
    for epoch in run:
        if epoch.epoch + 2 == epochs:
            run.stop()  # takes effect at the end of the next epoch
    return run


@pytest.fixture(scope="module")
def stopped_once(tmp_path_factory) -> Path:
    """A run that was stopped after three epochs; `stopped` is a copy of it."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    interrupted_after(folder, 3)
    return folder


@pytest.fixture
def stopped(stopped_once, tmp_path) -> Path:
    return shutil.copytree(stopped_once, tmp_path / "run")


# --- interrupted = uninterrupted


@pytest.mark.parametrize("epochs", [2, 3, 4])
def test_a_run_that_was_asked_to_stop_goes_on_to_the_same_bits(epochs, tmp_path, whole):
    run = interrupted_after(tmp_path / "run", epochs)
    assert run.stopped and len(run.card["curve"]) == epochs
    assert read_card(tmp_path / "run")["status"] == "stopped before its last epoch"

    again = started(tmp_path / "run", resume=True)
    assert [epoch.epoch for epoch in again] == list(range(epochs, 5))
    assert left(tmp_path / "run") == whole
    card = read_card(tmp_path / "run")
    assert card["id"] == run.id and card["resumed"] == [epochs]
    assert card["seconds"]["total"] > run.card["seconds"]["student"] > 0
    lines = (tmp_path / "run" / "curve.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["epoch", "0", "1", "2", "3", "4"]


@pytest.mark.parametrize("memory_size", [30, 50])
def test_so_does_one_with_a_bounded_memory(memory_size, tmp_path):
    """Stopped twice: the ring has wrapped by then."""
    list(started(tmp_path / "whole", memory_size=memory_size))
    interrupted_after(tmp_path / "run", 2, memory_size=memory_size)
    list(started(tmp_path / "run", resume=True, max_minutes=0.0, memory_size=memory_size))
    list(started(tmp_path / "run", resume=True, memory_size=memory_size))
    assert left(tmp_path / "run") == left(tmp_path / "whole")


def test_so_does_one_whose_memory_holds_no_images(tmp_path):
    """SpaceshipNet's rows are three tensors of 16-bit floats; the ring wraps."""
    options = {"method": "spaceship", "memory_size": 50}
    list(started(tmp_path / "whole", **options))
    interrupted_after(tmp_path / "run", 2, **options)
    row = 2 * (8 * 2 * 2 + 8 * 4 * 4 + 4 * 8 * 8) + 4 + 4
    assert (tmp_path / "run" / IMAGES).stat().st_size % row == 0
    list(started(tmp_path / "run", resume=True, max_minutes=0.0, **options))
    list(started(tmp_path / "run", resume=True, **options))
    assert left(tmp_path / "run") == left(tmp_path / "whole")


def test_what_was_not_saved_is_run_again(tmp_path, whole):
    """A state after epoch 1, then two epochs that are lost with the process."""
    run = started(tmp_path / "run")
    epochs = iter(run)
    for epoch in epochs:
        if epoch.epoch == 1:
            run.save_after = 1e9
        if epoch.epoch == 3:
            break
    epochs.close()
    assert len(read_card(tmp_path / "run")["curve"]) == 4
    assert [epoch.epoch for epoch in started(tmp_path / "run", resume=True)] == [2, 3, 4]
    assert left(tmp_path / "run") == whole


def test_max_minutes_stops_at_the_end_of_an_epoch(tmp_path, whole):
    run = started(tmp_path / "run", save_after=1e9, max_minutes=0.0)
    assert [epoch.epoch for epoch in run] == [0] and run.stopped
    for expected in (1, 2, 3):
        again = started(tmp_path / "run", resume=True, save_after=1e9, max_minutes=0.0)
        assert [epoch.epoch for epoch in again] == [expected]
    again = started(tmp_path / "run", resume=True, max_minutes=0.0)
    assert [epoch.epoch for epoch in again] == [4] and not again.stopped  # the last epoch ends the run
    assert left(tmp_path / "run") == whole and read_card(tmp_path / "run")["resumed"] == [1, 2, 3, 4]


def test_resume_where_there_is_no_run_or_no_state_starts_one(tmp_path, whole):
    next(iter(started(tmp_path / "run", resume=True)))
    (tmp_path / "run" / STATE).unlink()  # images of a save that was cut off are there
    with pytest.warns(UserWarning, match="had saved no state: it starts again from the first epoch"):
        again = started(tmp_path / "run", resume=True)
    assert not (tmp_path / "run" / IMAGES).exists()
    list(again)
    assert left(tmp_path / "run") == whole and "resumed" not in read_card(tmp_path / "run")


# --- the files


def test_a_finished_run_keeps_no_state(tmp_path):
    list(started(tmp_path / "run"))
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {"card.json", "curve.csv", "student.safetensors", "images.png"}
    (tmp_path / "run" / STATE).write_bytes(b"killed before this was removed")
    with pytest.raises(UserError, match="is finished: there is nothing to resume"):
        started(tmp_path / "run", resume=True)
    assert {path.name for path in (tmp_path / "run").iterdir()} == names


def test_what_a_kill_left_half_written_is_swept(stopped, whole):
    for name in (".card.json.ab_12xyz", ".state.pt.0a1b2c3d"):
        (stopped / name).write_bytes(b"half")
    (stopped / ".notes.abcdefgh").write_text("not the run's")
    list(started(stopped, resume=True))
    assert left(stopped) == whole and [path.name for path in stopped.glob(".*")] == [".notes.abcdefgh"]


def test_saving_takes_less_than_a_twentieth_and_begins_after_the_first_epoch(tmp_path, monkeypatch):
    """A clock on which an epoch takes 10 s and a save 1.25 s: 20 times that has passed after three more epochs."""
    run, now, saves = started(tmp_path / "run", save_after=20.0, epochs=11), [0.0], []
    monkeypatch.setattr("nayer_lib.runs.run.time.perf_counter", lambda: now[0])

    def save(*_):
        now[0] += 1.25
        saves.append(len(run.card["curve"]))

    run._checkpoint.save = save
    begin = run.setup.method.begin_epoch

    def slow(epoch):
        now[0] += 10
        begin(epoch)

    run.setup.method.begin_epoch = slow
    list(run)
    assert saves == [1, 4, 7, 10]


def test_the_memory_file_holds_every_image_once_and_only_grows(tmp_path):
    run, sizes = started(tmp_path / "run"), []
    for epoch in run:
        if epoch.epoch < 4:
            sizes.append(((tmp_path / "run" / IMAGES).stat().st_size, epoch.images))
            first = (tmp_path / "run" / IMAGES).read_bytes()[: sizes[0][0]]
            assert first == (tmp_path / "run" / IMAGES).read_bytes()[: len(first)]
    assert [size for size, _ in sizes] == [images * (8 * 8 + 4 + 4) for _, images in sizes]


def test_the_state_is_small_and_holds_nothing_that_could_run(stopped):
    saved = torch.load(stopped / STATE, weights_only=True)
    assert saved["version"] == VERSION and "rows" not in saved["method"]["memory"]


def test_images_of_a_save_that_was_cut_off_are_dropped(stopped, whole):
    with open(stopped / IMAGES, "ab") as file:
        file.write(b"half an image, and the state does not count it")
    list(started(stopped, resume=True, max_minutes=0.0))  # saves once more behind them
    list(started(stopped, resume=True))
    assert left(stopped) == whole


def test_a_full_disk_while_saving_leaves_the_state_before(tmp_path, monkeypatch, whole):
    run = started(tmp_path / "run")
    write = torch.save

    def full(state, path, **options):
        write(state, path, **options)
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match="No space left on device"):
        for epoch in run:
            if epoch.epoch == 1:
                before = (tmp_path / "run" / STATE).read_bytes()
                monkeypatch.setattr(torch, "save", full)
    monkeypatch.undo()
    assert (tmp_path / "run" / STATE).read_bytes() == before
    assert read_card(tmp_path / "run")["status"].startswith("failed: cannot write")
    list(started(tmp_path / "run", resume=True))
    assert left(tmp_path / "run") == whole


def test_a_loss_that_is_not_finite_keeps_the_last_good_state(tmp_path, whole):
    run = started(tmp_path / "run")
    synthesize = run.setup.method.synthesize

    def failing(epoch):
        if epoch == 3:
            raise NonFiniteLoss("L_CE became NaN.")
        return synthesize(epoch)

    run.setup.method.synthesize = failing
    with pytest.raises(NonFiniteLoss):
        list(run)
    list(started(tmp_path / "run", resume=True))
    assert left(tmp_path / "run") == whole


def test_a_gpu_that_is_too_small_is_told_with_the_batch_to_try(tmp_path, whole):
    run = started(tmp_path / "run")
    step = run.setup.method.student_step
    calls = iter(range(100))

    def full(batch):
        if next(calls) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return step(batch)

    run.setup.method.student_step = full
    with pytest.raises(UserError, match="generator_batch=20 and student_batch=16: half of each, --set .*=10 .*=8"):
        list(run)
    assert read_card(tmp_path / "run")["status"] == "failed: out of memory"
    list(started(tmp_path / "run", resume=True))
    assert left(tmp_path / "run") == whole


@pytest.mark.parametrize(
    ("method", "advice"),
    [
        ("noise", r"student_batch=16: half of it, --set student_batch=8, is the next"),
        ("rounding", "rounding with wrn10_1: take --device cpu"),
    ],
)
def test_a_gpu_that_is_too_small_is_told_only_of_batches_that_the_method_has(method, advice, tmp_path):
    run = Run(tiny_setup(method=method), tmp_path / "run")

    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    run.setup.method.begin_epoch = full
    with pytest.raises(UserError, match=f"memory is too small for {advice}.* What was saved before is whole"):
        list(run)


# --- after the last epoch


def failing(*_, **__):
    raise RuntimeError("no font\nand more")


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        ("nayer_lib.runs.run.convergence_and_diversity", "metrics"),
        ("nayer_lib.runs.run.judged", "score by a judge"),
        ("nayer_lib.runs.run.draw_images", "picture"),
        ("nayer_lib.checkpoint.Checkpoint.remove", "saved state"),
    ],
)
def test_what_fails_after_the_last_epoch_is_a_line_on_a_finished_card(broken, told, tmp_path, monkeypatch, whole):
    run = started(tmp_path / "run")
    monkeypatch.setattr(broken, failing)
    with pytest.warns(UserWarning, match=f"the run is finished, but something after it failed: {told}"):
        list(run)
    card = read_card(tmp_path / "run")
    assert card["status"] == "finished" and card["problems"] == [f"{told}: RuntimeError: no font"]
    student = load_classifier(tmp_path / "run" / "student.safetensors").net.state_dict()
    assert files.tensors_hash(student) == whole[2]


def test_the_run_is_finished_before_its_last_epoch_is_yielded(tmp_path, whole):
    """A caller that fails there, or a kill, undoes nothing."""
    for epoch in started(tmp_path / "run"):
        if epoch.epoch == 4:
            break
    assert left(tmp_path / "run") == whole


def test_a_process_that_is_killed_after_the_last_epoch_is_finished_and_its_card_says_what_is_missing(tmp_path, whole):
    def killed() -> None:
        run = started(tmp_path / "run")
        run_module.draw_images = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        list(run)

    running = multiprocessing.get_context("fork").Process(target=killed)
    running.start()
    running.join()
    assert running.exitcode == -signal.SIGKILL and left(tmp_path / "run") == whole[:3]
    assert read_card(tmp_path / "run")["problems"] == [CUT_OFF]


def test_a_disk_that_is_full_after_the_last_epoch_is_a_warning(tmp_path, monkeypatch):
    run, write = started(tmp_path / "run"), Run._write_card

    def full(self):
        if "metrics" in self.card:
            raise UserError("cannot write card.json: No space left on device.")
        write(self)

    monkeypatch.setattr(Run, "_write_card", full)
    with pytest.warns(UserWarning, match="the run is finished, and its card without what came after: .*No space"):
        list(run)
    assert read_card(tmp_path / "run")["status"] == "finished"
    assert not (tmp_path / "run" / STATE).exists() and not (tmp_path / "run" / ".lock").exists()


# --- refusals


@pytest.mark.parametrize("file", [STATE, IMAGES])
def test_files_that_are_cut_short_are_told(file, stopped):
    path = stopped / file
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match=f"{file} is (not a whole state|cut short).*; run without resume"):
        started(stopped, resume=True)


def test_images_are_not_read_or_written_through_a_link(stopped, tmp_path):
    run, precious = started(stopped, resume=True), tmp_path / "precious"
    (stopped / IMAGES).rename(precious)
    before = precious.read_bytes()
    (stopped / IMAGES).symlink_to(precious)
    with pytest.raises(UserError, match=f"{IMAGES} is a link to another file, which would be written to: remove"):
        list(run)
    with pytest.raises(UserError, match=f"{IMAGES} is a link"):
        started(stopped, resume=True)
    assert precious.read_bytes() == before


@pytest.mark.parametrize(
    "change",
    [
        {"method": []},
        {"progress": {"card": {}}},
        {"rows": 10**15},
        {"rows": "many"},
        {"method": {"memory": {"capacity": None, "added": 1}}},
    ],
)
def test_a_state_of_something_else_is_a_sentence(change, stopped):
    path = stopped / STATE
    torch.save(torch.load(path, weights_only=True) | change, path)
    with pytest.raises(UserError, match="(holds no run's progress|does not fit this run|cut short).*; run without"):
        started(stopped, resume=True)


def test_another_version_is_refused(stopped):
    path = stopped / STATE
    torch.save(torch.load(path, weights_only=True) | {"version": 99}, path)
    with pytest.raises(UserError, match=rf"another version of the kit \(99, not {VERSION}\)"):
        started(stopped, resume=True)


@pytest.mark.parametrize(
    ("other", "named"), [({"seed": 1}, "seed"), ({"alpha_bn": 1.0}, "alpha bn"), ({"prompt": "photo"}, "prompt")]
)
def test_another_config_is_refused_and_named(other, named, stopped):
    before = (stopped / "card.json").read_bytes()
    with pytest.raises(UserError, match=f"has another {named}: resume it with the options it was started with"):
        started(stopped, resume=True, **other)
    assert (stopped / "card.json").read_bytes() == before


def test_after_a_refusal_the_folder_is_free(stopped, whole):
    with pytest.raises(
        UserError, match="has another seed"
    ) as kept:  # a notebook keeps the traceback, and the run in it
        started(stopped, resume=True, seed=1)
    list(started(stopped, resume=True))
    assert left(stopped) == whole and kept


def test_a_teacher_that_scores_differently_by_rounding_is_the_same(stopped, whole):
    saved = torch.load(stopped / STATE, weights_only=True)
    saved["progress"]["card"]["teacher"]["accuracy"] += 6e-8
    torch.save(saved, stopped / STATE)
    list(started(stopped, resume=True))
    assert left(stopped) == whole


def test_a_set_up_that_was_used_is_no_fresh_run(tmp_path):
    setup = tiny_setup(**LONGER)
    list(Run(setup, tmp_path / "run"))
    with pytest.raises(UserError, match="this set-up has been used: `prepare` it again"):
        Run(setup, tmp_path / "other")
    assert not (tmp_path / "other" / "card.json").exists()


def test_without_resume_a_run_is_not_touched(stopped):
    with pytest.raises(UserError, match="holds a run already: resume it"):
        started(stopped)


def test_two_runs_do_not_share_a_folder(tmp_path, whole):
    run = started(tmp_path / "run")
    epochs = iter(run)
    next(epochs)
    with pytest.raises(UserError, match="another process is running in"):
        started(tmp_path / "run", resume=True)
    list(epochs)
    assert left(tmp_path / "run") == whole


def test_other_threads_mean_equal_config_not_equal_bits(stopped):
    saved = torch.load(stopped / STATE, weights_only=True)
    saved["progress"]["card"]["threads"] = 64
    torch.save(saved, stopped / STATE)
    with pytest.warns(UserWarning, match="began with other threads: .* not equal bits"):
        list(started(stopped, resume=True))


def test_a_run_that_can_go_on_is_found_by_its_config(tmp_path, monkeypatch):
    monkeypatch.setenv("NAYER_RUNS", str(tmp_path))
    config = tiny_setup(**LONGER).method.config
    assert resumable(config) is None
    run = interrupted_after(tmp_path / "run", 3)
    assert resumable(config) == run.folder and resumable(make_config("digits")) is None
    held = started(tmp_path / "run", resume=True)
    assert resumable(config) is None  # it is going on: nobody else takes it up
    list(held)
    assert resumable(config) is None


def test_a_run_that_cannot_go_on_is_told_and_another_starts(stopped, monkeypatch):
    monkeypatch.setenv("NAYER_RUNS", str(stopped.parent))
    config = tiny_setup(**LONGER).method.config
    (stopped / STATE).write_bytes(b"cut")
    with pytest.warns(UserWarning) as caught:
        assert resumable(config) is None
    assert "left out: " in str(caught[0].message) and "starts again from the first epoch" in str(caught[1].message)


# --- the command


def command(folder, *more: str) -> list[str]:
    return ["distill", "--device", "cpu", "--out", str(folder), "--set", *SET, *more]


def test_the_command_stops_with_status_0_and_says_how_to_go_on(tmp_path, capsys, whole):
    assert cli.main(command(tmp_path / "run", "--max-minutes", "0")) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0] == "stopped after epoch 1 of 5"
    assert told[1].startswith("resume with: python -m nayer_lib distill ") and told[1].endswith(" --resume")
    assert cli.main(command(tmp_path / "run", "--resume")) == 0
    assert left(tmp_path / "run") == whole
    assert cli.main(["distill", "--resume"]) == 2
    assert "--resume needs --out" in capsys.readouterr().err


def test_the_command_goes_on_as_the_run_was_computed_unless_told_otherwise(tmp_path, capsys):
    """Also where its card is from before there were graphs."""
    run = command(tmp_path / "run", "epochs=2")
    first = [*run[:1], "--precision", "bf16", "--channels-last", "--max-minutes", "0", *run[1:]]
    assert cli.main(first) == 0
    assert cli.main([*run[:1], "--resume", "--no-channels-last", "--max-minutes", "0", *run[1:]]) == 0
    card = read_card(tmp_path / "run")
    assert card["compute"] == {"precision": "bf16", "channels_last": False, "steps": "eager"}
    card["compute"] = {"precision": "bf16", "channels_last": False, "compiled": False}
    (tmp_path / "run" / "card.json").write_text(json.dumps(card))
    assert cli.main([*run[:1], "--resume", *run[1:]]) == 0
    card = read_card(tmp_path / "run")
    assert card["status"] == "finished"
    assert card["compute"] == {"precision": "bf16", "channels_last": False, "steps": "eager"}


def ended_at(folder, moments, ends=(signal.SIGKILL,)) -> None:
    """Run it in another process that is ended after so many seconds, by one signal after the other; then let it end.

    At most one epoch is lost each time: a resumed run begins with the last that its curve had, or after it.
    """
    fork = multiprocessing.get_context("fork")  # torch is imported already: a new interpreter takes many seconds

    def run() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
        list(started(folder, resume=True))

    for at, seconds in enumerate(moments):
        running = fork.Process(target=run)
        running.start()
        time.sleep(seconds)
        os.kill(running.pid, ends[at % len(ends)])
        running.join()
        curve, state = folder / "curve.csv", folder / STATE
        if state.is_file():
            rows = len(curve.read_text().splitlines()) - 1
            assert rows - len(torch.load(state, weights_only=True)["progress"]["card"]["curve"]) <= 1
    if not (folder / "card.json").is_file() or read_card(folder)["status"] != "finished":
        list(started(folder, resume=True))


def moments(count: int, seed: int) -> list[float]:
    """Seconds; a run of this size takes about one."""
    return torch.rand(count, generator=torch.Generator().manual_seed(seed)).mul(1.5).tolist()


@pytest.mark.parametrize("ends", [(signal.SIGKILL,), (signal.SIGINT, signal.SIGHUP)])
def test_a_run_that_is_ended_at_two_moments_ends_in_the_same_result(ends, tmp_path, whole):
    ended_at(tmp_path / "run", moments(2, seed=0), ends)
    found = left(tmp_path / "run")
    assert found == whole[: len(found)]  # whoever is killed after the last epoch is finished, without a picture


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
@pytest.mark.parametrize("seed", range(1, 11))
def test_a_run_that_is_ended_at_any_moment_ends_in_the_same_result(seed, end, tmp_path, whole):
    ended_at(tmp_path / "run", moments(2, seed), (end,))
    found = left(tmp_path / "run")
    assert found == whole[: len(found)]  # whoever is killed after the last epoch is finished, without a picture


def test_ctrl_c_ends_the_epoch_and_a_second_one_stops_at_once(tmp_path, whole, request):
    run, before = started(tmp_path / "run"), signal.default_int_handler
    request.addfinalizer(functools.partial(signal.signal, signal.SIGINT, signal.signal(signal.SIGINT, before)))
    step, hits = run.setup.method.student_step, []

    def interrupted(batch):
        if len(run.card["curve"]) == 2 and not hits:
            hits.append(signal.raise_signal(signal.SIGINT))
        return step(batch)

    run.setup.method.student_step = interrupted
    with asks_to(run.stop):
        assert [epoch.epoch for epoch in run] == [0, 1, 2] and run.stopped
    assert signal.getsignal(signal.SIGINT) is before

    again, calls = started(tmp_path / "run", resume=True), []
    second = again.setup.method.student_step

    def impatient(batch):
        if len(again.card["curve"]) == 4 and len(calls) < 2:
            calls.append(1)
            signal.raise_signal(signal.SIGINT)
        return second(batch)

    again.setup.method.student_step = impatient
    with pytest.raises(KeyboardInterrupt), asks_to(again.stop):
        list(again)
    assert read_card(tmp_path / "run")["status"] == "stopped before its last epoch"
    assert signal.getsignal(signal.SIGINT) is before
    assert [epoch.epoch for epoch in started(tmp_path / "run", resume=True)] == [4]
    assert left(tmp_path / "run") == whole


def test_a_signal_that_is_ignored_stays_ignored():
    """As under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with asks_to(pytest.fail):
            signal.raise_signal(signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_sigterm_ends_the_epoch_saves_and_exits_with_0(tmp_path, whole):
    words = [sys.executable, "-m", "nayer_lib", *command(tmp_path / "run")]
    running = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    curve = tmp_path / "run" / "curve.csv"
    while running.poll() is None and not (curve.is_file() and len(curve.read_text().splitlines()) > 1):
        time.sleep(0.005)
    running.send_signal(signal.SIGTERM)
    out, err = running.communicate()
    assert running.returncode == 0, err
    if "resume with:" in out:  # else it had reached its last epoch
        assert cli.main(command(tmp_path / "run", "--resume")) == 0
    assert left(tmp_path / "run") == whole
    assert json.loads((tmp_path / "run" / "card.json").read_text())["status"] == "finished"
