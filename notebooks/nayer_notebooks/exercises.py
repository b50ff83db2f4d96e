"""What a learner writes is looked at: a result is checked with a hint, and one line of a function can be changed."""

import inspect
import linecache
import types
from collections.abc import Callable, Mapping

import torch

from nayer_lib.errors import UserError

SIGN, FEW = -1.0, 8  # the factor of a turned sign; as many numbers are shown one by one
LEFT_OUT = "not written yet, or not returned: fill in the lines marked TODO in the cell above, and run both cells."


class Wrong(AssertionError):
    """An exercise is not solved. A notebook shows one line of it, and no traceback."""

    def _render_traceback_(self) -> list[str]:
        return [str(self)]


def check(
    name: str, yours: object, expected: object, within: float = 1e-4, mistakes: Mapping[float, str] | None = None
) -> None:
    """Compare a learner's result with the library's: print both, or say what is wrong with a hint where one is known.

    Args:
        name: of what was computed, for the sentence.
        yours: a number, a word, or an array of numbers of any shape; None or ... where nothing was written.
        expected: the same from the library.
        within: the largest difference that counts for none, as a share of the largest expected number, or of 1.
        mistakes: factor -> what was done wrong where the result is too small by this factor.

    Raises:
        Wrong: it is not the expected one.
    """
    if yours is None or yours is ...:
        raise Wrong(LEFT_OUT)
    if isinstance(expected, str):
        if yours != expected:
            raise Wrong(f"{name}: yours is {yours!r}, expected {expected!r}.")
        print(f"{name}: right, {yours!r}")
        return
    theirs = torch.as_tensor(expected).detach().double().cpu()
    try:
        ours = torch.as_tensor(yours).detach().double().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise Wrong(f"{name}: yours is a {type(yours).__name__}; numbers are expected.") from error
    if ours.shape != theirs.shape:
        raise Wrong(f"{name}: yours has the shape {(*ours.shape,)}, expected {(*theirs.shape,)}.")
    allowed = within * max(1.0, theirs.abs().max().item())

    def equal(factor: float) -> bool:
        return bool((ours * factor - theirs).abs().max() <= allowed)

    told = f"yours {_short(ours)}, expected {_short(theirs)}"
    if equal(1.0):
        print(f"{name}: right ({told if ours.numel() <= FEW else f'all {ours.numel():,} numbers as expected'})")
        return
    known = {SIGN: "the sign is turned round", **(mistakes or {})}
    hints = [f" ({hint})" for factor, hint in known.items() if equal(factor)]
    if ((ours * theirs - 1).abs() <= within).all():
        hints.append(" (one over the expected)")
    if (ours.flatten().sort().values - theirs.flatten().sort().values).abs().max() <= allowed:
        hints.append(" (the right numbers in another order)")
    if ours.numel() > FEW:
        place = torch.unravel_index((ours - theirs).abs().argmax(), ours.shape)
        told += f"; most of all at {(*map(int, place),)}: {ours[place].item():.4g}, expected {theirs[place].item():.4g}"
    raise Wrong(f"{name}: {told}{hints[0] if hints else ''}.")


def _short(values: torch.Tensor) -> str:
    """A number, a few, or what a larger array is like."""
    if values.numel() > FEW:
        return f"{(*values.shape,)} numbers with mean {values.mean().item():.4g}"
    numbers = ", ".join(f"{value:.4g}" for value in values.flatten().tolist())
    return f"({numbers})" if values.ndim else numbers


def one_line(function: Callable, old: str, new: str) -> Callable:
    """The function with one line changed: `old`, which occurs once in its source, becomes `new`. Prints both lines.

    Raises:
        UserError: `old` occurs not once, or the changed source is no Python.
    """
    source = inspect.getsource(function)
    if (times := source.count(old)) != 1 or "\n" in old:
        raise UserError(f"{old!r} occurs {times} times: copy {'less' if not times else 'more'} of the one line.")
    changed = source.replace(old, new)
    [line] = [line for line in source.splitlines() if old in line]
    for mark, one in (("-", line), ("+", line.replace(old, new))):
        print(mark, " ".join(one.split()))
    name = f"<{function.__name__} with {new!r}>"
    try:
        code = compile(changed, name, "exec")
    except SyntaxError as error:
        raise UserError(f"the changed line is no Python: {error.msg}.") from error
    linecache.cache[name] = (len(changed), None, changed.splitlines(keepends=True), name)  # for `show` and tracebacks
    module = types.ModuleType(function.__module__)
    module.__dict__.update(function.__globals__)
    exec(code, module.__dict__)
    return getattr(module, function.__name__)
