"""A short GPU run: prepared, so that whoever has a GPU for some minutes starts it at once and leaves with results.

    python .ci/gpu/run.py --minutes 3 --stages smoke --out first --carried carried
    python .ci/gpu/run.py --minutes 9 --stages row --out second --carried carried

Between two commands on one machine all state stays in the folder of --work, which needs not be brought back: unpacked
images, the teacher, a run that can go on. What is to be brought back is in --out, whole after every stage, and
report.json there has a line for each: "done", "skipped: why", "killed after N s", "failed: how". Without --carried
the machine has a network, and the kit's dependencies are installed.

This file needs Python alone; what computes is work.py, in processes of its own that may die without harm to others.
"""

import argparse
import contextlib
import hashlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

ROOT, HERE = Path(__file__).resolve().parents[2], Path(__file__).resolve().parent
COMMANDS = {
    "smoke": ("unpack", "standin", "smoke", "graphs", "notebook"),
    "row": ("unpack", "teacher", "row"),
    "seeds": ("unpack", "seeds"),
    "sweeps": ("unpack", "sweeps"),
}
COMMANDS["all"] = tuple(dict.fromkeys(stage for stages in COMMANDS.values() for stage in stages))
NEEDED = {"unpack", "smoke"}  # where one of these fails, what comes after it is left out

# Seconds that a stage wants at least and may take at most; the last ones take all that is left.
LIMITS = {
    "unpack": (5, 30),
    "standin": (20, 45),
    "smoke": (30, 60),
    "graphs": (15, 45),
    "notebook": (20, 60),
    "teacher": (30, 220),
    "row": (60, None),
    "seeds": (60, None),
    "sweeps": (60, None),
}
GRACE = 10  # seconds between SIGTERM and SIGKILL
CLOSING = 15  # seconds for a run's last metrics, picture and files
MARGIN = 1.05  # measured seconds are taken so many times: clocks of a GPU fall when it is warm
LEAST_EPOCHS = 10  # a row of fewer says nothing
TEACHER_GOAL = 0.93

# What is run, and how much of it: rehearse.py puts smaller numbers in their place.
COUNTS = {
    "patience": 1,  # the limits above are taken so many times
    "nets": ("wrn40_2", "wrn16_2"),
    "set": {},  # other fields of the config
    "scored": None,  # test images; None: all
    "batch": 400,  # of the plain loop beside ours
    "repeats": 7,  # of three synthesis steps and a student step; with those that warm up fifty steps of the plain loop
    "training": {"standin": 8, "teacher": 165},  # seconds, a fifth of those left at most
    "epochs": {"full": (20, 100), "lab": (6, 25)},  # of the warm-up, and E
    "seeds": (1, 2),
    "arms": {
        "K-to-1": {},
        "z": {"latent": "noise"},
        "woRI": {"latent": "noisy_kept"},
        "permuted": {"embedding": "permuted"},
    },
    "sweeps": ("controls_cifar10", "inputs_cifar10", "paper_cifar10", "cpnet_cifar10", "first_rounds_cifar10"),
    "jobs": 12,  # runs of a sweep at a time, each a process of one thread
    "copy_every": 10,  # epochs
    "save_after": 50,  # times as long as a save takes: a fiftieth of the time goes into saves
}


class Skipped(Exception):
    """A stage that was not begun, and why."""


class Killed(Exception):
    """A stage that was stopped."""


class Failed(Exception):
    """A stage that failed by itself; the last line of what it said."""


def projected(times: dict, warmup: int, epochs: int) -> float:
    """Seconds of a run: its start, its warm-up epochs, its epochs with the student, its closing."""
    return times["start"] + MARGIN * (warmup * times["warmup"] + epochs * times["epoch"]) + CLOSING


def fitting(times: dict, warmup: int, wanted: int, seconds: float) -> int:
    """The number of epochs with the student that fit into so many seconds, at most those that are wanted."""
    room = seconds - projected(times, warmup, 0)
    return max(0, min(wanted, int(room / (MARGIN * times["epoch"]))))


def write_json(path: Path, content: object) -> None:
    """Put a file in its place as a whole."""
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)


def read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def header(path: Path) -> dict:
    """What the kit wrote into a safetensors file beside its tensors."""
    with open(path, "rb") as file:
        metadata = json.loads(file.read(int.from_bytes(file.read(8), "little")))["__metadata__"]
    return json.loads(metadata["nayer"])


def told_of(teacher: Path) -> str:
    """What a trained teacher's file says of it."""
    about = header(teacher)
    reached = about.get("reached", {"epochs": math.nan, "minutes": math.nan})  # teachers of older days do not say
    told = f"{reached['epochs']:g} epochs in {60 * reached['minutes']:.0f} s"
    return f"done: {100 * about['accuracy']['test']:.2f} % on test, {told}"


class Driver:
    """The stages of one command, on one clock.

    Args:
        minutes: of the whole command; it ends some seconds earlier.
        epochs: E of the row and of the seeds; None: that of COUNTS.
        counts: other numbers than those of COUNTS.
    """

    def __init__(
        self, minutes: float, out: Path, work: Path, carried: Path | None, epochs: int | None, counts: dict
    ):
        self.end = time.monotonic() + 60 * minutes - GRACE
        self.out, self.work, self.carried, self.counts, self.stopping = out, work, carried, COUNTS | counts, False
        self.epochs = dict(self.counts["epochs"])
        if epochs:
            self.epochs["full"] = (self.epochs["full"][0], epochs)
        for folder in (out, work):
            folder.mkdir(parents=True, exist_ok=True)
        self.lines = []
        self.env = os.environ | {
            "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "notebooks", ROOT / "tests", work / "site"))),
            "PYTHONUNBUFFERED": "1",
            "MPLBACKEND": "Agg",
            "CI": "1",
            "NAYER_DATA": str(work / "data"),
            "NAYER_RUNS": str(work / "runs"),
        }
        if carried:  # nothing is asked of a network, and no other copy of the data is read
            self.env |= {"NAYER_DATASETS": str(work / "datasets"), "HF_HUB_OFFLINE": "1"}
            self.env["NAYER_COMMIT"] = (carried / "commit.txt").read_text(encoding="utf-8")
        else:
            git = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
            self.env["NAYER_COMMIT"] = subprocess.run(git, capture_output=True, text=True).stdout.strip()

    @property
    def left(self) -> float:
        return self.end - time.monotonic()

    def run(self, stages: tuple[str, ...]) -> bool:
        """Run stages one after the other; whether all were done."""
        for stage in stages:
            began = time.monotonic()
            self.note(stage, "running", 0)
            try:
                result = self.attempt(stage)
            except (Skipped, Killed, Failed) as error:
                result = f"{type(error).__name__.lower()}{' ' if isinstance(error, Killed) else ': '}{error}"
            except Exception as error:  # the stages after it are still worth their time
                result = f"failed: {type(error).__name__}: {error}"
            self.lines.pop()
            self.note(stage, result, time.monotonic() - began)
        return all(line["result"].startswith("done") for line in self.lines)

    def note(self, stage: str, result: str, seconds: float) -> None:
        """A line of the report, put into its file and on the screen."""
        self.lines.append({"stage": stage, "result": result, "seconds": round(seconds, 1)})
        write_json(self.out / "report.json", {"commit": self.env["NAYER_COMMIT"], "stages": self.lines})
        print(f"{stage:9} {result} ({seconds:.0f} s; {self.left:.0f} s left)", flush=True)

    def attempt(self, stage: str) -> str:
        for line in self.lines[:-1]:
            if line["stage"] in NEEDED and not line["result"].startswith("done"):
                raise Skipped(f"{line['stage']} was not done")
        if self.stopping:
            raise Skipped("the command was told to stop")
        least, most = LIMITS[stage]
        if self.left < least:
            raise Skipped(f"{max(0, self.left):.0f} s were left")
        self.limit = min(self.counts["patience"] * most, self.left) if most else self.left
        return getattr(self, stage)()

    def call(self, *words: str | Path, ending: signal.Signals = signal.SIGTERM) -> None:
        """A process of the kit's Python within the stage's limit, and the signal that then ends it.

        Raises:
            Killed: it ran too long, or the command was told to stop, and it did not end whole.
            Failed: it ended with an error.
        """
        began, log = time.monotonic(), self.out / "log.txt"
        with open(log, "ab") as file:
            file.write(f"\n$ {' '.join(map(str, words))}\n".encode())
            file.flush()
            child = subprocess.Popen(
                [sys.executable, *map(str, words)], cwd=ROOT, env=self.env, stdout=file, stderr=subprocess.STDOUT
            )
            while child.poll() is None and not self.stopping and time.monotonic() - began < self.limit:
                time.sleep(0.05)
            if child.poll() is None:
                child.send_signal(ending)
                try:
                    child.wait(GRACE)
                except subprocess.TimeoutExpired:
                    child.kill()
                if child.wait():
                    raise Killed(f"after {time.monotonic() - began:.0f} s")
        if child.returncode:
            lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
            raise Failed([line for line in lines if line.strip()][-1][:300])

    def work_on(self, job: str, **details) -> None:
        """One job of work.py."""
        known = {"work": self.work, "carried": bool(self.carried), "began": time.time()}
        self.call(HERE / "work.py", job, json.dumps(self.counts | known | details, default=str))

    # The stages, each its result in words.

    def unpack(self) -> str:
        """What was carried, checked against its sums, to where it stays; the kit's data folder beside it."""
        shutil.copytree(ROOT / "data", self.work / "data", dirs_exist_ok=True)
        if not self.carried:
            return self.fetch()
        sums = (self.carried / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
        for line in sums:
            digest, name = line.split("  ", 1)
            path = self.carried / name
            if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != digest:
                raise Failed(f"{name} is not what was packed: pack again")
            if path.suffix == ".whl":
                with zipfile.ZipFile(path) as wheel:  # pure Python: a wheel is its files
                    wheel.extractall(self.work / "site")
            else:
                target = self.work / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
        self.call(HERE / "sheets.py", self.work / "sheets", self.work)
        train, test = (len(list((self.work / "sheets").glob(f"{split}_*.webp"))) for split in ("train", "test"))
        return f"done: {len(sums)} files, their sums right; now {train} sheets to train on, {test} to score on"

    def fetch(self) -> str:
        """What is carried otherwise, downloaded: once, the rest of the clock for it."""
        self.limit = self.left
        self.call("-c", "from nayer_lib.datasets import load_split as f; f('cifar10', 'train'), f('cifar10', 'test')")
        if not (self.work / "data" / "lte" / "cifar10.clip.a.safetensors").is_file():
            self.call("-m", "nayer_lib", "lte", "build", "--dataset", "cifar10", "--encoder", "clip")
        return "done: nothing was carried; images and label text are here"

    def standin(self) -> str:
        """A teacher of a few seconds, where the kit looks for one: what the next stages look at, and a first try."""
        path = self.work / "data" / "teachers" / f"cifar10-{self.counts['nets'][0]}.safetensors"
        return self.train(path, "standin")

    def teacher(self) -> str:
        """A teacher for the row."""
        path = self.work / "teacher.safetensors"
        if not path.is_file():
            self.train(path, "teacher")
        shutil.copyfile(path, self.out / path.name)
        low = header(path)["accuracy"]["test"] < TEACHER_GOAL
        return told_of(path) + (f"; below {100 * TEACHER_GOAL:.0f} %: its students fill no cell" if low else "")

    def train(self, path: Path, kind: str) -> str:
        """A teacher trained on the images that were carried; how good it is, in words."""
        seconds = min(self.counts["training"][kind], 0.75 * self.limit, 0.2 * self.left)
        images = ["--images", self.work / "train.npz", "--test-images", self.work / "test.npz"] if self.carried else []
        for old in (path, path.with_name(f"{path.name}.partial")):  # the clone's, and that of a killed training
            old.unlink(missing_ok=True)
        self.call(
            *("-m", "nayer_lib", "teacher", "train", "--dataset", "cifar10", "--network", self.counts["nets"][0]),
            *("--recipe", "short", "--minutes", f"{seconds / 60:.3f}", "--half", "--out", path, *images),
        )
        return told_of(path)

    def smoke(self) -> str:
        """Every part of a run at its real size, plain steps."""
        return self.parts("machine", "steps", "state", "eager", "plain")

    def graphs(self) -> str:
        """The same steps as CUDA graphs: the same losses? how fast?"""
        return self.parts("graphs")

    def notebook(self) -> str:
        """Notebook 04's cells in the profile `lab`, two epochs."""
        return self.parts("notebook")

    def parts(self, *names: str) -> str:
        """Parts of work.py that fill smoke.json as they go. One that fails is told, and the next ones still run."""
        smoke = self.out / "smoke.json"
        if not smoke.is_file() and (self.work / "smoke.json").is_file():
            shutil.copyfile(self.work / "smoke.json", smoke)
        try:
            self.work_on("parts", names=names, out=smoke)
        finally:
            if smoke.is_file():
                shutil.copyfile(smoke, self.work / "smoke.json")
        told = read_json(smoke)
        wrong = {name: told[name]["failed"] for name in names if "failed" in told[name]}
        if wrong:
            raise Failed("; ".join(f"{name}: {how}" for name, how in wrong.items()))
        return f"done: {', '.join(names)}"

    def row(self) -> str:
        """The row of Table 1: seed 0, everything copied out."""
        keep = ("card.json", "curve.csv", "student.safetensors", "images.png")
        return self.distil("row", {name: name for name in keep}, "full", 0, lower=True)

    def seeds(self) -> str:
        """Seeds 1 and 2 of the row with the teacher that was carried; then arms of a quarter of it, while they fit."""
        runs = [(f"s{seed}", "full", seed, {}) for seed in self.counts["seeds"]]
        runs += [(f"lab-{name}", "lab", 0, arm) for name, arm in self.counts["arms"].items()]
        results = []
        for name, profile, seed, arm in runs:
            self.limit = self.left
            try:
                result = self.distil(name, {"card.json": "running.json"}, profile, seed, arm)
                with open(self.out / "cards.jsonl", "a", encoding="utf-8") as file:  # as data/runs keeps a sweep's
                    file.write(json.dumps(read_json(self.work / "rows" / name / "card.json")) + "\n")
            except (Skipped, Killed, Failed) as error:
                result = f"{type(error).__name__.lower()}: {error}"
            results.append(f"{name} {result}")
            print(f"  {results[-1]}", flush=True)
        done = sum(" done" in result for result in results)
        told = "; ".join(results)
        if not done:
            raise Failed(told)
        return f"done: {done} of {len(runs)} runs ({told})"

    def sweeps(self) -> str:
        """Registered sweeps, several runs at a time; the finished cards of each come back as data/runs keeps them."""
        results, data, cut = [], self.work / "data", False
        for name in self.counts["sweeps"]:
            sweep, cards, told = data / "sweeps" / f"{name}.json", data / "runs" / f"{name}.jsonl", ""
            self.limit = self.left - CLOSING
            if self.stopping or self.limit < LIMITS["sweeps"][0]:
                told = ", not begun"
            else:
                words = ("sweep", sweep, "--jobs", self.counts["jobs"], "--keep")
                try:
                    self.call("-m", "nayer_lib", *words, ending=signal.SIGINT)  # like Ctrl-C, which ends its runs too
                except (Killed, Failed) as error:
                    told = f", {type(error).__name__.lower()} {error}"
            cut = cut or bool(told)
            if cards.is_file():
                shutil.copyfile(cards, self.out / cards.name)
            results.append(f"{name}: {len(cards.read_text().splitlines()) if cards.is_file() else 0} cards{told}")
            print(f"  {results[-1]}", flush=True)
        if cut:
            raise Killed(f"with {'; '.join(results)}; to be gone on with while this machine is kept")
        return f"done: {'; '.join(results)}"

    def fastest(self) -> tuple[str, dict]:
        """The kind of steps to take, and what a run with them takes: from smoke.json, or measured now."""
        smoke = self.work / "smoke.json"
        if "epoch" not in read_json(smoke).get("eager", {}):
            self.parts("eager")
            with contextlib.suppress(Failed, Killed):
                self.parts("graphs")
        told = read_json(smoke)
        graphs = told.get("graphs", {})
        steps = "graphs" if graphs.get("same") and graphs["epoch"] < told["eager"]["epoch"] else "eager"
        return steps, told[steps]

    def distil(self, name: str, keep: dict, profile: str, seed: int, arm: dict | None = None, lower=False) -> str:
        """One run, with graphs where these were found right and faster, plain where not or once they die.

        Args:
            keep: files of its run folder -> their names in --out.
            lower: fewer epochs where the time is too short; else it is skipped then.
        """
        if not (self.work / "teacher.safetensors").is_file():
            raise Skipped("there is no teacher: neither trained here nor carried")
        steps, times = self.fastest()
        folder = self.work / "rows" / name
        begun, (warmup, wanted) = read_json(folder / "card.json"), self.epochs[profile]
        if begun.get("status") == "finished":
            raise Skipped(f"it was finished before, in {folder}")
        if begun:
            wanted = begun["config"]["epochs"]
        needs, left = projected(times, warmup, wanted), self.left
        print(f"  {name}: projected {needs:.0f} s for E = {wanted} ({steps}), {left:.0f} s left", flush=True)
        epochs = wanted
        if needs > left and not begun:
            epochs = fitting(times, warmup, wanted, left) if lower else 0
            if epochs < LEAST_EPOCHS:
                raise Skipped(f"E = {wanted} needs {needs:.0f} s, {left:.0f} s were left")
            print(f"  {name}: E lowered to {epochs}, as its card will say", flush=True)
        died = ""
        for mode in dict.fromkeys((steps, "eager")):
            try:
                self.work_on(
                    "row",
                    folder=folder,
                    out=self.out,
                    keep=keep,
                    profile=profile,
                    seed=seed,
                    epochs=epochs,
                    arm=arm or {},
                    steps=mode,
                    until=time.time() + self.limit - GRACE,
                )
                break
            except Failed as error:
                if mode == "eager":
                    raise
                died = f"; graphs died ({error}), eager from there"
                self.limit = self.left
        card = read_json(folder / "card.json")
        accuracy = f"student {100 * card['accuracy_last']:.2f} %" if "accuracy_last" in card else "no student yet"
        if card["status"] != "finished":
            raise Killed(f"in epoch {len(card['curve'])}, resumable from --work while this machine is kept; {accuracy}")
        return f"done: {accuracy}, E = {epochs}, {card['compute'].get('steps', mode)}{died}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, required=True, help="of the whole command")
    parser.add_argument("--stages", nargs="+", choices=(*COMMANDS, *LIMITS), default=["all"])
    parser.add_argument("--out", type=Path, required=True, help="what is to be brought back")
    parser.add_argument("--carried", type=Path, help="what pack.py made; default: nothing, the machine has a network")
    stays = Path(tempfile.gettempdir()) / "nayer-gpu"
    parser.add_argument("--work", type=Path, default=stays, help="what stays; remove it to begin anew")
    parser.add_argument("--epochs", type=int, help="E of the row and of the seeds; default: 100")
    parser.add_argument("--counts", type=json.loads, default={}, help="other COUNTS, as JSON: rehearse.py's")
    given = parser.parse_args()
    carried = given.carried.resolve() if given.carried else None
    if carried and not (carried / "SHA256SUMS").is_file():
        parser.error(f"{given.carried} is not what pack.py made: pack again, or leave --carried out")
    driver = Driver(given.minutes, given.out.resolve(), given.work.resolve(), carried, given.epochs, given.counts)
    signal.signal(signal.SIGTERM, lambda *_: setattr(driver, "stopping", True))
    stages = dict.fromkeys(stage for name in given.stages for stage in COMMANDS.get(name, (name,)))
    return 0 if driver.run(tuple(stages)) else 1


if __name__ == "__main__":
    sys.exit(main())
