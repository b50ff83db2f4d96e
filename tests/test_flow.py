"""Data flows down the library: a file imports only from files above it, and nothing heavy happens at import.

`nayer_beyond`, methods beyond Table 1, and `nayer_notebooks`, which shows what all of them make, stand below.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from nayer_lib.errors import UserError
from nayer_lib.methods import METHODS

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = (ROOT / "nayer_lib", ROOT / "notebooks" / "nayer_beyond", ROOT / "notebooks" / "nayer_notebooks")

# In the paper's order. A package stands where its __init__ does; an empty __init__ is not listed.
LIBRARY = """
nayer_lib
errors files lazy
text.labels text.prompts text.hub text.corpora text.encoders text.lte_pool text.released
generator.noisy_layer generator.latents generator.networks generator.vae
base_config
classifiers.resnet classifiers.wide_resnet classifiers.vgg classifiers
classifiers.checkpoints classifiers.folding classifiers.teacher classifiers.judge
classifiers.check
compute steps ranks classifiers.training
image_files datasets augment losses memory evaluate metrics
algorithm1
methods.base methods methods.terms methods.round methods.inversion methods.live
methods.nayer methods.fm methods.deepinv methods.cmi methods.dafl methods.zskt methods.dfq_choi
methods.mad methods.spaceship methods.dfad methods.replay methods.prekd methods.mbdfkd methods.kakr
config checkpoint distill
runs.lock runs.interrupts runs.entries runs.card runs.new_card runs.measured runs.run
runs.forecast runs.sweep runs.launch
cli.common cli.lte cli.teacher cli preload __main__
"""
BEYOND = """
nayer_beyond with_data mobilenet quantised moments equalisation rounding dfq_nagel zeroq zaq
noise procedural coupled views cpnet nayer_plus ta_dfkd black_box stealing
"""
NOTEBOOKS = "pace geometry embeddings paper rule statistics lines ablations tables plots exercises display demo"
ORDER = [f"nayer_lib.{name}".removesuffix(".nayer_lib") for name in LIBRARY.split()]
ORDER += [f"nayer_beyond.{name}".removesuffix(".nayer_beyond") for name in BEYOND.split()]
ORDER += [f"nayer_notebooks.{name}" for name in NOTEBOOKS.split()]

HEAVY = "open_clip sentence_transformers gensim seaborn matplotlib pandas torchvision IPython".split()


def name_of(path: Path, package: Path) -> str:
    parts = path.relative_to(package.parent).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


PATHS = [(path, package) for package in PACKAGES for path in sorted(package.rglob("*.py"))]
FILES = {name_of(path, package): path for path, package in PATHS if path.name != "__init__.py" or path.read_text()}


def imports(name: str) -> set[str]:
    """The modules of both packages that a module imports, wherever in the file the import stands."""
    package = name.split(".") if FILES[name].name == "__init__.py" else name.split(".")[:-1]
    found = set()
    for node in ast.walk(ast.parse(FILES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*start, *([node.module] if node.module else [])])
            for alias in node.names:
                module = f"{base}.{alias.name}"  # so for `from .text import labels`, not for names
                found.add(module if module in FILES else base)
    return {module for module in found if module.split(".")[0] in {package.name for package in PACKAGES}} - {name}


def test_the_list_names_every_file_and_no_other():
    assert sorted(FILES) == sorted(ORDER)


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_file_imports_only_from_above_it(name):
    above = {*ORDER[: ORDER.index(name)], "nayer_notebooks"}  # whose __init__ is empty
    assert imports(name) <= above, f"{name} imports from below it: {sorted(imports(name) - above)}"


def test_nothing_heavy_is_imported_with_the_library():
    modules = [name for name in FILES if name.split(".")[-1] not in ("nayer_lib", "preload", "__main__")]
    code = f"import sys, {', '.join(modules)}; print(*(name for name in {HEAVY} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not done.stdout.split()


def test_a_run_imports_its_own_method_and_networks_alone_and_no_encoder():
    code = "import sys; from nayer_lib import cli; from nayer_lib.distill import prepare; "
    code += "from nayer_lib.config import make_config; prepare(make_config(), device='cpu'); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    modules = set(done.stdout.split())
    read = {name for name in modules if name.startswith(("nayer_lib.methods.", "nayer_beyond"))}
    assert read == {f"nayer_lib.methods.{name}" for name in "base round inversion nayer".split()}
    assert "nayer_lib.text.lte_pool" in modules and "nayer_lib.text.encoders" not in modules  # its pool is kept
    assert "nayer_lib.classifiers.vgg" not in modules


def test_without_its_package_a_method_is_refused_in_one_sentence(monkeypatch):
    monkeypatch.setitem(METHODS.places, "cpnet", "nowhere.cpnet:CPNet")
    with pytest.raises(UserError, match="cpnet is of the package nowhere, which is not installed: `pip install -e .`"):
        METHODS["cpnet"]
    assert "cpnet" in METHODS and "cpnt" not in METHODS
