"""One recorded distillation: what it writes while it runs, how it stops, and how it goes on."""

import contextlib
import csv
import dataclasses
import io
import json
import math
import os
import platform
import statistics
import subprocess
import time
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from .. import files
from ..checkpoint import Checkpoint
from ..classifiers.teacher import Classifier, load_judge, save_classifier
from ..compute import compute_of
from ..distill import Epoch, Setup, distill
from ..errors import UserError
from ..evaluate import in_batches
from ..methods.base import Method
from ..metrics import by_step, classifier_score, convergence, diversity, feature_diversity
from ..plots import image_grid, new_figure
from .card import REGISTRATION, device_name, new_id, read_card

if TYPE_CHECKING:
    from filelock import FileLock

CURVE = ("epoch", "images", "ce_first", "ce_last", "student_loss", "accuracy", "agreement", "kl", "nll", "seconds")
SCORED = 1000  # newest images that the judge scores
CE_THRESHOLDS = (0.1, 0.5, 1.0)  # nats; Table 3's is the first, which small problems may never reach
PHASES = ("synthesis", "student", "evaluation")
PACKAGES = ("torch", "torchvision", "numpy", "scikit-learn", "safetensors")


class Run:
    """One recorded distillation: iterate over it to run it. Each epoch is on disk before it is yielded.

    Of several processes the first one records and the others only run: each iterates over a `Run` of its own. They save
    no state, so that such a run cannot be resumed.

    Args:
        setup: of `distill.prepare`.
        folder: where to write; None makes a new one under `files.runs_dir()`.
        resume: go on where the run in `folder` stopped; without a saved state there it starts from the beginning.
        save_every: seconds after which a state is saved for that, at the next end of an epoch.
        max_minutes: after so many minutes the run stops at the end of an epoch, resumable.

    Attributes:
        folder: the run folder.
        card: the run card so far, a dict that is written as card.json.
        stopped: whether it stopped before its last epoch, resumable.

    Raises:
        UserError: the folder cannot be written to, holds a run already, is in use by another process, or what stopped
            there is a run of another config, teacher, pool or test split; or several processes are asked to resume.
    """

    def __init__(
        self,
        setup: Setup,
        folder: Path | None = None,
        resume: bool = False,
        save_every: float = 300.0,
        max_minutes: float | None = None,
    ):
        ranks = setup.method.ranks
        if ranks.size > 1 and (resume or max_minutes is not None):
            raise UserError("a run on several processes cannot stop early or be resumed: leave both options out.")
        self.setup, self.max_minutes, self.stopped, self._stop = setup, max_minutes, False, False
        self.save_every = save_every if ranks.size == 1 else math.inf
        if ranks.rank:
            return
        config, method, evaluate = setup.config, setup.method, setup.evaluate
        started = datetime.now(UTC)
        self.folder = Path(folder) if folder else files.runs_dir() / new_id(config)
        # `keep` finds a run by its id, so a folder among the others gives its name.
        among_others = self.folder.resolve().parent == files.runs_dir().resolve()
        self.id = self.folder.name if among_others else new_id(config)
        self._checkpoint = Checkpoint(self.folder)
        goes_on = resume and (self.folder / "card.json").exists()
        if (self.folder / "card.json").exists() and not resume:
            raise UserError(f"{self.folder} holds a run already: resume it, choose another folder, or remove it.")
        self._lock = _locked(self.folder)
        self.card = {
            "id": self.id,
            "status": "running",
            "started": f"{started:%Y-%m-%d %H:%M} UTC",
            "config": dataclasses.asdict(config),
            "config_sha256": config.hash,
            "test_split": {
                "split": evaluate.split.name,
                "images": len(evaluate.split.labels),
                "sha256": files.tensors_hash({"images": evaluate.split.images, "labels": evaluate.split.labels}),
            },
            "teacher": {
                "sha256": files.tensors_hash(method.teacher.net.state_dict()),
                "accuracy": evaluate.teacher.accuracy,
            },
            "lte": setup.pool and setup.pool.header,
            "commit": _commit(),
            "registration": os.environ.get(REGISTRATION) or None,
            "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
            "device": device_name(method.device) + (f", {ranks.size} processes" if ranks.size > 1 else ""),
            "processes": ranks.size,
            **self._computed(),
            "threads": torch.get_num_threads(),
            "curve": [],
        }
        self._seconds = dict.fromkeys((*PHASES, "total"), 0.0)
        self._rounds: list[list[float]] = []  # L_CE per step of every round after warm-up
        try:
            if goes_on:
                self._resume()
            if len(method.memory) and not self.card["curve"]:
                raise UserError("this set-up has been used: `prepare` it again for another run.")
        except UserError:
            self._unlock()
            raise
        self._write_card()
        rows = [[_blank(row.get(name)) for name in CURVE] for row in self.card["curve"]]  # a resumed one may lack nll
        files.write_text(self.folder / "curve.csv", "".join(_csv(row) for row in (CURVE, *rows)))

    def __iter__(self) -> Iterator[Epoch]:
        """Run it. Where it stops, by error or by its caller, the card says so; the last epoch's files are whole."""
        if self.setup.method.ranks.rank:
            yield from distill(self.setup.method, self.setup.evaluate, score_every=self.setup.score_every)
            return
        begun, before = time.perf_counter(), self._seconds["total"]
        saved, status = begun, "stopped before its last epoch"
        total = self.setup.config.total_epochs
        self._trace_before(total, len(self.card["curve"]))
        try:
            done = len(self.card["curve"])
            for epoch in distill(self.setup.method, self.setup.evaluate, done, self.setup.score_every):
                for name, value in epoch.seconds.items():
                    self._seconds[name] += value
                self._seconds["total"] = before + time.perf_counter() - begun
                if epoch.student_loss is not None:
                    self._rounds += [r.ce_per_step for r in epoch.rounds if r.ce_per_step]
                self._record(epoch)
                now, left = time.perf_counter(), epoch.epoch + 1 < total
                late = self.max_minutes is not None and now - begun >= 60 * self.max_minutes
                self.stopped = left and (self._stop or late)
                if left and (self.stopped or now - saved >= self.save_every):
                    self._checkpoint.save(self.setup.method, self._progress())
                    saved = now
                yield epoch
                if self.stopped:
                    return
                self._trace_before(total, epoch.epoch + 1)
            if self._rounds:
                self.card["metrics"] = self._metrics(self._rounds)
            self._draw_images()
            status = "finished"
        except torch.OutOfMemoryError as error:
            config = self.setup.config
            status = "failed: out of memory"
            raise UserError(
                f"the GPU's memory is too small for generator_batch={config.generator_batch} and "
                f"student_batch={config.student_batch}: half of each, --set generator_batch="
                f"{max(2, config.generator_batch // 2)} student_batch={max(1, config.student_batch // 2)}, is the next "
                "to try. What was saved before is whole."
            ) from error
        except UserError as error:
            status = f"failed: {error}"
            raise
        finally:
            self._seconds["total"] = before + time.perf_counter() - begun
            self.card |= {"status": status, "seconds": self._seconds, **self._computed()}
            self._write_card()
            if status == "finished":
                self._checkpoint.remove()
            self._unlock()

    def _unlock(self) -> None:
        self._lock.release()
        with contextlib.suppress(OSError):  # somebody else may hold it by now
            (self.folder / ".lock").unlink()

    def stop(self) -> None:
        """Ask it to stop, resumable, at the end of the epoch that is running. Safe in a signal handler.

        For a run of one process: others would wait for this one.
        """
        self._stop = True

    def _computed(self) -> dict:
        """The card's entries on how the steps really ran, and why not as they were asked for."""
        running = self.setup.method.running
        fell_back = {"fell_back": running.reason} if running.reason else {}
        return {"compute": dataclasses.asdict(running.compute), **fell_back}

    def _progress(self) -> dict:
        return {"card": self.card, "seconds": self._seconds, "rounds": self._rounds}

    def _resume(self) -> None:
        """Take up card, clocks and state of the run in this folder, if it is this one; with no state, start over."""
        if read_card(self.folder)["status"] == "finished":
            raise UserError(f"the run in {self.folder} is finished: there is nothing to resume.")
        if not self._checkpoint.exists():
            if read_card(self.folder)["curve"]:
                warnings.warn(
                    f"the run in {self.folder} had saved no state: it starts again from the first epoch.", stacklevel=4
                )
            return
        mine, saved = self.card, self._checkpoint.read()
        progress = saved["progress"]
        card = progress["card"]
        card["compute"] = dataclasses.asdict(compute_of(card))  # it may be older than the switches of today
        here = json.loads(json.dumps(mine["config"]))  # tuples are lists in a card
        there = json.loads(json.dumps(card["config"]))
        other = [name for name in here if here[name] != there.get(name)]
        other += [what for what in ("lte", "test_split") if mine[what] != card[what]]
        if mine["teacher"]["sha256"] != card["teacher"]["sha256"]:  # its accuracy may differ by a device's rounding
            other.append("teacher")
        if other:
            raise UserError(
                f"the run in {self.folder} has another {other[0].replace('_', ' ')}: resume it with the options it was "
                "started with, or choose another folder."
            )
        self._checkpoint.load(self.setup.method, saved)
        changed = [name for name in ("device", "compute", "threads", "versions") if mine[name] != card[name]]
        if changed:
            warnings.warn(
                f"this run began with other {', '.join(changed)}: it goes on with an equal config, not equal bits.",
                stacklevel=3,
            )
        self.card = card | {"resumed": [*card.get("resumed", []), len(card["curve"])], "status": "running"}
        self.card |= {name: mine[name] for name in changed}
        self.id, self._seconds, self._rounds = card["id"], progress["seconds"], progress["rounds"]

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
            "nll": epoch.scores and epoch.scores.nll,
            "seconds": sum(epoch.seconds.values()),
        }
        self.card["curve"].append(row)
        self.card |= self._computed()
        self._append([_blank(row[name]) for name in CURVE])
        if epoch.scores:
            scored = [r for r in self.card["curve"] if r["accuracy"] is not None]
            best = max(scored, key=lambda r: r["accuracy"])
            self.card |= {
                "accuracy_last": row["accuracy"],
                "accuracy_best": best["accuracy"],
                "best_epoch (chosen on the test set)": best["epoch"],
                "agreement_last": row["agreement"],
                "nll_last": row["nll"],
                "images": epoch.images,
            }
            config = self.setup.config
            save_classifier(
                self.folder / "student.safetensors",
                self.setup.method.student,
                run=self.id,
                dataset=config.dataset,
                epoch=epoch.epoch,
                accuracy=row["accuracy"],
            )

    def _trace_before(self, total: int, epoch: int) -> None:
        """Have the rounds of the last epoch traced, for Figure 5's curves."""
        if epoch + 1 == total:
            self.setup.method.trace = []

    def _metrics(self, ce_per_step: list[list[float]]) -> dict:
        """Convergence over the rounds after warm-up; diversity and score of the newest images in this rank's memory, or
        of what a live generator makes; Figure 5's curves, from the last epoch's rounds."""
        method = self.setup.method
        seen, judge = method.examples(), _judge(method)
        told = {
            "ce_by_step": [statistics.mean(ces) for ces in zip(*ce_per_step, strict=True)],
            "convergence": {str(t): _no_nan(convergence(ce_per_step, t)) for t in CE_THRESHOLDS},
        }
        if seen.rounds is not None:
            told["diversity"] = _no_nan(diversity(seen.images, seen.labels, seen.rounds))
            told["feature_diversity"] = _no_nan(
                feature_diversity(seen.images, seen.labels, seen.rounds, method.teacher)
            )
        if judge:
            logits = in_batches(judge, seen.images[-SCORED:])
            told["classifier_score"] = dataclasses.asdict(classifier_score(logits, splits=1)) | {"judge": judge.name}
            if method.trace:
                told["by_step"] = by_step(*zip(*method.trace, strict=True), judge, method.teacher)
        return told

    def _append(self, row) -> None:
        try:
            with open(self.folder / "curve.csv", "a", newline="", encoding="utf-8") as file:
                file.write(_csv(row))
        except OSError as error:
            raise UserError(
                f"cannot write to {self.folder}: {error.strerror}. The last epoch's files are whole."
            ) from error

    def _write_card(self) -> None:
        files.write_text(self.folder / "card.json", json.dumps(self.card, indent=1) + "\n")

    def _draw_images(self) -> None:
        seen, names = self.setup.method.examples(), self.setup.method.teacher.class_names[:10]
        figure, [ax] = new_figure(width=5, height=5)
        image_grid(ax, seen.images.cpu(), seen.labels.cpu(), names)
        with files.replacing(self.folder / "images.png") as temporary:
            figure.savefig(temporary, format="png")


def _judge(method: Method) -> Classifier | None:
    """The data set's judge on the method's device; None where there is none, or where it was the teacher."""
    try:
        return load_judge(method.config.dataset, method.teacher).to(method.device)
    except UserError:
        return None


def _locked(folder: Path) -> "FileLock":
    """A lock on a run folder that the system lets go of when its process ends, however it ends."""
    from filelock import FileLock, Timeout

    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UserError(f"another process is running in {folder}: choose another folder, or wait for it.") from error
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror}. Choose a folder you can write to.") from error
    return lock


def _blank(value):
    return "" if value is None else value


def _csv(row) -> str:
    """One line of a CSV file."""
    line = io.StringIO(newline="")
    csv.writer(line).writerow(row)
    return line.getvalue()


def _no_nan(measured) -> dict:
    """A metric's fields for JSON, which has no nan."""
    return {name: None if value != value else value for name, value in dataclasses.asdict(measured).items()}


def _commit() -> str:
    """The clone's commit, with "+" if files differ from it; outside a clone `$NAYER_COMMIT`, else ""."""
    root = files.data_dir().parent

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *words], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--", "nayer_lib") else "")
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("NAYER_COMMIT", "")
