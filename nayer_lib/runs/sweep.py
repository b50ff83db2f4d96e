"""Many runs from one file: arms that differ in a few config fields, the same seeds for each.

A sweep file is JSON: "preset", "variant" and "profile" (as in `make_config`), "seeds", "common" overrides, and "arms",
a name -> overrides map. Arms of unequal budgets cannot be compared, so a file that wants them says
"unequal_budgets": true. A file that is there to choose a setting says "split": "validation", on which its runs are
scored then, in place of the test split. "compute": {"precision": "bf16", "channels_last": true} has all runs computed
alike (fields of `Compute`); what it does not name each run chooses for itself. "primary" names, before anything runs,
the at most six contrasts that the sweep is there to decide, each an arm and its reference; every card of the sweep
keeps the hash of what was so registered.

Every run is a process of its own, the `distill` command: one that dies takes no other with it, no setting of one
reaches the next, and what it prints stands in log.txt in its run folder. A run that has finished is known by its card
and is not run again, one that stopped half-way goes on from its saved state: a killed sweep continues.

On Linux these processes are forked off one that has done nothing but import what they need (`preload.py`), so that a
sweep waits for that once. That one has no second thread and never looks for a GPU: neither would survive a fork.
"""

import dataclasses
import json
import multiprocessing
import os
import re
import runpy
import shlex
import signal
import statistics
import sys
import threading
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from queue import SimpleQueue

import torch

from .. import files
from ..compute import Compute
from ..config import Config, fields_of, make_config
from ..errors import MissingFile, UserError, unknown
from ..methods import METHODS
from .card import (
    REGISTRATION,
    card_config,
    device_name,
    kept_cards,
    local_cards,
    new_id,
    read_card,
    resumable,
    split_of,
)

FIELDS = {"preset", "variant", "profile", "seeds", "common", "arms", "unequal_budgets", "split", "primary", "compute"}
BACKENDS = ("local", "ray")
PRIMARY = 6  # contrasts at most: each further one makes all of them harder to decide
_PROCESSES = threading.Lock()


@dataclass(frozen=True)
class Sweep:
    """A sweep file.

    Attributes:
        name: of the file.
        arms: name -> one config a seed.
        split: on which its runs are scored.
        computed: the options of `distill` that say how its runs are computed.
        primary: the contrasts that it is there to decide, (arm, reference).
        registration: sha256 of all in the file that decides what they are; None where it names none.
    """

    name: str
    arms: dict[str, list[Config]]
    split: str = "test"
    computed: tuple[str, ...] = ()
    primary: tuple[tuple[str, str], ...] = ()
    registration: str | None = None

    def runs(self, share: str | None = None) -> list[tuple[str, Config]]:
        """Every run once, as (arm, config), seed by seed: a sweep that is cut short has every arm with fewer seeds.

        Args:
            share: "i/n", the i-th of n disjoint shares, counted from 1; their sizes differ by one run at most.

        Raises:
            UserError: a share that does not exist.
        """
        arm_of = {}
        for arm, configs in self.arms.items():
            for config in configs:
                arm_of.setdefault(config, arm)
        runs = [(arm_of[config], config) for config in sorted(arm_of, key=lambda config: config.seed)]
        if share is None:
            return runs
        numbers = re.fullmatch(r"(\d+)/(\d+)", share)
        i, n = map(int, numbers.groups()) if numbers else (0, 0)
        if not 1 <= i <= n:
            raise UserError(f"a share of a sweep is i/n with i from 1 to n, as 2/3, not {share!r}.")
        return runs[i - 1 :: n]


def read_sweep(path: Path) -> Sweep:
    """Read a sweep file; every config is checked before anything runs. Of "common" an arm gets what its method reads.

    Raises:
        MissingFile, UserError: no such file, not JSON, an unknown field, a config that makes no sense, or arms of
            unequal budgets.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFile(f"no sweep file {path}: the kit's own are in data/sweeps.")
    try:
        spec = dict(json.loads(path.read_text(encoding="utf-8")))
        unknown_fields = set(spec) - FIELDS
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is not JSON that describes a sweep ({error}).") from error
    if unknown_fields or not {"arms", "seeds"} <= set(spec):
        others = sorted(FIELDS - {"arms", "seeds"})
        raise UserError(f"{path} must have 'arms' and 'seeds' and may have {others}, not {sorted(unknown_fields)}.")
    base = {name: spec[name] for name in ("preset", "variant", "profile") if name in spec}
    try:
        arms = {
            arm: [
                make_config(**{**base, **_read_by(overrides, spec), **overrides, "seed": seed})
                for seed in spec["seeds"]
            ]
            for arm, overrides in spec["arms"].items()
        }
    except (TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: 'seeds' is a list of numbers, 'arms' maps names to config fields ({error})."
        ) from error
    primary = _primary(path, spec.get("primary", []), arms)
    registration = files.text_hash(json.dumps(spec, sort_keys=True)) if primary else None
    computed = _computed(path, spec.get("compute", {}))
    sweep = Sweep(path.stem, arms, spec.get("split", "test"), computed, primary, registration)
    if sweep.split not in ("test", "validation"):
        raise unknown("split of a sweep", sweep.split, ("test", "validation"))
    budgets = {arm: budget(config) for arm, config in sweep.runs()}
    for arm, spent in budgets.items():
        (first, of_first), *_ = budgets.items()
        unequal = [what for what in spent if spent[what] != of_first[what]]
        if unequal and spec.get("unequal_budgets") is not True:
            raise UserError(
                f"{path}: arm {arm!r} has {spent[unequal[0]]} {unequal[0]}, arm {first!r} {of_first[unequal[0]]}: give "
                'all arms one budget, or say "unequal_budgets": true in the file.'
            )
    return sweep


def _primary(path: Path, pairs: object, arms: dict[str, list[Config]]) -> tuple[tuple[str, str], ...]:
    """The primary contrasts of a file, if each is a pair of two of its arms."""
    whole = isinstance(pairs, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in pairs)
    if not whole or len(pairs) > PRIMARY or any(a == b or not {a, b} <= set(arms) for a, b in pairs):
        raise UserError(
            f"{path}: 'primary' is a list of at most {PRIMARY} pairs [arm, reference] of two of its arms, not {pairs}."
        )
    return tuple(map(tuple, pairs))


def _read_by(overrides: dict, spec: dict) -> dict:
    """The common overrides of a sweep for one of its arms: without fields that only other arms read."""
    common = spec.get("common", {})

    def read(arm: dict) -> set[str]:
        method = {"method": "nayer", **common, **arm}["method"]
        return fields_of(method) if method in METHODS else set()  # `make_config` refuses the unknown

    elsewhere = set().union(*map(read, spec["arms"].values())) - read(overrides)
    return {name: value for name, value in common.items() if name not in elsewhere}


def _computed(path: Path, compute: dict) -> tuple[str, ...]:
    """The options of `distill` for what a file says of how its runs are computed."""
    known = [field.name for field in dataclasses.fields(Compute)]
    sound = isinstance(compute, dict) and compute.keys() <= set(known)
    if not sound or not isinstance(compute.get("channels_last", True), bool):
        raise UserError(f"{path}: 'compute' may have {known}, channels_last true or false, not {compute!r}.")
    named = {name: value for name, value in dataclasses.asdict(Compute(**compute)).items() if name in compute}
    last = named.pop("channels_last", None)
    layout = () if last is None else ("--channels-last",) if last else ("--no-channels-last",)
    return (*layout, *(word for name, value in named.items() for word in (f"--{name}", value)))


def budget(config: Config) -> dict[str, int]:
    """What a run spends, warm-up included: images through the teacher in synthesis, the student's steps and images."""
    steps = config.repeats * config.distillation_epochs * config.student_steps
    return {
        "images through the teacher in synthesis": config.synthesis_passes,
        "student steps": steps,
        "images drawn by the student": steps * config.student_batch,
    }


def arm_cards(sweep: Sweep, cards: list[dict]) -> dict[str, list[dict]]:
    """The finished cards of each arm, in the order of its seeds; a seed that was not run is left out."""
    finished = {
        card_config(card): card for card in cards if card["status"] == "finished" and split_of(card) == sweep.split
    }
    return {arm: [finished[c] for c in configs if c in finished] for arm, configs in sweep.arms.items()}


def keep_sweep(sweep: Sweep) -> Path:
    """Write the finished cards of a sweep, one a line, to data/runs/<name>.jsonl."""
    kept = [card for cards in arm_cards(sweep, kept_cards(sweep.split) + local_cards()).values() for card in cards]
    path = files.data_dir() / "runs" / f"{sweep.name}.jsonl"
    files.write_text(path, "".join(json.dumps(card) + "\n" for card in kept))
    return path


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
    folder = files.runs_dir().resolve()
    failed = []
    with parallel_config(**where):
        # joblib's Ray backend has no results before the last.
        ended = Parallel(batch_size=1, return_as="list" if backend == "ray" else "generator_unordered")
        for sentence in ended(delayed(_run)(arm, config, folder, gpus, sweep) for arm, config in left):
            failed += [sentence] if sentence else []
            if keep:
                keep_sweep(sweep)
    return failed


def finished_runs() -> list[tuple[Config, dict]]:
    """(config, card) of the finished runs that are kept or on this machine, on whichever split they were scored."""
    cards = kept_cards() + kept_cards("validation") + local_cards()
    return [(card_config(card), card) for card in cards if card["status"] == "finished"]


def projected(config: Config, finished: list[tuple[Config, dict]]) -> tuple[float, str] | None:
    """Seconds that a run should take, and the device on which that was measured; None if nothing like it was run.

    As long as finished runs of an equal config but the seed took, else as those of equal networks, data set, method
    and profile, their synthesis scaled by its steps, the student by its steps and the evaluation by its epochs. Runs
    on a device named as this one come first. What a sweep imports at its start is not in it.

    Args:
        finished: (config, card) of finished runs, oldest first.
    """
    alike = ("method", "dataset", "teacher", "student", "profile")
    near = [(o, card) for o, card in finished if all(getattr(o, name) == getattr(config, name) for name in alike)]
    if not near:
        return None
    devices = [card["device"] for _, card in near]
    here = device_name(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    device = here if here in devices else devices[-1]
    near = [(other, card["seconds"]) for other, card in near if card["device"] == device]
    equal = [pair for pair in near if dataclasses.replace(pair[0], seed=config.seed) == config]
    return statistics.mean(_scaled(config, *pair) for pair in equal or near), device


def _scaled(config: Config, other: Config, seconds: dict[str, float]) -> float:
    """The seconds of another config's run, as if it had had the steps of this one."""
    ours, theirs = budget(config), budget(other)
    ratios = {
        "synthesis": config.synthesis_passes / other.synthesis_passes,
        "student": ours["student steps"] / theirs["student steps"],
        "evaluation": config.distillation_epochs / other.distillation_epochs,
    }
    phases = sum(seconds[phase] for phase in ratios)
    return seconds["total"] * sum(seconds[phase] * ratio for phase, ratio in ratios.items()) / phases


def time_in_words(times: list[tuple[float, str] | None], jobs: int = 1) -> str:
    """The time of runs in words, with the devices it was measured on; those of unknown time are counted apart."""
    known = [time for time in times if time]
    if not known:
        return "time not known" if times else "nothing to do"
    seconds = [time for time, _ in known]
    wall = max(sum(seconds) / jobs, *seconds)
    about = f"{wall:.0f} s" if wall < 100 else f"{wall / 60:.0f} min" if wall < 6000 else f"{wall / 3600:.1f} h"
    beside = f"; for {len(times) - len(known)} of them not known" if len(known) < len(times) else ""
    return f"about {about}, as on {', '.join(sorted({device for _, device in known}))}{beside}"


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


def _run(arm: str, config: Config, runs_dir: Path, gpus: SimpleQueue | None, sweep: Sweep) -> str | None:
    """One run in a process of its own. Prints how it ended; returns that sentence if it failed."""
    split, environment = sweep.split, {REGISTRATION: sweep.registration or ""}
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
    told = f"{card['status']} ({log})" if failed else f"{100 * card['accuracy_last']:.1f} %"
    sentence = f"{arm}, seed {config.seed}: {told}"
    print(sentence, flush=True)
    return sentence if failed else None


def _command(config: Config, folder: Path, split: str, computed: tuple[str, ...]) -> list[str]:
    """The `distill` command that runs a config in a folder; every field is given, so no preset matters."""
    fields = dataclasses.asdict(config)
    options = ("variant", "profile", "method", "protocol", "seed")
    own = [word for name in options for word in (f"--{name}", str(fields.pop(name)))] + ["--split", split, *computed]
    overrides = [f"{name}={value!r}" for name, value in fields.items()]
    return [sys.executable, "-m", "nayer_lib", "distill", "--out", str(folder), "--resume", *own, "--set", *overrides]


def _process(command: list[str], log: Path, environment: dict[str, str]) -> int:
    """Run a `python -m` command to its end; it and all that it prints are added to the log. Returns its exit status."""
    log.parent.mkdir(parents=True, exist_ok=True)
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
