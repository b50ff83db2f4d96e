"""One run on several processes, each with its own GPU: what each process does alone, and what all share.

Each process (a rank) is a run of its own with a share of the batch: it draws its own labels, heads and crops, makes its
own images and keeps them in its own part of the memory M, from which it draws its share of a student batch. Networks
that are trained through the whole run are trained together: their gradients are averaged before every optimiser step,
so that their weights stay equal on all ranks. Heads and z that are drawn for a round stay on their rank. BatchNorm and
L_BN see a rank's own images.
"""

import atexit
import dataclasses
import os
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .base_config import Config
from .errors import UserError

# Fields that count images of all ranks.
SHARED = ("generator_batch", "student_batch", "memory_size", "bank_size", "images")


@dataclass(frozen=True)
class Ranks:
    """This process among those of one run. By default the process is alone, and its methods change nothing.

    Attributes:
        rank: the process's number, from 0; rank 0 records the run.
        size: the number of processes.
    """

    rank: int = 0
    size: int = 1

    def local(self, config: Config) -> Config:
        """The config of each rank's own part of a run.

        Raises:
            UserError: a count that cannot be shared equally, or that leaves a rank a single image, too few for
                BatchNorm.
        """
        if self.size == 1:
            return config
        fields = {field.name for field in dataclasses.fields(config)}
        counts = {name: getattr(config, name) for name in SHARED if name in fields}
        counts = {name: count for name, count in counts.items() if count is not None}
        for name, count in counts.items():
            if count % self.size or count < 2 * self.size:
                raise UserError(
                    f"{self.size} processes cannot share {name}={count}: choose a multiple of {self.size} from "
                    f"{2 * self.size} up, or another number of processes."
                )
        return dataclasses.replace(config, **{name: count // self.size for name, count in counts.items()})

    def generator(self, seed: int, device: torch.device) -> torch.Generator:
        """Random numbers that differ between ranks; rank 0 has those of a process that is alone."""
        rng = torch.Generator(device).manual_seed(seed)
        for _ in range(self.rank):
            rng.manual_seed(int(torch.randint(2**31, (), generator=rng, device=device)))
        return rng

    def agree(self, number: Tensor) -> int:
        """The number of rank 0, on all ranks."""
        if self.size > 1:
            distributed.broadcast(number, 0)
        return int(number)

    def mean(self, value: Tensor) -> Tensor:
        """The mean of a tensor over all ranks; on one rank the tensor itself."""
        if self.size == 1:
            return value
        total = value.clone()
        distributed.all_reduce(total)
        return total / self.size

    def average_gradients(self, modules: Iterable[nn.Module], trained: Iterable[Tensor] = ()) -> None:
        """Between backward and the optimiser's step: average gradients, and the running statistics of BatchNorm and the
        ranges of quantised layers too.

        Both are means over time, so averaging them later would give the same.

        Args:
            modules: whose weights are equal on all ranks.
            trained: all parameters that the optimisers change. If a gradient is not finite on any rank, one on every
                rank becomes NaN, so that all ranks skip the same steps in fp16.
        """
        if self.size == 1:
            return
        parts = [part for module in modules for part in module.modules()]
        gradients = [p.grad for part in parts for p in part.parameters(recurse=False) if p.grad is not None]
        running = [x for part in parts if isinstance(part, _BatchNorm) for x in (part.running_mean, part.running_var)]
        running += [x for part in parts for name, x in part.named_buffers(recurse=False) if name in ("low", "high")]
        carriers = [p.grad for p in trained if p.grad is not None]
        if not gradients + carriers:
            return
        overflow = (gradients + carriers)[0].new_zeros(())  # 0, or NaN
        overflow += sum(0 * gradient.sum() for gradient in carriers)
        tensors = [*gradients, *running, overflow]
        mean = self.mean(torch.cat([tensor.flatten() for tensor in tensors]))
        for tensor, part in zip(tensors, mean.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))
        if carriers:
            carriers[0] += overflow


def find_ranks(device: torch.device) -> Ranks:
    """The processes of `accelerate launch` or of accelerate's `notebook_launcher`; without any, this one alone.

    The processes are connected here if they are not yet: by NCCL, each with the GPU of its number, or by gloo on a CPU.

    Raises:
        UserError: several processes without accelerate installed; `accelerate launch` on a CPU, which starts one
            process however many it is asked for.
    """
    if not distributed.is_available():
        return Ranks()
    if os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true" and "WORLD_SIZE" not in os.environ:
        raise UserError(
            "accelerate launch starts one process on a CPU, whatever its --num_processes says: take "
            "`python -m torch.distributed.run --nproc_per_node 2 -m nayer_lib ...`, or python alone."
        )
    if not distributed.is_initialized() and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        try:
            from accelerate import PartialState
        except ImportError as error:
            raise UserError("several processes need accelerate: `pip install -e '.[multi]'`.") from error
        PartialState(cpu=device.type == "cpu")
        atexit.register(distributed.destroy_process_group)
    return Ranks(distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else Ranks()
