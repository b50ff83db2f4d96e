"""`make notebooks`: renders the shared parts of each notebook, executes it in the quick profile, writes its outputs.

Shared parts are the Colab badge, the links to what comes before and after, the stated time and the bootstrap cell: the
repository's address comes from pyproject.toml, the order of teaching from README.md, the paper's address from
data/references.csv, the times from data/times.json, which this script measures. 00 has a table of all times. `--check`
executes nothing and fails when a notebook's shared parts differ from what would be rendered. Names after the options
choose notebooks (default: all).
"""

import argparse
import csv
import json
import os
import re
import sys
import time
import tomllib
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[1]
TIMES = ROOT / "data" / "times.json"
ADDRESS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]
BADGE, GO, TIME = "[![Open in Colab]", "**Go to**:", "**Time**:"
TABLE = "| notebook | measured time |\n|---|---|"
CODE = f"""import sys

if "google.colab" in sys.modules:  # elsewhere this cell does nothing
    import os
    from importlib.metadata import version

    url = os.environ.get("NAYER_KIT_URL", "{ADDRESS}")
    !test -d /content/kit || GIT_TERMINAL_PROMPT=0 git clone -q {{url}} /content/kit
    if not os.path.isdir("/content/kit"):
        sys.exit(f"{{url}} cannot be reached: upload the kit to /content/kit and run this cell again.")
    keep = " ".join(f"{{name}}=={{version(name)}}" for name in ("torch", "torchvision", "numpy"))
    %pip install -q -e "/content/kit[text]" {{keep}}
    %cd -q /content/kit/notebooks
    sys.path += ["/content/kit", "/content/kit/notebooks"]"""


def stated(seconds: dict) -> str:
    """One line of times a notebook: what was measured, and "not measured" for the rest."""
    profiles = [p for p in ("quick", "hour", "lab", "full") if p != "hour" or p in seconds]  # a profile of notebook 04
    told = [f"{p} {seconds[p]}" if p in seconds else f"{p} not measured" for p in profiles]
    return f"{TIME} " + " · ".join(told) + "."


def taught() -> list[str]:
    """Names of the notebooks' files in the order in which they are taught."""
    return re.findall(r"^\| \[\d\d .*?\]\(notebooks/([^)]+)\)", (ROOT / "README.md").read_text(), re.M)


def measured(times: dict) -> str:
    """A table of all notebooks and their times."""
    rows = [TABLE]
    for name in taught():
        title = nbformat.read(ROOT / "notebooks" / name, as_version=4).cells[0].source.splitlines()[0]
        told = " · ".join(f"{p} {seconds}" for p, seconds in times.get(name.removesuffix(".ipynb"), {}).items())
        rows.append(f"| [{title.removeprefix('# ')}]({name}) | {told or 'not measured'} |")
    return "\n".join(rows)


def ways(path: Path) -> str:
    """A line of links: the notebooks before and after this one as they are taught, the glossary, the paper."""
    order = taught()
    with open(ROOT / "data" / "references.csv", encoding="utf-8", newline="") as file:
        paper = next(row["address"] for row in csv.DictReader(file) if row["key"] == "nayer")
    place = order.index(path.name)
    links = {}
    if place > 0:
        links[f"previous: {order[place - 1][:2]}"] = order[place - 1]
    if place + 1 < len(order):
        links[f"next: {order[place + 1][:2]}"] = order[place + 1]
    links |= {"glossary": "../docs/glossary.md", "paper": paper}
    return f"{GO} " + " · ".join(f"[{words}]({address})" for words, address in links.items())


def render(path: Path, notebook: nbformat.NotebookNode, times: dict) -> None:
    """Put badge, links and time into the first cell, the bootstrap code into the second, all times into 00's table."""
    head, boot = notebook.cells[:2]
    blocks = head.source.split("\n\n")
    blocks = [b for b in blocks if not b.startswith((BADGE, GO, TIME))]
    place = ADDRESS.removeprefix("https://github.com/")
    colab = f"https://colab.research.google.com/github/{place}/blob/main/notebooks/{path.name}"
    badge = f"{BADGE}(https://colab.research.google.com/assets/colab-badge.svg)]({colab})"
    blocks[1:1] = [badge, ways(path)]
    head.source = "\n\n".join([*blocks, stated(times.get(path.stem, {}))])
    boot.source = CODE
    for cell in notebook.cells:
        if cell.source.startswith(TABLE):
            cell.source = measured(times)


def execute(path: Path, notebook: nbformat.NotebookNode) -> float:
    """Run all cells from the top; returns seconds. Outputs stay, timestamps and widget states do not."""
    from nbconvert.preprocessors import ExecutePreprocessor

    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    start = time.perf_counter()
    how = {"timeout": 900, "kernel_name": "python3", "record_timing": False, "store_widget_state": False}
    runner = ExecutePreprocessor(**how, coalesce_streams=True)  # lines that are flushed one by one are one output
    runner.preprocess(notebook, {"metadata": {"path": str(path.parent)}})
    notebook.metadata = {
        key: notebook.metadata[key] for key in ("accelerator", "kernelspec") if key in notebook.metadata
    } | {"language_info": {"name": "python"}}
    return time.perf_counter() - start


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    parser.add_argument("names", nargs="*", help="beginnings of notebook names, e.g. 04")
    arguments = parser.parse_args()
    times = json.loads(TIMES.read_text()) if TIMES.is_file() else {}
    everything = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
    chosen = [path for path in everything if path.name.startswith(tuple(arguments.names) or "")]
    if not chosen:
        sys.exit(f"no notebook's name begins with {' or '.join(arguments.names)}: take two digits, as 04.")
    for path in [] if arguments.check else chosen:
        notebook = nbformat.read(path, as_version=4)
        os.environ.update(NAYER_PROFILE="quick", CI="1", JUPYTER_PREFER_ENV_PATH="1")
        render(path, notebook, times)
        seconds = execute(path, notebook)
        times.setdefault(path.stem, {})["quick"] = f"{5 * round(seconds / 5 + 0.5)} s on {os.cpu_count()} CPU cores"
        TIMES.write_text(json.dumps(times, indent=1) + "\n")
        nbformat.write(notebook, path)
        print(f"{path.name}: {seconds:.0f} s")
    for path in chosen if arguments.check else everything:  # a new time stands in 00, too
        notebook = nbformat.read(path, as_version=4)
        before = [cell.source for cell in notebook.cells]
        render(path, notebook, times)
        if before == [cell.source for cell in notebook.cells]:
            continue
        if arguments.check:
            print(f"{path.name}: badge, links, a time or the bootstrap cell is not what `make notebooks` renders.")
            return 1
        nbformat.write(notebook, path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
