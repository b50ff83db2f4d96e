"""What a run will cost: what it spends, by arithmetic; its memory, likewise; its time, by cards of runs like it.

A rehearsal has every object at its real size and two images a batch. It needs no weights, no network and no data, but
for the images of a control that learns from real ones, and shows in seconds that a config can be put together and run.
"""

import dataclasses
import re
import statistics
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from ..classifiers.teacher import Classifier, load_teacher, make_classifier, teacher_path
from ..compute import Compute
from ..config import Config, fields_of
from ..datasets import Split, dataset
from ..distill import distill, prepare
from ..errors import UserError
from ..methods import KINDS
from ..methods.base import Method
from ..ranks import Ranks
from ..text.lte_pool import LTEPool, load_pool, pool_path
from .card import device_name

FLOAT = 4  # bytes
# Numbers kept a parameter: two copies, one folded; with a gradient and SGD's momentum; with one and Adam's two moments.
COPIES = {"teacher": 2, "student": 3, "generator": 4}
TOY = {
    "repeats": 1,
    "generator_batch": 2,  # BatchNorm needs two
    "generator_steps": 1,
    "images": 2,
    "rounds": 1,
    "student_batch": 2,
    "student_steps": 1,
    "warmup_epochs": 0,  # so that the round plays against the student
    "epochs": 1,
}


def budget(config: Config) -> dict[str, int]:
    """What a run spends, warm-up included: images through the teacher in synthesis, the student's steps and images."""
    steps = config.repeats * config.distillation_epochs * config.student_steps
    return {
        "images through the teacher in synthesis": config.synthesis_passes,
        "student steps": steps,
        "images drawn by the student": steps * config.student_batch,
    }


# --- memory -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Held:
    """What a whole run holds at its end, activations left out: they depend on the device and its libraries.

    Attributes:
        parameters: of "teacher", "student" and "generator".
        images: in the memory M; none where a live generator makes fresh ones.
        bytes: of the three with their gradients and optimisers, of "memory", and of what a method holds "beside" them.
    """

    parameters: dict[str, int]
    images: int
    bytes: dict[str, int]


def held(method: Method) -> Held:
    """The arithmetic for a method that was built for its config, e.g. a row of Table 8."""
    config = method.config
    networks = {name: getattr(method, name, nn.Module()) for name in COPIES}  # not every method has a generator
    parameters = {name: sum(p.numel() for p in network.parameters()) for name, network in networks.items()}
    drawn = getattr(config, "images", 0) or len(method.memory)  # pictures by a formula, or a control's real images
    made = config.total_rounds * config.generator_batch or drawn
    images = min(made, config.memory_size or made) if method.keeps_images else 0
    sizes = {name: FLOAT * COPIES[name] * count for name, count in parameters.items()}
    return Held(parameters, images, sizes | {"memory": images * method.memory.row_bytes, "beside": method.beside})


def check_fits(method: Method) -> None:
    """Raise a `UserError` if this process, at the end of the run, would hold more than its device has free now."""
    free, needed = free_memory(method.device), sum(held(method).bytes.values())
    if free is not None and needed > free:
        raise UserError(
            f"this run would hold {_mb(needed)} at its end, activations not counted, and {_mb(free)} are free "
            f"({method.device.type}): take a smaller memory_size or another machine; --dry-run shows the parts."
        )


def free_memory(device: torch.device) -> int | None:
    """Bytes that are free on a device, with those that torch holds there in reserve; None where nobody says."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    try:
        info = Path("/proc/meminfo").read_text(encoding="ascii")
        return 1024 * int(re.search(r"^MemAvailable:\s+(\d+) kB$", info, re.M)[1])
    except (OSError, TypeError):  # no Linux
        return None


def rehearse(
    config: Config, teacher: Classifier | None = None, pool: LTEPool | None = None, test: Split | None = None
) -> Held:
    """One synthesis round of one step, one student step and one evaluation on the CPU; returns what the real run holds.

    What is not given is made up: a teacher of fresh weights and embeddings of random numbers, as many as CLIP's, unless
    the kit's own files are here; and two random test images.

    Raises:
        UserError: as `prepare` and `distill`, for what does not fit together.
    """
    rng = torch.Generator().manual_seed(config.seed)
    if teacher is None and teacher_path(config.dataset, config.teacher).is_file():
        teacher = load_teacher(config.dataset, config.teacher)
    elif teacher is None:
        facts = dataset(config.dataset)
        teacher = make_classifier(config.teacher, facts.class_names, facts.mean, facts.std, config.seed)
    names = teacher.class_names
    if pool is None and KINDS[config.method].reads_text:
        path = pool_path(config.dataset, config.encoder, config.prompt)
        pool = load_pool(path, names) if path.is_file() else LTEPool(torch.randn(len(names), 512, generator=rng), {})
    if test is None:
        facts = dataset(config.dataset)
        shape = (2, facts.channels, facts.size, facts.size)
        test = Split(torch.randint(256, shape, generator=rng, dtype=torch.uint8), torch.arange(2))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the teacher scores")  # on two random images
        setup = prepare(config, teacher, pool, test, device="cpu", compute=Compute(), ranks=Ranks())
    counted = held(setup.method)
    read = fields_of(config.method)
    setup.method.config = dataclasses.replace(config, **{name: count for name, count in TOY.items() if name in read})
    for _ in distill(setup.method, setup.evaluate):
        pass
    return counted


def in_words(config: Config, counted: Held) -> str:
    """What a run would hold, as a plain table."""
    lines = [
        f"{config.dataset}, {config.teacher} -> {config.student}, {config.variant}, {config.profile}",
        f"{'':12}{'parameters':>14}{'held at the end':>20}",
    ]
    for name, count in counted.parameters.items():
        lines.append(f"{name:12}{count:14,}{_mb(counted.bytes[name]):>20}")
    lines.append(f"{'memory':12}{f'{counted.images:,} images':>14}{_mb(counted.bytes['memory']):>20}")
    if counted.bytes["beside"]:
        lines.append(f"{'beside them':26}{_mb(counted.bytes['beside']):>20}")
    lines.append(f"{'together':26}{_mb(sum(counted.bytes.values())):>20}  and activations on top")
    ran = "One round, one student step and one evaluation ran on random images: no data or weights were needed."
    if KINDS[config.method].reads_images:
        ran = "One student step ran on real images, one evaluation on random ones: no weights were needed."
    lines.append(ran)
    return "\n".join(lines)


def _mb(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"


# --- time -------------------------------------------------------------------------------------------------------------


def projected(config: Config, finished: list[tuple[Config, dict]]) -> tuple[float, str] | None:
    """Seconds that a run should take, and the device on which that was measured; None if nothing like it was run.

    As long as finished runs of an equal config but the seed took, else as those of equal networks, data set, method
    and profile, their synthesis scaled by its steps, the student by its steps and the evaluation by its epochs. Runs
    on a device named as this one come first. What a sweep imports at its start is not in it.

    Args:
        finished: (config, card) of finished runs, oldest first.
    """
    alike = ("method", "dataset", "teacher", "student", "profile")
    near = [(ran, card) for ran, card in finished if all(getattr(ran, n) == getattr(config, n) for n in alike)]
    if not near:
        return None
    devices = [card["device"] for _, card in near]
    here = device_name(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    device = here if here in devices else devices[-1]
    near = [(ran, card["seconds"]) for ran, card in near if card["device"] == device]
    equal = [pair for pair in near if dataclasses.replace(pair[0], seed=config.seed) == config]
    return statistics.mean(_scaled(config, *pair) for pair in equal or near), device


def _scaled(config: Config, ran: Config, seconds: dict[str, float]) -> float:
    """The seconds of another config's run, as if it had had the steps of this one."""
    counts = {
        "synthesis": (config.synthesis_passes, ran.synthesis_passes),
        "student": (budget(config)["student steps"], budget(ran)["student steps"]),
        "evaluation": (config.distillation_epochs, ran.distillation_epochs),
    }
    ratios = {phase: here / there if there else 1.0 for phase, (here, there) in counts.items()}  # a control makes none
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
