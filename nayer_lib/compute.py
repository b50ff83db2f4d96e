"""How a run is computed: number format, memory layout, kind of steps. *What* a run computes stands in `Config`.

A `Compute` may not change a result by more than rounding; a card records it, and cards with different ones are not
averaged. Losses, BatchNorm statistics and optimisers are in 32 bits whatever the networks compute in.
"""

import copy
import functools
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import torch
from torch import nn

from .classifiers import build
from .classifiers.folding import fold_batch_norms
from .classifiers.teacher import Classifier
from .errors import UserError, unknown

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
STEPS = ("eager", "graphs", "compiled")


@dataclass(frozen=True)
class Compute:
    """Independent switches.

    Attributes:
        precision: of the networks' forward and backward passes: "fp32", "bf16", or "fp16" with a scaled loss.
        channels_last: the networks' memory layout.
        steps: "eager"; "graphs", whole steps replayed as CUDA graphs (`steps.Graphs`); or "compiled", one step's
            forward pass through torch.compile (`steps.Step`). If graphs or compilation fail, the run
            goes on eagerly and says so.

    Raises:
        UserError: unknown precision or steps.
    """

    precision: str = "fp32"
    channels_last: bool = False
    steps: str = "eager"

    def __post_init__(self):
        if self.precision not in PRECISIONS:
            raise unknown("precision", self.precision, PRECISIONS)
        if isinstance(self.steps, bool):  # cards from before graphs existed: compiled or not
            object.__setattr__(self, "steps", "compiled" if self.steps else "eager")
        if self.steps not in STEPS:
            raise unknown("steps", self.steps, STEPS)

    def check(self, device: torch.device, processes: int) -> None:
        """Raise a `UserError` for steps that this device, or a run on several processes, cannot do."""
        if self.steps == "graphs" and device.type != "cuda":
            raise UserError(f"CUDA graphs need a CUDA device, not the {device.type}: take eager or compiled steps.")
        if self.steps == "graphs" and processes > 1:
            raise UserError("steps of several processes, which wait for each other, are not captured: take eager ones.")

    def autocast(self, device: torch.device) -> AbstractContextManager:
        """The context for forward passes of networks."""
        return torch.autocast(device.type, PRECISIONS[self.precision], enabled=self.precision != "fp32")

    def scaler(self, device: torch.device) -> torch.amp.GradScaler:
        """Keeps fp16 gradients from vanishing; with the other precisions it does nothing."""
        # Gradients of Eq. 5 are large: from torch's own start, 2^16, the first steps would all be skipped.
        return torch.amp.GradScaler(device.type, init_scale=2.0**10, enabled=self.precision == "fp16")

    def lay_out(self, module: nn.Module) -> nn.Module:
        """The module, its weights in the chosen memory layout."""
        return module.to(memory_format=torch.channels_last) if self.channels_last else module


def compute_of(card: dict) -> Compute:
    """How the run of a card was computed; cards from before this was recorded were computed plainly."""
    fields = dict(card.get("compute", {}))
    if "compiled" in fields:  # a card from before graphs existed
        fields["steps"] = fields.pop("compiled")
    return Compute(**fields)


# --- what suits a device ----------------------------------------------------------------------------------------------


def fastest(device: torch.device, processes: int = 1, profile: str = "full", **given) -> Compute:
    """The `Compute` that suits a device; fields of `Compute` in `given` are taken as they are.

    A GPU computes in 16 bits, channels last. A CPU is measured for a second, once a process: some CPUs have fast units
    for bfloat16, others are many times slower with it. Several processes, which must agree, and the profile "quick",
    whose equal runs are to be equal bit by bit, compute plainly on a CPU. Steps are eager: of graphs only NAYER's have
    been tried on a GPU (docs/speed.md), and on a CPU torch.compile gained nothing over channels last.
    """
    if device.type == "cuda":
        bf16 = torch.cuda.get_device_capability(device) >= (8, 0)  # a T4 has none
        chosen = Compute("bf16" if bf16 else "fp16", channels_last=True)
    elif profile == "quick" or processes > 1 or {"precision", "channels_last"} <= given.keys():
        chosen = Compute()
    else:
        chosen = _measured()
    return replace(chosen, **given)


REPEATS = 3
NOT_SLOWER, FASTER = 1.0, 0.8  # largest time of a candidate, as a share of the simpler setting's


@functools.cache
def _measured() -> Compute:
    """The setting that trains a small network fastest on this CPU; one less plain must win two of three repeats."""
    plain, layout, half = Compute(), Compute(channels_last=True), Compute("bf16", channels_last=True)
    best = plain
    for candidate, share in ((layout, NOT_SLOWER), (half, FASTER)):
        calls, lost = [_training_step(setting) for setting in (best, candidate)], 0
        for call in calls:
            _seconds(call)
        for _ in range(REPEATS):
            of_best, of_candidate = map(_seconds, calls)
            lost += of_candidate > share * of_best
            if 2 * lost > REPEATS:  # without fast bfloat16 each repeat takes long
                break
        else:
            best = candidate
    return best


def _training_step(compute: Compute) -> Callable[[], None]:
    """One step of ResNet-20 on eight images of 32 px."""
    device = torch.device("cpu")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network, images = compute.lay_out(build("resnet20", 10)).train(), torch.rand(8, 3, 32, 32)

    def step() -> None:
        with compute.autocast(device):
            logits = network(images)
        logits.float().square().mean().backward()

    return step


def _seconds(call: Callable[[], None]) -> float:
    """CPU seconds of a call, over all threads: other programs disturb CPU time less than wall time."""
    start = time.process_time()
    call()
    return time.process_time() - start


def fix_shapes(device: torch.device) -> None:
    """Let cuDNN try out its algorithms first: worth it if the same shapes go through a network again and again."""
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True


@torch.no_grad()
def folded(teacher: Classifier, image_shape: tuple[int, int, int]) -> Classifier:
    """A teacher that gives the same answers sooner: BatchNorm folded into the convolutions, channels last.

    For the student phase, which does not read the teacher's BatchNorm inputs. A teacher that only answers, a network
    that torch.fx cannot trace, or one whose folded form gives other answers, is returned as it is. The two networks are
    compared in 64 bits, because a GPU rounds 32-bit products to 10 bits.

    Args:
        image_shape: (C, H, W) of the images on which the two networks are compared.
    """
    if teacher.answers_alone:
        return teacher
    images = torch.rand(2, *image_shape, generator=torch.Generator().manual_seed(0)).to(teacher.device).double()
    fast = copy.deepcopy(teacher)
    try:
        fast.net = fold_batch_norms(teacher.net)
        answers, expected = (copy.deepcopy(classifier).double()(images) for classifier in (fast, teacher))
    except Exception:  # fx raises many kinds of errors for a network that it cannot trace
        return teacher
    fast.net.to(memory_format=torch.channels_last)
    return fast.freeze() if torch.allclose(answers, expected, rtol=1e-3, atol=1e-3) else teacher
