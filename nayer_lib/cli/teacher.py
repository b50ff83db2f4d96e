"""Teachers: train one on real data, score one, convert somebody else's, list those that the presets ask for."""

import dataclasses
import math
from pathlib import Path

import torch
from tyro.conf import Positional

from .. import datasets, files
from ..augment import crop_and_flip
from ..classifiers.check import check_teacher
from ..classifiers.checkpoints import check_content
from ..classifiers.teacher import Classifier, load_classifier, make_classifier, save_classifier, teacher_path
from ..classifiers.training import RECIPES, Training, resume_training, save_partial
from ..compute import Compute
from ..config import PRESETS, Config
from ..distill import choose_device
from ..errors import MissingFile, UserError, unknown
from ..evaluate import Evaluator, Scores
from ..runs.card import device_name
from .common import NO_FOREIGN, ForeignOptions, new_file, own_images, own_teacher


def train(
    dataset: str,
    network: str,
    recipe: str | None = None,
    minutes: float | None = None,
    lr: float | None = None,
    start: Path | None = None,
    images: Path | None = None,
    test_images: Path | None = None,
    split: str = "train",
    seed: int = 0,
    device: str | None = None,
    half: bool = False,
    resume: bool = False,
    out: Path | None = None,
) -> None:
    """Train a teacher on real data and save it where `distill` finds it; each epoch is kept until it is done.

    Args:
        dataset: "digits", "color_digits", "cifar10", "cifar100" or "tiny_imagenet".
        network: "wrn10_1", "wrn40_2", "resnet34", "vgg11", ...
        recipe: "paper" (appendix A.1, 200 epochs), "short" (30 epochs, a GPU), "laptop" (20 epochs) or "digits" (15
            epochs); default: "digits" for the digit sets, "paper" for the others, with --minutes "laptop".
        minutes: train so long, in place of the recipe's epochs; its rate is annealed by then. Scoring comes after.
        lr: the highest rate, in place of the recipe's.
        start: weights to begin from, a teacher of this kit: another cycle of training, best at a lower rate.
        images: training images that lie elsewhere: an .npz file with images and labels, or a folder of sheets
            train_000.png, ... (columns of images) with train_labels.npz; default: the data set's own.
        test_images: images to score on, likewise; default: the test_ sheets in the folder of --images, else the data
            set's own.
        split: "train", or "fit" to keep the validation part unseen.
        seed: of the weights and the batches.
        device: "cpu" or "cuda"; default: the GPU where there is one.
        half: store float16: half the size, and scored after rounding.
        resume: continue a training that was interrupted, from the file <out>.partial.
        out: default: data/teachers/<data set>-<network>.safetensors.
    """
    from tqdm import tqdm

    facts = datasets.dataset(dataset)
    recipe = recipe or ("digits" if "digits" in dataset else "laptop" if minutes else "paper")
    if recipe not in RECIPES:
        raise unknown("recipe", recipe, RECIPES)
    if split not in ("train", "fit"):
        raise unknown("split to train on", split, ("train", "fit"))
    if split == "fit" and (images or test_images):
        raise UserError("--split fit is of the data set's own images: leave --images and --test-images out.")
    chosen, on = RECIPES[recipe], choose_device(device)
    if minutes is not None:
        if minutes <= 0:
            raise UserError(f"--minutes must be more than 0, not {minutes:g}.")
        chosen = dataclasses.replace(chosen, epochs=None, minutes=minutes)
    if lr is not None:
        if not 0 < lr < math.inf:
            raise UserError(f"--lr must be a positive number, not {lr:g}.")
        chosen = dataclasses.replace(chosen, lr=lr)
    path = out or teacher_path(dataset, network)
    partial = path.with_name(f"{path.name}.partial")
    if partial.exists() and not resume:
        raise UserError(f"{partial} is an unfinished training: continue it with --resume, or remove it.")
    if not resume:
        new_file(path)
    classifier = _begun(start, network, dataset) if start else None
    classifier = (classifier or make_classifier(network, facts.class_names, facts.mean, facts.std, seed)).to(on)
    data = (datasets.load_packed(images, dataset, "train") if images else datasets.load_split(dataset, split)).to(on)
    if test_images is None and images and images.is_dir() and datasets.is_packed(images):
        test_images = images
    scored_on = "validation" if split == "fit" else "test"
    test = datasets.load_packed(test_images, dataset) if test_images else datasets.load_split(dataset, scored_on)
    training = Training(
        classifier,
        data.images,
        data.labels,
        lambda batch, rng: crop_and_flip(batch, facts.crop_padding, facts.flip, rng),
        chosen,
        seed,
        Compute() if "digits" in dataset else None,  # so that a seed decides every bit of what the kit brings
    )
    made = {"dataset": dataset, "split": split, "recipe": dataclasses.asdict(chosen), "seed": seed}
    if start:
        before = files.load_tensors(start)[1]
        made["start"] = {name: before[name] for name in ("sha256", "recipe", "accuracy", "start") if name in before}
    if images:
        made["images"] = {
            "count": len(data.labels),
            "sha256": files.tensors_hash({"images": data.images, "labels": data.labels}),
        }
    about = {"network": network, **made, "device": on.type}
    if resume:
        resume_training(partial, about, training)
    with tqdm(training, total=chosen.epochs, initial=training.epoch, unit="epoch") as bar:
        for loss in bar:
            save_partial(partial, about, training)
            bar.set_description(f"loss {loss:.3f}")
    if half:
        _round(classifier, "the trained network")
    accuracy = _scores(classifier, dataset, test, on).accuracy
    reached = {
        "epochs": round(training.steps / training.steps_per_epoch, 2),
        "steps": training.steps,
        "minutes": round(training.seconds / 60, 2),
        "device": device_name(on),
    }
    _save(path, classifier, half=half, accuracy={scored_on: accuracy}, reached=reached, **made)
    partial.unlink(missing_ok=True)
    print(f"teacher {100 * accuracy:.1f} % on {scored_on}\n{path}")


def score(
    file: Positional[Path],
    dataset: str | None = None,
    foreign: ForeignOptions = NO_FOREIGN,
    images: Path | None = None,
    size: int = 32,
    device: str | None = None,
) -> None:
    """Score a teacher or a student on the test split of its data set, or on images of your own.

    Args:
        file: a classifier of this kit, or with --network anybody's checkpoint.
        dataset: default: the one that the file names.
        images: images to score on, as `distill` takes them: a subfolder a class, grey ones for a mean of one number;
            or the data set's, an .npz file or a folder of sheets; default: the data set's test split.
        size: pixels to resize those in subfolders to.
        device: "cpu" or "cuda"; default: the GPU where there is one.
    """
    if not dataset and not foreign.network and check_content(file):
        dataset = files.load_tensors(file)[1].get("dataset")
    if not dataset and not images:
        raise UserError(f"which data set {file} is to be scored on stands nowhere: give --dataset or --images.")
    dataset = dataset or images.name
    classifier = own_teacher(dataset, file, foreign)
    test = own_images(images, dataset, classifier, size) if images else datasets.load_split(dataset, "test")
    check_teacher(classifier, tuple(test.images.shape[1:]))
    scores = _scores(classifier, dataset, test, choose_device(device))
    worst = scores.per_class.argmin()
    print(
        f"{classifier.name} {100 * scores.accuracy:.2f} % of {len(scores.predictions)} test images of {dataset}; "
        f"lowest class: {classifier.class_names[worst]}, {100 * scores.per_class[worst]:.1f} %"
    )


def convert(
    checkpoint: Positional[Path],
    dataset: str,
    foreign: ForeignOptions = NO_FOREIGN,
    half: bool = False,
    device: str | None = None,
    out: Path | None = None,
) -> None:
    """Turn somebody else's checkpoint into a teacher of this kit: Fast-Datafree's, torchvision's ResNet-50, your own.

    Args:
        checkpoint: safetensors or a torch file with a state_dict inside or as a whole; no code in it is executed.
        dataset: what it was trained on, with its classes in the data set's order.
        half: store float16: half the size, and scored after rounding.
        device: where to score it, "cpu" or "cuda"; default: the GPU where there is one.
        out: default: data/teachers/<data set>-<network>.safetensors.
    """
    facts = datasets.dataset(dataset)
    if not foreign.network:
        raise UserError("--network says how the checkpoint's layers are put together: resnet34, wrn40_2, vgg11, ...")
    path = new_file(out or teacher_path(dataset, foreign.network))
    classifier = own_teacher(dataset, checkpoint, foreign)
    check_teacher(classifier, facts.image_shape)
    if half:
        _round(classifier, checkpoint)
    try:
        accuracy = {
            "test": _scores(classifier, dataset, datasets.load_split(dataset, "test"), choose_device(device)).accuracy
        }
        told = f"{100 * accuracy['test']:.2f} % on test"
    except MissingFile as error:
        accuracy, told = {}, f"not scored: {error}"
    source = {"file": checkpoint.name, "sha256": files.file_hash(checkpoint)}
    _save(path, classifier, half=half, dataset=dataset, accuracy=accuracy, source=source)
    print(f"teacher {told}\n{path}")


def list_teachers() -> None:
    """Say for each teacher of Tables 1 and 9 and of the digit sets whether it is here, and if not, how to come by it.

    What else lies in data/teachers, judges among them, is listed too.
    """
    table = {
        (row["dataset"], row.get("teacher", Config.teacher)): 9 if "weight_bits" in row else 1
        for row in PRESETS.values()
    }
    here = sorted(path.stem.partition("-")[::2] for path in files.data_dir().glob("teachers/*.safetensors"))
    print(f"{'data set':15}{'network':13}teacher")
    for dataset, network in dict.fromkeys([*table, *here]):
        first, *rest = _ways(dataset, network, table.get((dataset, network)))
        print(f"{dataset:15}{network:13}{first}")
        for way in rest:
            print(f"{'':28}{way}")


COMMANDS = {"train": train, "score": score, "convert": convert, "list": list_teachers}


def _ways(dataset: str, network: str, table: int | None) -> list[str]:
    """Where a teacher of a table is, or the ways to come by it."""
    if teacher_path(dataset, network).is_file():
        return ["here"]
    if dataset == "imagenet":
        return ["convertible from torchvision's resnet50-0676ba61.pth (IMAGENET1K_V1)"]
    ways = [f"trainable: python -m nayer_lib teacher train --dataset {dataset} --network {network}"]
    if dataset.startswith("cifar") and table == 1:
        ways.append(f"convertible from checkpoints/pretrained/{dataset}_{network}.pth of Fast-Datafree")
    return ways


def _begun(start: Path, network: str, dataset: str) -> Classifier:
    """The classifier that a training goes on from.

    Raises:
        UserError: it is another network, or of other classes.
    """
    classifier = load_classifier(start)
    if classifier.name != network:
        raise UserError(f"{start} is a {classifier.name}: say --network {classifier.name}, or leave --start out.")
    datasets.dataset(dataset).check_classes(classifier.class_names)
    return classifier


def _scores(classifier: Classifier, dataset: str, test: datasets.Split, device: torch.device) -> Scores:
    if dataset in datasets.DATASETS:
        datasets.dataset(dataset).check_classes(classifier.class_names)
    return Evaluator(classifier.to(device), test.to(device)).teacher


def _round(classifier: Classifier, source: object) -> None:
    """Round the weights to float16, so that what is scored is what is stored."""
    classifier.net.half().float()
    if not all(x.isfinite().all() for x in classifier.net.state_dict().values()):
        raise UserError(f"{source} holds weights beyond 65504, too large for float16: leave --half out.")


def _save(path: Path, classifier: Classifier, **provenance) -> None:
    """`save_classifier`, with what every teacher's header says beside how it was made."""
    sha256 = files.tensors_hash(classifier.net.state_dict())
    save_classifier(path, classifier, sha256=sha256, torch=str(torch.__version__), **provenance)
