"""The lists of dependencies, the version and the two commands stand in several files: here they are held together."""

import ast
import re
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import nayer_lib

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PACKAGE_OF = {"IPython": "ipython", "PIL": "pillow", "open_clip": "open-clip-torch", "sklearn": "scikit-learn"}
BY_TORCH = {"pillow"}  # torchvision cannot be had without it


def plain(requirement: str) -> str:
    """`Open_Clip.torch>=2` -> `open-clip-torch`."""
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()


def declared() -> set[str]:
    extras = PROJECT["optional-dependencies"]
    return {plain(name) for group in (PROJECT["dependencies"], *extras.values()) for name in group} - {"nayer-kit"}


def third_party_imports() -> set[str]:
    found = set()
    for path in (*(ROOT / "nayer_lib").rglob("*.py"), *(ROOT / "notebooks").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add(node.module.split(".")[0])
    return {plain(PACKAGE_OF.get(name, name)) for name in found - sys.stdlib_module_names - {"nayer_lib"}}


def test_every_import_is_declared():
    assert third_party_imports() - BY_TORCH <= declared()


def test_environment_yml_is_rendered_from_pyproject():
    check = [sys.executable, ROOT / ".ci" / "environment.py", "--check"]
    done = subprocess.run(check, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_ray_is_for_those_who_ask_for_it():
    [everything] = PROJECT["optional-dependencies"]["all"]
    assert "ray" in PROJECT["optional-dependencies"] and "ray" not in everything
    assert "- ray\n" not in (ROOT / "environment.yml").read_text()


def test_constraints_pin_every_direct_dependency_and_name_no_address():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    for line in lines:
        assert re.fullmatch(r"[\w.-]+==[\w.]+( ; .+)?", line) and "://" not in line, line
    assert declared() <= {plain(line) for line in lines}


def test_the_version_is_the_same_everywhere():
    assert PROJECT["dynamic"] == ["version"]  # read from nayer_lib.__version__
    assert re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(), re.M)[1] == nayer_lib.__version__


def test_ci_runs_make_test_and_nothing_else():
    lines = [line for line in (ROOT / ".ci" / "run").read_text().splitlines() if re.search(r"\bmake\b|pytest", line)]
    assert lines == ["exec make test"]


@pytest.mark.parametrize("command", ["make demo", "make test"])
def test_readme_names_the_two_commands(command):
    assert command in (ROOT / "README.md").read_text()


def test_tests_reach_no_other_machine():
    with pytest.raises(RuntimeError, match="without network"):
        socket.create_connection(("example.org", 80), timeout=1)
    with socket.socket() as sock, pytest.raises(RuntimeError, match="without network"):
        sock.connect(("192.0.2.1", 80))
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        assert client.getpeername() == server.getsockname()
