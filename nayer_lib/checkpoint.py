"""Exact resume: the state with which a run goes on as if it had never stopped.

Two files beside the run card. `state.pt` is small, is replaced as a whole, and holds nothing but tensors and plain
values (it is read with weights_only). `memory.bin` holds every row of the memory M once and only grows: saving appends
the rows made since the last save. Rows are appended before the state that counts them is replaced, so a kill leaves the
old state or the new one.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from .errors import UserError
from .files import check_no_link, load_torch, save_torch
from .methods.base import Method

VERSION = 3
STATE, IMAGES = "state.pt", "memory.bin"
AGAIN = "run without resume to start again, in another folder"


class Checkpoint:
    """The resumable state of one run.

    Args:
        folder: the run folder.
    """

    def __init__(self, folder: Path):
        self.state, self.images = Path(folder) / STATE, Path(folder) / IMAGES
        self._rows = 0  # rows of the file that the state counts
        self._added = 0  # rows added to the memory up to the last save

    def save(self, method: Method, progress: dict) -> None:
        """Save a method between two epochs, and the run's `progress` (plain values).

        Raises:
            UserError: the folder cannot be written, or is full; the last saved state stays, whole.
        """
        check_no_link(self.images)
        state = method.state_dict()
        memory = state["memory"]
        columns = [*memory.pop("rows"), memory.pop("labels"), memory.pop("rounds")]
        fresh = min(memory["added"] - self._added, len(columns[-1]))
        first = len(columns[-1]) - fresh
        record = np.empty(fresh, _record(columns[:-2]))
        for name, column in zip(record.dtype.names, columns, strict=True):
            record[name] = column[first:].cpu().numpy()
        try:
            with open(self.images, "r+b" if self._rows else "wb") as file:
                file.truncate(self._rows * record.itemsize)  # drops the rows of an interrupted save
                file.seek(0, os.SEEK_END)
                file.write(record.tobytes())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise UserError(f"cannot write {self.images}: {error.strerror}. The last saved state is whole.") from error
        saved = {"version": VERSION, "method": state, "rows": self._rows + fresh, "progress": progress}
        save_torch(self.state, saved)
        self._rows, self._added = self._rows + fresh, memory["added"]

    def load(self, method: Method, saved: dict) -> None:
        """Load the saved state into a method that was built with the same arguments.

        Args:
            saved: from `read`.

        Raises:
            UserError: a memory file without its images or that is a link, or a state of something else.
        """
        check_no_link(self.images)
        kind = _record(method.memory.rows)
        try:
            state = saved["method"]
            held = min(saved["rows"], state["memory"]["capacity"] or saved["rows"])
            with open(self.images, "rb") as file:
                found = os.fstat(file.fileno()).st_size // kind.itemsize
                if found < saved["rows"]:
                    raise UserError(f"{self.images} is cut short, {found} images of {saved['rows']}; {AGAIN}.")
                file.seek((saved["rows"] - held) * kind.itemsize)
                record = np.fromfile(file, kind, held)
            *rows, labels, rounds = (torch.from_numpy(record[name].copy()) for name in kind.names)
            state["memory"] |= {"rows": rows, "labels": labels.long(), "rounds": rounds.long()}
            method.load_state_dict(state)
            self._rows, self._added = saved["rows"], state["memory"]["added"]
        except UserError:
            raise
        except OSError as error:
            raise UserError(f"cannot read {self.images}: {error.strerror}; {AGAIN}.") from error
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise UserError(f"{self.state} does not fit this run ({type(error).__name__}); {AGAIN}.") from error

    def exists(self) -> bool:
        """Whether a state was ever saved here."""
        return self.state.is_file()

    def read(self) -> dict:
        """The content of the state file; the run's `progress` stands under "progress".

        Raises:
            UserError: the file is cut short, or of another version.
        """
        try:
            saved = load_torch(self.state)
        except UserError as error:
            raise UserError(f"{self.state} is not a whole state of a run; {AGAIN}.") from error
        version = saved.get("version") if isinstance(saved, dict) else None
        if version != VERSION:
            raise UserError(
                f"{self.state} was saved by another version of the kit ({version}, not {VERSION}); {AGAIN}."
            )
        progress = saved.get("progress")
        if not isinstance(progress, dict) or not {"card", "seconds", "rounds"} <= progress.keys():
            raise UserError(f"{self.state} holds no run's progress; {AGAIN}.")
        return saved

    def remove(self) -> None:
        """Remove the files of a finished run."""
        self.state.unlink(missing_ok=True)
        self.images.unlink(missing_ok=True)


def _record(rows: Sequence[torch.Tensor]) -> np.dtype:
    """The format of a row in the file: its tensors (e.g. pixels), its pseudo-label, and the round that made the row."""
    tensors = [(f"row{i}", column[:0].cpu().numpy().dtype, tuple(column.shape[1:])) for i, column in enumerate(rows)]
    return np.dtype([*tensors, ("label", "<i4"), ("round", "<i4")])
