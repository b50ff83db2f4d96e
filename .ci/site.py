"""`make site`: copies README, docs and notebooks into build/site/source and has Sphinx make pages of them.

The copies differ from what is committed only where a page needs it: links to files lead to a page or a download. Every
warning is an error.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = (ROOT / "nayer_lib", ROOT / "notebooks" / "nayer_beyond", ROOT / "notebooks" / "nayer_notebooks")
NO_PAGE = ("__main__.py", "preload.py")  # they do something when they are imported
BADGE = re.compile(r"!\[Open in Colab\]\(https://[^)]+\)")
LOCAL_BADGE = "![Open this notebook in Colab](../colab-badge.svg)"
LINK = re.compile(r"(?<!!)\[([^]\[]*)\]\((?![a-z]+:|#)([^)\s#]+)((?:#[^)\s]*)?)\)")


class Source:
    """The folder that Sphinx reads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(ROOT / "docs", folder / "docs")
        shutil.copy(ROOT / "site" / "colab-badge.svg", folder)

    def write(self, name: str, text: str) -> None:
        (self.folder / name).parent.mkdir(exist_ok=True)
        (self.folder / name).write_text(text, encoding="utf-8")

    def linked(self, text: str, name: str) -> str:
        """The text of file `name` with links that hold on the site; other files that it links become downloads."""

        def replace(link: re.Match) -> str:
            words, address, anchor = link.groups()
            path = Path(os.path.normpath(Path(name).parent / address)).as_posix()
            if path == "README.md":
                return f"[{words}]({os.path.relpath('index.md', Path(name).parent)}{anchor})"
            if path.endswith(".py") and any((ROOT / path).is_relative_to(package) for package in PACKAGES):
                return f"{{py:mod}}`{words} <{module(ROOT / path)}>`"
            if (ROOT / path).is_file() and not path.endswith((".md", ".ipynb")):
                (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / path, self.folder / path)
            return link[0]

        return LINK.sub(replace, text)


def site_notebook(notebook: dict, source: Source, name: str) -> None:
    """Make a notebook, in place, what its page shows."""
    notebook.cells[1].metadata.setdefault("tags", []).append("remove-input")  # the bootstrap, for Colab alone
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = source.linked(BADGE.sub(LOCAL_BADGE, cell.source), name)


def teaching_order(paths: list[Path]) -> list[Path]:
    """As the README's table has them; a notebook without a row there comes last."""
    taught = re.findall(r"^\| \[(\d\d) ", (ROOT / "README.md").read_text(encoding="utf-8"), re.M)
    known = {number: place for place, number in enumerate(taught)}
    return sorted(paths, key=lambda path: (known.get(path.stem[:2], len(known)), path.name))


def toctree(caption: str, names: list[str]) -> str:
    return "\n".join(["", "```{toctree}", ":hidden:", f":caption: {caption}", "", *names, "```", ""])


def modules() -> list[Path]:
    """The files of the three packages that have a page."""
    found = [path for package in PACKAGES for path in sorted(package.rglob("*.py"))]
    return [path for path in found if path.name not in NO_PAGE and path.read_text()]


def module(path: Path) -> str:
    [package] = [package for package in PACKAGES if package in path.parents]
    return ".".join(part for part in path.relative_to(package.parent).with_suffix("").parts if part != "__init__")


def api_pages(table: str) -> dict[str, str]:
    """A page for each row of the table of docs/library.md, and one for the files that it leaves out."""
    left = modules()
    rows = re.findall(r"^\| (`[^|]+) \| ([^|]*) ?\| ([^|]+) \|$", table, re.M)
    pages = {}
    for title, paper, what in [*rows, ("The rest", "", "commands, files")]:
        names = re.findall(r"`([^`]+)`", title) or [""]
        folders = [Path(os.path.normpath(PACKAGES[0] / name)) for name in names]
        own = [path for folder in folders for path in left if path.is_relative_to(folder)]
        left = [path for path in left if path not in own]
        told = what[0].upper() + what[1:] + (f" ({paper.strip()})" if paper.strip() else "")
        text = [f"# {title.replace('`', '')}", "", f"{told}.", ""]
        for path in own:
            text += [f"## {module(path)}", "", "```{eval-rst}", f".. automodule:: {module(path)}", "```", ""]
        pages[f"api/{Path(names[0]).stem or 'rest'}"] = "\n".join(text)
    return pages


def copy(source: Source) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    pages = [path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "docs").rglob("*.md"))] + ["data/README.md"]
    for name in pages:
        source.write(name, source.linked((ROOT / name).read_text(encoding="utf-8"), name))
    notebooks = teaching_order(list((ROOT / "notebooks").glob("[0-9]*.ipynb")))
    for path in notebooks:
        notebook = nbformat.read(path, as_version=4)
        site_notebook(notebook, source, f"notebooks/{path.name}")
        source.write(f"notebooks/{path.name}", nbformat.writes(notebook))
    api = api_pages((ROOT / "docs" / "library.md").read_text(encoding="utf-8"))
    for name, text in api.items():
        source.write(f"{name}.md", text)
    front = source.linked(readme, "README.md")
    front += f"\nThe notebooks to write in: [{student_edition(source.folder)}](student.zip).\n"
    front += toctree("Notebooks", [f"notebooks/{path.stem}" for path in notebooks])
    front += toctree("Pages", [name.removesuffix(".md") for name in pages])
    front += toctree("The library", list(api))
    source.write("index.md", front)


def student_edition(folder: Path) -> str:
    """Pack the student's edition of the notebooks as student.zip; what a link to it says."""
    made = folder.with_name("course")
    subprocess.run([sys.executable, ROOT / ".ci" / "course.py", "--out", made], check=True, stdout=subprocess.DEVNULL)
    packed = Path(shutil.make_archive(str(folder / "student"), "zip", made / "student"))
    return f"the student's edition, {packed.stat().st_size // 1000} kB"


def build(source: Path, out: Path) -> int:
    """Sphinx's exit status: not 0 after any warning."""
    shutil.rmtree(out, ignore_errors=True)
    options = ["-W", "--keep-going", "-n", "-q", "-E", "-d", out.with_name("doctrees"), "-c", ROOT / "site"]
    return subprocess.call([sys.executable, "-m", "sphinx", *options, source, out])


def main() -> int:
    source = Source(ROOT / "build" / "site" / "source")
    copy(source)
    return build(source.folder, source.folder.with_name("html"))


if __name__ == "__main__":
    sys.exit(main())
