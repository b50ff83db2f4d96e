"""What every test runs under: no network, one thread, and nothing written into the clone."""

import atexit
import copy
import ipaddress
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

WORKER = os.environ.get("PYTEST_XDIST_WORKER", "main")

# Set at import, because notebook kernels inherit the environment as it is when they start. Workers of pytest-xdist
# share the folder that the first process made.
if WORKER == "main":
    os.environ["NAYER_TEST_TMP"] = tempfile.mkdtemp(prefix="nayer-test-")
    atexit.register(shutil.rmtree, os.environ["NAYER_TEST_TMP"], ignore_errors=True)
TEMPORARY = Path(os.environ["NAYER_TEST_TMP"])
os.environ["NAYER_RUNS"] = str(TEMPORARY / WORKER / "runs")
os.environ["NAYER_DATASETS"] = str(TEMPORARY / "datasets")
os.environ["NAYER_PROFILE"] = "quick"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"  # torch reads it when it is first imported


def is_local(host) -> bool:
    if host is None or str(host) in ("", "localhost"):
        return True
    try:
        address = ipaddress.ip_address(str(host))
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified  # unspecified: what a server here listens on


@pytest.fixture(scope="session", autouse=True)
def nothing_measured():
    """A CPU computes plainly: what it would be faster with is no test's business but test_compute's."""
    from nayer_lib import compute

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compute, "_measured", compute.Compute)
        yield


@pytest.fixture(scope="session", autouse=True)
def no_network():
    """Looking up or connecting to another machine raises; loopback and unix sockets stay (kernels, pytest-xdist)."""

    def guard(original, host_of):
        def guarded(*args, **kwargs):
            host = host_of(*args, **kwargs)
            if not is_local(host):
                raise RuntimeError(f"a test tried to reach {host}: tests run without network, use a file or a fake.")
            return original(*args, **kwargs)

        return guarded

    def peer(sock, address):
        return address[0] if sock.family in (socket.AF_INET, socket.AF_INET6) else None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guard(socket.socket.connect, peer))
        patch.setattr(socket.socket, "connect_ex", guard(socket.socket.connect_ex, peer))
        patch.setattr(socket, "getaddrinfo", guard(socket.getaddrinfo, lambda host, *_, **__: host))
        yield


@pytest.fixture(autouse=True)
def no_windows(monkeypatch):
    """Figures open no window. Not set for the whole session: notebook kernels want their inline backend."""
    monkeypatch.setenv("MPLBACKEND", "Agg")


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real data (CIFAR-10, third-party teachers, label embeddings), where there is one."""
    folder = os.environ.get("NAYER_TEST_DATA")
    if not folder:
        pytest.skip("real data: NAYER_TEST_DATA is not set")
    return Path(folder)


@pytest.fixture
def clone(tmp_path, monkeypatch) -> Path:
    """A folder with data/, README.md and runs/ of its own."""
    from tiny import copy_data

    monkeypatch.setenv("NAYER_DATA", str(copy_data(tmp_path)))
    monkeypatch.setenv("NAYER_RUNS", str(tmp_path / "runs"))
    return tmp_path


@pytest.fixture(scope="session")
def cifar10_folder(test_data, tmp_path_factory) -> Path:
    """A folder with cifar-10-batches-py, rebuilt bit by bit from the shards at hand; takes a while."""
    shards, out = test_data / "cifar10", tmp_path_factory.mktemp("cifar10")
    done = subprocess.run([sys.executable, shards / "rebuild_cifar10.py", shards, out], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture
def card() -> dict:
    """A finished run of the quick profile on digits, as it was kept."""
    from tiny import clone_cards

    from nayer_lib.config import make_config
    from nayer_lib.runs.card import card_config
    from nayer_notebooks.statistics import seedless

    return copy.deepcopy(next(card for card in clone_cards() if seedless(card_config(card)) == make_config("digits")))
