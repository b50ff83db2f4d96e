"""One run on several processes, each with its own GPU: what every one does for itself, and what they agree on.

Each process (a rank) makes its share of a round's images, keeps them in its own shard of the memory M and draws its
share of a student batch from there. The mean over a batch is the mean over its equal shares, so gradients are averaged
before every optimiser step, and weights stay equal on all ranks.
"""

import atexit
import os
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .errors import UserError


@dataclass(frozen=True)
class Ranks:
    """This process among those of one run. By default it is alone, and then nothing here changes anything.

    Attributes:
        rank: its number, from 0; the first one records the run.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1

    def share(self, count: int, name: str) -> int:
        """How many of `count` fall to each rank.

        Args:
            name: what is shared, for the sentence.

        Raises:
            UserError: it cannot be shared equally, or leaves a rank a single one, which BatchNorm has nothing to
                compare with.
        """
        if self.size > 1 and (count % self.size or count < 2 * self.size):
            raise UserError(
                f"{self.size} processes cannot share {name}={count}: choose a multiple of {self.size} from "
                f"{2 * self.size} up, or another number of processes."
            )
        return count // self.size

    def own(self, shared: torch.Generator) -> torch.Generator:
        """Random numbers that must differ between ranks, seeded from those that agree; alone, the same generator."""
        if self.size == 1:
            return shared
        seed = int(torch.randint(2**62, (), generator=shared.clone_state(), device=shared.device))
        return torch.Generator(shared.device).manual_seed(seed + self.rank)

    def synchronised(self, module: nn.Module) -> nn.Module:
        """BatchNorm over the images of all ranks, changed in place.

        Only on CUDA: SyncBatchNorm refuses the tensors of a CPU, where each rank's share has its own statistics.
        """
        if self.size == 1 or not next(module.parameters()).is_cuda:
            return module
        return nn.SyncBatchNorm.convert_sync_batchnorm(module)

    def mean(self, value: Tensor) -> Tensor:
        """The mean over ranks of a tensor that all of them have; alone, the tensor itself."""
        if self.size == 1:
            return value
        total = value.clone()
        distributed.all_reduce(total)
        return total / self.size

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Put the mean over ranks in the place of each tensor, all in one exchange."""
        tensors = list(tensors)
        if self.size == 1 or not tensors:
            return
        mean = self.mean(torch.cat([tensor.flatten() for tensor in tensors]))
        for tensor, part in zip(tensors, mean.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def average_gradients(self, module: nn.Module) -> None:
        """Between backward and the optimiser's step: average a module's gradients, and its running statistics too.

        The latter are means over time, so that averaging them later would come to the same.
        """
        norms = [norm for norm in module.modules() if isinstance(norm, _BatchNorm)]
        self.average(
            [p.grad for p in module.parameters() if p.grad is not None]
            + [running for norm in norms for running in (norm.running_mean, norm.running_var)]
        )


def find_ranks(device: torch.device) -> Ranks:
    """The processes of `accelerate launch` or of accelerate's `notebook_launcher`; without them, this one alone.

    They are connected here if nobody has done so: by NCCL, each with the GPU of its number, or by gloo on a CPU.

    Raises:
        UserError: there are several, and accelerate is not installed.
    """
    if not distributed.is_available():
        return Ranks()
    if not distributed.is_initialized() and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        try:
            from accelerate import PartialState
        except ImportError as error:
            raise UserError("several processes need accelerate: `pip install -e '.[multi]'`.") from error
        PartialState(cpu=device.type == "cpu")
        atexit.register(distributed.destroy_process_group)
    return Ranks(distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else Ranks()
