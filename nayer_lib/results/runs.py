"""Run folders and run cards: what a run leaves behind.

A run folder holds card.json, curve.csv (a line an epoch, so `tail -f` works), student.safetensors and images.png.
Runs go to `files.runs_dir()`; `keep` copies a card to data/runs, and every number in the README comes from there.
"""

import csv
import dataclasses
import json
import os
import platform
import shutil
import statistics
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch

from .. import files
from ..classifiers.teacher import save_classifier
from ..config import Config
from ..distill import Epoch, Setup, distill
from ..errors import MissingFile, UserError, unknown
from ..metrics import convergence, diversity
from .figures import image_grid, new_figure

CURVE = ("epoch", "images", "ce_first", "ce_last", "student_loss", "accuracy", "agreement", "kl", "seconds")
CE_THRESHOLDS = (0.1, 0.5, 1.0)  # nats; Table 3's is the first, which small problems may never reach
PACKAGES = ("torch", "torchvision", "numpy", "scikit-learn", "safetensors")


class Run:
    """One recorded distillation: iterate over it to run it. Each epoch is on disk before it is yielded.

    Args:
        setup: of `distill.prepare`.
        folder: where to write; None makes a new one under `files.runs_dir()`.

    Attributes:
        folder: the run folder.
        card: the run card so far, a dict that is written as card.json.

    Raises:
        UserError: the folder cannot be written to, or holds a run already.
    """

    def __init__(self, setup: Setup, folder: Path | None = None):
        self.setup = setup
        config, method, evaluate = setup.method.config, setup.method, setup.evaluate
        started = datetime.now(UTC)
        self.folder = Path(folder) if folder else files.runs_dir() / new_id(config)
        # `keep` finds a run by its id, so a folder among the others gives its name.
        among_others = self.folder.resolve().parent == files.runs_dir().resolve()
        self.id = self.folder.name if among_others else new_id(config)
        if (self.folder / "card.json").exists():
            raise UserError(f"{self.folder} holds a run already: choose another folder, or remove it.")
        teacher = method.teacher
        self.card = {
            "id": self.id,
            "status": "running",
            "started": f"{started:%Y-%m-%d %H:%M} UTC",
            "config": dataclasses.asdict(config),
            "config_sha256": config.hash,
            "test_split": {
                "images": len(evaluate.split.labels),
                "sha256": files.tensors_hash({"images": evaluate.split.images, "labels": evaluate.split.labels}),
            },
            "teacher": {
                "sha256": files.tensors_hash(teacher.net.state_dict()),
                "accuracy": evaluate.teacher.accuracy,
            },
            "lte": setup.pool.header,
            "commit": _commit(),
            "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
            "device": device_name(method.device),
            "threads": torch.get_num_threads(),
            "curve": [],
        }
        self._write_card()
        files.write_text(self.folder / "curve.csv", ",".join(CURVE) + "\n")

    def __iter__(self) -> Iterator[Epoch]:
        """Run it. Where it stops, by error or by its caller, the card says so; the last epoch's files are whole."""
        seconds, rounds = dict.fromkeys(("synthesis", "student", "evaluation"), 0.0), []
        start, status = time.perf_counter(), "stopped before its last epoch"
        try:
            for epoch in distill(self.setup.method, self.setup.evaluate):
                for name, value in epoch.seconds.items():
                    seconds[name] += value
                rounds += [r.ce_per_step for r in epoch.rounds if epoch.scores and r.ce_per_step]
                self._record(epoch)
                yield epoch
            if rounds:
                self.card["metrics"] = self._metrics(rounds)
            self._draw_images()
            status = "finished"
        except UserError as error:
            status = f"failed: {error}"
            raise
        finally:
            self.card |= {"status": status, "seconds": {**seconds, "total": time.perf_counter() - start}}
            self._write_card()

    def _record(self, epoch: Epoch) -> None:
        ce = epoch.rounds[-1].ce_per_step if epoch.rounds else []
        row = {
            "epoch": epoch.epoch,
            "images": epoch.images,
            "ce_first": ce[0] if ce else None,
            "ce_last": ce[-1] if ce else None,
            "student_loss": epoch.student_loss,
            "accuracy": epoch.scores and epoch.scores.accuracy,
            "agreement": epoch.scores and epoch.scores.agreement,
            "kl": epoch.scores and epoch.scores.kl,
            "seconds": sum(epoch.seconds.values()),
        }
        self.card["curve"].append(row)
        self._append(["" if row[name] is None else row[name] for name in CURVE])
        if epoch.scores:
            scored = [r for r in self.card["curve"] if r["accuracy"] is not None]
            best = max(scored, key=lambda r: r["accuracy"])
            self.card |= {
                "accuracy_last": row["accuracy"],
                "accuracy_best": best["accuracy"],
                "best_epoch (chosen on the test set)": best["epoch"],
                "agreement_last": row["agreement"],
                "images": epoch.images,
            }
            config = self.setup.method.config
            save_classifier(
                self.folder / "student.safetensors",
                self.setup.method.student,
                run=self.id,
                dataset=config.dataset,
                epoch=epoch.epoch,
                accuracy=row["accuracy"],
            )

    def _metrics(self, ce_per_step: list[list[float]]) -> dict:
        """Convergence over the rounds after warm-up, and the diversity of the memory's newest images."""
        memory = self.setup.method.memory
        return {
            "ce_by_step": [statistics.mean(ces) for ces in zip(*ce_per_step, strict=True)],
            "convergence": {str(t): _no_nan(convergence(ce_per_step, t)) for t in CE_THRESHOLDS},
            "diversity": _no_nan(diversity(memory.images, memory.labels, memory.rounds)),
        }

    def _append(self, row) -> None:
        try:
            with open(self.folder / "curve.csv", "a", newline="", encoding="utf-8") as file:
                csv.writer(file).writerow(row)
        except OSError as error:
            raise UserError(
                f"cannot write to {self.folder}: {error.strerror}. The last epoch's files are whole."
            ) from error

    def _write_card(self) -> None:
        files.write_text(self.folder / "card.json", json.dumps(self.card, indent=1) + "\n")

    def _draw_images(self) -> None:
        memory, names = self.setup.method.memory, self.setup.method.teacher.class_names[:10]
        figure, [ax] = new_figure(width=5, height=5)
        image_grid(ax, memory.images.cpu(), memory.labels.cpu(), names)
        with files.replacing(self.folder / "images.png") as temporary:
            figure.savefig(temporary, format="png")


def new_id(config: Config) -> str:
    """The name of a run that starts now: when, and what it runs."""
    return (
        f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{config.method}-{config.dataset}-{config.teacher}-{config.student}-"
        f"{config.variant}-{config.profile}-{config.hash[:6]}-s{config.seed}"
    )


def read_card(path: Path) -> dict:
    """A card from card.json, or from the folder that holds it.

    Raises:
        MissingFile, UserError: there is none, or it is not a whole card.
    """
    path = Path(path)
    path = path / "card.json" if path.is_dir() else path
    if not path.is_file():
        raise MissingFile(f"no run card at {path}.")
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(card, dict) or not {"id", "status", "config"} <= set(card):
            raise ValueError("no id, status or config")
    except ValueError as error:
        raise UserError(f"{path} is not a whole run card ({error}).") from error
    return card


def card_config(card: dict) -> Config:
    """The config of a card; fields that are newer than the card have their defaults, which is what it ran with."""
    return Config(**{name: tuple(v) if isinstance(v, list) else v for name, v in card["config"].items()})


def local_cards() -> list[dict]:
    """The cards of the runs on this machine, oldest first."""
    return [read_card(path) for path in sorted(files.runs_dir().glob("*/card.json"))]


def kept_cards() -> list[dict]:
    """The cards in data/runs, oldest first: one a file, and those of kept sweeps, one a line."""
    folder = files.data_dir() / "runs"
    lines = [line for path in sorted(folder.glob("*.jsonl")) for line in path.read_text(encoding="utf-8").splitlines()]
    cards = [read_card(path) for path in folder.glob("*.json")] + [json.loads(line) for line in lines]
    return [card for _, card in sorted({card["id"]: card for card in cards}.items())]  # two sweeps may share a run


def keep(run_id: str) -> Path:
    """Copy a finished run's card, and the picture of its images, to data/runs, where tables and README find them.

    Raises:
        UserError: no such run (the nearest is named), or one that did not finish.
    """
    folder = files.runs_dir() / run_id
    if not folder.is_dir():
        raise unknown("run", run_id, sorted(p.parent.name for p in files.runs_dir().glob("*/card.json")))
    card = read_card(folder)
    if card["status"] != "finished":
        raise UserError(f"{run_id} is {card['status']}: only finished runs are kept.")
    target = files.data_dir() / "runs" / f"{run_id}.json"
    with files.replacing(target.with_suffix(".png")) as temporary:
        shutil.copyfile(folder / "images.png", temporary)
    files.write_text(target, json.dumps(card, indent=1) + "\n")
    return target


def _no_nan(measured) -> dict:
    """A metric's fields for JSON, which has no nan."""
    return {name: None if value != value else value for name, value in dataclasses.asdict(measured).items()}


def _commit() -> str:
    """The clone's commit, with "+" if files differ from it; "" outside a clone."""
    root = files.data_dir().parent

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *words], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--", "nayer_lib") else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


def device_name(device: torch.device) -> str:
    """The GPU's name, or the processor's and its number of cores."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    models = (
        [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        if (info.is_file())
        else []
    )
    return f"{models[0] if models else platform.machine()} ({os.cpu_count()} cores)"
