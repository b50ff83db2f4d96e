"""A run folder has one process at a time, on any file system, and a lock that is left behind says how to go on."""

import errno
import os
import warnings

import pytest
from tiny import tiny_setup

from nayer_lib.errors import UserError
from nayer_lib.runs.lock import LOCK, in_use, lock, unlock
from nayer_lib.runs.run import Run

fcntl = pytest.importorskip("fcntl", reason="locks of this system are others")


@pytest.fixture(params=[errno.EOPNOTSUPP, errno.ENOLCK, errno.ENOSYS, errno.EINVAL])
def no_flock(request, monkeypatch):
    """A file system without locks, as Drive, Lustre or NFS can be."""

    def flock(descriptor, how):
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", flock)


def test_a_folder_has_one_holder_and_is_free_again(tmp_path):
    held = lock(tmp_path / "run")
    assert in_use(tmp_path / "run")
    with pytest.raises(UserError, match="another process is running in"):
        lock(tmp_path / "run")
    unlock(held)
    assert list((tmp_path / "run").iterdir()) == [] and not in_use(tmp_path / "run")
    unlock(lock(tmp_path / "run"))


def test_without_locks_a_run_goes_on_with_one_warning_and_leaves_nothing(no_flock, tmp_path):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        list(Run(tiny_setup(), tmp_path / "run"))
    assert ["has no locks" in str(warning.message) for warning in caught] == [True]
    assert not (tmp_path / "run" / LOCK).exists()


def test_without_locks_the_holder_is_named(no_flock, tmp_path):
    with pytest.warns(UserWarning, match="has no locks"):
        held = lock(tmp_path)
    with pytest.raises(UserError, match=rf"locked by process {os.getpid()} on .* for 0 minutes"):
        lock(tmp_path)
    assert not in_use(tmp_path)  # it cannot be told: `lock` says what to do
    unlock(held)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "told"), [("99999\ngone-machine\n", "process 99999 on gone-machine"), ("", "a process that did not name")]
)
def test_a_lock_that_is_left_behind_says_whose_it_was_and_how_to_remove_it(text, told, no_flock, tmp_path):
    path = tmp_path / LOCK
    path.write_text(text)
    os.utime(path, (0, path.stat().st_mtime - 5 * 3600))
    with pytest.raises(UserError, match=rf"{told}.* for 5 hours: .*remove the lock, `rm '{path}'`") as raised:
        lock(tmp_path)
    assert str(raised.value).count("\n") == 0 and path.read_text() == text


def test_a_lock_that_is_a_link_is_not_followed(tmp_path):
    (tmp_path / "precious").write_text("mine")
    (tmp_path / LOCK).symlink_to(tmp_path / "precious")
    with pytest.raises(UserError, match="remove the lock"):
        lock(tmp_path)
    assert (tmp_path / "precious").read_text() == "mine" and not in_use(tmp_path)
