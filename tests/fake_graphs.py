"""CUDA graphs without a GPU: torch's operations, recorded and run again on the CPU.

As with the real ones nothing that is recorded changes a tensor that was there before, a replay reads and writes the
tensors of the recording and runs no line of Python, and whoever asks for a number while recording is refused.
"""

import contextlib

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nayer_lib.compute import Compute

RUNNING_STATISTICS = ("native_batch_norm", "cudnn_batch_norm", "_batch_norm_with_update", "_native_batch_norm_legit")


def tensors_of(*parts) -> list[torch.Tensor]:
    """Those with memory of their own: autograd also has zeros without any."""
    return [leaf for leaf in tree_leaves(parts) if isinstance(leaf, torch.Tensor) and not leaf._is_zerotensor()]


class FakeGraph:
    """In the place of torch.cuda.CUDAGraph."""

    def __init__(self):
        self.calls, self.replays = [], 0

    def pool(self) -> str:
        return "a pool"

    def replay(self) -> None:
        self.replays += 1
        with torch.no_grad():
            for function, args, kwargs, outputs in self.calls:
                for old, new in zip(outputs, tensors_of(function(*args, **kwargs)), strict=True):
                    if new.data_ptr() != old.data_ptr():  # else written in place, or a view
                        old.copy_(new)


class Recording(TorchDispatchMode):
    """In the place of torch.cuda.graph."""

    def __init__(self, graph: FakeGraph, pool=None):
        super().__init__()
        self.graph, self.before, self.made = graph, {}, set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, function._schema.name.removeprefix("aten::")
        if name in ("_local_scalar_dense", "equal", "nonzero"):
            raise RuntimeError(f"{name} waits for the device, which a capture cannot")
        written = tensors_of([
            value
            for place, argument in enumerate(function._schema.arguments)
            if argument.alias_info and argument.alias_info.is_write
            for value in [args[place] if place < len(args) else kwargs.get(argument.name)]
        ])
        if name in RUNNING_STATISTICS:  # written, and their schema does not say so
            written += tensors_of(args[3:5])
        for tensor in written:
            if tensor.untyped_storage().data_ptr() not in self.made:
                self.before.setdefault(id(tensor), (tensor, tensor.detach().clone()))
        outputs = function(*args, **kwargs)
        self.made |= {tensor.untyped_storage().data_ptr() for tensor in tensors_of(outputs)} - {
            tensor.untyped_storage().data_ptr() for tensor in tensors_of(args, kwargs)
        }
        self.graph.calls.append((function, args, kwargs, tensors_of(outputs)))
        return outputs

    def __exit__(self, *error):
        super().__exit__(*error)
        for tensor, value in self.before.values():
            tensor.detach().copy_(value)


class NoStream:
    def wait_stream(self, other) -> None:
        pass


def without_a_gpu(monkeypatch) -> list[FakeGraph]:
    """Have steps="graphs" run on the CPU with fakes; returns the graphs that are made from now on."""
    made = []
    monkeypatch.setattr(Compute, "check", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: made.append(FakeGraph()) or made[-1])
    monkeypatch.setattr(torch.cuda, "graph", Recording)
    monkeypatch.setattr(torch.cuda, "Stream", NoStream)
    monkeypatch.setattr(torch.cuda, "current_stream", NoStream)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: contextlib.nullcontext())
    return made
