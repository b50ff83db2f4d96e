"""What runs of a sweep are forked off: it has imported what takes long, and nothing that a fork would break."""

import json
import subprocess
import sys

import pytest

# Distils in a fork, as a sweep does; prints what was imported before and what only then, and what a fork would break.
SCRIPT = """
import json, os, sys
import nayer_lib.preload
import torch
from nayer_lib.cli import main
from nayer_lib.runs.launch import _command
from pathlib import Path
from tiny import tiny_config
start = set(sys.modules)
threads = len(os.listdir("/proc/self/task"))
if os.fork():
    os.wait()
else:
    main(_command(tiny_config(), Path(sys.argv[1]), "test", ())[3:])
    late = sorted(set(sys.modules) - start)
    found = {"threads": threads, "cuda": torch.cuda._is_in_bad_fork(), "start": len(start), "late": late}
    print(json.dumps(found))
"""


def python(code: str, *arguments, path) -> subprocess.CompletedProcess:
    code = f"import sys; sys.path.insert(0, {str(path)!r})\n{code}"
    return subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True)


@pytest.mark.slow
def test_a_run_finds_what_it_needs_and_nothing_that_a_fork_would_break(tmp_path, pytestconfig):
    done = python(SCRIPT, tmp_path / "run", path=pytestconfig.rootpath / "tests")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["threads"] == 1 and not found["cuda"]
    assert len(found["late"]) < found["start"] / 20, found["late"]


def test_ctrl_c_while_it_imports_is_not_told(tmp_path):
    """The sweep itself tells it."""
    (tmp_path / "sklearn.py").write_text("raise KeyboardInterrupt")
    done = python("import nayer_lib.preload", path=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
