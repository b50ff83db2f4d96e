"""Run folders and run cards: what a run leaves behind, and the tables that are views of cards.

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
from ..config import PRESETS, Config, make_config
from ..distill import Epoch, Setup, distill
from ..errors import MissingFile, UserError, unknown
from . import paper
from .figures import image_grid, learning_curve, new_figure

CURVE = ("epoch", "images", "ce_first", "ce_last", "student_loss", "accuracy", "agreement", "kl", "seconds")
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
        self.id = (
            f"{started:%Y%m%d-%H%M%S}-{config.method}-{config.dataset}-{config.teacher}-{config.student}-"
            f"{config.variant}-{config.profile}-s{config.seed}"
        )
        self.folder = Path(folder) if folder else files.runs_dir() / self.id
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
        seconds = dict.fromkeys(("synthesis", "student", "evaluation"), 0.0)
        start, status = time.perf_counter(), "stopped before its last epoch"
        try:
            for epoch in distill(self.setup.method, self.setup.evaluate):
                for name, value in epoch.seconds.items():
                    seconds[name] += value
                self._record(epoch)
                yield epoch
            self._draw_images()
            status = "finished"
        except UserError as error:
            status = f"failed: {error}"
            raise
        finally:
            self.card |= {"status": status, "seconds": {**seconds, "total": time.perf_counter() - start}}
            self._write_card()

    def _record(self, epoch: Epoch) -> None:
        row = {
            "epoch": epoch.epoch,
            "images": epoch.images,
            "ce_first": epoch.rounds[-1].ce_per_step[0] if epoch.rounds else None,
            "ce_last": epoch.rounds[-1].ce_per_step[-1] if epoch.rounds else None,
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


def kept_cards() -> list[dict]:
    """The cards in data/runs, oldest first."""
    return [read_card(path) for path in sorted((files.data_dir() / "runs").glob("*.json"))]


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


@dataclasses.dataclass(frozen=True)
class Cell:
    """Finished runs of one protocol, over their seeds: percent and seconds.

    Protocol: equal config but the seed, equal teacher, equal test split, equal device.
    """

    config: Config
    teacher: float
    last: list[float]
    best: list[float]
    seconds: list[float]
    device: str
    ids: list[str]

    @property
    def mean(self) -> float:
        """Mean last-epoch accuracy."""
        return statistics.mean(self.last)

    @property
    def spread(self) -> float | None:
        """Sample standard deviation of the last-epoch accuracy; None for one seed."""
        return statistics.stdev(self.last) if len(self.last) > 1 else None


def cells(cards: list[dict]) -> list[Cell]:
    """Group finished cards by protocol; cards of different protocols are never averaged."""
    groups: dict[tuple, list[dict]] = {}
    for card in cards:
        if card["status"] == "finished":
            protocol = (card["config_sha256"], card["teacher"]["sha256"], card["test_split"]["sha256"], card["device"])
            groups.setdefault(protocol, []).append(card)
    return [
        Cell(
            config=Config(**{k: tuple(v) if isinstance(v, list) else v for k, v in group[0]["config"].items()}),
            teacher=100 * group[0]["teacher"]["accuracy"],
            last=[100 * card["accuracy_last"] for card in group],
            best=[100 * card["accuracy_best"] for card in group],
            seconds=[card["seconds"]["total"] for card in group],
            device=group[0]["device"],
            ids=[card["id"] for card in group],
        )
        for group in groups.values()
    ]


def results_table(cards: list[dict]) -> str:
    """The README's table, in Markdown: our cells from the cards, then the paper's NAYER cells, run or "not run"."""
    lines = [
        f"| data set | teacher → student | variant, profile | paper ({paper.EDITION}) | ours: last epoch | "
        "teacher | best on test | n | time a run | device |",
        "|---|---|---|--:|--:|--:|--:|--:|--:|---|",
    ]
    measured = cells(cards)
    for cell in measured:
        lines.append(_row(cell.config.dataset, cell.config, _printed(cell.config), cell))
    for config in _paper_configs("released", epochs=(300,)):
        if config not in [_seedless(cell.config) for cell in measured]:
            lines.append(
                f"| {config.dataset} | {config.teacher} → {config.student} | released, full, E = 300 | "
                f"{_printed(config)} | not run | | | 0 | | |"
            )
    return "\n".join(lines)


MARKERS = ("<!-- results: made by `python -m nayer_lib report` -->", "<!-- /results -->")


def with_table(text: str, table: str) -> str:
    """A text with `table` between its two MARKERS.

    Raises:
        UserError: the text does not have each marker once.
    """
    begin, end = MARKERS
    if text.count(begin) != 1 or text.count(end) != 1:
        raise UserError(f"the text must hold {begin!r} and {end!r} once each.")
    return text[: text.index(begin) + len(begin)] + f"\n{table}\n" + text[text.index(end) :]


def draw_results(cards: list[dict], path: Path) -> None:
    """The README's picture: what the student saw, and its accuracy over the seeds of the kept quick run on digits."""
    import matplotlib.image

    chosen = [c for c in cards if (c["config"]["dataset"], c["config"]["profile"]) == ("digits", "quick")]
    if not chosen:
        raise UserError("no kept run of the quick profile on digits to draw: keep one with `python -m nayer_lib runs`.")
    figure, [left, right] = new_figure(columns=2, width=4.6, height=4.2)
    left.imshow(matplotlib.image.imread(files.data_dir() / "runs" / f"{chosen[0]['id']}.png"))
    left.set_title("what the student learned from (10 of each class)")
    left.axis("off")
    for card in chosen:
        rows = [row for row in card["curve"] if row["accuracy"] is not None]
        accuracy = [100 * row["accuracy"] for row in rows]
        teacher = 100 * card["teacher"]["accuracy"]
        seed = card["config"]["seed"]
        learning_curve(right, [row["epoch"] for row in rows], accuracy, teacher, 10.0, f"student, seed {seed}")
    right.set_title("and what it learned: real test digits")
    with files.replacing(path) as temporary:
        figure.savefig(temporary, format="png")


def _paper_configs(variant: str, epochs: tuple[int, ...] = (100, 200, 300)) -> list[Config]:
    """The configs behind Table 1's NAYER cells, in its order."""
    presets = [name for name, row in PRESETS.items() if row["dataset"] in set(paper.table(1)["dataset"])]
    return [make_config(name, variant, "full", epochs=e) for name in presets for e in epochs]


def _seedless(config: Config) -> Config:
    return dataclasses.replace(config, seed=0)


def _printed(config: Config) -> str:
    """The paper's number for a config, or a dash where it has none: only unchanged full runs are compared with it."""
    value = None
    if _seedless(config) in _paper_configs(config.variant):
        value = paper.accuracy("NAYER", config.dataset, config.teacher, config.student, config.epochs)
    return "–" if value is None else f"{value:.2f}"


def _row(dataset: str, config: Config, printed: str, cell: Cell) -> str:
    spread = "" if cell.spread is None else f" ± {cell.spread:.1f}"
    return (
        f"| {dataset} | {config.teacher} → {config.student} | {config.variant}, {config.profile} | {printed} | "
        f"**{cell.mean:.1f}{spread}** | {cell.teacher:.1f} | {statistics.mean(cell.best):.1f} | {len(cell.last)} | "
        f"{statistics.mean(cell.seconds):.0f} s | {cell.device} |"
    )


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
