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
    """How a method's steps run: as its `Compute` says, until one cannot be compiled or captured; then eagerly, all.

    Args:
        what: whose steps these are: a later run of the same shares what was compiled, whatever its seed.

    Attributes:
        compute: as they really run.
        reason: why that is not as it was asked for; "".
        scaler: of the losses.
    """

    def __init__(self, compute: Compute, device: torch.device, what: Hashable):
        self.compute, self.device, self.reason = compute, device, ""
        self.scaler = compute.scaler(device)
        if compute.steps == "compiled":
            _forget_others(what)

    def fall_back(self, error: Exception) -> None:
        """Go on eagerly, with one warning."""
        self.reason = f"{self.compute.steps} steps failed ({type(error).__name__}: {error})"
        warnings.warn(f"{self.reason}: going on with eager ones.", stacklevel=4)
        self.compute = replace(self.compute, steps="eager")
        scale, self.scaler = self.scaler.state_dict(), self.compute.scaler(self.device)  # the old one is in mid-step
        self.scaler.load_state_dict(scale)


@functools.lru_cache(maxsize=1)  # so that it does nothing where it was called for the same thing last
def _forget_others(what: Hashable) -> None:
    """torch.compile bounds a function's variants, and those of other methods and configs count."""
    torch.compiler.reset()


class Step:
    """The function whose gradient a training step follows, compiled if asked for.

    Args:
        forward: of tensors and plain values to tensors. What it returns is overwritten by the next call when compiled
            for CUDA: clone what is to stay.
        compilable: False leaves it as it is: torch.compile takes no function that asks for gradients.
    """

    def __init__(self, forward: Callable, running: Running, compilable: bool = True):
        self.forward = self.plain = forward
        self.running = running
        if running.compute.steps == "compiled" and compilable:
            mode = "reduce-overhead" if running.device.type == "cuda" else None  # with inductor's own CUDA graphs
            self.forward = torch.compile(forward, mode=mode, dynamic=False)

    def backward(self, *args, loss_of: Callable = lambda out: out):
        """Call it, and backward through the loss that `loss_of` finds in what it returns; returns that."""
        if self.running.compute.steps != "compiled" or self.forward is self.plain:
            return self._run(self.plain, args, loss_of)
        torch.compiler.cudagraph_mark_step_begin()
        try:
            return self._run(self.forward, args, loss_of)
        except (UserError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # dynamo's, inductor's, a missing compiler's
            self.running.fall_back(error)
            return self._run(self.plain, args, loss_of)

    def _run(self, forward, args, loss_of):
        out = forward(*args)
        self.running.scaler.scale(loss_of(out)).backward()
        return out


@dataclass
class _Kind:
    """The calls of a step that one graph can serve, and that graph with the tensors that it reads and writes."""

    moments: list[dict]
    calls: int = 0
    graph: "torch.cuda.CUDAGraph | None" = None
    inputs: list[Tensor] = field(default_factory=list)
    rates: list[Tensor] = field(default_factory=list)
    outputs: object = None


class Graphs:
    """A whole training step, losses, gradients and update, as CUDA graphs where that is asked for.

    There is a graph for each kind of call: shapes, plain values and the mode. The first calls of a kind are ordinary
    steps on a side stream, as torch asks for: what a graph must find in place (moments, cuDNN's choices) is there then.
    The next is captured, in which nothing runs; it and all that follow copy their tensors and the optimisers' rates to
    where the graph reads them, and replay it.

    Args:
        step: of tensors, plain values and `optimizers` to tensors. All that differs from one call to the next of a
            kind enters through these; it draws no random number and never waits for the device. What it returns is
            overwritten by the next call: clone what is to stay.
        mode: what else decides which operations it does.
    """

    WARMUP = 3

    def __init__(self, step: Callable, running: Running, mode: Callable[[], Hashable]):
        self.step, self.running, self.mode = step, running, mode
        self._kinds: dict[tuple, _Kind] = {}
        self._pool = None  # one for all: what a graph returns is read before another one runs

    def __call__(self, *args, optimizers: Sequence[torch.optim.Optimizer]):
        if self.running.compute.steps != "graphs":
            return self.step(*args, optimizers=optimizers)
        leaves, form = tree_flatten(args)
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        key = tuple((x.shape, x.stride(), x.dtype) if isinstance(x, Tensor) else x for x in leaves)
        key = (self.mode(), *key)
        kind, moments = self._kinds.get(key), [optimizer.state for optimizer in optimizers]
        if kind is None or any(mine is not given for mine, given in zip(kind.moments, moments, strict=True)):
            kind = self._kinds[key] = _Kind(moments)  # anew for other optimisers, and where a state was loaded
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
            except Exception as error:  # whatever waits for the device, or has no place in a graph
                self._kinds.clear()
                self.running.fall_back(error.__context__ or error)  # ending a capture that failed is a second error
                return self.step(*args, optimizers=optimizers)
        for mine, given in zip(kind.inputs, tensors, strict=True):
            mine.copy_(given)
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
