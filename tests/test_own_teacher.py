"""Bring your own teacher: any classifier with BatchNorm, with its normalisation, names, images and embeddings."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import TINY
from torch import nn

from nayer_lib import cli
from nayer_lib.classifiers import build
from nayer_lib.classifiers.teacher import Classifier, foreign_teacher
from nayer_lib.compute import Compute
from nayer_lib.config import make_config
from nayer_lib.datasets import Split, load_folder, load_split
from nayer_lib.distill import distill, prepare
from nayer_lib.errors import MissingFile, UserError
from nayer_lib.evaluate import Evaluator
from nayer_lib.files import tensors_hash
from nayer_lib.runs.card import read_card
from nayer_lib.runs.run import Run
from nayer_lib.text.labels import class_names
from nayer_lib.text.lte_pool import build_pool
from nayer_lib.text.released import released_pool

TINY_SET = ["--set", *(f"{name}={value}" for name, value in TINY.items())]
NAMES = ("green leaf", "red leaf", "wood")
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


class OwnNet(nn.Module):
    """Somebody's network: not one of ours."""

    def __init__(self, classes=3):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Linear(8, classes)

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))


@pytest.fixture
def folder(tmp_path):
    """Evaluation images in four modes and sizes; the folders' order is not the classes'."""
    for name, colour, mode in (
        ("wood", 90, "L"),
        ("red leaf", (200, 0, 0), "RGB"),
        ("green leaf", (9, 9, 9, 9), "CMYK"),
    ):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(2):
            Image.new(mode, (20 + i, 13), colour).save(tmp_path / "images" / name / f"{i}.jpg")
    return tmp_path / "images"


# --- images


def test_labels_follow_the_class_names_and_not_the_folders(folder):
    split = load_folder(folder, NAMES, size=16)
    assert split.images.shape == (6, 3, 16, 16) and split.images.dtype == torch.uint8
    assert split.labels.tolist() == [0, 0, 1, 1, 2, 2]
    red, grey = split.images[2].float().mean((1, 2)), split.images[4].float().mean((1, 2))
    assert red[0] > 150 > 60 > red[1] and torch.allclose(grey, torch.full((3,), 90.0), atol=3)


def test_images_can_be_read_grey(folder):
    assert load_folder(folder, NAMES, size=8, channels=1).images.shape == (6, 1, 8, 8)


def test_a_folder_that_does_not_fit_the_classes_is_told(folder):
    with pytest.raises(UserError, match=r"no images for stone \(1\); no class for the folders wood \(1\)"):
        load_folder(folder, ("green leaf", "red leaf", "stone"), size=8)
    with pytest.raises(MissingFile, match="one subfolder of images a class"):
        load_folder(folder / "nowhere", NAMES, size=8)
    (folder / "wood" / "note.txt").write_text("not an image")
    with pytest.raises(UserError, match=r"note\.txt is not a whole image"):
        load_folder(folder, NAMES, size=8)


# --- the whole way


def own_setup(folder, **overrides):
    torch.manual_seed(0)
    teacher = Classifier(OwnNet(), NAMES, **IMAGENET)
    config = make_config("digits", **{**TINY, "dataset": "leaves", "student": "wrn10_half", **overrides})
    return prepare(config, teacher, build_pool(NAMES, "random", "a"), load_folder(folder, NAMES, 16), "cpu")


@pytest.mark.filterwarnings("ignore:the teacher scores")
def test_any_network_with_batchnorm_can_teach(folder):
    setup = own_setup(folder)
    assert setup.method.student.mean == IMAGENET["mean"]  # the student sees what its teacher sees
    *_, last = distill(setup.method, setup.evaluate)
    assert last.scores.per_class.shape == (3,) and setup.method.memory.images.shape[1:] == (3, 16, 16)


def test_a_teacher_at_chance_is_warned_about(folder):
    with pytest.warns(UserWarning, match="about chance: check its normalisation"):
        own_setup(folder)


def test_names_in_another_order_than_the_data_sets_are_refused():
    names = class_names("digits")[::-1]
    teacher = Classifier(build("wrn10_1", 10, channels=1), names, (0.3,), (0.4,))
    with pytest.raises(UserError, match="not those of digits, in its order: the teacher's start with nine"):
        prepare(make_config(**TINY), teacher, device="cpu")


@pytest.mark.parametrize(("names", "net"), [(NAMES[::-1], OwnNet()), (NAMES, nn.Sequential(OwnNet(), nn.Softmax(1)))])
def test_what_does_not_fit_a_teacher_is_told_before_anything_is_made(names, net, folder):
    """A pool of its classes in another order; probabilities."""
    config = make_config("digits", **{**TINY, "dataset": "leaves", "student": "wrn10_half"})
    pool, test = build_pool(names, "random", "a"), load_folder(folder, NAMES, 16)
    with pytest.raises(UserError, match="pool is for other classes|take the softmax off"):
        prepare(config, Classifier(net, NAMES, **IMAGENET), pool, test, "cpu")


def test_a_teacher_and_test_images_of_another_kind_are_told(folder):
    config = make_config("digits", **{**TINY, "dataset": "leaves"})
    with pytest.raises(UserError, match=r"wrap yours as Classifier\(net, class_names, mean, std\)"):
        prepare(config, OwnNet(), device="cpu")
    with pytest.raises(UserError, match=r"a Split\(images, labels\), not a tuple"):
        prepare(config, Classifier(OwnNet(), NAMES, **IMAGENET), test=(1, 2), device="cpu")


@pytest.mark.filterwarnings("ignore:the teacher scores")
def test_the_command_line_takes_a_foreign_checkpoint_with_its_own_images(folder, tmp_path, capsys):
    """A state_dict with `module.` prefixes, as data-parallel training leaves it."""
    net = build("wrn10_half", 3)
    checkpoint, names, lte = tmp_path / "net.pth", tmp_path / "names.txt", tmp_path / "lte.safetensors"
    torch.save({"state_dict": {f"module.{k}": v for k, v in net.state_dict().items()}}, checkpoint)
    names.write_text("\n".join(NAMES))
    pool = ["lte", "build", "--dataset", "leaves", "--encoder", "random", "--classes", str(names), "--out", str(lte)]
    assert cli.main(pool) == 0
    run = ["distill", *TINY_SET, "dataset=leaves", "student=wrn10_half", "--network", "wrn10_half"]
    run += ["--classes", str(names), "--mean", "0.5", "0.5", "0.5", "--std", "0.2", "0.2", "0.2", "--lte", str(lte)]
    run += ["--images", str(folder), "--size", "16", "--teacher", str(checkpoint), "--out", str(tmp_path / "run")]
    assert cli.main(run) == 0, capsys.readouterr().err
    card = read_card(tmp_path / "run")
    assert card["status"] == "finished" and card["config"]["dataset"] == "leaves" and card["test_split"]["images"] == 6

    capsys.readouterr()
    names.write_text("\n".join(NAMES[:2]))
    assert cli.main([*run[:-1], str(tmp_path / "other")]) == 2
    assert "holds weights of another network (of another shape: fc.bias, fc.weight (2))" in capsys.readouterr().err
    assert cli.main([word for word in run if word not in ("--classes", str(names))]) == 2
    assert "leaves is not one of the kit's data sets: give --classes" in capsys.readouterr().err


# --- a teacher that none of us trained


@pytest.fixture(scope="module")
def cifar10(cifar10_folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NAYER_DATASETS", str(cifar10_folder))
        yield load_split("cifar10", "test")


@pytest.mark.slow
def test_a_third_partys_resnet20_scores_what_its_authors_published(cifar10, test_data):
    """91.73 % on the whole CIFAR-10 test set, with ImageNet's normalisation inside."""
    checkpoint = test_data / "classifiers-cifar10" / "resnet20-12fca82f.th"
    teacher = foreign_teacher(checkpoint, "resnet20", class_names("cifar10"), **IMAGENET)
    assert Evaluator(teacher, cifar10).teacher.accuracy == pytest.approx(0.9173, abs=0.0002)


@pytest.fixture(scope="module")
def published(cifar10, test_data, tmp_path_factory):
    """`prepare`'s arguments but the config: the ResNet-20, the released embeddings, some test images."""
    names = class_names("cifar10")
    pickled = tmp_path_factory.mktemp("released") / "le.pickle"
    with np.load(test_data / "clip-text-embeddings" / "nayer_authors_clip_vitb32.npz") as tables:
        assert tuple(tables["cifar10_labels"]) == names  # the released order is the data set's
        pickled.write_bytes(pickle.dumps(torch.from_numpy(tables["cifar10"]), protocol=4))
    teacher = foreign_teacher(test_data / "classifiers-cifar10" / "resnet20-12fca82f.th", "resnet20", names, **IMAGENET)
    return teacher, released_pool(pickled, names), Split(cifar10.images[:200], cifar10.labels[:200]), "cpu"


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_it_teaches_with_the_released_embeddings_and_goes_on_where_it_stopped(precision, published, tmp_path):
    """The whole way on real CIFAR-10, with a budget that shows nothing but that it runs, whole and in two parts."""
    config = make_config("cifar10-wrn40_2-wrn16_1", **{**TINY, "teacher": "resnet20"})
    compute = Compute(precision)
    whole = Run(prepare(config, *published, compute), tmp_path / "whole")
    assert len(list(whole)) == 3
    card = read_card(tmp_path / "whole")
    assert card["status"] == "finished" and card["teacher"]["accuracy"] > 0.85 and card["lte"]["encoder"] == "clip"
    assert card["compute"]["precision"] == precision

    list(Run(prepare(config, *published, compute), tmp_path / "parts", max_minutes=0))
    rest = Run(prepare(config, *published, compute), tmp_path / "parts", resume=True)
    assert [epoch.epoch for epoch in rest] == [1, 2]
    students = [tensors_hash(run.setup.method.student.net.state_dict()) for run in (whole, rest)]
    assert students[0] == students[1]


@pytest.mark.slow
def test_bfloat16_agrees_with_32_bits_on_its_first_losses(published):
    """Eq. 5's terms on real weights: a round's cross-entropy before the first step, and L_BN after one."""
    config = make_config("cifar10-wrn40_2-wrn16_1", **{**TINY, "teacher": "resnet20", "generator_steps": 1})
    plain, half = (prepare(config, *published, Compute(p)).method.synthesize(1) for p in ("fp32", "bf16"))
    assert half.ce_per_step == [pytest.approx(ce, rel=0.02) for ce in plain.ce_per_step]
    assert half.bn == pytest.approx(plain.bn, rel=0.02) and half.adv == pytest.approx(plain.adv, rel=0.2)


# --- the page's way on the command line, offline


SEVEN = ("zero", "one", "two", "three", "four", "five", "six")


@pytest.fixture
def grey(tmp_path):
    """Seven classes of grey digits at 28 x 28: a checkpoint, its names, a folder of test images."""
    net = build("wrn10_1", 7, channels=1)
    with torch.no_grad():  # BatchNorm statistics that belong to some images
        net.train()(torch.rand(64, 1, 28, 28))
    torch.save({"state_dict": {f"module.{key}": x for key, x in net.state_dict().items()}}, tmp_path / "net.pth")
    (tmp_path / "names.txt").write_text("\n".join(SEVEN) + "\n")
    split = load_split("digits", "test")
    for image, label in zip(split.images[:60], split.labels[:60], strict=True):
        if label < 7:
            folder = tmp_path / "test" / SEVEN[label]
            folder.mkdir(parents=True, exist_ok=True)
            picture = Image.fromarray(image[0].numpy()).resize((28, 28))
            picture.save(folder / f"{len(list(folder.iterdir()))}.png")
    return tmp_path


def test_seven_grey_classes_go_from_a_checkpoint_to_a_student_on_the_command_line(grey, capsys):
    images = ["--images", str(grey / "test"), "--size", "28"]
    teacher = ["--network", "wrn10_1", "--classes", str(grey / "names.txt"), "--mean", "0.5", "--std", "0.25"]
    with pytest.warns(UserWarning, match="about chance"):
        assert cli.main(["teacher", "score", str(grey / "net.pth"), *teacher, *images]) == 0
    count = sum(len(list(folder.iterdir())) for folder in (grey / "test").iterdir())
    assert f"of {count} test images of test; lowest class: " in capsys.readouterr().out
    pool = ["--dataset", "own", "--classes", str(grey / "names.txt"), "--out", str(grey / "own.safetensors")]
    assert cli.main(["lte", "build", "--encoder", "random", *pool]) == 0
    words = ["distill", "--out", str(grey / "run"), "--teacher", str(grey / "net.pth"), *teacher, *images]
    settings = [*TINY_SET, "dataset=own", "student=wrn10_1", "noise_dim=40"]
    with pytest.warns(UserWarning, match="about chance"):
        assert cli.main([*words, "--lte", str(grey / "own.safetensors"), *settings]) == 0
    card = read_card(grey / "run")
    assert card["status"] == "finished" and card["config"]["dataset"] == "own"
