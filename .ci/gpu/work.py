"""What the short GPU run computes. run.py starts this file, a process for every job, and may kill it at any time.

python work.py parts|row '{"work": ..., ...}'
"""

import dataclasses
import functools
import json
import math
import os
import platform
import resource
import shutil
import signal
import sys
import time
import traceback
import types
from pathlib import Path

import bench  # of tests/
import torch
import torchvision

import nayer_lib.distill
from nayer_lib import files
from nayer_lib.checkpoint import Checkpoint
from nayer_lib.compute import Compute, fastest
from nayer_lib.config import DEFAULT_PRESETS, PRESETS, PROFILES, Config, make_config
from nayer_lib.datasets import Split, load_packed
from nayer_lib.distill import Setup, choose_device, prepare
from nayer_lib.methods.base import Method
from nayer_lib.runs.card import device_name
from nayer_lib.runs.run import Run
from nayer_notebooks.pace import epoch_seconds, measured

IMPORTED = time.time()
TOLERANCE = 0.03  # relative, of two ways to compute one loss
NOTEBOOK = Path(__file__).resolve().parents[2] / "notebooks" / "04_data_free_distillation.ipynb"


class Job(types.SimpleNamespace):
    """What run.py asks for: `work`, `carried`, `began`, its COUNTS, and what the job alone needs."""

    def config(self, profile: str = "full", **overrides) -> Config:
        teacher, student = self.nets
        nets = {"teacher": teacher, "student": student}
        return make_config(DEFAULT_PRESETS["full"], profile=profile, **{**self.set, **nets, **overrides})

    def setup(self, config: Config, steps: str = "eager") -> Setup:
        """Everything of a run, with the teacher of the row where it is there, else with the stand-in."""
        teacher = Path(self.work) / "teacher.safetensors"
        return prepare(config, teacher if teacher.is_file() else None, test=self.test, compute=compute(steps))

    @functools.cached_property
    def test(self) -> Split | None:
        """The test split that was carried; None: the kit finds its own."""
        if not self.carried:
            return None
        split = load_packed(Path(self.work) / "test.npz", "cifar10")
        return Split(split.images[: self.scored], split.labels[: self.scored])


def compute(steps: str) -> Compute:
    """What is fastest here, with steps of a kind."""
    return fastest(choose_device(None), profile="full", steps=steps)


def close(ones: list[float], others: list[float]) -> None:
    """Raise if two lists of losses are not the same but for rounding."""
    far = [f"{a:.4g}, {b:.4g}" for a, b in zip(ones, others, strict=True) if abs(a - b) > TOLERANCE * max(1, abs(b))]
    if far:
        raise ValueError(f"{len(far)} of {len(ones)} losses differ: {'; '.join(far[:3])}")


# The parts of smoke.json: each returns what it found, and raises where that is not as it must be.


def machine(job: Job) -> dict:
    """What this is."""
    told = {"python": platform.python_version(), "torch": torch.__version__, "torchvision": torchvision.__version__}
    if torch.cuda.is_available():
        told |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
        told["free MiB"] = torch.cuda.mem_get_info()[0] // 2**20
    return told | {"device": device_name(choose_device(None)), "compute": dataclasses.asdict(compute("eager"))}


def steps(job: Job, how: str = "eager") -> dict:
    """Two rounds of five steps, with the student in eval mode and then in train mode, and twenty student steps."""
    method = job.setup(job.config(generator_steps=5), how).method
    first = method.config.warmup_epochs
    method.begin_epoch(first)
    told = {"L_CE": [ce for _ in range(2) for ce in method.synthesize(first).ce_per_step]}
    told["L_S"] = [float(method.student_step(method.sample(method.config.student_batch))) for _ in range(20)]
    if not all(map(math.isfinite, told["L_CE"] + told["L_S"])):
        raise ValueError(f"a loss is not finite: {told}")
    told |= {"ran as": method.compute.steps, "why": method.running.reason}
    return told | {"teacher folded": method._answering is not method.teacher}


def state(job: Job) -> dict:
    """A state saved, loaded into a new method, and one more round and student step of both."""
    config, folder = job.config(generator_steps=5), Path(job.work) / "state"
    old, new = (job.setup(config).method for _ in range(2))

    def go_on(method: Method, epoch: int) -> list[float]:
        method.begin_epoch(epoch)
        ce = method.synthesize(epoch).ce_per_step
        return [*ce, float(method.student_step(method.sample(config.student_batch)))]

    go_on(old, config.warmup_epochs)
    folder.mkdir(exist_ok=True)
    Checkpoint(folder).save(old, {"card": {}, "seconds": 0.0, "rounds": 0})
    checkpoint = Checkpoint(folder)
    checkpoint.load(new, checkpoint.read())
    told = {name: go_on(method, config.warmup_epochs + 1) for name, method in (("went on", old), ("loaded", new))}
    close(told["loaded"], told["went on"])
    return told


def eager(job: Job) -> dict:
    """How long a run with plain steps takes."""
    return speed(job, "eager")


def graphs(job: Job) -> dict:
    """Whether steps as CUDA graphs give the losses of plain ones, and how long a run with them takes."""
    if not torch.cuda.is_available():
        return {"same": False, "why": "there is no CUDA device"}
    plain, captured = (steps(job, how) for how in ("eager", "graphs"))
    if captured["ran as"] != "graphs":
        return {"same": False, "why": captured["why"]}
    close(captured["L_CE"], plain["L_CE"])
    close(captured["L_S"][:8], plain["L_S"][:8])  # later ones drift apart by the rounding of those before
    return {"same": True} | speed(job, "graphs")


def plain(job: Job) -> dict:
    """Steps of the plain loop beside ours: the losses of both, then milliseconds of both (medians)."""
    device = choose_device(None).type
    ours = bench.build(device, job.batch, compute("eager"))
    theirs, folder = bench.build_plain(ours, device)
    with folder:
        losses = bench.same_losses(ours, theirs)
        close(*zip(*losses.values(), strict=True))
        times = bench.measure(ours, theirs, job.repeats)
    ms = {name: [sorted(side)[len(side) // 2] for side in pair] for name, pair in times.items()}
    return {"losses, ours and plain": losses, "ms, ours and plain": ms}


def notebook(job: Job) -> dict:
    """Notebook 04's code cells in the profile `lab` with two epochs, without Jupyter; an assert that does not hold is
    told and does not stop it."""
    os.environ["NAYER_PROFILE"] = "lab"
    PROFILES["lab"] |= {**job.set, "epochs": 2, "warmup_epochs": 1}
    PRESETS[DEFAULT_PRESETS["lab"]] |= dict(zip(("teacher", "student"), job.nets, strict=True))
    load, test = nayer_lib.distill.load_split, job.test
    nayer_lib.distill.load_split = lambda name, split: test if test and name == "cifar10" else load(name, split)
    screen = types.ModuleType("IPython.display")
    screen.Code = screen.Image = lambda *_, **__: None
    screen.display = lambda *_, **__: types.SimpleNamespace(update=lambda _: None)
    sys.modules["IPython.display"] = screen
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    sources = [source for source in sources if "google.colab" not in source]  # the one cell that is not Python alone
    space, untrue = {"__name__": "__main__"}, []
    for number, source in enumerate(sources, 1):
        try:
            exec(compile(source, f"cell {number} of code", "exec"), space)
        except AssertionError as error:
            untrue.append(source.splitlines()[error.__traceback__.tb_next.tb_lineno - 1])
    return {"cells": len(sources), "asserts that did not hold": untrue}


PARTS = {part.__name__: part for part in (machine, steps, state, eager, graphs, plain, notebook)}


def speed(job: Job, how: str) -> dict:
    """Seconds until a run begins, of an epoch of its warm-up and of one with the student; its peak memory."""
    began = time.time()
    setup = job.setup(job.config(), how)
    told = {"start": IMPORTED - job.began + time.time() - began}
    method, config = setup.method, setup.method.config
    pace = measured(setup)
    told |= {"warmup": epoch_seconds(config, 0, pace), "epoch": epoch_seconds(config, config.total_epochs - 1, pace)}
    told["ms"] = {
        "warm-up step": 1000 * pace["warm-up round"] / config.generator_steps,
        "synthesis step": 1000 * pace["round"] / config.generator_steps,
        "student step": 1000 * pace["student step"],
        "evaluation": 1000 * pace["evaluation"],
    }
    if method.device.type == "cuda":
        told["peak MiB"] = torch.cuda.max_memory_allocated(method.device) // 2**20
    else:
        told["peak MiB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return told


def parts(job: Job) -> None:
    """Fill smoke.json, a part at a time."""
    out = Path(job.out)
    for name in job.names:
        told, began = json.loads(out.read_text()) if out.is_file() else {}, time.perf_counter()
        try:
            found = PARTS[name](job)
        except Exception as error:  # the next part may still tell something
            found = {"failed": f"{type(error).__name__}: {error}"[:500]}
            traceback.print_exc()
        told[name] = found | {"seconds": time.perf_counter() - began}
        files.write_text(out, json.dumps(told, indent=1) + "\n")


def row(job: Job) -> None:
    """One distillation. SIGTERM, and the time `until`, end it with the running epoch, resumable."""
    config = job.config(job.profile, seed=job.seed, epochs=job.epochs, **job.arm)
    setup = job.setup(config, job.steps)
    minutes = max(0, job.until - time.time()) / 60
    run = Run(setup, Path(job.folder), resume=True, save_after=job.save_after, max_minutes=minutes)
    signal.signal(signal.SIGTERM, lambda *_: run.stop())

    def copy_out() -> None:
        for name, target in job.keep.items():
            if name == "card.json":  # the run writes its own at its beginning and its end alone
                files.write_text(Path(job.out) / target, json.dumps(run.card, indent=1) + "\n")
            elif (run.folder / name).is_file():
                with files.replacing(Path(job.out) / target) as temporary:
                    shutil.copyfile(run.folder / name, temporary)

    for epoch in run:
        if (epoch.epoch + 1) % job.copy_every == 0:
            copy_out()
    copy_out()


if __name__ == "__main__":
    {"parts": parts, "row": row}[sys.argv[1]](Job(**json.loads(sys.argv[2])))
