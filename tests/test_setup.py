"""Ways to set the kit up that the other tests do not take: without CUDA, and on Colab."""

import json
import os
import re
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
VERSIONS = dict(re.findall(r"^(torch|torchvision)==([\w.]+)", (ROOT / "constraints.txt").read_text(), re.M))
CUDA = re.compile(r"nvidia|cuda|triton")


def stand_in(folder: Path, name: str, version: str) -> None:
    """A wheel of torch or torchvision without any code: only its name and version count."""
    folder.mkdir(exist_ok=True)
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}/__init__.py", "")
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


def run(*command, **options) -> subprocess.CompletedProcess:
    return subprocess.run([*map(str, command)], capture_output=True, text=True, **options)


def made(tmp_path: Path, backend: str) -> subprocess.CompletedProcess:
    """`make demo` up to the end of its set-up, with a Python whose pip and uv fail and say what they were asked."""
    (tmp_path / "python").write_text(
        '#!/bin/sh\ncase "$*" in "-m venv .venv") mkdir -p .venv/bin; cp "$0" .venv/bin/python;; '
        '*pip*) echo "pip: $*" >&2; exit 1;; esac\n'
    )
    (tmp_path / "python").chmod(0o755)
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    environment = {k: x for k, x in os.environ.items() if k != "UV_TORCH_BACKEND"}
    environment |= {"UV_TORCH_BACKEND": backend} if backend else {}
    return run("make", "demo", f"PYTHON={tmp_path / 'python'}", cwd=tmp_path, env=environment)


def test_without_uv_pip_sets_up_but_not_what_was_to_be_spared(tmp_path):
    (tmp_path / "plain").mkdir()
    plain = made(tmp_path / "plain", "")
    assert "a download of 3.3 GB" in plain.stdout and "UV_TORCH_BACKEND=cpu in front of make" in plain.stdout
    assert plain.stderr.count("pip: -m pip install") == 2  # uv, and the kit
    (tmp_path / "cpu").mkdir()
    cpu = made(tmp_path / "cpu", "cpu")
    assert cpu.returncode != 0 and "PyTorch is the build for cpu" in cpu.stdout and "3.3 GB" not in cpu.stdout
    assert cpu.stderr.count("pip: -m pip install") == 1 and "pip does not know UV_TORCH_BACKEND" in cpu.stdout
    assert not (tmp_path / "cpu" / ".venv" / ".installed").exists()


@pytest.mark.slow
def test_builds_of_torch_without_cuda_fit_the_constraints_and_bring_no_cuda(tmp_path):
    """Stand-ins for the builds of PyTorch's own index; the rest is resolved against the index of this machine."""
    uv = Path(sys.executable).with_name("uv")
    if not uv.is_file():
        pytest.skip("uv is not in this environment")
    command = [uv, "pip", "compile", "--quiet", ROOT / "pyproject.toml", "--all-extras", "-c", ROOT / "constraints.txt"]
    with_cuda = run(*command)
    assert with_cuda.returncode == 0, with_cuda.stderr
    for name, version in VERSIONS.items():
        stand_in(tmp_path / "wheels", name, f"{version}+cpu")
    without = run(*command, "--find-links", tmp_path / "wheels")
    assert without.returncode == 0, without.stderr
    assert f"torch=={VERSIONS['torch']}+cpu" in without.stdout
    assert not CUDA.search(without.stdout)
    if sys.platform == "linux":
        assert CUDA.search(with_cuda.stdout)


# --- Colab


def bootstrap(place: Path) -> str:
    """The second cell of notebook 04, with another folder in place of /content, on what calls itself Colab."""
    cells = json.loads((ROOT / "notebooks" / "04_data_free_distillation.ipynb").read_text(encoding="utf-8"))["cells"]
    cell = "".join(cells[1]["source"]).replace("/content", str(place))
    return f"import sys, types\nsys.modules['google.colab'] = types.ModuleType('google.colab')\n{cell}\n"


def executed(python: Path | str, place: Path, url: str, code: str = "") -> subprocess.CompletedProcess:
    """Run the cell, and code after it, as IPython does."""
    (place / "cell.ipy").write_text(bootstrap(place) + code)
    environment = {**os.environ, "NAYER_KIT_URL": url, "IPYTHONDIR": str(place / "ipython")}
    return run(python, "-m", "IPython", place / "cell.ipy", env=environment, cwd=place)


def test_colab_without_the_repositorys_address_says_how_to_upload_the_kit(tmp_path):
    done = executed(sys.executable, tmp_path, str(tmp_path / "no-such-repository"))
    assert f"cannot be reached: upload the kit to {tmp_path}/kit" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr and not (tmp_path / "kit").exists()


@pytest.mark.slow
def test_colab_gets_the_kit_and_keeps_its_torch(tmp_path):
    """A fresh environment with a torch of its own; installs the extra `text` from the index of this machine."""
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    for name, version in VERSIONS.items():
        stand_in(tmp_path / "wheels", name, f"{version}+colab")
    wheels = sorted((tmp_path / "wheels").iterdir())
    installed = run(python, "-m", "pip", "install", "-q", "ipython", "numpy", *wheels)
    assert installed.returncode == 0, installed.stderr
    run("git", "clone", "-q", "--bare", ROOT, tmp_path / "kit.git")
    code = """
from importlib.metadata import version
from importlib.util import find_spec
print("torch", version("torch"), find_spec("nayer_lib").origin, find_spec("open_clip") is not None)
"""
    done = executed(python, tmp_path, str(tmp_path / "kit.git"), code)
    expected = f"torch {VERSIONS['torch']}+colab {tmp_path}/kit/nayer_lib/__init__.py True"
    assert expected in done.stdout, done.stdout + done.stderr
