"""Weights of the hub: found where they were downloaded before, or told at once that they are not to be had."""

import os
import socket
import subprocess
import sys
import threading
import time

import huggingface_hub
import pytest
from huggingface_hub import HfApi

from nayer_lib.errors import MissingFile, UserError
from nayer_lib.files import file_hash
from nayer_lib.text import hub
from nayer_lib.text.encoders import OPENAI_CLIP, encode
from nayer_lib.text.hub import SBERT, cached_weights, packaged_model, within

REPOSITORY = "somebody/some-model"
WAYS = r"connect to the network once, name a local file .*NAME|FILE.* or folder .*FOLDER.*, or take another encoder\."


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty hub cache: whatever is put into the returned dict by its file name is found."""
    files = {}
    monkeypatch.setattr(
        huggingface_hub, "try_to_load_from_cache", lambda repository, name: files.get((repository, name))
    )
    return files


@pytest.fixture
def no_hub(monkeypatch):
    """The hub must not be asked."""
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: pytest.fail("asked the hub"))


def test_a_cached_file_is_found_without_the_network(cache, no_hub, tmp_path):
    (tmp_path / "model.safetensors").write_text("weights")
    cache[REPOSITORY, "model.safetensors"] = str(tmp_path / "model.safetensors")
    assert cached_weights(REPOSITORY).read_text() == "weights"


def test_a_cached_file_keeps_its_name(cache, no_hub, tmp_path):
    """The cache links to a file that has its hash for a name, and open_clip tells safetensors by the ending."""
    (tmp_path / "0a1b2c").write_text("weights")
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "0a1b2c")
    cache[REPOSITORY, "model.safetensors"] = str(tmp_path / "model.safetensors")
    assert cached_weights(REPOSITORY).suffix == ".safetensors"


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_every_usual_name_is_looked_for(cache, no_hub, tmp_path, name):
    cache[REPOSITORY, name] = str(tmp_path / "weights")
    assert cached_weights(REPOSITORY) is not None


def test_clip_is_not_the_image_network_that_timm_keeps_in_the_same_repository(cache, tmp_path):
    cache[OPENAI_CLIP, "model.safetensors"] = str(tmp_path / "timm")
    with pytest.raises(MissingFile, match=f"no weights of {OPENAI_CLIP} on this machine"):
        encode(["a cat"], "clip")


def test_a_name_that_is_given_is_the_only_one_looked_for(cache, tmp_path):
    cache[REPOSITORY, "model.safetensors"] = str(tmp_path / "model.safetensors")
    cache[REPOSITORY, "epoch_32.pt"] = str(tmp_path / "epoch_32.pt")
    assert cached_weights(REPOSITORY, "epoch_32.pt").name == "epoch_32.pt"
    with pytest.raises(MissingFile):
        cached_weights(REPOSITORY, "epoch_16.pt")


def test_what_the_hub_said_it_does_not_have_is_not_there(cache):
    """The cache keeps a note of it, which is no path."""
    cache[REPOSITORY, "model.safetensors"] = object()
    with pytest.raises(MissingFile, match=f"no weights of {REPOSITORY} on this machine"):
        cached_weights(REPOSITORY)


def test_without_the_network_the_ways_on_are_named(cache):
    """HF_HUB_OFFLINE is set in tests."""
    with pytest.raises(MissingFile, match=f"no weights of {REPOSITORY} on this machine.*: {WAYS}$"):
        cached_weights(REPOSITORY)


def test_a_repository_that_is_no_name_is_told_likewise(cache):
    with pytest.raises(MissingFile, match="no weights of /no/such/folder on this machine"):
        cached_weights("/no/such/folder")


def test_a_hub_that_answers_lets_the_library_download_and_says_so(cache, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda _, *a, **options: asked.append((*a, options)))
    assert cached_weights(REPOSITORY) is None
    assert asked == [(REPOSITORY, {"timeout": 5})]
    said = capsys.readouterr()
    assert said.out == "" and f"downloading the weights of {REPOSITORY}: once" in said.err


def test_without_the_hubs_library_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # what an import finds where there is none
    with pytest.raises(UserError, match=r"`pip install -e '\.\[text\]'`"):
        cached_weights(REPOSITORY)


# --- a server that hangs


class Dripping(threading.Thread):
    """A server that sends one byte of its answer every tenth of a second, until it is told to stop."""

    def __init__(self):
        super().__init__(daemon=True)
        self.server = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self.server.getsockname()[1]}"
        self.asked = self.over = False

    def run(self) -> None:
        connection, _ = self.server.accept()
        self.asked = True
        with connection:
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
            while not self.over:
                connection.sendall(b" ")
                time.sleep(0.1)


@pytest.fixture
def dripping():
    server = Dripping()
    server.start()
    yield server
    server.over = True
    server.server.close()


def test_a_hub_that_drips_is_given_up(cache, dripping, monkeypatch):
    """Each byte starts the client's own limit anew."""
    monkeypatch.setattr(hub, "ANSWER", 1)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: HfApi(endpoint=dripping.address))
    start = time.monotonic()
    with pytest.raises(MissingFile, match=f"no weights of {REPOSITORY} on this machine"):
        cached_weights(REPOSITORY)
    assert 1 <= time.monotonic() - start < 4 and dripping.asked


def test_within_gives_the_answer_or_its_error():
    assert within(5, lambda: "answer") == "answer"
    with pytest.raises(ZeroDivisionError):
        within(5, lambda: 1 / 0)
    with pytest.raises(TimeoutError):
        within(0.05, lambda: time.sleep(1))


# --- a package that carries them


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package that carries a model, on the path under a name of its own."""
    name = "carries_a_model"
    weights = tmp_path / name / "model" / "model.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"weights")
    (tmp_path / name / "__init__.py").write_text("raise ImportError('not to be imported')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(hub.PACKAGED, REPOSITORY, (name, "carries-a-model", file_hash(weights)))
    return weights


def test_a_package_with_the_hubs_weights_is_found_and_not_imported(package):
    assert packaged_model(REPOSITORY) == package.parent
    assert packaged_model("somebody/another-model") is None


def test_a_package_with_other_weights_is_passed_over(package):
    package.write_bytes(b"weightz")
    assert packaged_model(REPOSITORY) is None


def test_without_the_package_its_name_stands_in_the_error(monkeypatch):
    monkeypatch.setitem(hub.PACKAGED, SBERT, ("no_such_package", "no-such-package", ""))
    with pytest.raises(MissingFile, match="`pip install no-such-package`, which carries them"):
        encode(["a cat"], "sbert")


# --- before anything slow is imported


def offline(code: str, home) -> str:
    """What a fresh interpreter prints that has no network and an empty cache."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(home)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


ASK = """
import sys
from nayer_lib.text import hub
hub.PACKAGED[hub.SBERT] = ("no_such_package", "no-such-package", "")
from nayer_lib.errors import MissingFile
from nayer_lib.text.encoders import encode
for encoder in ("clip", "sbert"):
    try:
        encode(["a cat"], encoder)
    except MissingFile as error:
        print(error)
print(*(name for name in ("open_clip", "sentence_transformers", "torchvision") if name in sys.modules))
"""


def test_offline_clip_and_sbert_are_refused_before_their_libraries_are_imported(tmp_path):
    """open_clip takes some ten seconds, sentence-transformers some more, and then both try the network for a minute."""
    clip, sbert, imported = offline(ASK, tmp_path).splitlines()
    assert clip.startswith("no weights of timm/vit_base_patch32_clip_224.openai on this machine")
    assert sbert.startswith("no weights of sentence-transformers/all-MiniLM-L6-v2 on this machine")
    assert imported == ""


def test_where_the_weights_are_cached_the_library_is_imported_next(cache, no_hub, monkeypatch, tmp_path):
    """Found: so the next thing that can be missing is the package."""
    monkeypatch.setattr(hub, "PACKAGED", {})
    for name, repository in (
        ("open_clip", OPENAI_CLIP),
        ("sentence_transformers", "sentence-transformers/all-MiniLM-L6-v2"),
    ):
        monkeypatch.setitem(sys.modules, name, None)
        for weights in ("model.safetensors", "open_clip_model.safetensors"):
            cache[repository, weights] = str(tmp_path / "weights")
    for encoder, package in (("clip", "open_clip_torch"), ("sbert", "sentence-transformers")):
        with pytest.raises(UserError, match=f"needs {package}: `pip install"):
            encode(["a cat"], encoder)
