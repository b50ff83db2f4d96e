"""With the core dependencies alone the library imports, and what is missing is told with how to install it.

CI runs this file where nothing but pytest and the core dependencies are installed.
"""

import importlib
import sys
from pathlib import Path

import pytest
import torch

import nayer_lib
from nayer_lib.config import make_config
from nayer_lib.errors import UserError
from nayer_lib.ranks import find_ranks
from nayer_lib.runs.launch import run_sweep
from nayer_lib.runs.sweep import Sweep
from nayer_lib.text.encoders import encode
from nayer_notebooks.demo import demo
from nayer_notebooks.display import profile, table8_differences

TEXT = ("sentence_transformers", "open_clip", "gensim", "huggingface_hub")
OPTIONAL = (*TEXT, "accelerate", "papermill", "nbconvert", "nbformat", "IPython", "jupyter", "ray")
LIBRARY = Path(nayer_lib.__file__).parent


@pytest.fixture(autouse=True)
def without_extras(monkeypatch, tmp_path):
    """As if no optional package were installed."""
    for name in OPTIONAL:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setenv("NAYER_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "")  # the demo sets it; put back afterwards


def test_every_file_imports():
    """Anew, and the modules that other tests hold are put back."""

    def ours():
        return {name: module for name, module in sys.modules.items() if name.split(".")[0] == "nayer_lib"}

    loaded = ours()
    try:
        for name in loaded:
            del sys.modules[name]
        for path in sorted(LIBRARY.rglob("*.py")):
            if path.name != "__main__.py":
                parts = path.relative_to(LIBRARY.parent).with_suffix("").parts
                importlib.import_module(".".join(part for part in parts if part != "__init__"))
    finally:
        for name in ours():
            del sys.modules[name]
        sys.modules.update(loaded)


@pytest.mark.parametrize(
    ("encoder", "package"),
    [("clip", "CLIP needs open_clip_torch"), ("sbert", "SBERT needs sentence-transformers")],
)
def test_clip_and_sbert_say_what_to_install(encoder, package, tmp_path):
    """With weights of one's own; without, it is the hub's library that is missing first."""
    model = str(tmp_path) if encoder == "sbert" else f"ViT-B-32:{tmp_path / 'some.pt'}"
    with pytest.raises(UserError, match=rf"{package}: `pip install -e '\.\[text\]'`"):
        encode(["a zero"], encoder, model)
    with pytest.raises(UserError, match=r"`pip install -e '\.\[text\]'`"):
        encode(["a zero"], encoder)


@pytest.mark.parametrize("corpus", [None, "a file"])
def test_doc2vec_says_what_to_install(corpus, tmp_path):
    """Whether or not WordNet is installed."""
    if corpus == "a file":
        corpus = str(tmp_path / "corpus.txt")
        Path(corpus).write_text("a zero\n")
    with pytest.raises(UserError, match=r"Doc2Vec needs gensim: `pip install -e '\.\[text\]'`"):
        encode(["a zero"], "doc2vec", corpus)


def test_the_demo_says_what_to_install():
    with pytest.raises(UserError, match=r"needs papermill and nbconvert: `pip install -e '\.\[notebooks\]'`"):
        demo()


def test_a_sweep_on_ray_says_what_to_install():
    with pytest.raises(UserError, match=r"ray is not installed: `pip install -e '\.\[ray\]'`"):
        run_sweep(Sweep("mine", {"preset": [make_config(seed=77)]}), backend="ray")


def test_several_processes_say_what_to_install(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"several processes need accelerate: `pip install -e '\.\[multi\]'`"):
        find_ranks(torch.device("cpu"))


def test_what_needs_no_extra_works():
    assert encode(["a zero", "a one"], "random")[0].shape == (2, 384)
    assert profile() == "quick" and table8_differences(make_config()).startswith("profile")
