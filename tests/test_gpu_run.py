"""The short GPU run (.ci/gpu): its clock, its report, what a stage leaves that dies, and the whole of it on a CPU."""

import ast
import hashlib
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny import read_json

from nayer_lib.classifiers.teacher import make_classifier, save_classifier
from nayer_lib.datasets import dataset

ROOT = Path(__file__).resolve().parents[1]
GPU = ROOT / ".ci" / "gpu"
seconds = st.floats(0.01, 1000)
clocks = st.fixed_dictionaries({"start": seconds, "warmup": seconds, "epoch": seconds})


def module(name: str):
    spec = importlib.util.spec_from_file_location(f"gpu_{name}", GPU / f"{name}.py")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


run = module("run")

WORKER = """
import json, os, signal, sys, time
from pathlib import Path
job = json.loads(sys.argv[2])
"""
TIMES = {"start": 1.0, "warmup": 0.1, "epoch": 1.0}
CARD = {"id": "x", "status": "finished", "accuracy_last": 0.9, "curve": [], "compute": {}}


@pytest.fixture
def worker(tmp_path, monkeypatch):
    """Puts a program in the place of work.py; it finds its order in `job`."""
    monkeypatch.setattr(run, "HERE", tmp_path)

    def write(body: str) -> None:
        (tmp_path / "work.py").write_text(WORKER + textwrap.dedent(body))

    return write


@pytest.fixture
def driver(tmp_path):
    def make(minutes: float = 10.0, carried: Path | None = None):
        return run.Driver(minutes, tmp_path / "out", tmp_path / "work", carried, None, {})

    return make


def results(driver) -> dict[str, str]:
    """The report as it lies on the disk."""
    return {line["stage"]: line["result"] for line in read_json(driver.out / "report.json")["stages"]}


def ready(driver, eager: dict = TIMES, graphs: dict | None = None) -> None:
    """A teacher, and what smoke measured."""
    (driver.work / "teacher.safetensors").write_bytes(b"")
    run.write_json(driver.work / "smoke.json", {"eager": eager, "graphs": graphs or {"same": False}})


# --- the clock


@given(clocks, st.integers(0, 30), st.integers(1, 300), seconds)
def test_the_epochs_that_fit_are_the_most_that_do(times, warmup, wanted, left):
    epochs = run.fitting(times, warmup, wanted, left)
    assert 0 <= epochs <= wanted
    assert not epochs or run.projected(times, warmup, epochs) <= left + 1e-6
    assert epochs == wanted or run.projected(times, warmup, epochs + 1) > left - 1e-6


def test_a_stage_that_wants_more_time_than_is_left_is_not_begun(driver):
    short = driver(minutes=(run.GRACE + run.LIMITS["smoke"][0] - 1) / 60)
    assert not short.run(("smoke",))
    assert results(short)["smoke"].startswith("skipped: 2")  # 29 s were left


def test_the_driver_needs_python_alone():
    tree = ast.parse((GPU / "run.py").read_text())
    names = [a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names]
    names += [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert {name.split(".")[0] for name in names} <= set(sys.stdlib_module_names)


# --- stages and their lines


def test_the_report_says_what_runs_and_is_whole_after_every_stage(driver, monkeypatch):
    one = driver()
    monkeypatch.setattr(run.Driver, "unpack", lambda self: f"done: {results(self)['unpack']}")
    monkeypatch.setattr(run.Driver, "teacher", lambda self: 1 / 0)
    monkeypatch.setattr(run.Driver, "row", lambda self: f"done: {results(self)['teacher']}")
    assert not one.run(run.COMMANDS["row"])
    assert results(one)["unpack"] == "done: running"
    assert results(one)["teacher"] == "failed: ZeroDivisionError: division by zero"
    assert results(one)["row"] == f"done: {results(one)['teacher']}"
    assert not list(one.out.glob(".*"))


def test_nothing_is_tried_after_what_it_needs_failed(driver, monkeypatch):
    one = driver()
    monkeypatch.setattr(run.Driver, "unpack", lambda self: 1 / 0)
    monkeypatch.setattr(run.Driver, "standin", lambda self: pytest.fail("it was tried"))
    one.run(("unpack", "standin"))
    assert results(one)["standin"] == "skipped: unpack was not done"


def test_a_process_that_takes_too_long_is_killed_and_what_it_wrote_stays(driver, worker, monkeypatch):
    monkeypatch.setattr(run, "GRACE", 0.2)
    monkeypatch.setitem(run.LIMITS, "graphs", (0, 1.5))
    worker("""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        Path(job["out"]).write_text('{"graphs": {"same": true}}')
        time.sleep(60)
    """)
    one = driver()
    assert not one.run(("graphs",))
    assert results(one)["graphs"].startswith("killed after ")
    assert read_json(one.out / "smoke.json") == read_json(one.work / "smoke.json") == {"graphs": {"same": True}}


def test_a_process_that_ends_whole_when_it_is_told_to_stop_was_not_killed(driver, worker):
    worker("""
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        print("ready", flush=True)
        time.sleep(60)
    """)
    one = driver()
    one.limit = 1.5
    one.work_on("row")


def test_a_process_that_fails_is_told_by_its_last_line(driver, worker):
    worker("print('no device here', flush=True); sys.exit(1)")
    one = driver()
    one.limit = 60
    with pytest.raises(run.Failed, match="^no device here$"):
        one.work_on("row")


def test_a_part_that_failed_fails_the_stage_and_names_itself(driver, worker):
    worker('Path(job["out"]).write_text(json.dumps({name: {} for name in job["names"]} | {"state": {"failed": "no"}}))')
    one = driver()
    one.run(("smoke", "notebook"))
    assert results(one) == {"smoke": "failed: state: no", "notebook": "skipped: smoke was not done"}


def test_the_command_itself_can_be_told_to_stop(tmp_path):
    """SIGTERM ends the process that runs, the report says so, and the stages after it are left out."""
    shutil.copyfile(GPU / "run.py", tmp_path / "run.py")
    (tmp_path / "work.py").write_text("import time; time.sleep(60)")
    program = f"""
        import sys; sys.path.insert(0, {str(tmp_path)!r})
        import run
        run.ROOT = run.Path({str(ROOT)!r})
        sys.argv = ["run.py", "--minutes", "5", "--stages", "smoke", "--out", {str(tmp_path / "out")!r}]
        sys.argv += ["--work", {str(tmp_path / "work")!r}]
        run.COMMANDS["smoke"] = ("smoke", "notebook")
        sys.exit(run.main())
    """
    child = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.DEVNULL)
    log, end = tmp_path / "out" / "log.txt", time.monotonic() + 20
    while not log.is_file() and time.monotonic() < end:
        time.sleep(0.05)
    child.send_signal(signal.SIGTERM)
    assert child.wait(20) == 1
    said = {line["stage"]: line["result"] for line in read_json(tmp_path / "out" / "report.json")["stages"]}
    assert said["smoke"].startswith("killed after ")
    assert said["notebook"].startswith("skipped: ")


# --- what was carried


def test_what_is_not_as_it_was_packed_stops_everything(driver, tmp_path):
    carried = tmp_path / "carried"
    carried.mkdir()
    (carried / "a.txt").write_text("a")
    (carried / "commit.txt").write_text("0123")
    (carried / "SHA256SUMS").write_text(f"{hashlib.sha256(b'b').hexdigest()}  a.txt\n")
    one = driver(carried=carried)
    one.run(("unpack",))
    assert results(one)["unpack"] == "failed: a.txt is not what was packed: pack again"
    assert read_json(one.out / "report.json")["commit"] == "0123"


def test_a_sheet_keeps_its_labels_where_sheets_before_it_are_missing(tmp_path):
    """A second command on a new machine has only its own sheets."""
    labels = np.arange(12)
    np.savez(tmp_path / "train_labels.npz", labels=labels)
    for number in (1, 3):  # of three images each, grey as their labels
        column = labels[3 * number : 3 * number + 3].astype(np.uint8).repeat(4 * 4 * 3).reshape(12, 4, 3)
        Image.fromarray(column).save(tmp_path / f"train_{number:03}.webp", lossless=True)
    found = module("sheets").gather(tmp_path, "train")
    assert found["labels"].tolist() == [3, 4, 5, 9, 10, 11]
    assert found["images"].shape == (6, 4, 4, 3)
    assert (found["images"] == found["labels"].reshape(-1, 1, 1, 1)).all()


# --- the row


def test_graphs_that_die_are_followed_by_plain_steps_from_where_they_were(driver, worker, capsys):
    worker(f"""
        folder = Path(job["folder"])
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / "tried", "a") as file:
            file.write(job["steps"] + " " + str(job["epochs"]) + "\\n")
        if job["steps"] == "graphs":
            print("CUDA error: an illegal memory access", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        (folder / "card.json").write_text(json.dumps({CARD!r}))
    """)
    one = driver()
    ready(one, graphs={**TIMES, "epoch": 0.5, "same": True})
    assert one.run(("row",))
    assert (one.work / "rows" / "row" / "tried").read_text() == "graphs 100\neager 100\n"
    assert "graphs died (CUDA error: an illegal memory access), eager from there" in results(one)["row"]
    assert "projected" in capsys.readouterr().out


@pytest.mark.parametrize("graphs", [{"same": False}, {**TIMES, "epoch": 2.0, "same": True}, {"failed": "no"}])
def test_graphs_that_are_wrong_or_slower_are_not_taken(driver, worker, graphs):
    worker(f"""
        Path(job["folder"]).mkdir(parents=True)
        Path(job["folder"], "card.json").write_text(json.dumps({CARD!r} | {{"compute": {{"steps": job["steps"]}}}}))
    """)
    one = driver()
    ready(one, graphs=graphs)
    assert one.run(("row",))
    assert results(one)["row"] == "done: student 90.00 %, E = 100, eager"


@pytest.mark.parametrize("epoch, expected", [(10.0, "done: student 90.00 %, E = 54,"), (60.0, "skipped: E = 100 ")])
def test_a_row_that_would_take_too_long_has_fewer_epochs_from_the_start_or_is_not_begun(
    driver, worker, epoch, expected
):
    worker(f"""
        Path(job["folder"]).mkdir(parents=True)
        Path(job["folder"], "card.json").write_text(json.dumps({CARD!r}))
    """)
    one = driver()
    ready(one, eager={**TIMES, "epoch": epoch})
    one.run(("row",))
    assert results(one)["row"].startswith(expected)


def test_what_a_run_takes_is_measured_where_no_smoke_came_before_and_graphs_may_die_of_it(driver, worker):
    worker(f"""
        if job.get("names") == ["eager"]:
            Path(job["out"]).write_text(json.dumps({{"eager": {TIMES!r}}}))
        elif "names" in job:
            os.kill(os.getpid(), signal.SIGKILL)
        else:
            Path(job["folder"]).mkdir(parents=True)
            Path(job["folder"], "card.json").write_text(json.dumps({CARD!r}))
    """)
    one = driver()
    (one.work / "teacher.safetensors").write_bytes(b"")
    assert one.run(("row",))
    assert results(one)["row"] == "done: student 90.00 %, E = 100, eager"


def test_a_row_that_was_begun_keeps_its_epochs(driver, worker):
    worker("""
        Path(job["folder"], "card.json").write_text(json.dumps({"status": "stopped", "curve": [1] * job["epochs"]}))
    """)
    one = driver(minutes=2)
    ready(one)
    (one.work / "rows" / "row").mkdir(parents=True)
    run.write_json(one.work / "rows" / "row" / "card.json", {"status": "running", "config": {"epochs": 300}})
    assert not one.run(("row",))
    assert results(one)["row"].startswith("killed in epoch 300, resumable")
    run.write_json(one.work / "rows" / "row" / "card.json", {"status": "finished"})
    assert not one.run(("row",))
    assert results(one)["row"].startswith("skipped: it was finished before")


def test_seeds_keep_the_epochs_of_the_row_and_what_does_not_fit_is_left_out(driver, worker):
    """Runs of other lengths could not be averaged."""
    worker(f"""
        Path(job["folder"]).mkdir(parents=True)
        Path(job["folder"], "card.json").write_text(json.dumps({CARD!r}))
    """)
    one = driver()
    ready(one, eager={**TIMES, "epoch": 8.0})
    assert one.run(("seeds",))
    told, arms = results(one)["seeds"], run.COUNTS["arms"]
    assert told.startswith(f"done: {len(arms)} of {len(arms) + 2} runs (s1 skipped: E = 100 needs ")
    assert all(f"lab-{name} done: student 90.00 %, E = 25" in told for name in arms)
    assert len((one.out / "cards.jsonl").read_text().splitlines()) == len(arms)


@pytest.fixture
def kit(driver, tmp_path, monkeypatch):
    """Puts a program in the place of `python -m nayer_lib sweep`: it finds the sweep's name and data/runs."""
    monkeypatch.setattr(run, "ROOT", tmp_path)
    (tmp_path / "nayer_lib").mkdir()

    def write(body: str) -> None:
        said = "import os, signal, sys, time\nfrom pathlib import Path\nname = Path(sys.argv[2]).stem\n"
        said += "cards = Path(sys.argv[2]).parents[1] / 'runs' / f'{name}.jsonl'\n"
        (tmp_path / "nayer_lib" / "__main__.py").write_text(said + textwrap.dedent(body))

    one = driver()
    one.env["PYTHONPATH"] = str(tmp_path)
    one.counts["sweeps"] = ("first", "second")
    (one.work / "data" / "runs").mkdir(parents=True)
    return one, write


def test_every_sweeps_cards_come_back(kit):
    one, write = kit
    write("cards.write_text('a card\\n' * 3)")
    assert one.run(("sweeps",)) and results(one)["sweeps"] == "done: first: 3 cards; second: 3 cards"
    assert (one.out / "second.jsonl").read_text() == "a card\n" * 3


def test_a_sweep_that_is_cut_off_ends_its_runs_and_its_cards_come_back(kit, monkeypatch):
    one, write = kit
    write("""
        def ended(*_):
            cards.with_name("said").write_text("ended like Ctrl-C")
            raise SystemExit(130)

        signal.signal(signal.SIGINT, ended)
        cards.write_text("a card\\n")
        time.sleep(60)
    """)
    monkeypatch.setattr(run, "CLOSING", one.left - 3)
    monkeypatch.setitem(run.LIMITS, "sweeps", (1, None))
    assert not one.run(("sweeps",))
    told = results(one)["sweeps"]
    assert re.match(r"killed with first: 1 cards, killed after \d s; second: 0 cards, not begun; to be gone on", told)
    assert (one.work / "data" / "runs" / "said").read_text() == "ended like Ctrl-C"
    assert (one.out / "first.jsonl").read_text() == "a card\n" and not (one.out / "second.jsonl").exists()


def test_without_a_teacher_there_is_no_row(driver):
    one = driver()
    one.run(("row",))
    assert results(one)["row"].startswith("skipped: there is no teacher")


# --- what is computed


def test_state_and_row_are_computed_with_the_kit_as_it_is(tmp_path, monkeypatch):
    """A CPU's share of the rehearsal, fast enough for every day: what it calls of the kit may not change unseen."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    work, tiny, facts = module("work"), module("rehearse").TINY, dataset("cifar10")
    save_classifier(
        tmp_path / "teacher.safetensors", make_classifier("wrn10_1", facts.class_names, facts.mean, facts.std, 0)
    )
    images = np.random.default_rng(0).integers(256, size=(20, 3, 32, 32), dtype=np.uint8)
    np.savez(tmp_path / "test.npz", images=images, labels=np.arange(20) % 10)
    keep = {"card.json": "card.json", "student.safetensors": "student.safetensors"}
    given = run.COUNTS | tiny | {"set": tiny["set"] | {"encoder": "sbert"}, "work": tmp_path, "carried": True}
    given |= {"profile": "full", "seed": 0, "epochs": 2, "arm": {}, "steps": "eager", "until": time.time() + 600}
    work.parts(work.Job(**given, names=["steps", "state"], out=tmp_path / "smoke.json"))
    assert not [part for part in read_json(tmp_path / "smoke.json").values() if "failed" in part]
    work.row(work.Job(**given, folder=tmp_path / "row", out=tmp_path, keep=keep))
    assert read_json(tmp_path / "card.json")["status"] == "finished"
    assert (tmp_path / "student.safetensors").is_file()


# --- all of it


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory) -> Path:
    """An environment like the machine's: torch 2.11 and the kit's dependencies, but for the carried wheels. Set up as
    the kit's own is, from uv's cache or, the first time, by a download."""
    if given := os.environ.get("NAYER_GPU_PYTHON"):
        return Path(given)
    folder = tmp_path_factory.mktemp("bare")
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if not uv:
        pytest.skip("no uv: NAYER_GPU_PYTHON may name the Python of an environment with torch 2.11 and without tyro")
    names = "torch==2.11.0 torchvision==0.26.0 numpy safetensors filelock scikit-learn matplotlib pandas seaborn tqdm"
    names += " statsmodels"
    python = folder / "bin" / "python"
    for words in (["venv", "-q", folder], ["pip", "install", "-q", "--python", python, *names.split()]):
        done = subprocess.run([uv, *words], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no environment with torch 2.11 (set NAYER_GPU_PYTHON): {done.stderr.splitlines()[-1]}")
    return python


@pytest.mark.slow
def test_the_whole_run_rehearsed_from_what_would_be_carried(bare_python, test_data, cifar10_folder, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for name in ("train_000.webp", "test_000.webp", "train_labels.npz", "test_labels.npz"):
        shutil.copyfile(test_data / "cifar10" / name, images / name)
    table = test_data / "clip-text-embeddings" / "nayer_authors_clip_vitb32.npz"
    carried = tmp_path / "carried"
    words = [GPU / "pack.py", "--images", images, "--table", table, "--train", "0:1", "--test", "--out", carried]
    words += ["--cifar10", cifar10_folder]
    packed = subprocess.run([sys.executable, *words], capture_output=True, text=True)
    if "pip" in packed.stderr and packed.returncode:
        pytest.skip(f"the wheels could not be had: {packed.stderr.splitlines()[-1]}")
    assert packed.returncode == 0, packed.stderr
    assert "MiB  sheets" in packed.stdout and "MiB  wheels" in packed.stdout
    words = [GPU / "rehearse.py", "--carried", carried, "--python", bare_python]
    small = subprocess.run([sys.executable, *words, "--limit-mib", "0.1"], capture_output=True, text=True)
    assert small.returncode == 1 and "more than 0.1 MiB" in small.stderr
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "every stage was done, and a killed row went on" in done.stdout
