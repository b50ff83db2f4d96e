"""`python -m nayer_lib lte`: pools of label-text embeddings built, converted and compared."""

import pickle

import numpy as np
import pytest
import torch
from tiny import call, refused

from nayer_lib import cli
from nayer_lib.text.encoders import ENCODERS, encode
from nayer_lib.text.labels import class_names, labels_hash
from nayer_lib.text.lte_pool import LTEPool, load_pool, pool_path, save_pool

LEAVES = ("green leaf", "red leaf", "wood")


@pytest.fixture
def encoder(monkeypatch):
    """An encoder "fake" that knows all words but "wood"; returns what it was asked."""
    asked = []

    def fake(texts, model, device, bar):
        asked.append((texts, model, device))
        unknown = ["wood"] if any("wood" in text for text in texts) else []
        return encode(texts, "random")[0][:, :7], {"model": "fake", "unknown_words": unknown}

    monkeypatch.setitem(ENCODERS, "fake", fake)
    return asked


@pytest.fixture
def leaves(tmp_path):
    """A file of class names of one's own."""
    (tmp_path / "names.txt").write_text("\n".join(LEAVES) + "\n")
    return str(tmp_path / "names.txt")


def own_pool(folder, rows=None) -> str:
    path = folder / "leaves.safetensors"
    header = {"encoder": "fake", "model": "by hand", "prompt": "a {name}", "labels_sha256": labels_hash(LEAVES)}
    save_pool(path, LTEPool(torch.eye(3) if rows is None else rows, header))
    return str(path)


def brought(*which: str) -> str:
    """The path of a pool that the kit brings."""
    return str(pool_path(*which))


# --- build


def test_build_makes_a_pool_for_each_data_set_and_prompt(clone, encoder, capsys):
    said = call(
        capsys, *"lte build --dataset digits cifar10 --prompt p2 photo --encoder fake --model m --device cpu".split()
    )
    paths = [
        clone / "data" / "lte" / f"{dataset}.fake.{prompt}.safetensors"
        for dataset in ("digits", "cifar10")
        for prompt in ("p2", "photo")
    ]
    assert said == "".join(f"10 x 7 embeddings\n{path}\n" for path in paths)
    assert [texts[3] for texts, *_ in encoder] == [
        "A class of three",
        "a photo of a three",
        "A class of cat",
        "a photo of a cat",
    ]
    assert {(model, device) for _, model, device in encoder} == {("m", "cpu")}
    for path in paths:
        load_pool(path, class_names(path.name.split(".")[0]))


def test_build_takes_sbert_and_the_prompt_a_if_nothing_is_said(clone, monkeypatch, capsys):
    asked = []

    def sbert(texts, model, device, bar):
        asked.append((texts[0], model, device, bar))
        return torch.eye(10), {"model": "none"}

    monkeypatch.setitem(ENCODERS, "sbert", sbert)
    refused(["lte", "build", "--dataset", "digits"], "digits.sbert.a.safetensors is there already", capsys)
    assert asked == []  # nothing is encoded for nothing
    pool_path("digits", "sbert", "a").unlink()
    assert call(capsys, "lte", "build", "--dataset", "digits").endswith("/data/lte/digits.sbert.a.safetensors\n")
    assert asked == [("a zero", None, "cpu", True)]


def test_build_takes_class_names_of_ones_own_and_says_what_the_encoder_does_not_know(
    clone, encoder, leaves, tmp_path, capsys
):
    out = str(tmp_path / "my.safetensors")
    said = call(capsys, "lte", "build", "--dataset", "leaves", "--encoder", "fake", "--classes", leaves, "--out", out)
    assert said == f"3 x 7 embeddings\n{out}\nwords that fake does not know: wood\n"
    assert load_pool(out, LEAVES).header["unknown_words"] == ["wood"]


def test_a_prompt_of_ones_own_gets_a_file_of_its_own(clone, encoder, capsys):
    said = call(capsys, "lte", "build", "--dataset", "digits", "--encoder", "fake", "--prompt", "the digit {name}")
    assert said.splitlines()[-1] == brought("digits", "fake", "the digit {name}")
    assert encoder[0][0][0] == "the digit zero"


# --- convert


def released(folder, table) -> str:
    path = folder / "le.pickle"
    path.write_bytes(pickle.dumps(table, protocol=4))
    return str(path)


def test_convert_puts_a_released_table_where_the_kit_finds_it(clone, tmp_path, capsys):
    table = torch.randn(10, 12).half()
    said = call(capsys, "lte", "convert", "--dataset", "cifar10", "--released", released(tmp_path, table))
    path = clone / "data" / "lte" / "cifar10.clip.a.safetensors"
    assert said == f"10 x 12 embeddings\n{path}\n"
    assert torch.equal(load_pool(path, class_names("cifar10")).table, table.float())


def test_convert_puts_tiny_imagenets_rows_right_and_says_how_many(clone, tmp_path, capsys):
    names = class_names("tiny_imagenet")
    order = [*names[1:4], names[0], *names[4:]]
    table = torch.randn(200, 5).half()
    (tmp_path / "order.txt").write_text("\n".join(name.replace(" ", "_") for name in order))
    words = ["--released", released(tmp_path, table), "--order", str(tmp_path / "order.txt")]
    said = call(capsys, "lte", "convert", "--dataset", "tiny_imagenet", *words)
    assert said.splitlines()[-1] == "4 of 200 rows stood at another class's place; they were put right by name"
    pool = load_pool(pool_path("tiny_imagenet", "clip", "a"), names)
    assert torch.equal(pool.table[:5], table[[3, 0, 1, 2, 4]].float())


def test_convert_names_the_classes_that_share_an_embedding(clone, tmp_path, capsys):
    table = torch.randn(1000, 5)
    table[517] = table[134]
    said = call(capsys, "lte", "convert", "--dataset", "imagenet", "--released", released(tmp_path, table))
    last = "'crane bird' (134) and 'crane' (517) have one embedding: G cannot tell them apart"
    assert said.splitlines()[-1] == last and said.count("\n") == 3


def test_convert_takes_class_names_and_a_place_of_ones_own(clone, leaves, tmp_path, capsys):
    table, out = torch.randn(3, 4).half(), str(tmp_path / "my.safetensors")
    words = ["--released", released(tmp_path, table), "--classes", leaves, "--out", out]
    call(capsys, "lte", "convert", "--dataset", "leaves", *words)
    assert torch.equal(load_pool(out, LEAVES).table, table.float())


def test_convert_takes_the_table_of_the_data_set_or_the_one_that_is_named(clone, tmp_path, capsys):
    table, path = torch.randn(10, 12).half(), tmp_path / "tables.npz"
    names = np.array(class_names("cifar10"))[::-1]
    np.savez(path, cifar10=table.numpy(), cifar10_labels=names, mine=-table.numpy(), mine_labels=names)
    said = call(capsys, "lte", "convert", "--dataset", "cifar10", "--released", str(path))
    assert said.splitlines()[-1] == "10 of 10 rows stood at another class's place; they were put right by name"
    assert torch.equal(
        load_pool(pool_path("cifar10", "clip", "a"), class_names("cifar10")).table, table.flip(0).float()
    )
    again = ["lte", "convert", "--dataset", "cifar10", "--released", str(path), "--key", "mine"]
    refused(again, "cifar10.clip.a.safetensors is there already, and would be lost: give --out another file", capsys)
    call(capsys, *again, "--out", str(tmp_path / "mine.safetensors"))
    assert load_pool(tmp_path / "mine.safetensors", class_names("cifar10")).header["key"] == "mine"
    refused(["lte", "convert", "--dataset", "digits", "--released", str(path)], "with --key (cifar10, mine)", capsys)


# --- compare


def test_compare_names_the_classes_that_agree_least(tmp_path, capsys):
    one = own_pool(tmp_path, torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]))
    (tmp_path / "other").mkdir()
    other = own_pool(tmp_path / "other", torch.tensor([[3.0, 4.0], [2.0, 0.0], [0.0, 1.0]]))
    assert call(capsys, "lte", "compare", one, other) == (
        "0.0000  class 2\n0.6000  class 0\n1.0000  class 1\n0.5333  mean of 3 classes; the lowest stand above\n"
    )


def test_compare_shows_five_classes_of_many_by_their_names(capsys):
    pools = [brought("digits", "sbert", prompt) for prompt in ("a", "p2")]
    said = call(capsys, "lte", "compare", *pools).splitlines()
    assert len(said) == 6 and said[-1].endswith("  mean of 10 classes; the lowest stand above")
    values, names = zip(*(line.split("  ") for line in said[:-1]), strict=True)
    assert list(values) == sorted(values) and set(names) < set(class_names("digits"))
    assert float(values[0]) < float(said[-1].split()[0])


# --- mistakes


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("build --dataset digits --encoder sbrt", "unknown text encoder 'sbrt'. Did you mean 'sbert'"),
        ("build --dataset digits --encoder random --prompt p4", "unknown prompt"),
        ("build --dataset digts --encoder random", "unknown data set 'digts'. Did you mean 'digits'"),
        ("build --dataset digits --encoder clip", "no weights of timm/vit_base_patch32_clip_224.openai on this"),
        ("build --dataset digits --encoder clip --model ViT-B-32", "'ViT-B-32' names no weights"),
        ("build --dataset digits cifar10 --encoder random --out x.safetensors", "--out names one file: leave it out"),
        ("build --dataset digits --prompt a p2 --encoder random --out x", "--out names one file: leave it out"),
        ("build --dataset leaves --encoder random --classes nowhere.txt", "nowhere.txt does not exist: it should hold"),
        ("build --dataset digits --encoder doc2vec --prompt p3 --model nowhere.txt", "no corpus at nowhere.txt"),
        ("convert --dataset digits --released nowhere.pickle", "nowhere.pickle does not exist: the released tables"),
        (f"convert --dataset digits --released {__file__}", "is not a pickle of one table of embeddings, and nothing"),
        (f"convert --dataset digts --released {__file__}", "unknown data set 'digts'. Did you mean 'digits'"),
        ("compare nowhere.safetensors nowhere.safetensors", "no label-text embeddings at nowhere.safetensors"),
    ],
)
def test_a_mistake_is_one_sentence_on_stderr_and_status_2(words, sentence, clone, capsys):
    refused(["lte", *words.split()], sentence, capsys)


def test_convert_refuses_a_table_of_other_classes_or_order(clone, tmp_path, capsys):
    path = released(tmp_path, torch.randn(200, 5))
    refused(["lte", "convert", "--dataset", "digits", "--released", path], "has 200 rows, there are 10", capsys)
    tiny = ["lte", "convert", "--dataset", "tiny_imagenet", "--released", path]
    refused(tiny, "in another order than its labels: give the class list", capsys)
    refused([*tiny, "--order", path], "le.pickle", capsys)
    (tmp_path / "order.txt").write_text("\n".join(class_names("imagenet")[:200]))
    refused([*tiny, "--order", str(tmp_path / "order.txt")], "the class list does not name", capsys)
    assert not pool_path("tiny_imagenet", "clip", "a").exists()


def test_compare_refuses_pools_of_other_encoders_or_classes(capsys):
    sbert = brought("digits", "sbert", "a")
    refused(["lte", "compare", sbert, brought("digits", "doc2vec", "a")], "have 384 and 100 numbers a class", capsys)
    refused(["lte", "compare", sbert, brought("cifar10", "sbert", "a")], "for different class names or orders", capsys)


def test_nothing_is_written_where_a_mistake_was_made(clone, encoder, capsys):
    before = sorted((clone / "data" / "lte").iterdir())
    refused(["lte", "build", "--dataset", "digits", "--encoder", "fake", "--prompt", "{index:.0}"], "prompt", capsys)
    assert sorted((clone / "data" / "lte").iterdir()) == before and not encoder


def test_lte_lists_its_commands(capsys):
    with pytest.raises(SystemExit) as raised:
        cli.main(["lte", "--help"])
    said = capsys.readouterr().out
    assert raised.value.code == 0 and all(name in said for name in ("build", "convert", "compare"))
