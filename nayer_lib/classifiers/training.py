"""How a teacher is made: supervised training on real data (appendix A.1) that can be interrupted and resumed."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import files
from ..compute import Compute, fastest, fix_shapes
from ..errors import MissingFile, UserError
from .teacher import Classifier


@dataclass(frozen=True)
class Recipe:
    """How a teacher is trained. The defaults are appendix A.1's."""

    epochs: int = 200
    batch: int = 128
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    nesterov: bool = False
    one_cycle: bool = False  # else cosine annealing


# "short" is for a rented GPU: batches four times as large, which a GPU is faster with, at four times the rate (Goyal et
# al. 2017), reached by a warm-up and annealed within 30 epochs (one-cycle; Smith and Topin 2018).
RECIPES = {
    "paper": Recipe(),
    "short": Recipe(epochs=30, batch=512, lr=0.4, nesterov=True, one_cycle=True),
    "digits": Recipe(epochs=15, batch=64, nesterov=True, one_cycle=True),
}


class Training:
    """Supervised training of a classifier, in place: iterate over it, each epoch yields its mean loss.

    Images stay on their device as bytes and are augmented there.

    Args:
        images: (N, C, H, W) uint8, on the classifier's device.
        labels: (N,) class ids.
        augment: a batch in [0, 1] and a generator -> the augmented batch.
        compute: how it is computed; None takes what is fastest on the device.

    Attributes:
        epoch: epochs done.

    Raises:
        UserError: while iterating, where loss or weights became NaN or infinite; no epoch is yielded for that.
    """

    def __init__(
        self,
        classifier: Classifier,
        images: Tensor,
        labels: Tensor,
        augment: Callable[[Tensor, torch.Generator], Tensor],
        recipe: Recipe,
        seed: int,
        compute: Compute | None = None,
    ):
        self.classifier, self.images, self.labels = classifier, images, labels
        self.augment, self.recipe, self.epoch = augment, recipe, 0
        device = images.device
        self._compute_as(compute or fastest(device))
        fix_shapes(device)
        self.rng = torch.Generator(device).manual_seed(seed)
        self.optimizer = torch.optim.SGD(
            classifier.parameters(),
            recipe.lr,
            recipe.momentum,
            weight_decay=recipe.weight_decay,
            nesterov=recipe.nesterov,
        )
        steps = max(1, len(images) // recipe.batch) * recipe.epochs
        self.schedule = (
            torch.optim.lr_scheduler.OneCycleLR(self.optimizer, recipe.lr, total_steps=steps)
            if recipe.one_cycle
            else torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, steps)
        )

    def _compute_as(self, compute: Compute) -> None:
        self.compute, self.scaler = compute, compute.scaler(self.images.device)
        compute.lay_out(self.classifier)

    def __iter__(self) -> Iterator[float]:
        while self.epoch < self.recipe.epochs:
            yield self._train_epoch()
        self.classifier.eval()

    def _train_epoch(self) -> float:
        self.classifier.train()
        device, size = self.images.device, self.recipe.batch
        order = torch.randperm(len(self.images), generator=self.rng, device=device)
        batches = [batch for batch in order.split(size) if len(batch) == size] or [order]
        total = torch.zeros((), device=device)
        for batch in batches:
            images = self.augment(self.images[batch].float() / 255, self.rng)
            with self.compute.autocast(device):
                loss = F.cross_entropy(self.classifier(images), self.labels[batch])
            self.optimizer.zero_grad(set_to_none=True)
            self.scaler.scale(loss).backward()
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.schedule.step()
            total += loss.detach()
        mean = total.item() / len(batches)
        if not math.isfinite(mean) or not all(x.isfinite().all() for x in self.classifier.state_dict().values()):
            raise UserError(
                f"loss or weights became NaN or infinite in epoch {self.epoch} of the teacher's training: take another "
                "recipe or seed. What was saved before is whole."
            )
        self.epoch += 1
        return mean

    def state_dict(self) -> dict:
        """Everything that decides what happens next."""
        return {
            "epoch": self.epoch,
            "compute": dataclasses.asdict(self.compute),
            "weights": self.classifier.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "rng": self.rng.get_state(),
        }

    def load_state_dict(self, state: dict) -> None:
        """The inverse of `state_dict`, on a training built with the same arguments; it goes on as it was computed."""
        self.epoch = state["epoch"]
        self._compute_as(Compute(**state.get("compute", {})))
        self.classifier.net.load_state_dict(state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.scaler.load_state_dict(state["scaler"])
        self.rng.set_state(state["rng"])


def save_partial(path: Path, about: dict, training: Training) -> None:
    """Keep an unfinished training; `about` says which: network, data set, recipe, seed and so on."""
    files.save_torch(path, {"about": about, **training.state_dict()})


def resume_training(path: Path, about: dict, training: Training) -> None:
    """Continue the unfinished training at `path`, which must be about the same.

    Raises:
        MissingFile, UserError: there is none, it is cut short, or it is of another training (what differs is told).
    """
    if not path.is_file():
        raise MissingFile(f"there is no unfinished training at {path}: leave --resume out to begin one.")
    state = files.load_torch(path)
    other = state.get("about", {}) if isinstance(state, dict) else {}
    told = [f"{name} {other.get(name)}, not {value}" for name, value in about.items() if other.get(name) != value]
    if told:
        raise UserError(f"{path} is another training ({'; '.join(told)}): resume that one, or remove it.")
    training.load_state_dict(state)
