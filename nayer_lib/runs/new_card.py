"""The card of a run at its beginning: what it runs, on what, and with what."""

import dataclasses
import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version

import torch

from .. import __version__, files
from ..distill import Setup
from ..lazy import imported
from ..methods.base import Method
from .card import REGISTRATION, device_name

SOURCES = ("nayer_lib", "notebooks/nayer_beyond")  # a change in them is a "+" behind the commit
PACKAGES = ("torch", "torchvision", "numpy", "scikit-learn", "safetensors")


def new_card(setup: Setup, run_id: str) -> dict:
    """The card of a run that starts now: what it runs, on what, and with what."""
    method, evaluate = setup.method, setup.evaluate
    config, split, processes = setup.config, evaluate.split, method.ranks.size
    return {
        "id": run_id,
        "status": "running",
        "started": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "config": dataclasses.asdict(config),
        "config_sha256": config.hash,
        "test_split": {
            "split": split.name,
            "images": len(split.labels),
            "sha256": files.tensors_hash({"images": split.images, "labels": split.labels}),
        },
        "teacher": {
            "sha256": files.tensors_hash(evaluate.classifier.net.state_dict()),
            "accuracy": evaluate.teacher.accuracy,
        },
        **({"quantised": of_quantised(setup)} if method.student.quantisation else {}),
        **method.on_card(),
        "lte": setup.pool and setup.pool.header,
        "commit": commit(),
        "registration": os.environ.get(REGISTRATION) or None,
        "versions": {
            "nayer_lib": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in PACKAGES},
        },
        "device": device_name(method.device) + (f", {processes} processes" if processes > 1 else ""),
        "processes": processes,
        **how_computed(method),
        "threads": torch.get_num_threads(),
        "curve": [],
    }


def of_quantised(setup: Setup) -> dict:
    """A card's entry on a quantised student that has not learned yet: its size, and its accuracy, rounding alone.

    "kib" is what it would take if it were stored at its bits, "kib_float" what its float form takes.
    """
    kib, layers = (imported(f"nayer_beyond.quantised:{name}", "a quantised student") for name in ("kib", "layers"))
    student = setup.method.student
    at_bits, as_float = kib(student.net)
    return {
        "layers": len(layers(student.net)),
        "kib": at_bits,
        "kib_float": as_float,
        "accuracy_before_learning": setup.evaluate(student).accuracy,
    }


def how_computed(method: Method) -> dict:
    """A card's entries on how the steps of a method really ran, and why not as they were asked for."""
    running = method.running
    return {"compute": dataclasses.asdict(running.compute)} | ({"fell_back": running.reason} if running.reason else {})


def commit() -> str:
    """The clone's commit, with "+" if files differ from it; outside a clone `$NAYER_COMMIT`, else ""."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(files.data_dir().parent), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--", *SOURCES) else "")
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("NAYER_COMMIT", "")
