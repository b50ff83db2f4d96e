"""`python -m nayer_lib teacher`: train, score, convert, list."""

import collections
import dataclasses
import re
import socket
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import TINY, copy_data, write_sheets

from nayer_lib import cli, files
from nayer_lib.classifiers import build
from nayer_lib.classifiers.teacher import load_classifier, make_classifier, save_classifier, teacher_path
from nayer_lib.classifiers.training import RECIPES
from nayer_lib.cli import teacher as teachers
from nayer_lib.config import PRESETS, Config
from nayer_lib.datasets import DATASETS, load_split
from nayer_lib.text.labels import class_names

WRN = ["--dataset", "digits", "--network", "wrn10_half", "--device", "cpu"]
IMAGENET = ["--mean", "0.485", "0.456", "0.406", "--std", "0.229", "0.224", "0.225"]


@pytest.fixture(autouse=True)
def clone(tmp_path, monkeypatch) -> Path:
    """A clone's data/ of its own, no network, and the digits' recipe shortened to three epochs."""

    def no_such_host(*_args, **_kwargs):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", no_such_host)
    monkeypatch.setenv("NAYER_DATA", str(copy_data(tmp_path)))
    monkeypatch.setenv("NAYER_DATASETS", str(tmp_path / "sets"))
    monkeypatch.setitem(RECIPES, "digits", dataclasses.replace(RECIPES["digits"], epochs=3))
    return tmp_path


@pytest.fixture
def call(capsys):
    """A command's status, and what it printed on stdout or, if it failed, on stderr (a bar goes there too)."""

    def call(*words) -> tuple[int, str]:
        status = cli.main(["teacher", *map(str, words)])
        said = capsys.readouterr()
        return status, said.out if status == 0 else said.err

    return call


def weights_of(path):
    return files.tensors_hash(load_classifier(path).net.state_dict())


# --- train


@pytest.mark.parametrize(
    ("split", "scored_on", "half"), [("train", "test", False), ("fit", "validation", False), ("train", "test", True)]
)
def test_a_trained_teacher_says_how_it_was_made(split, scored_on, half, clone, call):
    path = clone / "t.safetensors"
    status, said = call("train", *WRN, "--split", split, "--seed", 3, *(["--half"] if half else []), "--out", path)
    header, facts = files.load_tensors(path)[1], DATASETS["digits"]
    assert status == 0 and said == f"teacher {100 * header['accuracy'][scored_on]:.1f} % on {scored_on}\n{path}\n"
    assert (header["network"], header["dataset"], header["split"], header["seed"]) == ("wrn10_half", "digits", split, 3)
    assert header["recipe"] == dataclasses.asdict(RECIPES["digits"]) and header["torch"] == torch.__version__
    assert (tuple(header["mean"]), tuple(header["std"])) == (facts.mean, facts.std)
    assert header["class_names"] == list(facts.class_names) and header["sha256"] == weights_of(path)
    stored = {x.dtype for x in files.load_tensors(path)[0].values()}
    assert stored == {torch.float16 if half else torch.float32, torch.int64}
    assert not list(clone.rglob("*.partial")) and not load_classifier(path).training


def test_a_teacher_goes_where_distill_finds_it(call, capsys):
    assert call("train", *WRN)[0] == 0 and teacher_path("digits", "wrn10_half").is_file()
    before = teacher_path("digits", "wrn10_half").read_bytes()
    status, said = call("train", *WRN, "--seed", 1)
    assert status == 2 and "wrn10_half.safetensors is there already, and would be lost: give --out another file" in said
    assert teacher_path("digits", "wrn10_half").read_bytes() == before
    tiny = [f"{name}={value}" for name, value in TINY.items()]
    assert cli.main(["distill", "--device", "cpu", "--set", *tiny, "teacher=wrn10_half"]) == 0


def test_another_cycle_goes_on_from_the_weights_of_a_teacher(clone, call):
    first, second, still = (clone / f"{name}.safetensors" for name in ("first", "second", "still"))
    assert call("train", *WRN, "--out", first)[0] == 0
    assert call("train", *WRN, "--start", first, "--lr", 0.02, "--out", second)[0] == 0
    before, after = (files.load_tensors(path)[1] for path in (first, second))
    assert after["start"] == {name: before[name] for name in ("sha256", "recipe", "accuracy")}
    assert after["recipe"] == before["recipe"] | {"lr": 0.02}
    assert call("train", *WRN, "--start", first, "--lr", 1e-12, "--out", still)[0] == 0
    learned = dict(load_classifier(first).net.named_parameters())
    for name, weight in load_classifier(still).net.named_parameters():  # it began with these
        torch.testing.assert_close(weight, learned[name], rtol=1e-5, atol=1e-6)


def test_a_cycle_begins_from_no_other_network_and_no_senseless_rate(clone, call):
    other = clone / "other.safetensors"
    save_classifier(other, make_classifier("wrn10_1", DATASETS["digits"].class_names, (0.3,), (0.4,), seed=0))
    assert "is a wrn10_1: say --network wrn10_1, or leave --start out" in call("train", *WRN, "--start", other)[1]
    assert "--lr must be a positive number, not 0." in call("train", *WRN, "--lr", 0)[1]


def interrupt_at(epoch, monkeypatch):
    """Ctrl-C right after an epoch was kept."""
    save = teachers.save_partial

    def saved(path, about, training):
        save(path, about, training)
        if training.epoch == epoch:
            raise KeyboardInterrupt

    monkeypatch.setattr(teachers, "save_partial", saved)


def test_an_interrupted_teacher_is_resumed_and_ends_the_same(clone, call, monkeypatch):
    whole, parts = clone / "whole.safetensors", clone / "parts.safetensors"
    assert call("train", *WRN, "--out", whole)[0] == 0
    with monkeypatch.context() as patch:
        interrupt_at(2, patch)
        status, said = call("train", *WRN, "--out", parts)
    assert status == 130 and said.endswith("stopped; the files of the last whole epoch are kept.\n")
    partial = clone / "parts.safetensors.partial"
    assert partial.is_file() and not parts.exists()

    sentence = "parts.safetensors.partial is an unfinished training: continue it with --resume, or remove it."
    assert sentence in call("train", *WRN, "--out", parts)[1]
    status, said = call("train", *WRN, "--seed", 1, "--resume", "--out", parts)
    assert status == 2 and "is another training (seed 0, not 1): resume that training, or remove the file." in said
    assert call("train", *WRN, "--resume", "--out", parts)[0] == 0
    assert weights_of(parts) == weights_of(whole) and not partial.exists()
    assert reached(parts)["steps"] == reached(whole)["steps"] == 60 and reached(parts)["epochs"] == 3
    about = [{**files.load_tensors(path)[1], "reached": None} for path in (parts, whole)]
    assert about[0] == about[1]
    assert "there is no unfinished training at" in call("train", *WRN, "--resume", "--out", parts)[1]


def reached(path) -> dict:
    return files.load_tensors(path)[1]["reached"]


def test_minutes_end_a_training_and_the_header_says_what_was_reached(clone, call):
    path = clone / "t.safetensors"
    assert call("train", *WRN, "--minutes", 0.02, "--out", path)[0] == 0
    recipe, told = files.load_tensors(path)[1]["recipe"], reached(path)
    assert (recipe["epochs"], recipe["minutes"], recipe["one_cycle"]) == (None, 0.02, True)
    assert told["minutes"] == pytest.approx(0.02, abs=0.05) and told["steps"] > 0 and "cores" in told["device"]
    assert told["epochs"] == pytest.approx(told["steps"] / 20, abs=0.01)  # 20 steps an epoch
    status, said = call("train", *WRN, "--minutes", 0.02, "--recipe", "paper", "--out", clone / "another.safetensors")
    assert status == 2 and "minutes in place of epochs need a one-cycle recipe" in said
    status, said = call("train", *WRN, "--minutes", 0, "--out", path)
    assert status == 2 and "--minutes must be more than 0, not 0." in said


def test_images_from_elsewhere_train_and_score_a_teacher(clone, call):
    """The same images give the same teacher, whether they come from the data set, from sheets or from a file."""
    paths = [clone / f"{k}.safetensors" for k in range(4)]
    splits = {split: load_split("digits", split) for split in ("train", "test")}
    for split, part in splits.items():
        write_sheets(clone / "sheets", split, part.images, part.labels)
    train, test = splits.values()
    np.savez(clone / "train.npz", images=train.images, labels=train.labels)
    np.savez(clone / "test.npz", images=test.images[:100], labels=test.labels[:100])
    ways = [[], ["--images", clone / "sheets"], ["--images", clone / "train.npz"]]
    ways.append(["--images", clone / "sheets", "--test-images", clone / "test.npz"])
    for path, words in zip(paths, ways, strict=True):
        assert call("train", *WRN, *words, "--out", path)[0] == 0
    assert len({weights_of(path) for path in paths}) == 1
    own, sheets, packed, fewer = (files.load_tensors(path)[1] for path in paths)
    assert own["accuracy"] == sheets["accuracy"] == packed["accuracy"] != fewer["accuracy"]
    expected = {"count": 1297, "sha256": files.tensors_hash({"images": train.images, "labels": train.labels})}
    assert "images" not in own and sheets["images"] == packed["images"] == expected

    part = load_split("digits", "test").images
    np.savez(clone / "test.npz", images=part, labels=np.full(len(part), 10))
    status, said = call("train", *WRN, "--test-images", clone / "test.npz", "--out", clone / "t.safetensors")
    assert status == 2 and "there are 10 classes" in said and not list(clone.glob("*.partial"))  # told before training
    status, said = call("train", *WRN, "--split", "fit", "--images", clone / "sheets")
    assert status == 2 and "leave --images and --test-images out" in said


def test_a_training_that_breaks_leaves_the_last_good_epoch(clone, call, monkeypatch):
    calls, crop = [], teachers.crop_and_flip

    def spoil(images, *rest):
        calls.append(len(images))
        return crop(images, *rest) * (torch.nan if len(calls) == 25 else 1)  # 20 steps an epoch

    monkeypatch.setattr(teachers, "crop_and_flip", spoil)
    status, said = call("train", *WRN, "--out", clone / "t.safetensors")
    assert status == 2 and "\nnayer_lib: loss or weights became NaN or infinite in epoch 1 of" in said
    assert not (clone / "t.safetensors").exists()
    assert files.load_torch(clone / "t.safetensors.partial")["epoch"] == 1


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--recipe", "papr"], "unknown recipe 'papr'. Did you mean 'paper'"),
        (["--dataset", "digts"], "unknown data set 'digts'. Did you mean 'digits'"),
        (["--network", "wrn10"], "unknown network 'wrn10'. Did you mean 'wrn10_1'"),
        (["--split", "fits"], "unknown split to train on 'fits'. Did you mean 'fit'"),
        (["--split", "test"], "unknown split to train on 'test'"),
        (["--device", "gpu"], "unknown device 'gpu'"),
        (["--dataset", "cifar100"], "cifar100 is not whole in"),
        (["--dataset", "imagenet", "--network", "resnet50"], "only its test split is read: take a trained teacher"),
    ],
)
def test_a_mistake_in_training_is_one_sentence(words, sentence, call):
    status, said = call("train", *WRN, *words)
    assert status == 2 and said.startswith("nayer_lib: ") and sentence in said and said.count("\n") == 1


# --- score


def test_score_tells_accuracy_and_the_lowest_class(call):
    status, said = call("score", teacher_path("digits", "wrn10_1"))
    assert status == 0
    assert re.fullmatch(
        r"wrn10_1 99\.\d\d % of 500 test images of digits; lowest class: (\w+), 9\d\.\d %\n", said
    ) and said.split(": ")[1].split(",")[0] in class_names("digits")


def test_score_takes_somebody_elses_checkpoint(clone, call):
    ours, theirs = load_classifier(teacher_path("digits", "wrn10_1")), clone / "theirs.pth"
    torch.save({"state_dict": {f"module.{key}": x for key, x in ours.net.state_dict().items()}}, theirs)
    words = [theirs, "--dataset", "digits", "--network", "wrn10_1", "--device", "cpu"]
    assert call("score", *words) == call("score", teacher_path("digits", "wrn10_1"), "--device", "cpu")
    status, said = call("score", *words, "--mean", 0.9, "--std", 0.1)
    assert status == 0 and " 99." not in said  # another normalisation, another network

    names = clone / "names.txt"
    names.write_text("\n".join(class_names("digits")[::-1]))
    status, said = call("score", *words, "--classes", names)
    assert status == 2 and "not those of digits, in its order: the teacher's start with nine, eight, seven" in said
    status, said = call("score", theirs, "--network", "wrn10_1")
    assert status == 2 and "theirs.pth is to be scored on stands nowhere: give --dataset or --images." in said


def test_resizing_that_costs_the_teacher_more_than_five_points_is_said(tmp_path, call):
    """Drawings of 8 px, as the teacher was trained on, enlarged to 16."""
    digits = load_split("digits", "test")
    for i, (image, label) in enumerate(zip(digits.images[:100], digits.labels, strict=False)):
        folder = tmp_path / "drawings" / class_names("digits")[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0].numpy()).save(folder / f"{i}.png")
    score = ("score", str(teacher_path("digits", "wrn10_1")), "--dataset", "drawings")
    score += ("--images", str(tmp_path / "drawings"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        call(*score, "--size", "8")
    with pytest.warns(UserWarning, match=r"scores 99\.0 % on these images as they are, 8 px, .* take --size 8"):
        call(*score, "--size", "16")
    Image.new("L", (2000, 2000)).save(folder / "large.png")  # not all of one size: nothing to compare
    with pytest.warns(UserWarning, match="its file states") as said:
        assert call(*score, "--size", "16")[0] == 0
    assert not [warning for warning in said if "as they are" in str(warning.message)]


def test_photographs_are_resized_without_a_word_and_without_being_read_whole(tmp_path, call):
    """Squares of one size beyond what this kit reads."""
    for name in class_names("digits"):
        (tmp_path / "large" / name).mkdir(parents=True)
        Image.new("L", (1100, 1100)).save(tmp_path / "large" / name / "0.png")
    score = ("score", str(teacher_path("digits", "wrn10_1")), "--dataset", "large")
    with pytest.warns(UserWarning, match="scores 10.0 %") as said:
        assert call(*score, "--images", str(tmp_path / "large"), "--size", "8")[0] == 0
    assert not [warning for warning in said if "as they are" in str(warning.message)]


def test_a_file_that_names_no_data_set_wants_one(clone, call):
    facts, path = DATASETS["digits"], clone / "mine.safetensors"
    save_classifier(path, make_classifier("wrn10_half", facts.class_names, facts.mean, facts.std, 0))
    assert "give --dataset" in call("score", path)[1]
    assert call("score", path, "--dataset", "digits")[0] == 0


# --- convert


def fast_datafree(path: Path, net: torch.nn.Module) -> Path:
    """A checkpoint as that project's trainer leaves it: the scheduler's milestones are a Counter."""
    scheduler = {"milestones": collections.Counter({120: 1, 150: 1, 180: 1}), "gamma": 0.2, "last_epoch": 200}
    content = {"epoch": 200, "arch": "wrn", "state_dict": net.state_dict(), "best_acc1": 99.8, "scheduler": scheduler}
    torch.save({**content, "optimizer": torch.optim.SGD(net.parameters(), 0.1).state_dict()}, path)
    return path


@pytest.mark.parametrize("half", [False, True])
def test_a_converted_checkpoint_is_scored_and_says_where_it_came_from(half, clone, call):
    ours = load_classifier(teacher_path("digits", "wrn10_1"))
    source, out = fast_datafree(clone / "digits_wrn10_1.pth", ours.net), clone / "t.safetensors"
    words = [source, "--dataset", "digits", "--network", "wrn10_1", *(["--half"] if half else []), "--out", out]
    status, said = call("convert", *words)
    header, read = files.load_tensors(out)[1], load_classifier(out)
    assert status == 0 and said == f"teacher {100 * header['accuracy']['test']:.2f} % on test\n{out}\n"
    assert header["accuracy"]["test"] == pytest.approx(0.998, abs=0.003)
    assert header["source"] == {"file": "digits_wrn10_1.pth", "sha256": files.file_hash(source)}
    assert (read.name, read.class_names, read.mean) == ("wrn10_1", class_names("digits"), DATASETS["digits"].mean)
    rounded = {
        key: x.half().float() if half and x.is_floating_point() else x for key, x in ours.net.state_dict().items()
    }
    assert header["sha256"] == files.tensors_hash(rounded) == weights_of(out)
    stored = {x.dtype for x in files.load_tensors(out)[0].values()}
    assert stored == {torch.float16 if half else torch.float32, torch.int64}


def test_a_checkpoint_whose_test_images_are_not_here_is_not_scored(clone, call):
    source = fast_datafree(clone / "cifar10_wrn16_1.pth", build("wrn16_1", 10))
    status, said = call("convert", source, "--dataset", "cifar10", "--network", "wrn16_1")
    path = teacher_path("cifar10", "wrn16_1")
    assert (
        status == 0 and said.startswith("teacher not scored: cifar10 is not whole in") and said.endswith(f"\n{path}\n")
    )
    assert files.load_tensors(path)[1]["accuracy"] == {}
    before = path.read_bytes()
    status, said = call("convert", source, "--dataset", "cifar10", "--network", "wrn16_1", "--half")
    assert status == 2 and "wrn16_1.safetensors is there already, and would be lost" in said
    assert path.read_bytes() == before


def test_torchvisions_resnet50_becomes_imagenets_teacher(clone, call):
    from torchvision.models import resnet50

    source, net = clone / "resnet50.pth", resnet50(weights=None)
    torch.save(net.state_dict(), source)
    status, said = call("convert", source, "--dataset", "imagenet", "--network", "resnet50", "--half")
    assert status == 0 and said.startswith("teacher not scored: imagenet cannot be downloaded freely")
    read = load_classifier(teacher_path("imagenet", "resnet50"))
    assert sum(p.numel() for p in read.parameters()) == 25_557_032 and len(read.class_names) == 1000
    assert torch.equal(read.net.conv1.weight, net.conv1.weight.half().float())


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--dataset", "cifar11", "--network", "wrn16_1"], "unknown data set 'cifar11'"),
        (["--dataset", "cifar10", "--network", "wrn16_2"], "holds weights of another network"),
        (
            ["--dataset", "cifar100", "--network", "wrn16_1"],
            "another network (of another shape: fc.bias, fc.weight (2))",
        ),
        (["--dataset", "cifar10", "--network", "wrn16_1", "--half"], "beyond 65504, too large for float16"),
    ],
)
def test_what_cannot_be_converted_is_told(words, sentence, clone, call):
    net = build("wrn16_1", 10)
    net.bn1.running_var.fill_(1e6)
    status, said = call("convert", fast_datafree(clone / "c.pth", net), *words, "--out", clone / "t.safetensors")
    assert status == 2 and sentence in said and said.count("\n") == 1 and not (clone / "t.safetensors").exists()


@pytest.mark.slow
def test_a_published_resnet20_keeps_its_accuracy_in_half_precision(cifar10_folder, test_data, clone, call, monkeypatch):
    """91.73 % as published; rounding its weights to float16 moves none or a few of 10,000 images."""
    monkeypatch.setenv("NAYER_DATASETS", str(cifar10_folder))
    source = test_data / "classifiers-cifar10" / "resnet20-12fca82f.th"
    words = ["--dataset", "cifar10", "--network", "resnet20", *IMAGENET]
    status, said = call("score", source, *words)
    assert status == 0 and said.startswith("resnet20 91.73 % of 10000 test images of cifar10; lowest class: cat, 8")
    assert call("convert", source, *words, "--half", "--out", clone / "half.safetensors")[0] == 0
    header = files.load_tensors(clone / "half.safetensors")[1]
    assert header["accuracy"]["test"] == pytest.approx(0.9173, abs=0.001)


# --- list


def test_list_tells_for_every_teacher_of_tables_1_and_9_where_it_is_or_how_to_come_by_it(clone, call):
    for dataset, network in (("cifar100", "vgg11"), ("cifar10", "resnet20")):  # the second is no table's
        facts = DATASETS[dataset]
        here = make_classifier(network, facts.class_names, facts.mean, facts.std, 0)
        save_classifier(teacher_path(dataset, network), here)
    status, said = call("list")
    heading, *lines = said.splitlines()
    rows = [line.split(maxsplit=2) for line in lines if not line.startswith(" ")]
    presets = {(row["dataset"], row.get("teacher", Config.teacher)) for row in PRESETS.values()}
    table9 = {(row["dataset"], row["teacher"]) for row in PRESETS.values() if "weight_bits" in row}
    brought = {path.stem.partition("-")[::2] for path in teacher_path("", "").parent.glob("*.safetensors")}
    assert status == 0 and heading.split() == ["data", "set", "network", "teacher"]
    told = {(dataset, network): way for dataset, network, way in rows}
    assert told.keys() == presets | brought and table9 < presets and len(rows) == len(told) >= 10 + 4 + 3
    assert {which for which, way in told.items() if way == "here"} == brought >= {("cifar10", "resnet20")}
    command = "python -m nayer_lib teacher train --dataset tiny_imagenet --network resnet34"
    assert told["tiny_imagenet", "resnet34"] == f"trainable: {command}"
    assert told["imagenet", "resnet50"].startswith("convertible from torchvision's")
    for dataset, network in table9:
        assert told[dataset, network].startswith("trainable: ")
    assert "convertible from checkpoints/pretrained/cifar100_wrn40_2.pth of Fast-Datafree" in said
    assert "cifar100_resnet18.pth" not in said  # that project has the teachers of Table 1 alone
    assert len({len(line) - len(line.lstrip()) for line in lines if line.startswith(" ")}) == 1  # one column
