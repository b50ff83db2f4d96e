"""The runs of a sweep: each in a process of its own, some at a time, on this machine's GPUs or on a Ray cluster.

Every run is a process of its own, the `distill` command: one that dies takes no other with it, no setting of one
reaches the next, and what it prints stands in log.txt in its run folder. A run that has finished is known by its card
and is not run again, one that stopped half-way goes on from its saved state: a killed sweep continues.

On Linux these processes are forked from a server process that has only imported the library (`preload.py`), so that a
sweep pays for the imports once. The server has one thread and never uses a GPU: neither threads nor CUDA survive a
fork.
"""

import dataclasses
import multiprocessing
import os
import runpy
import shlex
import signal
import sys
import threading
from multiprocessing.connection import wait
from pathlib import Path
from queue import SimpleQueue

import torch

from .. import files
from ..config import Config
from ..errors import UserError, unknown
from .card import REGISTRATION, finished_runs, new_id, read_card, resumable, split_of
from .forecast import projected, time_in_words
from .sweep import Sweep, keep_sweep, registrations

BACKENDS = ("local", "ray")
_PROCESSES = threading.Lock()


def run_sweep(
    sweep: Sweep,
    jobs: int | None = None,
    backend: str = "local",
    share: str | None = None,
    dry_run: bool = False,
    keep: bool = False,
) -> list[str]:
    """Run what has no finished card yet, and print what that should take, and a line for every run that ends.

    A script calls it under `if __name__ == "__main__":`, as Python's multiprocessing asks for.

    Args:
        jobs: runs at a time, each with one CPU thread unless OMP_NUM_THREADS is set. None: with "local" one for each
            GPU, or one on the CPU; with "ray" as many as the cluster has GPUs, or cores.
        backend: "local", or "ray" for joblib's Ray backend on the cluster of RAY_ADDRESS, or on one started here;
            its machines must share this clone and the runs folder. With one run at a time joblib stays on this machine.
        share: as in `Sweep.runs`.
        dry_run: print only, and each run that is left.
        keep: `keep_sweep` after every run (with "ray" after the last), so that a sweep that is killed has kept what it
            finished.

    Returns:
        a sentence for every run that failed, with its log.

    Raises:
        UserError: jobs, backend or share make no sense, or Ray is not installed.
    """
    from joblib import Parallel, delayed, parallel_config

    if jobs is not None and jobs < 1:
        raise UserError(f"the runs at a time must be 1 or more, not {jobs}.")
    if backend not in BACKENDS:
        raise unknown("backend", backend, BACKENDS)
    runs = sweep.runs(share)
    finished = finished_runs()
    done = {config for config, card in finished if split_of(card) == sweep.split}
    left = [(arm, config) for arm, config in runs if config not in done]
    where, gpus = _on_ray(jobs) if backend == "ray" else _here(jobs)
    times = [projected(config, finished) for _, config in left]
    print(f"{len(left)} of {len(runs)} runs left, {where['n_jobs']} at a time: {time_in_words(times, where['n_jobs'])}")
    if dry_run:
        for (arm, config), time in zip(left, times, strict=True):
            print(f"{arm}, seed {config.seed}: {time_in_words([time])}")
        return []
    folder, registered = files.runs_dir().resolve(), registrations(sweep)
    failed = []
    with parallel_config(**where):
        # joblib's Ray backend has no results before the last.
        ended = Parallel(batch_size=1, return_as="list" if backend == "ray" else "generator_unordered")
        calls = (delayed(_run)(arm, config, folder, gpus, sweep, registered[config]) for arm, config in left)
        for sentence in ended(calls):
            failed += [sentence] if sentence else []
            if keep:
                keep_sweep(sweep)
    return failed


def _here(jobs: int | None) -> tuple[dict, SimpleQueue | None]:
    """joblib's arguments for threads that wait for processes here, and a queue of the GPU for each; None without."""
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = allowed.split(",") if allowed else list(map(str, range(torch.cuda.device_count())))
    names = names[: torch.cuda.device_count()]
    jobs = jobs or max(len(names), 1)
    gpus = SimpleQueue() if names else None
    for k in range(jobs if names else 0):
        gpus.put(names[k % len(names)])
    return {"backend": "threading", "n_jobs": jobs}, gpus


def _on_ray(jobs: int | None) -> tuple[dict, None]:
    """joblib's arguments for a Ray cluster; Ray itself gives each of its workers a GPU, or a part of one."""
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")  # read at import; else it shows one of the lines that runs print
    try:
        import ray
        from ray.util.joblib import register_ray
    except ImportError as error:
        raise UserError(
            "ray is not installed: `pip install -e '.[ray]'`, or leave out `--backend ray` to use this machine."
        ) from error
    register_ray()
    if not ray.is_initialized():
        ray.init()
    resources = ray.cluster_resources()
    gpus = int(resources.get("GPU", 0))
    jobs = jobs or gpus or int(resources["CPU"])
    return {"backend": "ray", "n_jobs": jobs, "ray_remote_args": {"num_gpus": min(1, gpus / jobs)}}, None


def _run(
    arm: str, config: Config, runs_dir: Path, gpus: SimpleQueue | None, sweep: Sweep, registered: str
) -> str | None:
    """One run in a process of its own. Prints how it ended; returns that sentence if it failed."""
    split, environment = sweep.split, {REGISTRATION: registered}
    new = new_id(config) if split == "test" else f"{new_id(config)}-{split}"
    log = (resumable(config, split) or runs_dir / new) / "log.txt"  # what stopped half-way goes on
    gpu = gpus.get() if gpus else None
    try:
        environment |= {"CUDA_VISIBLE_DEVICES": gpu} if gpu else {}
        status = _process(_command(config, log.parent, split, sweep.computed), log, environment)
        card = read_card(log.parent) if status == 0 else {"status": _reason(status, log)}
    except Exception as error:  # whatever it is, the other runs go on
        card = {"status": f"{type(error).__name__}: {error}"}
    finally:
        if gpus:
            gpus.put(gpu)
    failed = card["status"] != "finished"
    result = f"{card['status']} ({log})" if failed else f"{100 * card['accuracy_last']:.1f} %"
    sentence = f"{arm}, seed {config.seed}: {result}"
    print(sentence, flush=True)
    return sentence if failed else None


def _command(config: Config, folder: Path, split: str, computed: tuple[str, ...]) -> list[str]:
    """The `distill` command that runs a config in a folder; every field is given, so no preset matters."""
    fields = dataclasses.asdict(config)
    options = ("variant", "profile", "method", "protocol", "seed")
    words = [word for name in options for word in (f"--{name}", str(fields.pop(name)))] + ["--split", split, *computed]
    overrides = [f"{name}={value!r}" for name, value in fields.items()]
    return [sys.executable, "-m", "nayer_lib", "distill", "--out", str(folder), "--resume", *words, "--set", *overrides]


def _process(command: list[str], log: Path, environment: dict[str, str]) -> int:
    """Run a `python -m` command to its end; it and all that it prints are added to the log. Returns its exit status."""
    log.parent.mkdir(parents=True, exist_ok=True)
    files.check_no_link(log)
    with open(log, "a", encoding="utf-8") as output:
        output.write(f"{shlex.join(command)}\n")
    # Elsewhere nothing can be forked, or should not be: libraries of macOS start threads when they are loaded.
    context = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
    context.set_forkserver_preload(["nayer_lib.preload"])
    environment = {"OMP_NUM_THREADS": "1"} | os.environ | environment
    process = context.Process(target=_child, args=(command, log, environment), daemon=True)
    with _PROCESSES:  # a start asks all others whether they have ended, and an exit status can be read only once
        process.start()
    wait([process.sentinel])
    with _PROCESSES:
        process.join()
    return process.exitcode


def _child(command: list[str], log: Path, environment: dict[str, str]) -> None:
    """Become what Python started with this command and environment would be, with its output in the log."""
    with open(log, "ab") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    _, _, module, *arguments = command
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__")


def _reason(status: int, log: Path) -> str:
    """Why a process failed: the signal that ended it, or the last line that it printed."""
    if status < 0:
        return f"ended by {signal.Signals(-status).name}"
    _, *printed = log.read_text(encoding="utf-8", errors="replace").splitlines()  # the first is the command
    return printed[-1].removeprefix("nayer_lib: ") if printed else f"ended with status {status}"
