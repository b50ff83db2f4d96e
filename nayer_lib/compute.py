"""How a run is computed: number format, memory layout, compiled steps. *What* it computes stands in `Config`.

None of this may change a result by more than rounding; a card records it, and cards that differ in it are not averaged.
Losses, BatchNorm statistics and optimisers are in 32 bits whatever the networks compute in.
"""

import copy
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from .classifiers.teacher import Classifier
from .errors import UserError, unknown

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Compute:
    """Switches, each of its own.

    Attributes:
        precision: of the networks' forward and backward passes: "fp32", "bf16", or "fp16" with a scaled loss.
        channels_last: the networks' memory layout.
        compiled: one step's forward pass through torch.compile, on CUDA as a CUDA graph; where that fails, a warning.

    Raises:
        UserError: unknown precision.
    """

    precision: str = "fp32"
    channels_last: bool = False
    compiled: bool = False

    def __post_init__(self):
        if self.precision not in PRECISIONS:
            raise unknown("precision", self.precision, PRECISIONS)

    def autocast(self, device: torch.device) -> AbstractContextManager:
        """The context in which networks run."""
        return torch.autocast(device.type, PRECISIONS[self.precision], enabled=self.precision != "fp32")

    def scaler(self, device: torch.device) -> torch.amp.GradScaler:
        """Keeps gradients of 16-bit floats from vanishing; with the other precisions it passes everything through."""
        # Gradients of Eq. 5 are large: from torch's own start, 2^16, the first steps would all be skipped.
        return torch.amp.GradScaler(device.type, init_scale=2.0**10, enabled=self.precision == "fp16")

    def lay_out(self, module: torch.nn.Module) -> torch.nn.Module:
        """The module, its weights in the chosen memory layout."""
        return module.to(memory_format=torch.channels_last) if self.channels_last else module


def fastest(device: torch.device, processes: int = 1, profile: str = "full") -> Compute:
    """What suits a device: plain 32 bits on a CPU (bfloat16 is many times slower without hardware for it).

    Steps of several processes are not compiled: SyncBatchNorm exchanges statistics in the middle of them. Nor are those
    of the profile "quick": compiling takes longer than such a run.
    """
    if device.type != "cuda":
        return Compute()
    bf16 = torch.cuda.get_device_capability(device) >= (8, 0)  # a T4 has none
    return Compute("bf16" if bf16 else "fp16", channels_last=True, compiled=processes == 1 and profile != "quick")


class Step:
    """A function that is called once a training step, compiled if asked for; where compiling fails it runs as it is.

    Args:
        forward: of tensors and plain values to tensors. What it returns is overwritten by the next call when compiled
            for CUDA: clone what is to stay.
    """

    def __init__(self, forward: Callable, compute: Compute, device: torch.device):
        self.forward = self.plain = forward
        if compute.compiled:
            torch.compiler.reset()  # what was compiled for another run counts against this one's number of variants
            mode = "reduce-overhead" if device.type == "cuda" else None  # CUDA graphs
            self.forward = torch.compile(forward, mode=mode, dynamic=False)

    def backward(self, *args, scaler: torch.amp.GradScaler, loss_of: Callable = lambda out: out):
        """Call it, and backward through the loss that `loss_of` finds in what it returns; returns that."""
        if self.forward is self.plain:
            return self._run(args, scaler, loss_of)
        torch.compiler.cudagraph_mark_step_begin()
        try:
            return self._run(args, scaler, loss_of)
        except (UserError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # dynamo's, inductor's, a missing compiler's
            warnings.warn(f"torch.compile failed ({type(error).__name__}): going on without it.", stacklevel=3)
            self.forward = self.plain
            return self._run(args, scaler, loss_of)

    def _run(self, args, scaler, loss_of):
        out = self.forward(*args)
        scaler.scale(loss_of(out)).backward()
        return out


@torch.no_grad()
def folded(teacher: Classifier, image_shape: tuple[int, int, int]) -> Classifier:
    """A teacher that gives the same answers sooner: BatchNorm folded into the convolutions, channels last.

    For the student phase, where nobody looks at its BatchNorm inputs. A network that torch.fx cannot trace, or whose
    folded form gives other answers, is returned as it is.

    Args:
        image_shape: (C, H, W), to compare the two on.
    """
    from torch.fx.experimental.optimization import fuse

    device = next(teacher.parameters()).device
    images = torch.rand(8, *image_shape, generator=torch.Generator().manual_seed(0)).to(device)
    try:
        quick = copy.copy(teacher)
        quick._modules = dict(teacher._modules)  # copy.copy shares the dict of submodules
        quick.net = fuse(teacher.net).to(memory_format=torch.channels_last)
        close = torch.allclose(quick(images), teacher(images), rtol=1e-3, atol=1e-3)
    except Exception:  # fx raises many kinds for what it cannot trace
        return teacher
    return quick.freeze() if close else teacher
