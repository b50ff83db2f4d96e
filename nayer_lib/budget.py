"""What a run would hold in memory, by arithmetic, and its rehearsal: every object at its real size, two images a batch.

A rehearsal needs neither data nor weights nor network. It shows in seconds that a config can be put together and run.
"""

import dataclasses
import re
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from .classifiers.teacher import Classifier, load_teacher, make_classifier, teacher_path
from .compute import Compute
from .config import Config
from .datasets import Split, dataset
from .distill import distill, prepare
from .errors import UserError
from .methods import METHODS
from .methods.base import Method
from .methods.live import Live
from .ranks import Ranks
from .text.lte_pool import LTEPool, load_pool, pool_path

FLOAT = 4  # bytes
# Numbers kept a parameter: two copies, one folded; with a gradient and SGD's momentum; with one and Adam's two moments.
COPIES = {"teacher": 2, "student": 3, "generator": 4}
TOY = {
    "repeats": 1,
    "generator_batch": 2,  # BatchNorm needs two
    "generator_steps": 1,
    "rounds": 1,
    "student_batch": 2,
    "student_steps": 1,
    "warmup_epochs": 0,  # so that the round plays against the student
    "epochs": 1,
}


@dataclass(frozen=True)
class Budget:
    """What a whole run holds at its end, activations left out: they depend on the device and its libraries.

    Attributes:
        parameters: of "teacher", "student" and "generator".
        images: in the memory M; none where a live generator makes fresh ones.
        bytes: of the three with their gradients and optimisers, of "memory", and of what a method holds "beside" them.
    """

    parameters: dict[str, int]
    images: int
    bytes: dict[str, int]


def budget(method: Method) -> Budget:
    """The arithmetic for a method that was built for its config, e.g. a row of Table 8."""
    config = method.config
    parameters = {name: sum(p.numel() for p in getattr(method, name).parameters()) for name in COPIES}
    made = config.total_rounds * config.generator_batch
    images = 0 if isinstance(method, Live) else min(made, config.memory_size or made)
    held = {name: FLOAT * COPIES[name] * count for name, count in parameters.items()}
    held |= {"memory": images * method.memory.row_bytes, "beside": method.beside}
    return Budget(parameters, images, held)


def check_fits(method: Method) -> None:
    """Raise a `UserError` if this process, at the end of the run, would hold more than its device has free now."""
    free, counted = free_memory(method.device), budget(method).bytes
    held = sum(counted.values())
    if free is not None and held > free:
        raise UserError(
            f"this run would hold {_mb(held)} at its end, activations not counted, and {_mb(free)} are free "
            f"({method.device.type}): take a smaller memory_size or another machine; --dry-run shows the parts."
        )


def free_memory(device: torch.device) -> int | None:
    """Bytes that are free on a device, with those that torch holds there in reserve; None where nobody says."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    try:
        said = Path("/proc/meminfo").read_text(encoding="ascii")
        return 1024 * int(re.search(r"^MemAvailable:\s+(\d+) kB$", said, re.M)[1])
    except (OSError, TypeError):  # no Linux
        return None


def rehearse(
    config: Config, teacher: Classifier | None = None, pool: LTEPool | None = None, test: Split | None = None
) -> Budget:
    """One synthesis round of one step, one student step and one evaluation on the CPU; returns the real run's budget.

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
    if pool is None and METHODS[config.method].reads_text:
        path = pool_path(config.dataset, config.encoder, config.prompt)
        pool = load_pool(path, names) if path.is_file() else LTEPool(torch.randn(len(names), 512, generator=rng), {})
    if test is None:
        facts = dataset(config.dataset)
        shape = (2, facts.channels, facts.size, facts.size)
        test = Split(torch.randint(256, shape, generator=rng, dtype=torch.uint8), torch.arange(2))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the teacher scores")  # on two random images
        setup = prepare(config, teacher, pool, test, device="cpu", compute=Compute(), ranks=Ranks())
    counted = budget(setup.method)
    setup.method.config = dataclasses.replace(config, **TOY)
    for _ in distill(setup.method, setup.evaluate):
        pass
    return counted


def projected_seconds(method: Method) -> float:
    """How long a whole run will take here, from one warm-up round, one adversarial round and some student steps of it.

    The method is used up by this: build it again for the run. The first rounds and steps, which load, compile and
    record, do not count; evaluation is left out.
    """
    config = method.config
    after = config.total_epochs - 1  # an epoch with the student
    rounds = [sum(config.synthesis_rounds(e) for e in epochs) for epochs in _epochs(config)]

    def took(call: Callable, times: int = 1) -> float:
        start = time.perf_counter()
        for _ in range(times):
            call()
        if method.device.type == "cuda":
            torch.cuda.synchronize(method.device)
        return (time.perf_counter() - start) / times

    def learn() -> None:
        method.student_step(method.sample(config.student_batch))

    seconds = 0.0
    for epoch, count in zip((0, after), rounds, strict=True):
        if count:
            method.begin_epoch(epoch)
            took(lambda epoch=epoch: method.synthesize(epoch), times=3)
            seconds += count * took(lambda epoch=epoch: method.synthesize(epoch))
    took(learn, times=3)
    return config.repeats * (seconds + config.distillation_epochs * config.student_steps * took(learn, times=5))


def _epochs(config: Config) -> tuple[range, range]:
    return range(config.warmup_epochs), range(config.warmup_epochs, config.total_epochs)


def in_words(config: Config, counted: Budget) -> str:
    """A budget as a plain table."""
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
    lines.append("One round, one student step and one evaluation ran on random images: no data or weights were needed.")
    return "\n".join(lines)


def _mb(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"
