"""`python -m nayer_lib ...`: the same calls as in the notebooks, without one."""

import ast
import contextlib
import dataclasses
import inspect
import os
import shlex
import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.extras import SubcommandApp

from .. import datasets
from ..compute import Compute, compute_of
from ..config import make_config
from ..distill import choose_device, prepare, suited
from ..errors import UserError
from ..ranks import find_ranks
from ..runs import card as cards
from ..runs.forecast import check_fits, in_words, projected, rehearse, time_in_words
from ..runs.interrupts import asks_to
from ..runs.launch import run_sweep
from ..runs.run import Run
from ..runs.sweep import keep_sweep, read_sweep
from ..text.lte_pool import load_pool
from . import lte as pools
from . import teacher as teachers
from .common import NO_FOREIGN, ForeignOptions, own_images, own_teacher

Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]


def distill(
    preset: str | None = None,
    variant: str = "released",
    profile: str = "quick",
    method: str = "nayer",
    protocol: str = "equal",
    seed: int = 0,
    set: tuple[str, ...] = (),
    teacher: Path | None = None,
    foreign: ForeignOptions = NO_FOREIGN,
    lte: Path | None = None,
    images: Path | None = None,
    size: int = 32,
    split: Literal["test", "validation"] = "test",
    device: str | None = None,
    out: Path | None = None,
    resume: bool = False,
    max_minutes: float | None = None,
    precision: str | None = None,
    channels_last: Flag = False,
    no_channels_last: Flag = False,
    steps: str | None = None,
    dry_run: bool = False,
) -> Run | None:
    """Distil a student without data and leave a run folder. docs/your_own_model.md shows how with your own teacher.

    On several GPUs: `accelerate launch --multi_gpu --num_processes N -m nayer_lib distill ...`, without --resume and
    --max-minutes.

    Args:
        preset: a column of Table 1 ("cifar10-wrn40_2-wrn16_2", ...) or 9 ("cifar100-resnet20_b-w5a5", ...), or a digit
            set; default: the profile's own.
        variant: "released" (the authors' code) or "paper" (the text).
        profile: "quick" (laptop), "hour" (CIFAR-10 on a CPU), "lab" (one GPU) or "full" (Table 8).
        method: "nayer", or another row of Table 1 or 9: "deepinv", "cmi", "fm", "zaq", ...; from after the paper
            "nayer_plus", "cpnet", "ta_dfkd", or "stealing", for a teacher that only answers; or a control: "rounding"
            (a quantised student without learning), "noise" or "procedural" (a student that learns from noise or drawn
            pictures, without a generator), "with_data" (a student that learns from the real training images).
        protocol: "equal" (Table 8's budget for every method) or "published" (the method's own schedule).
        seed: of the student, the generator and every draw.
        set: overrides of config fields, as name=value.
        teacher: a checkpoint in place of the kit's own teacher: a file of this kit, or with --network anybody's.
        lte: a pool of label-text embeddings for its classes; default: the kit's own.
        images: your own evaluation images, a subfolder a class; or the data set's, an .npz file or a folder of sheets
            as `teacher train --help` says; default: the data set's test split.
        size: pixels to resize them to.
        split: of the data set, to score on: "validation" where a setting is chosen.
        device: "cpu" or "cuda"; default: the GPU where there is one.
        out: the run folder; default: a new one under runs/.
        resume: go on where the run in --out stopped; start one where there is none.
        max_minutes: stop after so many minutes, at the end of an epoch and resumable; so do Ctrl-C and SIGTERM.
        precision: "fp32", "bf16" or "fp16"; default: what is fastest on the device (quick on a CPU: fp32), or what the
            run that is resumed has; so with the layout and the steps.
        channels_last: the networks' memory layout.
        no_channels_last: the other one.
        steps: "eager"; "graphs", whole steps as CUDA graphs; or "compiled", through torch.compile.
        dry_run: only rehearse: everything at its real size, two random images a batch, on the CPU; and say how much
            memory the run would hold, and how long a run like it took. It needs no weights, and no data but the
            images of a control that learns from real ones.
    """
    from tqdm import tqdm

    if resume and not out:
        raise UserError("--resume needs --out: the folder of the run that stopped.")
    config = make_config(preset, variant, profile, method, protocol, seed=seed, **_overrides(set))
    own = own_teacher(config.dataset, teacher, foreign)
    pool = load_pool(lte, own.class_names if own else datasets.dataset(config.dataset).class_names) if lte else None
    test = None
    if images and split != "test":
        raise UserError("--images are scored on as they are: leave --split out.")
    if split != "test" and not dry_run:
        test = datasets.load_split(config.dataset, split)
    if images:
        test = own_images(images, config.dataset, own, size)
    if dry_run:
        print(in_words(config, rehearse(config, own, pool, test)))
        print(f"{'time':26}{time_in_words([projected(config, cards.finished_runs())]):>20}")
        return None
    if channels_last and no_channels_last:
        raise UserError("--channels-last and --no-channels-last are two layouts: give one.")
    given = {name: value for name, value in (("precision", precision), ("steps", steps)) if value is not None}
    if channels_last or no_channels_last:
        given["channels_last"] = channels_last
    chosen = choose_device(device)
    ranks = find_ranks(chosen)
    if resume and (out / "card.json").is_file():
        given = dataclasses.asdict(_as_before(out, chosen)) | given
    compute = suited(config, chosen, ranks.size, **given)
    setup = prepare(config, own, pool, test, device, compute, ranks)
    check_fits(setup.method)
    run = Run(setup, out, resume, max_minutes=max_minutes)
    if ranks.rank:
        for _ in run:
            pass
        return None
    bar = tqdm(run, total=config.total_epochs, initial=len(run.card["curve"]), unit="epoch")
    with asks_to(run.stop) if ranks.size == 1 else contextlib.nullcontext(), bar:
        for epoch in bar:
            if epoch.scores:
                bar.set_description(f"student {100 * epoch.scores.accuracy:.1f} %")
    if not run.stopped:
        card = run.card
        print(
            f"teacher {100 * card['teacher']['accuracy']:.1f} %, student {100 * card['accuracy_last']:.1f} % (last "
            f"epoch; best on {split} {100 * card['accuracy_best']:.1f} %), {card['images']} images, "
            f"{card['seconds']['total']:.0f} s\n{run.folder}"
        )
    return run


def runs(keep: Annotated[str | None, tyro.conf.arg(metavar="ID")] = None, student: bool = False) -> None:
    """List the runs on this machine, or keep one: copy its card to data/runs.

    Args:
        keep: the id of a finished run.
        student: keep the student's weights too, as float16.
    """
    if keep:
        print(cards.keep(keep, student))
        return
    for card in cards.local_cards():
        accuracy = f"{100 * card['accuracy_last']:.1f} %" if "accuracy_last" in card else ""
        print(f"{card['id']}  {card['status']}  {accuracy}")


def sweep(
    file: tyro.conf.Positional[Path],
    jobs: int | None = None,
    backend: str = "local",
    only: Annotated[str | None, tyro.conf.arg(metavar="I/N")] = None,
    dry_run: bool = False,
    keep: bool = False,
) -> None:
    """Run every arm and seed of a sweep file that has no finished card yet; each run's output is its log.txt.

    Args:
        file: a sweep file, e.g. data/sweeps/table3_digits.json.
        jobs: runs at a time; default: one for each GPU, or one on the CPU, where each has one thread.
        backend: "local", or "ray" for the Ray cluster of RAY_ADDRESS, or one on this machine.
        only: one of N shares, counted from 1, for job arrays.
        dry_run: print what is left to run and about how long that takes, and nothing more.
        keep: keep all its cards in one file under data/runs, written anew after every run.
    """
    chosen = read_sweep(file)
    failed = run_sweep(chosen, jobs, backend, only, dry_run, keep)
    if keep and not dry_run:
        print(keep_sweep(chosen))
    if failed:
        print("failed:", *failed, sep="\n")
        raise UserError(f"runs that failed: {len(failed)}; read their logs, then run the sweep again to repeat them.")


COMMANDS = {f.__name__: f for f in (distill, runs, sweep)} | {"lte": pools, "teacher": teachers}


def main(arguments: list[str] | None = None) -> int:
    """Run one command. A user's mistake is one sentence on stderr and exit status 2."""
    try:
        try:
            return _status(sys.argv[1:] if arguments is None else arguments)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # what reads the output has seen enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # where Python flushes the rest at its end
        return 1


def _status(arguments: list[str]) -> int:
    """Run one command; its exit status."""
    try:
        done = _app(COMMANDS).cli(prog="nayer_lib", args=arguments)
        if isinstance(done, Run) and done.stopped:
            print(f"stopped after epoch {len(done.card['curve'])} of {done.setup.config.total_epochs}")
            print(f"resume with: python -m nayer_lib {_resuming(arguments, done.folder)}")
    except UserError as error:
        print(f"nayer_lib: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("nayer_lib: stopped; the files of the last whole epoch are kept.", file=sys.stderr)
        return 130
    return 0


def _resuming(arguments: list[str], folder: Path) -> str:
    """The words of a `distill` command that goes on in a folder."""
    out = [] if "--out" in arguments else ["--out", str(folder)]
    return shlex.join([*arguments, *out, *([] if "--resume" in arguments else ["--resume"])])


def _app(commands: dict) -> SubcommandApp:
    """A parser of commands; a module among them is a group, named and told by its own COMMANDS and docstring."""
    app = SubcommandApp()
    for name, command in commands.items():
        if inspect.ismodule(command):
            app.command(_app(command.COMMANDS), name=name, help=command.__doc__)
        else:
            app.command(command, name=name)
    return app


def _as_before(folder: Path, device) -> Compute:
    """How the run in a folder was computed, as far as this device can."""
    before = compute_of(cards.read_card(folder))
    return dataclasses.replace(before, steps="eager") if before.steps == "graphs" and device.type != "cuda" else before


def _overrides(pairs: tuple[str, ...]) -> dict:
    """("epochs=8", ...) -> {"epochs": 8, ...}; values are read as Python literals, else as text."""
    values = {}
    for pair in pairs:
        name, found, text = pair.partition("=")
        if not found:
            raise UserError(f"--set takes name=value, not {pair!r}.")
        if name in ("preset", "variant", "profile", "method", "protocol", "seed"):
            raise UserError(f"{name} has its own option: use --{name} {text}.")
        try:
            values[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            values[name] = text
    return values
