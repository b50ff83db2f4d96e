"""One recorded distillation: what it writes while it runs, how it stops, and how it goes on."""

import csv
import dataclasses
import json
import os
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch

from .. import files
from ..checkpoint import STATE, Checkpoint
from ..classifiers.judge import JUDGES
from ..classifiers.teacher import save_classifier
from ..compute import compute_of
from ..config import Config, fields_of
from ..distill import Epoch, Setup, distill
from ..errors import UserError
from ..methods.base import Paused
from .card import card_config, new_id, read_card
from .lock import lock, unlock
from .measured import convergence_and_diversity, draw_images, judged, transductive
from .new_card import how_computed, new_card

CURVE = ("epoch", "images", "ce_first", "ce_last", "student_loss", "accuracy", "agreement", "kl", "nll", "seconds")
PHASES = ("synthesis", "student", "evaluation")
CUT_OFF = "metrics and picture: the process ended while they were made"
LEAST = {"generator_batch": 2, "student_batch": 1}  # images of a batch; BatchNorm needs two in synthesis
EXTENSIBLE = {"budget"}  # fields that only say when a run has to stop: it may be resumed with another value
REPLACED = ("card.json", "curve.csv", "student.safetensors", "images.png", STATE)  # files written by `files.replacing`


class Run:
    """One recorded distillation: iterate over it to run it. Each epoch is on disk before it is yielded.

    Of several processes the first one records and the others only run: each iterates over a `Run` of its own. They save
    no state, so that such a run cannot be resumed.

    Args:
        setup: of `distill.prepare`.
        folder: where to write; None makes a new one under `files.runs_dir()`.
        resume: go on where the run in `folder` stopped; without a saved state there it starts from the beginning.
        save_after: a state is saved for that at the end of an epoch when more than so many times what the last save
            took has passed since: after the first epoch, and in less than 5 % of the time.
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
        save_after: float = 20.0,
        max_minutes: float | None = None,
    ):
        ranks = setup.method.ranks
        if ranks.size > 1 and (resume or max_minutes is not None):
            raise UserError("a run on several processes cannot stop early or be resumed: leave both options out.")
        self.setup, self.max_minutes, self.stopped, self._stop = setup, max_minutes, False, False
        self.save_after = save_after
        if ranks.rank:
            return
        run_id = new_id(setup.config)
        self.folder = Path(folder) if folder else files.runs_dir() / run_id
        # `keep` finds a run by its id, so a folder among the others gives its name.
        among_others = self.folder.resolve().parent == files.runs_dir().resolve()
        begun = (self.folder / "card.json").exists()
        if begun and not resume:
            raise UserError(f"{self.folder} holds a run already: resume it, choose another folder, or remove it.")
        self._checkpoint = Checkpoint(self.folder)
        self._lock = lock(self.folder)
        self._seconds = dict.fromkeys((*PHASES, "total"), 0.0)
        self._rounds: list[list[float]] = []  # L_CE per step of every round after warm-up
        try:
            self.card = new_card(setup, self.folder.name if among_others else run_id)
            files.remove_leftovers(self.folder, REPLACED)
            if begun:
                self._resume()
            if not self.card["curve"]:
                self._checkpoint.remove()  # of a run that was here before
            made = len(setup.method.memory) and setup.config.total_rounds  # without rounds it is full from the start
            if made and not self.card["curve"]:
                raise UserError("this set-up has been used: `prepare` it again for another run.")
            self._write_card()
            with files.replacing(self.folder / "curve.csv") as temporary:
                _add_rows(temporary, [dict(zip(CURVE, CURVE, strict=True)), *self.card["curve"]])
        except BaseException:
            unlock(self._lock)
            raise

    @property
    def id(self) -> str:
        """The run's id."""
        return self.card["id"]

    def __iter__(self) -> Iterator[Epoch]:
        """Run it. Where it stops, by error or by its caller, the card says so; the last epoch's files are whole."""
        method, evaluate, score_every = self.setup.method, self.setup.evaluate, self.setup.score_every
        if method.ranks.rank:
            yield from distill(method, evaluate, score_every=score_every)
            return
        config, done = self.setup.config, len(self.card["curve"])
        begun, before = time.perf_counter(), self._seconds["total"]
        saved, took, status = begun, 0.0, "stopped before its last epoch"
        self._trace(config.total_epochs - done)
        try:
            for epoch in distill(method, evaluate, done, score_every):
                for name, value in epoch.seconds.items():
                    self._seconds[name] += value
                self._seconds["total"] = before + time.perf_counter() - begun
                if epoch.student_loss is not None:
                    self._rounds += [r.ce_per_step for r in epoch.rounds if r.ce_per_step]
                self._record(epoch)
                now, left = time.perf_counter(), config.total_epochs - epoch.epoch - 1
                late = self.max_minutes is not None and now - begun >= 60 * self.max_minutes
                due = method.ranks.size == 1 and now - saved > self.save_after * took
                self.stopped = bool(left) and (self._stop or late)
                if left and (self.stopped or due):
                    self._save()
                    saved = time.perf_counter()
                    took = saved - now
                if not left:
                    status = "finished"
                    self._finish()
                yield epoch
                if self.stopped:
                    return
                self._trace(left)
        except torch.OutOfMemoryError as error:
            status = "failed: out of memory"
            raise UserError(f"{_too_small(config)} What was saved before is whole.") from error
        except Paused as error:
            status = f"stopped: {error}"
            if method.ranks.size == 1:
                self._save()
            raise
        except UserError as error:
            status = f"failed: {error}"
            raise
        finally:
            self._seconds["total"] = before + time.perf_counter() - begun
            self.card |= {"status": status, "seconds": self._seconds, **how_computed(method)}
            try:
                self._write_card()
            except UserError as error:
                if status != "finished":
                    raise
                warnings.warn(f"the run is finished, and its card without what came after: {error}", stacklevel=2)
            finally:
                unlock(self._lock)

    def stop(self) -> None:
        """Ask it to stop, resumable, at the end of the epoch that is running. Safe in a signal handler.

        For a run of one process: others would wait for this one.
        """
        self._stop = True

    def _trace(self, left: int) -> None:
        """Trace the rounds of the last epoch, for Figure 5's curves, where there is a judge to draw them."""
        if left == 1 and self.setup.config.dataset in JUDGES:
            self.setup.method.trace = []

    def _save(self) -> None:
        """Save the state between two epochs."""
        progress = {"card": self.card, "seconds": self._seconds, "rounds": self._rounds}
        self._checkpoint.save(self.setup.method, progress)

    def _resume(self) -> None:
        """Take up card, clocks and state of the run in this folder, if it is this one; with no state, start over."""
        begun = read_card(self.folder)
        if begun["status"] == "finished":
            self._checkpoint.remove()  # it may have been killed before it did that
            raise UserError(f"the run in {self.folder} is finished: there is nothing to resume.")
        if not self._checkpoint.exists():
            warnings.warn(
                f"the run in {self.folder} had saved no state: it starts again from the first epoch.", stacklevel=3
            )
            return
        saved = self._checkpoint.read()
        progress = saved["progress"]
        new, card = self.card, progress["card"]
        card["compute"] = dataclasses.asdict(compute_of(card))  # it may be older than the switches of today
        # Read as configs: a field that is newer than the card has the value that the run began with.
        here, there = (dataclasses.asdict(card_config(c)) for c in (new, card))
        differs = [name for name in here if here[name] != there.get(name) and name not in EXTENSIBLE]
        differs += [what for what in ("lte", "test_split") if new[what] != card[what]]
        if new["teacher"]["sha256"] != card["teacher"]["sha256"]:  # its accuracy may differ by a device's rounding
            differs.append("teacher")
        if differs:
            raise UserError(
                f"the run in {self.folder} has another {differs[0].replace('_', ' ')}: resume it with the options it "
                "was started with, or choose another folder."
            )
        self._checkpoint.load(self.setup.method, saved)
        changed = [name for name in ("device", "compute", "threads", "versions") if new[name] != card[name]]
        if changed:
            warnings.warn(
                f"this run began with other {', '.join(changed)}: it goes on with an equal config, not equal bits.",
                stacklevel=3,
            )
        self.card = card | {"resumed": [*card.get("resumed", []), len(card["curve"])], "status": "running"}
        self.card |= {name: new[name] for name in changed}
        if here != there:  # it goes on with more of what is extensible
            self.card |= {name: new[name] for name in ("config", "config_sha256")}
        self._seconds, self._rounds = progress["seconds"], progress["rounds"]

    def _record(self, epoch: Epoch) -> None:
        ce = epoch.rounds[-1].ce_per_step if epoch.rounds else []
        row = dict.fromkeys(CURVE) | {
            "epoch": epoch.epoch,
            "images": epoch.images,
            "student_loss": epoch.student_loss,
            "seconds": sum(epoch.seconds.values()),
        }
        if ce:
            row |= {"ce_first": ce[0], "ce_last": ce[-1]}
        if epoch.scores:
            row |= {name: getattr(epoch.scores, name) for name in ("accuracy", "agreement", "kl", "nll")}
        self.card["curve"].append(row)
        self.card |= how_computed(self.setup.method) | self.setup.method.on_card()
        try:
            _add_rows(self.folder / "curve.csv", [row])
        except OSError as error:
            whole = "The last epoch's files are whole."
            raise UserError(f"cannot write to {self.folder}: {error.strerror}. {whole}") from error
        if epoch.scores:
            best = max((r for r in self.card["curve"] if r["accuracy"] is not None), key=lambda r: r["accuracy"])
            self.card |= {
                "accuracy_last": row["accuracy"],
                "accuracy_best": best["accuracy"],
                "best_epoch (chosen on the test set)": best["epoch"],
                "agreement_last": row["agreement"],
                "nll_last": row["nll"],
                "images": epoch.images,
            }
            save_classifier(
                self.folder / "student.safetensors",
                self.setup.method.student,
                run=self.id,
                dataset=self.setup.config.dataset,
                epoch=epoch.epoch,
                accuracy=row["accuracy"],
            )

    def _finish(self) -> None:
        """The run is finished: its weights and card are whole. What fails from here on is a line on the card."""
        self.card |= {"status": "finished", "seconds": self._seconds, "problems": [CUT_OFF]}
        self._write_card()
        problems = []
        method, teacher = self.setup.method, self.setup.evaluate.classifier
        steps = {
            "saved state": self._checkpoint.remove,
            "transductive score": lambda: self.card.update(transductive=transductive(method, self.setup.evaluate)),
        }
        of_images = {
            "metrics": lambda: self._measure(convergence_and_diversity(method, self._rounds, teacher)),
            "score by a judge": lambda: self._measure(judged(method, teacher)),
            "picture": lambda: draw_images(method, self.folder / "images.png"),
        }
        if method.makes_images:
            steps |= of_images
        for what, step in steps.items():
            try:
                step()
            except Exception as error:  # whatever it is, the student is there
                told = f"{what}: {type(error).__name__}: {error}".replace(f"{self.folder}{os.sep}", "").splitlines()[0]
                problems.append(told)
                warnings.warn(f"the run is finished, but something after it failed: {told}", stacklevel=4)

        del self.card["problems"]
        if problems:
            self.card["problems"] = problems

    def _measure(self, found: dict) -> None:
        if self._rounds:
            self.card["metrics"] = self.card.get("metrics", {}) | found

    def _write_card(self) -> None:
        files.write_text(self.folder / "card.json", json.dumps(self.card, indent=1) + "\n")


def _too_small(config: Config) -> str:
    """The sentence for a GPU whose memory is full: which batches its method has, and half of them."""
    batches = [name for name in LEAST if name in fields_of(config.method)]
    if not batches:
        return f"the GPU's memory is too small for {config.method} with {config.student}: take --device cpu."
    now = " and ".join(f"{name}={getattr(config, name)}" for name in batches)
    half = " ".join(f"{name}={max(LEAST[name], getattr(config, name) // 2)}" for name in batches)
    each = "each" if len(batches) > 1 else "it"
    return f"the GPU's memory is too small for {now}: half of {each}, --set {half}, is the next to try."


def _add_rows(path: Path, rows: list[dict]) -> None:
    """Add lines to a CSV file; a number that is missing, as in rows of older cards, is left blank."""
    with open(path, "a", newline="", encoding="utf-8") as file:
        csv.DictWriter(file, CURVE, extrasaction="ignore").writerows(rows)
