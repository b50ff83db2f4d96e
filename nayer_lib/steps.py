"""How training steps run: one operation after the other, as CUDA graphs, or through torch.compile."""

import functools
import warnings
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from .compute import Compute
from .errors import UserError


class Running:
    """How a method's steps run: as its `Compute` says, until a step cannot be compiled or captured; then all eagerly.

    Args:
        program: identifies the steps' code: a later run of an equal program, with any seed, shares what was compiled.

    Attributes:
        compute: how the steps really run.
        reason: why `compute` is not the one that was asked for; "" if it is.
        scaler: of the losses.
    """

    def __init__(self, compute: Compute, device: torch.device, program: Hashable):
        self.compute, self.device, self.reason = compute, device, ""
        self.scaler = compute.scaler(device)
        if compute.steps == "compiled":
            _forget_others(program)

    def fall_back(self, error: Exception) -> None:
        """Go on eagerly, with one warning."""
        self.reason = f"{self.compute.steps} steps failed ({type(error).__name__}: {error})"
        warnings.warn(f"{self.reason}: going on with eager ones.", stacklevel=4)
        self.compute = replace(self.compute, steps="eager")
        scale, self.scaler = self.scaler.state_dict(), self.compute.scaler(self.device)  # the old scaler is in mid-step
        self.scaler.load_state_dict(scale)


@functools.lru_cache(maxsize=1)  # so that nothing is forgotten between two runs of the same program
def _forget_others(program: Hashable) -> None:
    """Drop compiled code: torch.compile bounds a function's variants, and counts those of other methods and configs."""
    torch.compiler.reset()


class Step:
    """A training step's loss function and its backward pass, compiled if the `Compute` says so.

    Args:
        forward: maps tensors and plain values to tensors. Compiled for CUDA, the next call overwrites the tensors that
            this one returned: clone what is to stay.
        compilable: False for a function that computes gradients, which torch.compile does not take.
    """

    def __init__(self, forward: Callable, running: Running, compilable: bool = True):
        self.forward = self.plain = forward
        self.running = running
        if running.compute.steps == "compiled" and compilable:
            mode = "reduce-overhead" if running.device.type == "cuda" else None  # with inductor's own CUDA graphs
            self.forward = torch.compile(forward, mode=mode, dynamic=False)

    def backward(self, *args, loss_of: Callable = lambda out: out):
        """Call `forward`, go backward from the loss that `loss_of` finds in its result, and return the result."""
        if self.running.compute.steps != "compiled" or self.forward is self.plain:
            return self._run(self.plain, args, loss_of)
        torch.compiler.cudagraph_mark_step_begin()
        try:
            return self._run(self.forward, args, loss_of)
        except (UserError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # errors of dynamo, of inductor, or for a missing compiler
            self.running.fall_back(error)
            return self._run(self.plain, args, loss_of)

    def _run(self, forward, args, loss_of):
        out = forward(*args)
        self.running.scaler.scale(loss_of(out)).backward()
        return out


@dataclass
class _Kind:
    """The calls of a step that can share a graph, and that graph with the tensors that it reads and writes."""

    moments: list[dict]
    calls: int = 0
    graph: "torch.cuda.CUDAGraph | None" = None
    inputs: list[Tensor] = field(default_factory=list)
    rates: list[Tensor] = field(default_factory=list)
    outputs: object = None


class Graphs:
    """A whole training step, losses, gradients and update, as CUDA graphs if the `Compute` says so.

    There is a graph for each kind of call: shapes, plain values and the mode. The first calls of a kind are ordinary
    steps on a side stream, as torch requires: they create what a graph must find (moments, cuDNN's choices). The next
    call captures the step, which computes nothing. That call and all later ones copy their tensors and the optimisers'
    rates to where the graph reads them, and replay the graph.

    Args:
        step: maps tensors, plain values and `optimizers` to tensors. Calls of a kind differ in these alone; `step`
            draws no random number and never waits for the device. The next call overwrites the tensors that this one
            returned: clone what is to stay.
        mode: returns what else decides which operations `step` does.
    """

    WARMUP = 3

    def __init__(self, step: Callable, running: Running, mode: Callable[[], Hashable]):
        self.step, self.running, self.mode = step, running, mode
        self._kinds: dict[tuple, _Kind] = {}
        self._pool = None  # one pool for all graphs: a graph's results are read before another graph runs

    def __call__(self, *args, optimizers: Sequence[torch.optim.Optimizer]):
        if self.running.compute.steps != "graphs":
            return self.step(*args, optimizers=optimizers)
        leaves, form = tree_flatten(args)
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        key = tuple((x.shape, x.stride(), x.dtype) if isinstance(x, Tensor) else x for x in leaves)
        key = (self.mode(), *key)
        kind, moments = self._kinds.get(key), [optimizer.state for optimizer in optimizers]
        if kind is None or any(old is not new for old, new in zip(kind.moments, moments, strict=True)):
            kind = self._kinds[key] = _Kind(moments)  # anew for other optimisers, and after a state was loaded
        kind.calls += 1
        if kind.calls <= self.WARMUP:
            return self._aside(args, optimizers)
        if kind.graph is None:
            kind.inputs = [tensor.clone() for tensor in tensors]
            static = iter(kind.inputs)
            args = tree_unflatten([next(static) if isinstance(x, Tensor) else x for x in leaves], form)
            try:
                self._capture(kind, args, optimizers)
            except UserError:
                raise
            except Exception as error:  # the step waits for the device, or does what a graph cannot
                self._kinds.clear()
                self.running.fall_back(error.__context__ or error)  # ending a capture that failed is a second error
                return self.step(*args, optimizers=optimizers)
        for graph_input, tensor in zip(kind.inputs, tensors, strict=True):
            graph_input.copy_(tensor)
        for rate, group in zip(kind.rates, _groups(optimizers), strict=True):
            rate.fill_(group["lr"])
        kind.graph.replay()
        return kind.outputs

    def _aside(self, args, optimizers):
        stream, main = torch.cuda.Stream(), torch.cuda.current_stream()
        stream.wait_stream(main)
        with torch.cuda.stream(stream):
            outputs = self.step(*args, optimizers=optimizers)
        main.wait_stream(stream)
        return outputs

    def _capture(self, kind: _Kind, args, optimizers) -> None:
        groups = _groups(optimizers)
        kind.rates = [torch.tensor(group["lr"], device=self.running.device) for group in groups]
        before, graph = [dict(group) for group in groups], torch.cuda.CUDAGraph()
        try:
            for group, rate in zip(groups, kind.rates, strict=True):
                group |= {"lr": rate, "capturable": True}
            with torch.cuda.graph(graph, pool=self._pool):
                kind.outputs = self.step(*args, optimizers=optimizers)
        finally:
            for group, entries in zip(groups, before, strict=True):  # numbers again, for schedules and saved states
                group.clear()
                group.update(entries)
        kind.graph, self._pool = graph, graph.pool()


def _groups(optimizers: Sequence[torch.optim.Optimizer]) -> list[dict]:
    return [group for optimizer in optimizers for group in optimizer.param_groups]
