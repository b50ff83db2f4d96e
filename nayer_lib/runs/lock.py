"""One process a run folder: the system's lock, or where a file system has none a file that names its holder."""

import contextlib
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UserError

if TYPE_CHECKING:
    from filelock import BaseFileLock

LOCK = ".lock"


def lock(folder: Path) -> "BaseFileLock":
    """Hold a run folder, which is made if need be, for this process.

    The system lets go of its lock when the process ends, however it ends. On a file system without locks (Drive, some
    NFS and Lustre mounts) a file stands in for it, with a warning: a process that is killed there leaves it behind.

    Raises:
        UserError: another process holds it, or the folder cannot be written to.
    """
    from filelock import FileLock, SoftFileLock, Timeout

    path = Path(folder) / LOCK
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        found, lock = path.exists(), FileLock(path)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # for some errors it becomes a soft lock by itself
                lock.acquire(timeout=0)
        except (Timeout, PermissionError):
            raise
        except (OSError, NotImplementedError):
            if not found:
                path.unlink(missing_ok=True)  # what the system's lock left, and no holder's
            lock = SoftFileLock(path)
            lock.acquire(timeout=0)
    except Timeout as error:
        soft = isinstance(lock, SoftFileLock)
        told = (
            _holder(path) if soft else f"another process is running in {folder}: choose another folder, or wait for it."
        )
        raise UserError(told) from error
    except OSError as error:
        raise UserError(
            f"cannot write {folder}: {error.strerror or error}. Choose a folder you can write to."
        ) from error
    if isinstance(lock, SoftFileLock):
        warnings.warn(
            f"the file system of {folder} has no locks: {path} stands in for one; see to it that no other machine "
            "runs there.",
            stacklevel=3,
        )
    return lock


def unlock(lock: "BaseFileLock") -> None:
    """Let go of a folder, and take the lock's file away while nobody else can hold it."""
    with contextlib.suppress(OSError):  # a system may refuse that for an open file
        Path(lock.lock_file).unlink()
    with contextlib.suppress(OSError):
        lock.release()


def in_use(folder: Path) -> bool:
    """Whether a process of this machine is running in a folder; where a file stands in for a lock, always False."""
    from filelock import FileLock, Timeout

    path = Path(folder) / LOCK
    try:
        if path.is_symlink() or path.stat().st_size:
            return False
        with FileLock(path).acquire(timeout=0):
            return False
    except Timeout:
        return True
    except (OSError, NotImplementedError):
        return False


def _holder(path: Path) -> str:
    """What to say of a folder whose lock is a file."""
    age, lines = 0.0, []
    with contextlib.suppress(OSError):  # it may be gone by now
        age = max(0.0, time.time() - path.lstat().st_mtime) / 60
        lines = [] if path.is_symlink() else path.read_bytes()[:200].decode(errors="replace").splitlines()
    who = f"process {lines[0]} on {lines[1]}" if len(lines) > 1 else "a process that did not name itself"
    since = f"{age:.0f} minutes" if age < 120 else f"{age / 60:.0f} hours"
    return (
        f"{path.parent} has been locked by {who} for {since}: if that no longer runs, remove the lock, `rm '{path}'`; "
        "if it does, choose another folder."
    )
