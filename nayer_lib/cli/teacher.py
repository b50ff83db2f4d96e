"""Teachers: train one on real data, score one, convert somebody else's, list those that the presets ask for."""

import dataclasses
from pathlib import Path

import torch
from tyro.conf import Positional

from .. import datasets, files
from ..augment import crop_and_flip
from ..classifiers.teacher import Classifier, make_classifier, save_classifier, teacher_path
from ..classifiers.training import RECIPES, Training, resume_training, save_partial
from ..compute import Compute
from ..config import PRESETS, Config
from ..distill import choose_device
from ..errors import MissingFile, UserError, unknown
from ..evaluate import Evaluator, Scores
from .common import own_teacher

SHIPPED = ("digits", "color_digits")  # data sets whose teachers the kit brings


def train(
    dataset: str,
    network: str,
    recipe: str | None = None,
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
        recipe: "paper" (appendix A.1, 200 epochs), "short" (30 epochs) or "digits" (15 epochs); default: "digits" for
            the digit sets, "paper" for the others.
        split: "train", or "fit" to keep the validation part unseen.
        seed: of the weights and the batches.
        device: "cpu" or "cuda"; default: the GPU where there is one.
        half: store float16: half the size, and scored after rounding.
        resume: continue a training that was interrupted, from the file <out>.partial.
        out: default: data/teachers/<data set>-<network>.safetensors.
    """
    from tqdm import tqdm

    facts = datasets.dataset(dataset)
    recipe = recipe or ("digits" if dataset in SHIPPED else "paper")
    if recipe not in RECIPES:
        raise unknown("recipe", recipe, RECIPES)
    if split not in ("train", "fit"):
        raise unknown("split to train on", split, ("train", "fit"))
    chosen, on = RECIPES[recipe], choose_device(device)
    path = out or teacher_path(dataset, network)
    partial = path.with_name(f"{path.name}.partial")
    if partial.exists() and not resume:
        raise UserError(f"{partial} is an unfinished training: continue it with --resume, or remove it.")
    classifier = make_classifier(network, facts.class_names, facts.mean, facts.std, seed).to(on)
    data = datasets.load_split(dataset, split).to(on)
    training = Training(
        classifier,
        data.images,
        data.labels,
        lambda images, rng: crop_and_flip(images, facts.crop_padding, facts.flip, rng),
        chosen,
        seed,
        Compute() if dataset in SHIPPED else None,  # so that a seed decides every bit of what the kit brings
    )
    made = {"dataset": dataset, "split": split, "recipe": dataclasses.asdict(chosen), "seed": seed}
    about = {"network": network, **made, "device": on.type}
    if resume:
        resume_training(partial, about, training)
    with tqdm(training, total=chosen.epochs, initial=training.epoch, unit="epoch") as bar:
        for loss in bar:
            save_partial(partial, about, training)
            bar.set_description(f"loss {loss:.3f}")
    if half:
        _round(classifier, "the trained network")
    scored_on = "validation" if split == "fit" else "test"
    accuracy = _scores(classifier, dataset, scored_on, on).accuracy
    _save(path, classifier, half=half, accuracy={scored_on: accuracy}, **made)
    partial.unlink(missing_ok=True)
    print(f"teacher {100 * accuracy:.1f} % on {scored_on}\n{path}")


def score(
    file: Positional[Path],
    dataset: str | None = None,
    network: str | None = None,
    classes: Path | None = None,
    mean: tuple[float, ...] = (),
    std: tuple[float, ...] = (),
    device: str | None = None,
) -> None:
    """Score a teacher or a student on the test split of its data set.

    Args:
        file: a classifier of this kit, or with --network and --dataset anybody's checkpoint.
        dataset: default: the one that the file names.
        network: the architecture of somebody else's checkpoint, "resnet20", "resnet34", "wrn40_2", ...
        classes: its class names, one a line, in the order of its outputs; default: the data set's.
        mean: of its normalisation, a number a channel, in [0, 1] units; default: the data set's.
        std: likewise.
        device: "cpu" or "cuda"; default: the GPU where there is one.
    """
    if not dataset and not network:
        dataset = files.load_tensors(file)[1].get("dataset")
    if not dataset:
        raise UserError(f"which data set {file} is to be scored on stands nowhere: give --dataset.")
    classifier = own_teacher(dataset, file, network, classes, mean, std)
    scores = _scores(classifier, dataset, "test", choose_device(device))
    worst = scores.per_class.argmin()
    print(
        f"{classifier.name} {100 * scores.accuracy:.2f} % of {len(scores.predictions)} test images of {dataset}; "
        f"lowest class: {classifier.class_names[worst]}, {100 * scores.per_class[worst]:.1f} %"
    )


def convert(
    checkpoint: Positional[Path],
    dataset: str,
    network: str,
    mean: tuple[float, ...] = (),
    std: tuple[float, ...] = (),
    half: bool = False,
    device: str | None = None,
    out: Path | None = None,
) -> None:
    """Turn somebody else's checkpoint into a teacher of this kit: Fast-Datafree's, torchvision's ResNet-50, your own.

    Args:
        checkpoint: safetensors or a torch file with a state_dict inside or as a whole; no code in it is executed.
        dataset: what it was trained on, with its classes in the data set's order.
        network: its architecture, "resnet34", "wrn40_2", "vgg11", for imagenet "resnet50", ...
        mean: of its normalisation, a number a channel, in [0, 1] units; default: the data set's.
        std: likewise.
        half: store float16: half the size, and scored after rounding.
        device: where to score it, "cpu" or "cuda"; default: the GPU where there is one.
        out: default: data/teachers/<data set>-<network>.safetensors.
    """
    datasets.dataset(dataset)
    classifier = own_teacher(dataset, checkpoint, network, None, mean, std)
    if half:
        _round(classifier, checkpoint)
    try:
        accuracy = {"test": _scores(classifier, dataset, "test", choose_device(device)).accuracy}
        told = f"{100 * accuracy['test']:.2f} % on test"
    except MissingFile as error:
        accuracy, told = {}, f"not scored: {error}"
    source = {"file": checkpoint.name, "sha256": files.file_hash(checkpoint)}
    path = out or teacher_path(dataset, network)
    _save(path, classifier, half=half, dataset=dataset, accuracy=accuracy, source=source)
    print(f"teacher {told}\n{path}")


def list_teachers() -> None:
    """Say for each teacher of Table 1 and of the digit sets whether it is here, and if not, how to come by it."""
    wanted = {(row["dataset"], row.get("teacher", Config.teacher)): None for row in PRESETS.values()}
    print(f"{'data set':15}{'network':10}teacher")
    for dataset, network in wanted:
        first, *rest = _ways(dataset, network)
        print(f"{dataset:15}{network:10}{first}")
        for way in rest:
            print(f"{'':25}{way}")


COMMANDS = {"train": train, "score": score, "convert": convert, "list": list_teachers}


def _ways(dataset: str, network: str) -> list[str]:
    """Where a teacher is, or the ways to come by it."""
    if teacher_path(dataset, network).is_file():
        return ["shipped" if dataset in SHIPPED else "here"]
    if dataset == "imagenet":
        return ["convertible from torchvision's resnet50-0676ba61.pth (IMAGENET1K_V1)"]
    ways = [f"trainable: python -m nayer_lib teacher train --dataset {dataset} --network {network}"]
    if dataset.startswith("cifar"):
        ways.append(f"convertible from checkpoints/pretrained/{dataset}_{network}.pth of Fast-Datafree")
    return ways


def _scores(classifier: Classifier, dataset: str, split: str, device: torch.device) -> Scores:
    datasets.dataset(dataset).check_classes(classifier.class_names)
    return Evaluator(classifier.to(device), datasets.load_split(dataset, split).to(device)).teacher


def _round(classifier: Classifier, source: object) -> None:
    """Round the weights to float16, so that what is scored is what is stored."""
    classifier.net.half().float()
    if not all(x.isfinite().all() for x in classifier.net.state_dict().values()):
        raise UserError(f"{source} holds weights beyond 65504, too large for float16: leave --half out.")


def _save(path: Path, classifier: Classifier, **provenance) -> None:
    """`save_classifier`, with what every teacher's header says beside how it was made."""
    sha256 = files.tensors_hash(classifier.net.state_dict())
    save_classifier(path, classifier, sha256=sha256, torch=str(torch.__version__), **provenance)
