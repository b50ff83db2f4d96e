"""Errors that a user can correct: one sentence each, which says what to do."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """An error that the user can correct. The command line prints the sentence and nothing else."""


class MissingFile(UserError, FileNotFoundError):
    """A file that has to be made, downloaded or named first."""


def unknown(kind: str, name: object, known: Iterable[object]) -> UserError:
    """The error for a name that is not in a list: its sentence has the nearest name and then all names."""
    known = [str(choice) for choice in known]
    lower = {choice.lower(): choice for choice in known}
    near = difflib.get_close_matches(str(name).lower(), lower, n=1, cutoff=0.0)
    hint = f" Did you mean {lower[near[0]]!r}?" if near else ""
    return UserError(f"unknown {kind} {name!r}.{hint} Known: {', '.join(known)}.")
