"""Render environment.yml from pyproject.toml; with --check, only say whether it still matches."""

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FROM_CONDA = ("jupyterlab",)  # everything else comes by pip, so that one list of names serves both

HEADER = """\
# Rendered from pyproject.toml by `python .ci/environment.py`: do not edit.
# It was not tried with conda itself; the tried way is `make demo`.
"""


def render() -> str:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    [everything] = extras["all"]  # "nayer-kit[text,...]"
    chosen = re.search(r"\[(.+)\]", everything)[1].split(",")
    wanted = project["dependencies"] + [name for extra in chosen for name in extras[extra]]
    conda = [f"python{project['requires-python']}", "pip", *(name for name in wanted if name in FROM_CONDA)]
    pip = [*(name for name in wanted if name not in FROM_CONDA), "-e ."]
    lines = [f"name: {project['name']}", "channels:", "  - conda-forge", "dependencies:"]
    lines += [f"  - {name}" for name in conda] + ["  - pip:"] + [f"      - {name}" for name in pip]
    return HEADER + "\n".join(lines) + "\n"


def main() -> None:
    path = ROOT / "environment.yml"
    if sys.argv[1:] != ["--check"]:
        path.write_text(render(), encoding="utf-8")
    elif not path.is_file() or path.read_text(encoding="utf-8") != render():
        sys.exit("environment.yml differs from pyproject.toml: run `python .ci/environment.py`.")


if __name__ == "__main__":
    main()
