"""The frame around every classifying network: T and S, their normalisation, their files.

An image is float NCHW in [0, 1] everywhere in this kit; a `Classifier` carries its own normalisation as its first
layer, so no other code normalises.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from .. import files
from ..errors import MissingFile, UserError
from ..text.labels import check_names
from . import build


class Classifier(nn.Module):
    """A network with its normalisation and its class names.

    Args:
        net: maps normalised images (B, C, H, W) to logits (B, K); its last nn.Linear is the head.
        class_names: K names, in the order of the logits.
        mean, std: C numbers each, in [0, 1] units: the normalisation that the network was trained with.
        name: the architecture's name in `classifiers.build`; "" for any other architecture.
    """

    def __init__(
        self, net: nn.Module, class_names: Sequence[str], mean: Sequence[float], std: Sequence[float], name: str = ""
    ):
        super().__init__()
        if not mean or len(mean) != len(std) or not all(s > 0 for s in std):
            raise UserError(f"normalisation needs one mean and one positive std a channel, not {mean} and {std}.")
        self.net = net
        self.class_names = check_names(class_names)
        self.name = name
        self.mean, self.std = tuple(mean), tuple(std)
        self.register_buffer("_mean", torch.tensor(self.mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("_std", torch.tensor(self.std).view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor, return_features: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """(B, C, H, W) in [0, 1] -> logits (B, K), and on request the head's input (B, d): the pooled features."""
        normalised = (images - self._mean) / self._std
        if not return_features:
            return self.net(normalised)
        head_inputs = []
        handle = self.head().register_forward_pre_hook(lambda _, args: head_inputs.append(args[0]))
        try:
            return self.net(normalised), head_inputs[0]
        finally:
            handle.remove()

    def head(self) -> nn.Linear:
        """The network's last linear layer: features (B, d) -> logits (B, K)."""
        return [module for module in self.net.modules() if isinstance(module, nn.Linear)][-1]

    def batch_norms(self) -> list[nn.BatchNorm2d]:
        """The network's BatchNorm2d layers, whose inputs L_BN compares, in the order of definition."""
        return [module for module in self.net.modules() if isinstance(module, nn.BatchNorm2d)]

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
        training, device = self.training, next(self.parameters()).device
        images = torch.rand(2, *image_shape, generator=torch.Generator().manual_seed(0)).to(device)
        with tapped([self.eval().pooled()]) as maps:
            features = self(images, return_features=True)[1]
        self.train(training)
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


@torch.no_grad()
def check_paired(
    teacher: Classifier,
    student: Classifier,
    image_shape: tuple[int, int, int],
    of: Callable[[Classifier], Sequence[nn.Module]],
    who: str,
    way_out: str,
) -> None:
    """Pass an image (C, H, W) through both networks: they must have feature maps of equal number and sizes.

    Args:
        of: returns the modules of a classifier that give its maps, e.g. `Classifier.stages`.
        who, way_out: what pairs the maps, and the remedy, for the error's sentence.

    Raises:
        UserError: the maps do not pair up, or there are none.
    """
    sizes = []
    for network in (teacher, student):
        training = network.training
        with tapped(of(network.eval())) as maps:
            network(torch.zeros(1, *image_shape, device=next(network.parameters()).device))
        network.train(training)
        sizes.append([tuple(maps[i].shape[2:]) for i in range(len(maps))])
    if sizes[0] != sizes[1] or not sizes[0]:
        raise UserError(
            f"{who} pairs the feature maps of teacher and student, and theirs are of {sizes[0]} and {sizes[1]}: "
            f"{way_out}."
        )


def make_classifier(
    name: str, class_names: Sequence[str], mean: Sequence[float], std: Sequence[float], seed: int
) -> Classifier:
    """A `Classifier` of a freshly initialised network of `classifiers.build`; equal seeds give equal weights."""
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
    weights = classifier.net.state_dict()
    if half:
        weights = {name: x.half() if x.is_floating_point() else x for name, x in weights.items()}
    files.save_tensors(path, weights, header)


def load_classifier(path: Path) -> Classifier:
    """Read a file of `save_classifier`: network, names, normalisation.

    Raises:
        MissingFile, UserError: no such file; cut short; another program's; another network's weights (keys named).
    """
    tensors, header = files.load_tensors(path)
    missing = {"network", "class_names", "mean", "std"} - set(header)
    if missing:
        raise UserError(f"{path} is not a classifier of this kit (no {', '.join(sorted(missing))} in its header).")
    classifier = make_classifier(header["network"], header["class_names"], header["mean"], header["std"], seed=0)
    load_weights(classifier.net, tensors, path)
    return classifier.eval()


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The weights of a foreign checkpoint: safetensors, or a torch file with a state_dict inside or as a whole.

    `module.` prefixes of data-parallel training are dropped. No code is executed: a torch file is read with
    weights_only, and refused if it holds anything but tensors and plain numbers.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        weights = files.load_tensors(path)[0]
    elif not path.is_file():
        raise MissingFile(f"{path} does not exist.")
    else:
        content = files.load_torch(path)
        weights = content.get("state_dict", content) if isinstance(content, dict) else {}
    named = isinstance(weights, dict) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in weights.items())
    if not named or not weights:
        raise UserError(f"{path} holds no state_dict: save `model.state_dict()` and pass that.")
    return {key.removeprefix("module."): value for key, value in weights.items()}


def load_weights(net: nn.Module, weights: dict[str, Tensor], source: object) -> None:
    """Load strictly; the error names missing, unexpected and misshapen keys in one sentence."""
    expected = net.state_dict()
    misfits = {
        # Old checkpoints have no counters of batches; torch starts them at 0.
        "missing": {k for k in expected.keys() - weights.keys() if not k.endswith("num_batches_tracked")},
        "unexpected": weights.keys() - expected.keys(),
        "of another shape": {k for k in expected.keys() & weights.keys() if expected[k].shape != weights[k].shape},
    }
    problems = [f"{problem}: {', '.join(sorted(keys)[:3])} ({len(keys)})" for problem, keys in misfits.items() if keys]
    if problems:
        raise UserError(f"{source} holds weights of another network ({'; '.join(problems)}): check the network's name.")
    net.load_state_dict(dict(weights))


def foreign_teacher(
    checkpoint: Path, network: str, class_names: Sequence[str], mean: Sequence[float], std: Sequence[float]
) -> Classifier:
    """A frozen teacher from a foreign checkpoint of a network of `classifiers.build`, with its normalisation.

    Raises:
        MissingFile, UserError: as `read_checkpoint`, `classifiers.build` and `load_weights`; a wrong
            number of class names is reported as a weight of another shape.
    """
    classifier = make_classifier(network, class_names, mean, std, seed=0)
    load_weights(classifier.net, read_checkpoint(checkpoint), checkpoint)
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


# --- judges, which score images made from a teacher -------------------------------------------------------------------

# For each data set a network that is none of its teachers in Table 1.
JUDGES = {
    "digits": "resnet8",
    "color_digits": "resnet8",
    "cifar10": "resnet20",
    "cifar100": "resnet20",
    "tiny_imagenet": "vgg11",
}


def load_judge(dataset: str, teacher: Classifier) -> Classifier:
    """A frozen classifier trained on a data set's real images, of another architecture and seed than the teacher.

    Raises:
        UserError: the data set has no judge, or the judge is the distilled teacher itself.
        MissingFile: the judge is not trained yet; the sentence says how to train it.
    """
    if dataset not in JUDGES:
        raise UserError(f"no judge is named for {dataset}, only for {', '.join(JUDGES)}: take the inception score.")
    path = teacher_path(dataset, JUDGES[dataset])
    if not path.is_file():
        raise MissingFile(
            f"no judge for {dataset}: run `python -m nayer_lib teacher train --dataset {dataset} --network "
            f"{JUDGES[dataset]} --seed 1`, or convert somebody else's (`python -m nayer_lib teacher convert --help`)."
        )
    judge = load_classifier(path).freeze()
    check_judge(judge, teacher)
    return judge


def check_judge(judge: Classifier, teacher: Classifier) -> None:
    """Raise a `UserError` if a judge has the distilled teacher's weights, rounded to 16 bits or not."""

    def weights(classifier: Classifier) -> dict[str, Tensor]:
        """All but the counters of batches, which old checkpoints lack."""
        return {name: x.cpu().float() for name, x in classifier.net.state_dict().items() if x.is_floating_point()}

    of_judge, of_teacher = weights(judge), weights(teacher)
    if of_judge.keys() == of_teacher.keys() and all(
        x.shape == of_teacher[name].shape and torch.allclose(x, of_teacher[name], rtol=1e-2, atol=1e-6)
        for name, x in of_judge.items()
    ):
        raise UserError(
            "the judge has the weights of the distilled teacher, which the images were made to please: take a "
            "classifier of another architecture and seed."
        )
