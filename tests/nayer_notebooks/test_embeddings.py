"""What is told of a pool, on rows worked out by hand; and what the kit keeps of it."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from nayer_lib.classifiers import build
from nayer_lib.classifiers.teacher import make_classifier, save_classifier
from nayer_lib.cli.common import Foreign
from nayer_lib.datasets import DATASETS
from nayer_lib.errors import UserError
from nayer_lib.text.labels import class_names, labels_hash
from nayer_lib.text.lte_pool import LTEPool, build_pool, classes_of, load_pool, pool_path, save_pool
from nayer_lib.text.released import released_pool
from nayer_notebooks.embeddings import (
    FIGURE6,
    ImageFeatures,
    coverage,
    describe,
    figure6,
    in_words,
    kept,
    remember,
    show,
)

NAMES = ("cat", "dog", "truck", "lorry")
HEADER = {"encoder": "fake", "model": "by hand", "prompt": "a {name}"}


def pool_of(table, names=NAMES):
    return LTEPool(torch.as_tensor(table), {**HEADER, "labels_sha256": labels_hash(names)})


def on_a_circle(*degrees: float) -> torch.Tensor:
    angles = torch.tensor(degrees).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], 1)


def test_a_name_is_covered_only_whole():
    assert coverage(["dog", "cat mice", "sea dog", "lion"], {"dog", "cat", "mice"}) == ["dog", "cat mice"]


# --- described


def test_a_pool_is_described_by_plain_numbers():
    """Two equal rows of length 5 and two more at right angles."""
    told = describe(pool_of([[3.0, 4.0], [0.0, 2.0], [4.0, -3.0], [4.0, -3.0]]), NAMES)
    assert told["header"]["encoder"] == "fake" and told["shape"] == [4, 2]
    assert told["norm"] == pytest.approx({"mean": 17 / 4, "sd": 1.5})
    assert told["spread"]["cosine"] == pytest.approx((0.8 + 0 + 0 - 0.6 - 0.6 + 1) / 6, abs=1e-6)
    assert told["spread_after_batchnorm"]["cosine"] < told["spread"]["cosine"]
    assert told["equal_rows"] == [["truck", "lorry"]]
    assert told["cosines"][0] == [1, 0.8, 0, 0] and told["cosines"][1] == [0.8, 1, -0.6, -0.6]
    assert told["nearest"] == [["truck", "lorry", pytest.approx(1)], ["cat", "dog", pytest.approx(0.8)]]
    assert told["outlier_dimensions"] == {} and not {"images", "superclass"} & set(told)
    assert json.loads(json.dumps(told)) == told


def test_the_nearest_are_pairs_the_closest_first_and_ten_at_most():
    names = [f"class {k}" for k in range(30)]
    degrees = [3.0 * k + 0.05 * k * k for k in range(30)]  # each is nearest to the one before it
    told = describe(pool_of(on_a_circle(*degrees), names), names)
    assert [pair[:2] for pair in told["nearest"]] == [[f"class {k}", f"class {k + 1}"] for k in range(10)]


@pytest.mark.parametrize(("classes", "there"), [(20, True), (21, False)])
def test_the_matrix_of_cosines_is_kept_of_few_classes(classes, there):
    names = [f"class {k}" for k in range(classes)]
    told = describe(pool_of(torch.randn(classes, 3), names), names)
    assert ("cosines" in told) == there


def test_an_outlier_dimension_is_told_with_its_share_and_mean():
    table = torch.ones(4, 40)
    table[:, 7] = torch.tensor([-9.0, -9.0, -9.0, 9.0])
    told = describe(pool_of(table), NAMES)["outlier_dimensions"]
    assert told == {"7": {"share": pytest.approx(81 / 120), "mean": pytest.approx(-4.5)}}


def test_classes_that_look_alike_and_lie_close_have_rank_correlation_1():
    """Class means on a line, as far apart as the rows on the circle; several images a class, in no order."""
    degrees = (0.0, 10.0, 30.0, 70.0)
    labels = torch.tensor([3, 0, 1, 2, 2, 0, 1, 3])
    features = torch.tensor(degrees)[labels, None] + torch.tensor([1, 1, 1, 1, -1, -1, -1, -1])[:, None]
    told = describe(pool_of(on_a_circle(*degrees)), NAMES, ImageFeatures(features, labels, "net"))["images"]
    assert (told["teacher"], told["images"]) == ("net", 8)
    assert told["rho"] == pytest.approx(1) and told["p"] == pytest.approx(1 / 24, abs=0.01)


def test_cifar100s_superclasses_are_looked_at():
    """Random rows: each has 4 of the 99 others in its superclass."""
    names = class_names("cifar100")
    told = describe(build_pool(names, "random", "a"), names)["superclass"]
    assert told["chance"] == pytest.approx(4 / 99) and 0 <= told["neighbour_in_it"] < 0.2
    sbert = describe(load_pool(pool_path("cifar100", "sbert", "a"), names), names)["superclass"]
    assert sbert["neighbour_in_it"] > 0.3


def test_the_classes_of_a_pool_are_found_by_their_hash():
    assert classes_of(load_pool(pool_path("digits", "sbert", "a"), class_names("digits"))) == (
        "digits",
        class_names("digits"),
    )
    assert classes_of(pool_of(torch.ones(4, 2))) == ("", ["class 0", "class 1", "class 2", "class 3"])


# --- in words


def test_in_words():
    told = describe(pool_of([[3.0, 4.0], [0.0, 2.0], [4.0, -3.0], [4.0, -3.0]]), NAMES)
    assert in_words(told).splitlines() == [
        "4 classes, 2 numbers each; prompt 'a {name}'",
        "  made by       fake, by hand",
        "  length        4.25 (sd 1.50)",
        f"  cosine        0.100, after BatchNorm {told['spread_after_batchnorm']['cosine']:.3f} (means over pairs)",
        f"  L2 distance   {told['spread']['L2']:.3f}, after BatchNorm {told['spread_after_batchnorm']['L2']:.3f}",
        "  nearest       truck - lorry 1.000; cat - dog 0.800",
        "  one embedding truck - lorry: G cannot tell them apart",
    ]


def test_in_words_says_what_else_there_is():
    table = torch.ones(4, 40)
    table[:, 7] = torch.tensor([-9.0, -9.0, -9.0, 9.0])
    told = describe(pool_of(table), NAMES) | {
        "superclass": {"neighbour_in_it": 0.456, "chance": 0.04},
        "images": {"teacher": "net", "images": 8, "rho": 0.4321, "p": 0.01234},
    }
    said = in_words(told)
    assert "\n  outliers      7 (-4.5): 68 % of the squared length\n" in said
    assert "\n  superclass    holds the nearest class for 46 % (chance 4 %)\n" in said
    assert said.endswith("rank correlation +0.43 (p = 0.0123) with net's features of 8 test images")


# --- kept


def test_what_is_kept_is_read_again_to_six_digits(clone):
    before = kept()
    told = {"norm": {"mean": 1.23456789, "tiny": 0.000123456789}, "nearest": [["a", "b", 123456.789]], "shape": [2, 3]}
    remember("cifar10", "fake.a", told)
    now = kept()
    assert now["cifar10"].pop("fake.a") == {
        "torch": torch.__version__,
        "norm": {"mean": 1.23457, "tiny": 0.000123457},
        "nearest": [["a", "b", 123457.0]],
        "shape": [2, 3],
    }
    assert now == before
    text = (clone / "data" / "embeddings.json").read_text(encoding="utf-8")
    assert text.endswith("}\n") and text == json.dumps(kept(), indent=1, sort_keys=True) + "\n"


def test_what_is_kept_anew_takes_the_place_of_the_old(clone):
    remember("cifar10", "fake.a", {"shape": [1, 2], "images": {"rho": 0.5}})
    remember("cifar10", "fake.a", {"shape": [3, 4]})
    assert kept()["cifar10"]["fake.a"] == {"shape": [3, 4], "torch": torch.__version__}


def test_classes_of_ones_own_are_kept_aside(clone):
    remember("", "leaves", {"shape": [1, 2]})
    assert kept()["other"] == {"leaves": {"shape": [1, 2], "torch": torch.__version__}}


def test_where_nothing_was_kept_there_is_nothing(clone):
    (clone / "data" / "embeddings.json").unlink()
    assert kept() == {}


# --- what the kit keeps


def same(told, other, tolerance: float) -> bool:
    """Whether two descriptions agree, numbers up to a tolerance."""
    if isinstance(told, dict):
        return told.keys() == other.keys() and all(same(told[key], other[key], tolerance) for key in told)
    if isinstance(told, list):
        return len(told) == len(other) and all(same(*pair, tolerance) for pair in zip(told, other, strict=True))
    return told == (pytest.approx(other, rel=tolerance, abs=tolerance) if isinstance(told, float) else other)


def test_cifar10_has_every_encoder_and_the_control_beside_images():
    everything = kept()["cifar10"]
    assert set(everything) >= {"clip.a", "sbert.a", "doc2vec.a", "random.a"}
    for name in ("clip.a", "sbert.a", "doc2vec.a", "random.a"):
        told = everything[name]
        assert told["header"]["encoder"] == name.split(".")[0] and told["shape"][0] == 10
        assert told["images"]["images"] == 10_000 and told["images"]["teacher"]
        assert -1 <= told["images"]["rho"] <= 1 and 0 < told["images"]["p"] <= 1


def test_the_kept_descriptions_are_for_our_classes_and_name_their_pool():
    for dataset, pools in kept().items():
        for name, told in ((name, told) for name, told in pools.items() if name != "figure6"):
            assert told["header"]["labels_sha256"] == labels_hash(class_names(dataset)), (dataset, name)
            assert told["header"]["encoder"] == name.split(".")[0]
            assert told["shape"][0] == len(class_names(dataset))


def test_the_released_clip_embeddings_have_the_same_four_outlier_dimensions_everywhere():
    clips = [pools["clip.a"] for pools in kept().values()]
    assert len(clips) == 4
    for told in clips:
        outliers = told["outlier_dimensions"]
        assert set(outliers) == {"133", "312", "329", "92"}
        assert outliers["133"]["share"] + outliers["312"]["share"] > 0.5


def test_figure_6_has_a_hundred_images_of_each_of_the_papers_classes_and_classes_lie_together():
    labels = torch.arange(10).repeat(120)  # of the first hundred of a class, with features that tell classes apart
    made = figure6(ImageFeatures(torch.eye(10)[labels] + 0.01 * torch.randn(1200, 10), labels, "net"))
    middles = [torch.tensor(made["points"][name]).mean(1) for name in FIGURE6]
    spread = max(torch.tensor(made["points"][name]).std(1).max() for name in FIGURE6)
    assert torch.pdist(torch.stack(middles)).min() > 2 * spread
    for told in (made, kept()["cifar10"]["figure6"]):
        assert {name: torch.tensor(points).shape for name, points in told["points"].items()} == dict.fromkeys(
            FIGURE6, (2, 100)
        )


@pytest.mark.parametrize("name", ["sbert.a", "doc2vec.a"])
def test_a_kept_description_is_that_of_the_pool_that_the_kit_brings(name):
    names = class_names("cifar10")
    fresh = describe(load_pool(pool_path("cifar10", *name.split(".")), names), names)
    told = kept()["cifar10"][name]
    assert same(fresh, {key: told[key] for key in told.keys() - {"torch", "images"}}, 2e-4)


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100", "tiny_imagenet", "imagenet"])
def test_a_kept_description_is_that_of_the_released_table(dataset, test_data, tmp_path):
    with np.load(test_data / "clip-text-embeddings" / "nayer_authors_clip_vitb32.npz") as tables:
        (tmp_path / "le.pickle").write_bytes(pickle.dumps(torch.from_numpy(tables[dataset]), protocol=4))
        order = tables[f"{dataset}_labels"].tolist() if dataset == "tiny_imagenet" else None
    names = class_names(dataset)
    fresh = describe(released_pool(tmp_path / "le.pickle", names, order), names)
    told = kept()[dataset]["clip.a"]
    assert len(told["header"].pop("file_sha256")) == len(fresh["header"].pop("file_sha256")) == 64
    assert same(fresh, {key: told[key] for key in told.keys() - {"torch", "images"}}, 2e-4)


def test_a_description_of_the_random_control_is_kept_too():
    names = class_names("cifar10")
    fresh, told = describe(build_pool(names, "random", "a"), names), kept()["cifar10"]["random.a"]
    for key in ("shape", "spread", "spread_after_batchnorm", "equal_rows"):
        assert same(fresh[key], told[key], 1e-3), key  # the pool was rounded to float16


# --- shown


def said(capsys, *pools, **options) -> str:
    show(tuple(map(Path, pools)), **options)
    return capsys.readouterr().out


def own_pool(folder) -> Path:
    header = {"encoder": "fake", "model": "by hand", "prompt": "a {name}", "labels_sha256": "of my own"}
    save_pool(folder / "leaves.safetensors", LTEPool(torch.eye(3), header))
    return folder / "leaves.safetensors"


def test_show_tells_of_each_pool(capsys):
    told = said(capsys, pool_path("digits", "sbert", "a"), pool_path("cifar10", "doc2vec", "p2"))
    first, second = told.split("\n\n")[:2]
    assert first.startswith("digits.sbert.a.safetensors: 10 classes, 384 numbers each; prompt 'a {name}'\n")
    assert second.startswith("cifar10.doc2vec.p2.safetensors: 10 classes, 100 numbers each; prompt 'A class of {name}'")
    assert "eight - nine" in first and "made by       sbert" in first and "images" not in told


def test_show_keeps_what_it_tells_and_nothing_if_it_is_not_asked_to(clone, capsys):
    before = (clone / "data" / "embeddings.json").read_bytes()
    pools = pool_path("digits", "sbert", "a"), own_pool(clone)
    said(capsys, *pools)
    assert (clone / "data" / "embeddings.json").read_bytes() == before
    said(capsys, *pools, keep=True)
    assert kept()["digits"]["sbert.a"]["shape"] == [10, 384]
    assert kept()["other"]["leaves"]["nearest"][0][:2] == ["class 0", "class 1"]
    again = [pools[1].with_name(f"{name}.sbert.a.safetensors") for name in ("leaves", "birds")]
    for path in again:
        path.write_bytes(pools[1].read_bytes())
    said(capsys, *again, keep=True)
    assert {"leaves", "leaves.sbert.a", "birds.sbert.a"} <= kept()["other"].keys()  # none in place of another


def test_show_compares_with_the_images_that_a_teacher_sees(tmp_path, capsys):
    pool, facts = pool_path("digits", "sbert", "a"), DATASETS["digits"]
    assert "with wrn10_1's features of 500 test images\n" in said(capsys, pool, images=True)
    ours = make_classifier("wrn10_half", facts.class_names, facts.mean, facts.std, 0)
    save_classifier(tmp_path / "ours.safetensors", ours)
    torch.save(build("wrn10_half", 10, channels=1).state_dict(), tmp_path / "theirs.pth")
    foreign = {"teacher": tmp_path / "theirs.pth", "foreign": Foreign("wrn10_half", mean=(0.5,), std=(0.25,))}
    for options in ({"teacher": tmp_path / "ours.safetensors"}, foreign):
        assert "with wrn10_half's features of 500 test images" in said(capsys, pool, **options)


@pytest.mark.parametrize(
    ("pool", "options", "sentence"),
    [
        (None, {}, "name one or more pools"),
        ("nowhere.safetensors", {}, "no label-text embeddings at nowhere.safetensors: build them with"),
        (__file__, {}, "is not a whole safetensors file"),
        ("own", {"images": True}, "leaves.safetensors is for classes of your own"),
        ("cifar100", {"images": True}, "no teacher for cifar100/wrn40_2"),
        ("color_digits", {"teacher": "digits-wrn10_1"}, "the teacher's class names are not those of color_digits"),
        ("digits", {"images": True, "foreign": Foreign("resnet20")}, "--network describes the checkpoint of --teacher"),
    ],
)
def test_show_refuses_what_it_cannot_tell_of(pool, options, sentence, clone):
    if pool == "own":
        pool = own_pool(clone)
    elif pool in DATASETS:
        pool = pool_path(pool, "sbert", "a")
    if "teacher" in options:
        options = {"teacher": clone / "data" / "teachers" / f"{options['teacher']}.safetensors"}
    with pytest.raises(UserError, match=sentence):
        show(() if pool is None else (Path(pool),), **options)


def test_the_command_takes_pools_and_options():
    words = [sys.executable, "-m", "nayer_notebooks.embeddings", str(pool_path("digits", "sbert", "a")), "--images"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0 and "with wrn10_1's features of 500 test images" in done.stdout, done.stderr


def test_the_command_says_a_mistake_in_one_sentence():
    words = [sys.executable, "-m", "nayer_notebooks.embeddings", "nowhere.safetensors"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("embeddings: no label-text embeddings at nowhere")


def test_the_pools_of_every_data_set_can_be_shown(capsys):
    """But ImageNet's, which take seconds."""
    datasets = [name for name in DATASETS if name != "imagenet"]
    paths = [pool_path(dataset, encoder, "a") for dataset in datasets for encoder in ("sbert", "doc2vec")]
    assert said(capsys, *paths).count(" numbers each; prompt 'a {name}'") == len(paths) == 10
