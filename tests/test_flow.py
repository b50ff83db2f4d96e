"""Data flows down the library: a file imports only from files above it, and nothing heavy happens at import."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

LIBRARY = Path(__file__).resolve().parents[1] / "nayer_lib"

# In the paper's order. A package stands where its __init__ does; an empty __init__ is not listed.
ORDER = """
nayer_lib
errors files
text.labels text.prompts text.hub text.corpora text.encoders text.lte_pool
generator.noisy_layer generator.latents generator.networks generator.vae generator.coupled
base_config
classifiers.resnet classifiers.wide_resnet classifiers.vgg classifiers.mobilenet classifiers
classifiers.checkpoints classifiers.folding classifiers.quantised classifiers.teacher classifiers.check
compute steps ranks classifiers.training
image_files datasets augment losses memory evaluate geometry metrics
algorithm1
methods.base methods.terms methods.round methods.inversion methods.live
methods.nayer methods.fm methods.deepinv methods.cmi methods.dafl methods.zskt methods.dfq_choi methods.mad
methods.spaceship methods.dfad methods.replay methods.prekd methods.mbdfkd methods.kakr methods.nayer_plus methods.cpnet
methods.moments methods.equalisation methods.rounding methods.dfq_nagel methods.zeroq methods.zaq
methods.with_data methods
config checkpoint distill plots
runs.lock runs.interrupts runs.entries runs.card runs.measured runs.run
runs.rule runs.statistics runs.forecast runs.sweep runs.launch
report.paper report.embeddings report.lines report.ablations report.tables
exercises notebook demo cli.common cli.lte cli.teacher cli preload __main__
""".split()

HEAVY = "open_clip sentence_transformers gensim seaborn matplotlib pandas torchvision IPython".split()


def name_of(path: Path) -> str:
    parts = path.relative_to(LIBRARY).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__") or "nayer_lib"


PATHS = sorted(LIBRARY.rglob("*.py"))
FILES = {name_of(path): path for path in PATHS if path.name != "__init__.py" or path.read_text()}


def imports(name: str) -> set[str]:
    """The modules of this library that a module imports, wherever in the file the import stands."""
    package = FILES[name].parent.relative_to(LIBRARY.parent).parts  # ("nayer_lib", "text")
    found = set()
    for node in ast.walk(ast.parse(FILES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*start, *([node.module] if node.module else [])])
            for alias in node.names:
                module = f"{base}.{alias.name}"  # so for `from .text import labels`, not for names
                found.add(module if module.removeprefix("nayer_lib.") in FILES else base)
    ours = {module for module in found if module.split(".")[0] == "nayer_lib"}
    return {module.removeprefix("nayer_lib.") for module in ours} - {name}


def test_the_list_names_every_file_and_no_other():
    assert sorted(FILES) == sorted(ORDER)


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_file_imports_only_from_above_it(name):
    above = set(ORDER[: ORDER.index(name)])
    assert imports(name) <= above, f"{name} imports from below it: {sorted(imports(name) - above)}"


def test_nothing_heavy_is_imported_with_the_library():
    modules = [f"nayer_lib.{name}" for name in FILES if name not in ("nayer_lib", "preload", "__main__")]
    code = f"import sys, {', '.join(modules)}; print(*(name for name in {HEAVY} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not done.stdout.split()
