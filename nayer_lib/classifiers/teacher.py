"""The frame around every classifying network: T and S, their normalisation, their files.

An image is float NCHW in [0, 1] everywhere in this kit; a `Classifier` carries its own normalisation as its first
layer, so no other code normalises.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .. import files
from ..errors import MissingFile, UserError
from ..lazy import imported
from ..text.labels import check_names
from . import build
from .checkpoints import check_content, load_weights, read_checkpoint

NO_HEAD = (
    "the teacher is without a head that can be found: with as many outputs as there are class names, its last layer "
    "should be an nn.Linear or a 1x1 nn.Conv2d."
)


class Classifier(nn.Module):
    """A network with its normalisation and its class names.

    Args:
        net: maps normalised images (B, C, H, W) to logits (B, K); its head is an nn.Linear or a 1x1 convolution.
        class_names: K names, in the order of the logits.
        mean, std: C numbers each, in [0, 1] units: what the network was trained with.
        name: the architecture's name in `classifiers.build`; "" if it is not one of ours.

    Attributes:
        accuracy: in [0, 1], by split, as the file that it was read from states it; {} if nothing does.
        quantisation: how its network is quantised (a `Quantisation` of nayer_beyond); None if it is not.
        answers_alone: whether it is a black box: it gives answers, but no layer and no gradient.
    """

    answers_alone: ClassVar[bool] = False

    def __init__(
        self, net: nn.Module, class_names: Sequence[str], mean: Sequence[float], std: Sequence[float], name: str = ""
    ):
        super().__init__()
        if not isinstance(net, nn.Module):
            raise UserError(f"a classifier's network is an nn.Module, not a {type(net).__name__}.")
        self.mean, self.std = check_normalisation(mean, std)
        self.net = net
        self.class_names = check_names(class_names)
        self.name = name
        self.accuracy: dict[str, float] = {}
        self.quantisation: Any = None
        self.register_buffer("_mean", torch.tensor(self.mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("_std", torch.tensor(self.std).view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor, return_features: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """(B, C, H, W) in [0, 1] -> logits (B, K), and on request the head's input (B, d): the pooled features."""
        if not return_features:
            return self.net(self.normalised(images))
        with tapped([self.head()], inputs=True) as read:
            logits = self.net(self.normalised(images))
        if not read:
            raise UserError(NO_HEAD)
        return logits, read[0].mean((2, 3)) if read[0].dim() == 4 else read[0]

    def normalised(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> the same shape as the network reads it."""
        return (images - self._mean) / self._std

    def train(self, mode: bool = True) -> "Classifier":
        """Train or eval mode; BatchNorm that a quantised network keeps frozen stays in eval mode."""
        super().train(mode)
        if self.quantisation and self.quantisation.quantised_bn == "frozen":
            for layer in self.batch_norms():
                layer.training = False
        return self

    @property
    def device(self) -> torch.device:
        """Where its weights and images lie."""
        return self._mean.device

    def head(self) -> nn.Linear | nn.Conv2d:
        """Its last linear layer or 1x1 convolution with K outputs: features (B, d) -> logits (B, K).

        Raises:
            UserError: there is none.
        """
        linear = [m for m in self.net.modules() if isinstance(m, nn.Linear | nn.Conv2d) and m.weight[0, 0].numel() == 1]
        heads = [module for module in linear if len(module.weight) == len(self.class_names)]
        if not heads:
            raise UserError(NO_HEAD)
        return heads[-1]

    def batch_norms(self) -> list[nn.Module]:
        """Its layers with BatchNorm's running statistics, in the order of definition: where L_BN looks.

        BatchNorm of any dimension, synchronised or frozen, whoever's class it is.
        """
        return [
            module
            for module in self.net.modules()
            if isinstance(getattr(module, "running_var", None), Tensor)
            and isinstance(getattr(module, "running_mean", None), Tensor)
            and not isinstance(module, nn.modules.instancenorm._InstanceNorm)
        ]

    def stages(self) -> list[nn.Module]:
        """The modules that give the network's feature maps, one for each group of blocks, from large maps to small."""
        return [module for name, module in self.net.named_children() if name.startswith(("block", "layer"))]

    def pooled(self) -> nn.Module:
        """The module that gives the last feature map, before its ReLU: the last module before pooling and head."""
        *_, last = (m for m in self.net.children() if not isinstance(m, nn.Linear | nn.AdaptiveAvgPool2d))
        return last

    @torch.no_grad()
    def ends_in_pooling(self, image_shape: tuple[int, int, int]) -> bool:
        """Whether the head reads the mean over places of `pooled`'s output after a ReLU, tried on (C, H, W) images."""
        training, device = self.training, self.device
        images = torch.rand(2, *image_shape, generator=torch.Generator().manual_seed(0)).to(device)
        with tapped([self.eval().pooled()]) as maps:
            features = self(images, return_features=True)[1]
        self.train(training)
        if maps[0].dim() != 4:
            return False
        mean = maps[0].relu().flatten(2).mean(2)
        return mean.shape == features.shape and torch.allclose(mean, features, rtol=1e-3, atol=1e-5)

    def freeze(self) -> "Classifier":
        """Make a teacher: eval mode, no gradients to the weights. Gradients still flow to the images."""
        return self.eval().requires_grad_(False)


@contextmanager
def tapped(modules: Sequence[nn.Module], inputs: bool = False) -> Iterator[dict[int, Tensor]]:
    """The outputs of modules, or their first inputs, in passes inside the block, by the modules' place in `modules`.

    A later pass replaces the tensors of an earlier one.
    """
    recorded: dict[int, Tensor] = {}

    def watch(place: int):
        def hook(_module, args, output=None):
            recorded[place] = args[0] if inputs else output

        return hook

    handles = [
        module.register_forward_pre_hook(watch(i)) if inputs else module.register_forward_hook(watch(i))
        for i, module in enumerate(modules)
    ]
    try:
        yield recorded
    finally:
        for handle in handles:
            handle.remove()


def check_normalisation(mean: Sequence[float], std: Sequence[float]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """A mean and a std a channel, of images in [0, 1], as tuples.

    Raises:
        UserError: they are something else.
    """
    try:
        means, stds = tuple(map(float, mean)), tuple(map(float, std))
    except (TypeError, ValueError):
        means = stds = ()
    if not means or len(means) != len(stds) or not all(s > 0 for s in stds):
        raise UserError(f"normalisation needs one mean and one positive std a channel, not {mean} and {std}.")
    if not all(0 <= m <= 1 for m in means) or max(stds) > 1:
        raise UserError(f"mean and std are of images in [0, 1], so not {mean} and {std}: divide them by 255.")
    return means, stds


def make_classifier(
    name: str, class_names: Sequence[str], mean: Sequence[float], std: Sequence[float], seed: int
) -> Classifier:
    """A `Classifier` of a freshly initialised network of `classifiers.build`; equal seeds give equal weights."""
    class_names, (mean, std) = check_names(class_names), check_normalisation(mean, std)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = build(name, len(class_names), channels=len(mean))
    return Classifier(net, class_names, mean, std, name)


# --- files ------------------------------------------------------------------------------------------------------------


def save_classifier(path: Path, classifier: Classifier, half: bool = False, **provenance) -> None:
    """Write weights as safetensors; the header has architecture, class names, normalisation and `provenance`.

    `half` rounds them to float16; `load_classifier` gives float32 again.
    """
    header = {
        "network": classifier.name,
        "class_names": classifier.class_names,
        "mean": classifier.mean,
        "std": classifier.std,
        **provenance,
    }
    if classifier.quantisation:
        header["quantisation"] = dataclasses.asdict(classifier.quantisation)
    files.save_tensors(path, classifier.net.state_dict(), header, half)


def load_classifier(path: Path) -> Classifier:
    """Read a file of `save_classifier`: network, names, normalisation.

    Raises:
        MissingFile, UserError: no such file; cut short; another program's; another network's weights (keys named).
    """
    way_out = "somebody else's checkpoint wants --network, the name of its architecture"
    if not check_content(path):
        raise UserError(f"{path} is not a classifier of this kit, which are safetensors: {way_out}.")
    tensors, header = files.load_tensors(path)
    missing = {"network", "class_names", "mean", "std"} - set(header)
    if missing:
        raise UserError(
            f"{path} is not a classifier of this kit (no {', '.join(sorted(missing))} in its header): {way_out}."
        )
    if not header["network"]:
        raise UserError(f"{path} names no network of this kit: build yours in Python (docs/your_own_model.md).")
    classifier = make_classifier(header["network"], header["class_names"], header["mean"], header["std"], seed=0)
    if "quantisation" in header:
        as_saved = imported("nayer_beyond.quantised:as_saved", "a quantised network")
        classifier.net, classifier.quantisation = as_saved(classifier.net, header["quantisation"], path)
    load_weights(classifier.net, tensors, path)
    stated = header.get("accuracy")
    stated = stated if isinstance(stated, dict) else {"test": stated}
    classifier.accuracy = {split: x for split, x in stated.items() if isinstance(x, float)}
    return classifier.eval()


def foreign_teacher(
    checkpoint: Path,
    network: str,
    class_names: Sequence[str],
    mean: Sequence[float],
    std: Sequence[float],
    key: str | None = None,
) -> Classifier:
    """A frozen teacher from a foreign checkpoint of a network of `classifiers.build`, with its normalisation.

    `key` names the state_dict in a file with several.

    Raises:
        MissingFile, UserError: as `read_checkpoint`, `classifiers.build` and `load_weights`; a wrong
            number of class names is reported as a weight of another shape.
    """
    classifier = make_classifier(network, class_names, mean, std, seed=0)
    load_weights(classifier.net, read_checkpoint(checkpoint, key), checkpoint)
    return classifier.freeze()


def teacher_path(dataset: str, network: str) -> Path:
    """The kit's file for the teacher of a data set."""
    return files.data_dir() / "teachers" / f"{dataset}-{network}.safetensors"


def load_teacher(dataset: str, network: str, checkpoint: Path | None = None) -> Classifier:
    """A frozen teacher: the kit's for a data set, or that of `checkpoint` (a file of `save_classifier`).

    Raises:
        MissingFile: no such file; the sentence says how to train a teacher.
    """
    path = Path(checkpoint) if checkpoint else teacher_path(dataset, network)
    if not path.is_file():
        raise MissingFile(
            f"no teacher for {dataset}/{network}: run `python -m nayer_lib teacher train --dataset {dataset} "
            f"--network {network}`, or pass a checkpoint (`python -m nayer_lib teacher list` says where one is)."
        )
    return load_classifier(path).freeze()
