"""`make bench`: the library's inner loops against plain ones, alternately, on the same device with the same nets.

WRN-40-2 -> WRN-16-2 on 32 px images with random weights: time does not depend on them. On the CPU the clock is the
process's CPU seconds, so that other programs disturb less, and ours computes plainly in 32 bits unless told otherwise.
On a GPU it is synchronised wall time, ours is the fast path (`compute.fastest`) unless told otherwise, and with
--batch 400 the whole run is projected and set beside two floors. Then our own steps in other number formats and layouts
are set beside plain ones.
"""

import argparse
import dataclasses
import json
import platform
import resource
import statistics
import sys
import tempfile
import time

import torch
from plain_loop import PlainLoop

from nayer_lib import files, losses
from nayer_lib.classifiers.teacher import Classifier, make_classifier
from nayer_lib.compute import Compute, fastest
from nayer_lib.config import make_config
from nayer_lib.datasets import dataset
from nayer_lib.generator.networks import Generator
from nayer_lib.methods.base import Batch
from nayer_lib.methods.nayer import Nayer
from nayer_lib.methods.round import SynthesisBatch
from nayer_lib.runs.card import device_name
from nayer_notebooks.pace import epoch_seconds, run_seconds

DRAW = 512  # images of a memory draw: Table 8's student batch
FORMATS = {
    "fp32, channels last": Compute(channels_last=True),
    "bfloat16, channels last": Compute("bf16", channels_last=True),
}
HOPELESS = 3  # times as long as plain: measured no further

# The work of CIFAR-10, E = 100 with both networks frozen where they can be: arithmetic from the layers' sizes. A GPU by
# a word in its name: dense 16-bit FLOP/s and bytes/s of its memory, 80 to 90 % of the data sheet.
WORK = {"FLOP": 36.7e15, "bytes moved, fused bfloat16": 336e12}
GPUS = {"H200": (798e12, 4.3e12), "H100": (798e12, 3.0e12), "A100": (311e12, 1.7e12), "T4": (65e12, 0.26e12)}


def net(name: str, seed: int, device: str) -> Classifier:
    """A random network whose BatchNorm layers have seen some images, so that its logits are of an ordinary size."""
    facts = dataset("cifar10")
    classifier = make_classifier(name, facts.class_names, facts.mean, facts.std, seed).train()
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _ in range(20):
            classifier(torch.rand(16, 3, 32, 32, generator=rng))
    return classifier.to(device)


def build(device: str, batch: int, compute: Compute) -> Nayer:
    """Our method."""
    config = make_config(
        "cifar10-wrn40_2-wrn16_2", profile="full", generator_batch=batch, student_batch=batch, generator_steps=3
    )
    # Student 3 agrees with teacher 0 on some images, so that the masked adversarial term is not just zero.
    table = torch.randn(10, 512, generator=torch.Generator().manual_seed(0)).to(device)
    return Nayer(net("wrn40_2", 0, device), net("wrn16_2", 3, device), config, table, compute=compute)


def build_plain(ours: Nayer, device: str) -> tuple[PlainLoop, tempfile.TemporaryDirectory]:
    """The plain loop with equal weights, and a folder for its PNG files."""
    folder, config, facts = tempfile.TemporaryDirectory(), ours.config, ours.facts
    network = Generator(config.noise_dim, facts.size, facts.channels).to(device)
    teacher, student = net("wrn40_2", 0, device).eval(), net("wrn16_2", 3, device)
    return PlainLoop(teacher, student, ours.table, network, config, folder.name), folder


def same_losses(ours: Nayer, plain: PlainLoop) -> dict[str, tuple[float, float]]:
    """Every loss of both loops on the same images, labels and weights, before any step."""
    device = ours.device
    images = torch.rand(ours.config.generator_batch, 3, 32, 32, generator=torch.Generator().manual_seed(1)).to(device)
    labels = torch.arange(len(images), device=device) % 10
    for student in (ours.student, plain.student):
        student.eval()
    with torch.no_grad():
        with ours.bn_loss.armed():
            t, s = ours.teacher(images), ours.student(images)
            mine = ours.values(SynthesisBatch(images, images, labels, t, s, None, None))
        theirs = plain.terms(images, labels)
        pairs = {name: (float(a), float(b)) for name, a, b in zip(("L_CE", "L_BN", "-L_KL"), mine, theirs, strict=True)}
        pairs["L_S"] = (float(losses.distillation(t, s, ours.config.temperature)), float(plain.student_loss(images)))
    for student in (ours.student, plain.student):
        student.train()
    return pairs


def measure(ours: Nayer, plain: PlainLoop, repeats: int) -> dict[str, tuple[list[float], list[float]]]:
    """Milliseconds of each phase, (ours, plain), one pair a repeat; the first pairs warm up and are dropped."""
    config, device = ours.config, ours.device
    warmup = warmup_of(ours)
    steps, labels = config.generator_steps, torch.arange(config.generator_batch, device=device) % 10
    stored = torch.rand(2 * DRAW, 3, 32, 32, device=device)
    ours.memory.add(stored, torch.arange(len(stored), device=device) % 10, 0)
    plain.store(stored)
    stream = plain.draws(DRAW)
    batch = Batch(stored[: config.student_batch], labels[:1].expand(config.student_batch), "bench")

    def plain_round():
        plain.begin_round()
        for _ in range(steps):
            plain.synthesis_step(labels)

    phases = {
        "synthesis step": (lambda: ours.synthesize(config.warmup_epochs), plain_round, steps),
        "student step": (lambda: ours.student_step(batch), lambda: plain.student_step(batch.images), 1),
        "memory draw": (lambda: ours.sample(DRAW), lambda: next(stream), 1),
    }
    times = {name: ([], []) for name in phases}
    for repeat in range(repeats + warmup):
        for name, (mine, theirs, per) in phases.items():
            for place, call in enumerate((mine, theirs)):
                took = clock(call, device) / per
                if repeat >= warmup:
                    times[name][place].append(1000 * took)
    return times


def warmup_of(method: Nayer) -> int:
    """Repeats until nothing is compiled, captured or tried out any more: the student's mode changes after the first."""
    return 1 if method.device.type == "cpu" and method.compute.steps == "eager" else 6


def formats(device: str, batch: int, repeats: int = 3) -> dict[str, dict[str, float]]:
    """Our eager steps in other formats and layouts: their time over that in plain 32 bits, median of alternate calls.

    What is hopeless in one phase (bfloat16, on a CPU without units for it) is not measured in the next.
    """
    plain, told = build(device, batch, Compute()), {}
    images = torch.rand(batch, 3, 32, 32, generator=torch.Generator().manual_seed(1)).to(device)
    seen = Batch(images, None, "bench")
    phases = {"student step": lambda m: m.student_step(seen), "synthesis step": lambda m: m.synthesize(20)}
    for name, compute in FORMATS.items():
        method, told[name] = build(device, batch, compute), {}
        for phase, call in phases.items():
            for each in (plain, method):
                clock(lambda each=each, call=call: call(each), plain.device)
            ratios = []
            for _ in range(repeats):
                one, other = (clock(lambda each=each, call=call: call(each), plain.device) for each in (plain, method))
                ratios.append(other / one)
                if ratios[-1] > HOPELESS:
                    break
            told[name][phase] = statistics.median(ratios)
            if ratios[-1] > HOPELESS:
                break
    return told


def projection(phases: dict) -> dict[str, float]:
    """Seconds of an epoch after warm-up and of Table 8's CIFAR-10 run, and how near that is to the device's floors."""
    config = make_config("cifar10-wrn40_2-wrn16_2", profile="full")
    ms = {name: row["ours_ms"] for name, row in phases.items()}
    # A student step of the bench has 400 images, the run's has 512; both phases scale with their images.
    learn = (ms["student step"] * config.student_batch / 400 + ms["memory draw"]) / 1000
    make = config.generator_steps * ms["synthesis step"] / 1000
    pace = {"warm-up round": make, "round": make, "student step": learn, "evaluation": 0.0}
    told = {"seconds an epoch": epoch_seconds(config, config.total_epochs - 1, pace)}
    told["seconds, E = 100"] = run_seconds(config, pace)
    name = torch.cuda.get_device_name()
    for gpu, speeds in GPUS.items():
        if gpu in name:
            for (what, amount), speed in zip(WORK.items(), speeds, strict=True):
                told[f"floor by {what} of {gpu}, share reached"] = amount / speed / told["seconds, E = 100"]
    return told


def clock(call, device: torch.device) -> float:
    """Seconds of one call: CPU seconds of this process, or synchronised wall time on a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        start = time.perf_counter()
        call()
        torch.cuda.synchronize(device)
        return time.perf_counter() - start
    start = time.process_time()
    call()
    return time.process_time() - start


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--precision", help="of our loop: fp32, bf16 or fp16; default: fp32 on a CPU, else the fastest")
    parser.add_argument("--channels-last", action=argparse.BooleanOptionalAction, help="our loop's layout; likewise")
    parser.add_argument("--steps", help="of our loop: eager, graphs or compiled; default: eager")
    parser.add_argument("--keep", action="store_true", help="write the card to data/bench.json, for the README")
    arguments = parser.parse_args()
    if arguments.device == "cpu":
        torch.set_num_threads(1)
    asked = {name: getattr(arguments, name) for name in ("precision", "channels_last", "steps")}
    given = {name: value for name, value in asked.items() if value is not None}
    compute = fastest(torch.device(arguments.device), profile="quick", **given)
    ours = build(arguments.device, arguments.batch, compute)
    plain, folder = build_plain(ours, arguments.device)
    with folder:
        pairs = same_losses(ours, plain)
        times = measure(ours, plain, arguments.repeats)

    unit = "wall" if ours.device.type == "cuda" else "CPU"
    print(f"{device_name(ours.device)}, torch {torch.__version__}, batch {arguments.batch} (draw {DRAW}), {unit} time")
    print("\nboth loops on the same inputs:")
    for name, (mine, theirs) in pairs.items():
        print(f"  {name:6} ours {mine:.6f}  plain {theirs:.6f}")
    print(f"\n{'phase':16}{'ours ms':>10}{'plain ms':>10}{'ratio':>8}  {'(min - max)':14}{'ours images/s':>14}")
    phases = {}
    for name, (mine, theirs) in times.items():
        ratios = [b / a for a, b in zip(mine, theirs, strict=True)]
        row = {
            "ours_ms": statistics.median(mine),
            "plain_ms": statistics.median(theirs),
            "ratio": statistics.median(ratios),
            "ratio_min": min(ratios),
            "ratio_max": max(ratios),
        }
        phases[name] = row
        spread = f"({row['ratio_min']:.2f} - {row['ratio_max']:.2f})"
        speed = 1000 * (DRAW if name == "memory draw" else arguments.batch) / row["ours_ms"]
        print(f"{name:16}{row['ours_ms']:10.1f}{row['plain_ms']:10.1f}{row['ratio']:7.2f}x  {spread:14}{speed:14.0f}")
    if ours.device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(ours.device) / 2**20
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"\npeak memory {peak:.0f} MiB")
    ratios = formats(arguments.device, arguments.batch)
    print("\nour eager steps in other formats, time over that in fp32, contiguous:")
    for name, row in ratios.items():
        print(f"  {name:26}{', '.join(f'{phase} {ratio:.2f}' for phase, ratio in row.items())}")
    whole = projection(phases) if ours.device.type == "cuda" and arguments.batch == 400 else {}
    for name, value in whole.items():
        print(f"{name}: {value:.3g}")

    card = {
        "kind": "bench",
        "device": device_name(ours.device),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "batch": arguments.batch,
        "draw": DRAW,
        "repeats": arguments.repeats,
        "clock": unit,
        "phases": phases,
        "losses": pairs,
        "peak_mib": peak,
        "compute": dataclasses.asdict(ours.compute),
        "formats": ratios,
        "projection": whole,
    }
    path = files.runs_dir() / time.strftime("bench-%Y%m%d-%H%M%S.json")
    if arguments.keep:
        path = files.data_dir() / "bench.json"
    files.write_text(path, json.dumps(card, indent=1) + "\n")
    print(path)
    tolerance = 1e-3 if compute.precision == "fp32" else 3e-2
    far = [name for name, (a, b) in pairs.items() if abs(a - b) > tolerance * max(1.0, abs(b))]
    if far:
        print(f"the loops disagree on {', '.join(far)}", file=sys.stderr)
    return 1 if far else 0


if __name__ == "__main__":
    sys.exit(main())
