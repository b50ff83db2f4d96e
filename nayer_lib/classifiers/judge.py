"""Judges: classifiers of real images, which score images that were made from a teacher."""

import torch
from torch import Tensor

from ..errors import MissingFile, UserError
from .teacher import Classifier, load_classifier, teacher_path

# For each data set a network that is none of its teachers in the presets.
JUDGES = {
    "digits": "resnet8",
    "color_digits": "resnet8",
    "cifar10": "resnet44",
    "cifar100": "resnet20",
    "tiny_imagenet": "vgg11",
}


def load_judge(dataset: str, teacher: Classifier) -> Classifier:
    """A frozen classifier trained on a data set's real images, of another architecture and seed than the teacher.

    Raises:
        MissingFile: the data set has no judge, or it is not trained yet; the sentence says how to train it.
        UserError: the judge's file is damaged, or the judge is the distilled teacher itself.
    """
    if dataset not in JUDGES:
        raise MissingFile(f"no judge is named for {dataset}, only for {', '.join(JUDGES)}.")
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
