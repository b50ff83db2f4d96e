"""Text encoders C of Eq. 1 behind one function: a list of texts in, one row a text out.

The encoder runs once, when a pool is built (Section 3.2); no other part of the kit imports this file's libraries.
On the same machine, with the same versions, equal texts get equal numbers, bit for bit. CLIP and SBERT round a little
differently on another processor or device; Doc2Vec is trained by one thread with fixed seeds, because training by
several threads is not reproducible.
"""

import logging
import zlib
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from unittest import mock

import torch
from safetensors import SafetensorError
from torch import Tensor

from ..errors import UserError, unknown
from ..files import file_hash, text_hash
from .corpora import read_corpus, vocabulary, words
from .hub import CLIP_WEIGHTS, DOWNLOAD, SBERT, cached_weights, no_weights, packaged_model, within

Encoded = tuple[Tensor, dict]  # (K, e) float32, and its provenance
BATCH = 256  # texts
OPENAI_CLIP = "timm/vit_base_patch32_clip_224.openai"  # ViT-B-32:openai on the hub


def encode(
    texts: Sequence[str], encoder: str, model: str | None = None, device: str = "cpu", bar: bool = False
) -> Encoded:
    """Eq. 1, e_y = C(Y_y): K texts -> (K, e) float32 on the CPU, and the provenance that a pool's header keeps.

    Args:
        encoder: a key of ENCODERS.
        model: the encoder's model, see its function; None takes the encoder's default.
        device: where CLIP and SBERT compute.
        bar: whether to show a progress bar.

    Raises:
        UserError: unknown encoder, its package or weights missing, an empty text, or rows that are not finite.
    """
    if encoder not in ENCODERS:
        raise unknown("text encoder", encoder, ENCODERS)
    if not texts or any(not isinstance(text, str) or not text.strip() for text in texts):
        raise UserError("every text to encode must be a non-empty string, and there must be one.")
    rows, provenance = ENCODERS[encoder](list(texts), model, device=device, bar=bar)
    if not torch.isfinite(rows).all():
        raise UserError(f"the encoder {encoder!r} gave rows that are not finite: its weights are damaged.")
    return rows, {"encoder": encoder, **provenance}


# --- CLIP -------------------------------------------------------------------------------------------------------------


def clip(texts: list[str], model: str | None, device: str, bar: bool) -> Encoded:
    """CLIP's text tower through open_clip, the paper's encoder: (K, 512), not normalised, for ViT-B-32.

    Args:
        model: "NAME:TAG" of open_clip, default "ViT-B-32:openai", or "NAME:FILE" with a weights file. OpenAI's
            weights were trained with QuickGELU: for a file of these the name is "ViT-B-32-quickgelu".

    Raises:
        UserError: unknown name or tag, a file of another network's weights, or weights that cannot be downloaded.
    """
    name, _, tag = (model or "ViT-B-32:openai").partition(":")
    if not tag:
        raise UserError(
            f"{model!r} names no weights, and random ones know nothing of language: write NAME:TAG, as ViT-B-32:openai."
        )
    if (name, tag) == ("ViT-B-32", "openai"):
        cached_weights(OPENAI_CLIP, *CLIP_WEIGHTS)  # before open_clip, whose import takes ten seconds
    try:
        import open_clip
    except ImportError as error:
        raise UserError("CLIP needs open_clip_torch: `pip install -e '.[text]'`.") from error
    if name not in open_clip.list_models():
        raise unknown("CLIP model", name, open_clip.list_models())
    weights, quick_gelu = Path(tag), False
    if not weights.is_file():
        known = open_clip.get_pretrained_cfg(name, tag)
        if not known:
            raise unknown(f"weights of {name} (or a file)", tag, open_clip.list_pretrained_tags_by_model(name))
        weights, quick_gelu = _clip_weights(known), known.get("quick_gelu", False)
    try:
        # open_clip only warns when a tag's weights want another activation than the model's config has.
        net = open_clip.create_model(name, str(weights), force_quick_gelu=quick_gelu, require_pretrained=True)
        tokenize = open_clip.get_tokenizer(name)
    except Exception as error:  # errors of torch, safetensors and open_clip: the file is damaged or another's
        reason = f"{type(error).__name__}: {error}".splitlines()[0].rstrip(": ")
        raise UserError(f"{weights} does not hold the weights of CLIP {name} ({reason}).") from error
    net = net.to(device).eval()
    with torch.no_grad():
        rows = [net.encode_text(tokenize(batch).to(device)).float().cpu() for batch in _batches(texts, bar)]
    return torch.cat(rows), {
        "model": f"{name}:{Path(tag).name}",
        "weights_sha256": file_hash(weights),
        "library": f"open_clip_torch {version('open_clip_torch')}",
    }


def _clip_weights(known: dict) -> Path:
    """The weights file of a tag in open_clip's list, downloaded once."""
    from open_clip.pretrained import download_pretrained

    repository, _, name = known.get("hf_hub", "").rpartition("/")
    cached = cached_weights(repository, *([name] if name else CLIP_WEIGHTS)) if repository else None
    try:
        return cached or Path(within(DOWNLOAD, lambda: download_pretrained(known)))
    except Exception as error:  # errors of the hub, of urllib and of open_clip
        raise no_weights(repository or known["url"]) from error


# --- SBERT ------------------------------------------------------------------------------------------------------------


def sbert(texts: list[str], model: str | None, device: str, bar: bool) -> Encoded:
    """Sentence-BERT (Table 4) through sentence-transformers: (K, 384) for the default all-MiniLM-L6-v2.

    The default's weights come from the package that carries them (`hub.PACKAGED`), without it from the hub.

    Args:
        model: a model of the hub, or a local folder.
    """
    name = model or SBERT
    folder = Path(name) if Path(name).is_dir() else packaged_model(name)
    local = folder or cached_weights(name)
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise UserError("SBERT needs sentence-transformers: `pip install -e '.[text]'`.") from error
    logging.getLogger("sentence_transformers").setLevel(logging.WARNING)
    place = str(folder or name)
    try:
        encoder = within(
            DOWNLOAD, lambda: SentenceTransformer(place, device=device, local_files_only=local is not None)
        )
        weights = folder / "model.safetensors" if folder else cached_weights(name)
    except (OSError, ValueError, SafetensorError) as error:
        raise no_weights(name) from error
    rows = encoder.encode(texts, batch_size=BATCH, convert_to_tensor=True, show_progress_bar=bar).float().cpu()
    return rows, {
        "model": "/".join(Path(place).parts[-2:]),  # a hub id as it stands, a folder without its path
        "weights_sha256": file_hash(weights) if weights and weights.is_file() else "",
        "library": f"sentence-transformers {version('sentence-transformers')}",
    }


# --- Doc2Vec ----------------------------------------------------------------------------------------------------------


def doc2vec(texts: list[str], model: str | None, device: str, bar: bool) -> Encoded:
    """Doc2Vec (Table 4): PV-DM of Le and Mikolov, trained here with gensim's defaults, (K, 100).

    Doc2Vec knows the words of its corpus alone, neither digits nor full stops: P1 and P2 get equal embeddings, and P3
    is refused.

    Args:
        model: the corpus, as in `corpora.read_corpus`; default "wordnet" (about a minute of training).

    Raises:
        UserError: no corpus, or texts that have the same known words.
    """
    if find_spec("gensim") is None:  # reading a corpus needs gensim too
        raise UserError("Doc2Vec needs gensim: `pip install -e '.[text]'`.")
    corpus = model or "wordnet"
    documents, source = read_corpus(corpus)
    unknown_words = _check_vocabulary(texts, vocabulary(documents), source["corpus"])
    net = _trained_doc2vec(corpus, bar)
    return torch.stack([_inferred(net, words(text)) for text in texts]), {
        "model": f"PV-DM, {net.vector_size} numbers, {net.epochs} epochs",
        **source,
        "unknown_words": unknown_words,
        "library": f"gensim {version('gensim')}",
    }


@lru_cache(maxsize=1)  # several pools are often built one after the other
def _trained_doc2vec(corpus: str, bar: bool):
    """gensim's network, trained on a corpus."""
    from gensim.models.callbacks import CallbackAny2Vec
    from gensim.models.doc2vec import Doc2Vec, TaggedDocument

    class Bar(CallbackAny2Vec):
        def on_epoch_end(self, net) -> None:
            shown.update()

    tagged = [TaggedDocument(document, [number]) for number, document in enumerate(read_corpus(corpus)[0])]
    net = Doc2Vec(min_count=1, workers=1, seed=0, hashfxn=_stable_hash)
    net.build_vocab(tagged)
    with _progress(net.epochs, "epoch", bar) as shown:
        net.train(tagged, total_examples=len(tagged), epochs=net.epochs, callbacks=[Bar()])
    return net


def _inferred(net, text: list[str]) -> Tensor:
    """The vector (e,) of a text, which depends on the network and the text alone."""
    from gensim.models import doc2vec as module

    # gensim starts from a vector seeded by Python's hash, which is salted anew in every process, whatever `hashfxn` is.
    start = partial(module.pseudorandom_weak_vector, hashfxn=_stable_hash)
    net.random.seed(0)  # else the vector would depend on earlier texts
    with mock.patch.object(module, "pseudorandom_weak_vector", start):
        return torch.from_numpy(net.infer_vector(text, epochs=50))


def _stable_hash(text: str) -> int:
    return zlib.crc32(text.encode())


def _check_vocabulary(texts: list[str], known_words: set[str], corpus: str) -> list[str]:
    """The words of the texts that are not in the corpus, if the texts differ without these words."""
    words_of = [words(text) for text in texts]
    missing = sorted({word for text in words_of for word in text} - known_words)
    common = set.intersection(*map(set, words_of)) if len(texts) > 1 else set()  # the prompt's words
    known_of = [tuple(word for word in text if word in known_words) for text in words_of]
    empty = [k for k, known in enumerate(known_of) if not set(known) - common and len(known) < max(len(words_of[k]), 1)]
    if empty:
        raise UserError(
            f"Doc2Vec trained on {corpus} knows no word of its own in {len(empty)} of {len(texts)} texts, as in "
            f"{texts[empty[0]]!r}: take a larger corpus or another encoder."
        )
    for text, known in zip(texts, known_of, strict=True):
        if known_of.count(known) > 1:
            raise UserError(f"Doc2Vec trained on {corpus} cannot tell {text!r} from another class's text.")
    return missing


# --- the control ------------------------------------------------------------------------------------------------------


def random(texts: list[str], model: str | None, device: str, bar: bool) -> Encoded:
    """A control that the paper does not have: 384 standard normal numbers, which depend on the text alone."""
    rows = [torch.randn(384, generator=torch.Generator().manual_seed(int(text_hash(t)[:15], 16))) for t in texts]
    return torch.stack(rows), {"model": "N(0, 1) seeded by the text's sha256"}


ENCODERS: dict[str, Callable[..., Encoded]] = {"clip": clip, "sbert": sbert, "doc2vec": doc2vec, "random": random}


def _batches(texts: list[str], bar: bool):
    """The texts in batches, with a progress bar if `bar`."""
    with _progress(len(texts), "text", bar) as shown:
        for start in range(0, len(texts), BATCH):
            yield texts[start : start + BATCH]
            shown.update(len(texts[start : start + BATCH]))


def _progress(total: int, unit: str, bar: bool):
    from tqdm.auto import tqdm

    return tqdm(total=total, unit=unit, disable=not bar)
