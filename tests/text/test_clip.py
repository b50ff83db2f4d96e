"""CLIP's text tower through open_clip, with a network of two layers and random weights: the plumbing, not the language.

open_clip takes some ten seconds to import: all that needs it stands in this file.
"""

import json

import numpy as np
import pytest
import torch

from nayer_lib import files
from nayer_lib.errors import UserError
from nayer_lib.text import encoders
from nayer_lib.text.encoders import OPENAI_CLIP, encode
from nayer_lib.text.hub import CLIP_WEIGHTS, cached_weights
from nayer_lib.text.labels import class_names
from nayer_lib.text.lte_pool import build_pool

TEXTS = ["a cat", "a dog", "a truck", "A photo of class 3", "a three-toed sloth"]


def network(width: int) -> dict:
    return {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 16, "head_width": 8, "layers": 1},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": width, "heads": 2, "layers": 2},
    }


@pytest.fixture(scope="module")
def open_clip(tmp_path_factory):
    """open_clip, which knows two small networks more: "Tiny" and "Wider"."""
    library = pytest.importorskip("open_clip")
    folder = tmp_path_factory.mktemp("networks")
    for name, width in (("Tiny", 16), ("Wider", 32)):
        (folder / f"{name}.json").write_text(json.dumps(network(width)))
    library.add_model_config(folder)
    return library


@pytest.fixture(scope="module")
def weights(open_clip, tmp_path_factory):
    """A file with random weights of "Tiny", larger than fresh ones, so that an activation shows."""
    torch.manual_seed(0)
    state = {key: 3 * value for key, value in open_clip.create_model("Tiny").state_dict().items()}
    path = tmp_path_factory.mktemp("weights") / "some.pt"
    torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def by_hand(open_clip, weights):
    """(K, 16): what open_clip says of the texts, one by one, with the given options of `create_model`."""

    @torch.no_grad()
    def encoded(texts, **options):
        net = open_clip.create_model("Tiny", str(weights), **options).eval()
        return torch.cat([net.encode_text(open_clip.tokenize([text])) for text in texts])

    return encoded


def test_a_row_is_what_the_text_tower_says_of_its_text(weights, by_hand):
    rows, _ = encode(TEXTS, "clip", f"Tiny:{weights}")
    assert rows.shape == (5, 16) and rows.dtype == torch.float32 and not rows.requires_grad
    assert torch.allclose(rows, by_hand(TEXTS), atol=1e-5)
    assert torch.pdist(rows).min() > 0.01  # so the order of the rows is that of the texts
    assert torch.equal(encode(TEXTS, "clip", f"Tiny:{weights}")[0], rows)


def test_rows_are_not_normalised(weights):
    lengths = encode(TEXTS, "clip", f"Tiny:{weights}")[0].norm(dim=1)
    assert (lengths - 1).abs().max() > 0.1


def test_batches_do_not_change_the_rows(weights, monkeypatch):
    whole, _ = encode(TEXTS, "clip", f"Tiny:{weights}")
    monkeypatch.setattr(encoders, "BATCH", 2)
    assert torch.allclose(encode(TEXTS, "clip", f"Tiny:{weights}")[0], whole, atol=1e-5)


def test_provenance_has_the_file_without_its_folder_and_its_hash(weights):
    _, provenance = encode(TEXTS[:1], "clip", f"Tiny:{weights}")
    assert (provenance["encoder"], provenance["model"]) == ("clip", "Tiny:some.pt")
    assert provenance["weights_sha256"] == files.file_hash(weights)
    assert provenance["library"].startswith("open_clip_torch ")


def test_weights_of_half_precision_give_float32_rows_too(weights, tmp_path):
    torch.save({key: value.half() for key, value in torch.load(weights).items()}, tmp_path / "half.pt")
    rows, _ = encode(TEXTS, "clip", f"Tiny:{tmp_path}/half.pt")
    assert rows.dtype == torch.float32
    assert torch.allclose(rows, encode(TEXTS, "clip", f"Tiny:{weights}")[0], rtol=0.05, atol=0.05)


# --- weights by their tag


def tagged(open_clip, monkeypatch, weights, **known):
    """As if "Tiny" had a tag "mine" whose weights lie in the hub's cache."""
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda name, tag: {"hf_hub": "me/tiny/", **known})
    asked = []
    monkeypatch.setattr(encoders, "cached_weights", lambda *arguments: asked.append(arguments) or weights)
    return asked


@pytest.mark.parametrize("quick_gelu", [True, False])
def test_a_tag_is_run_with_the_activation_that_its_weights_were_trained_with(
    open_clip, monkeypatch, weights, by_hand, quick_gelu
):
    """open_clip only warns where a network's own activation is another."""
    tagged(open_clip, monkeypatch, weights, quick_gelu=quick_gelu)
    rows, provenance = encode(TEXTS, "clip", "Tiny:mine")
    assert torch.allclose(rows, by_hand(TEXTS, force_quick_gelu=quick_gelu), atol=1e-5)
    assert not torch.allclose(rows, by_hand(TEXTS, force_quick_gelu=not quick_gelu), atol=1e-3)
    assert provenance["model"] == "Tiny:mine" and provenance["weights_sha256"] == files.file_hash(weights)


@pytest.mark.parametrize(("address", "names"), [("me/tiny/", CLIP_WEIGHTS), ("me/tiny/epoch_3.bin", ("epoch_3.bin",))])
def test_the_hub_is_asked_for_the_file_that_the_tag_names(open_clip, monkeypatch, weights, address, names):
    asked = tagged(open_clip, monkeypatch, weights, hf_hub=address)
    encode(TEXTS[:1], "clip", "Tiny:mine")
    assert asked == [("me/tiny", *names)]


def test_weights_that_only_have_an_address_are_downloaded_from_there_or_told(open_clip, monkeypatch):
    from open_clip import pretrained

    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda name, tag: {"url": "https://example.org/tiny.pt"})

    def fails(known):
        raise OSError(f"no route to {known['url']}")

    monkeypatch.setattr(pretrained, "download_pretrained", fails)
    with pytest.raises(UserError, match=r"no weights of https://example\.org/tiny\.pt on this machine"):
        encode(TEXTS, "clip", "Tiny:mine")


def test_weights_in_the_hubs_cache_are_read_though_they_have_a_hash_for_a_name(
    open_clip, monkeypatch, weights, tmp_path, by_hand
):
    """The cache's layout, by hand: names are links to files that have no ending."""
    from huggingface_hub import constants
    from safetensors.torch import save_file

    repository = tmp_path / "models--me--tiny"
    for folder in ("blobs", "refs", "snapshots/abc"):
        (repository / folder).mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    save_file(torch.load(weights), repository / "blobs" / "0a1b2c")
    (repository / "snapshots" / "abc" / "open_clip_model.safetensors").symlink_to("../../blobs/0a1b2c")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda name, tag: {"hf_hub": "me/tiny/"})
    rows, provenance = encode(TEXTS, "clip", "Tiny:mine")
    assert torch.allclose(rows, by_hand(TEXTS), atol=1e-5)
    assert provenance["weights_sha256"] == files.file_hash(repository / "blobs" / "0a1b2c")


def test_the_default_is_openais_vit_b_32_with_its_quickgelu(open_clip, monkeypatch, weights):
    asked = []
    small = open_clip.create_model("Tiny", str(weights))
    monkeypatch.setattr(encoders, "cached_weights", lambda *_: weights)
    monkeypatch.setattr(open_clip, "create_model", lambda *args, **options: asked.append((args, options)) or small)
    assert encode(TEXTS, "clip")[1]["model"] == "ViT-B-32:openai"
    assert asked == [(("ViT-B-32", str(weights)), {"force_quick_gelu": True, "require_pretrained": True})]


def test_openais_weights_lie_where_open_clip_has_them(open_clip):
    """The address stands in the kit too, to look there before open_clip is imported."""
    known = open_clip.get_pretrained_cfg("ViT-B-32", "openai")
    assert known["hf_hub"] == f"{OPENAI_CLIP}/" and known["quick_gelu"]


# --- refusals


@pytest.mark.parametrize("model", ["Tiny", "Tiny:", "ViT-B-32"])
def test_a_network_without_weights_is_refused(model):
    with pytest.raises(UserError, match=f"'{model}' names no weights, and random ones know nothing of language"):
        encode(TEXTS, "clip", model)


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        ("ViT-B/32:openai", "unknown CLIP model 'ViT-B/32'. Did you mean 'ViT-B-32'"),
        ("Tinny:openai", "unknown CLIP model 'Tinny'. Did you mean 'Tiny'"),
        ("ViT-B-32:opnai", r"unknown weights of ViT-B-32 \(or a file\) 'opnai'. Did you mean 'openai'"),
        ("ViT-B-32:nowhere.pt", r"unknown weights of ViT-B-32 \(or a file\) 'nowhere.pt'"),
    ],
)
def test_an_unknown_network_and_unknown_weights_name_the_nearest(open_clip, model, sentence):
    with pytest.raises(UserError, match=sentence):
        encode(TEXTS, "clip", model)


@pytest.mark.parametrize("kind", ["another network's", "cut", "cut in its head", "empty", "text", "no weights", "list"])
def test_a_file_that_is_not_the_networks_is_told_in_one_sentence(open_clip, weights, tmp_path, kind):
    path, whole = tmp_path / "some.pt", weights.read_bytes()
    things = {
        "another network's": lambda: torch.save(open_clip.create_model("Wider").state_dict(), path),
        "cut": lambda: path.write_bytes(whole[: len(whole) // 2]),
        "cut in its head": lambda: path.write_bytes(whole[:100]),
        "empty": lambda: path.write_bytes(b""),
        "text": lambda: path.write_text("some.pt: see the other folder\n"),
        "no weights": lambda: torch.save({"epoch": 3}, path),
        "list": lambda: torch.save([torch.zeros(2)], path),
    }
    things[kind]()
    with pytest.raises(UserError, match=r"some\.pt does not hold the weights of CLIP Tiny \(\w+.*\)\.$") as raised:
        encode(TEXTS, "clip", f"Tiny:{path}")
    assert "\n" not in str(raised.value)


def test_nothing_in_a_weights_file_is_executed(open_clip, tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "executed"), "w"))

    torch.save({"state_dict": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(UserError, match="does not hold the weights"):
        encode(TEXTS, "clip", f"Tiny:{tmp_path}/evil.pt")
    assert not (tmp_path / "executed").exists()


# --- the real weights


@pytest.mark.slow
def test_openais_weights_give_the_released_table(test_data):
    """The released embeddings of CIFAR-10 are those of "a {name}" (docs/divergences.md, D9)."""
    try:
        cached_weights(OPENAI_CLIP, *CLIP_WEIGHTS)
    except UserError:
        pytest.skip("OpenAI's CLIP is not in the hub's cache")
    pool = build_pool(class_names("cifar10"), "clip", "a")
    with np.load(test_data / "clip-text-embeddings" / "nayer_authors_clip_vitb32.npz") as tables:
        released = torch.from_numpy(tables["cifar10"]).float()
    assert torch.nn.functional.cosine_similarity(pool.table, released).min() >= 0.999
