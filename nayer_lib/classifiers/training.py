"""Supervised training of teachers on real data (appendix A.1), which can be interrupted and resumed."""

import dataclasses
import math
import time
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
    """How a teacher is trained. The defaults are appendix A.1's.

    With `minutes` in place of `epochs` the training ends after this time, also in the middle of an epoch. The one-cycle
    rate then follows the clock, not the steps, so that it is annealed at the end on a machine of any speed.
    """

    epochs: int | None = 200
    minutes: float | None = None
    batch: int = 128
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    nesterov: bool = False
    one_cycle: bool = False  # else cosine annealing


# "short" is for a rented GPU: for speed, batches four times as large at four times the rate (Goyal et al. 2017), with a
# warm-up and 30 annealed epochs (one-cycle; Smith and Topin 2018). "laptop" is ours, for two CPU cores and a small
# network.
RECIPES = {
    "paper": Recipe(),
    "short": Recipe(epochs=30, batch=512, lr=0.4, nesterov=True, one_cycle=True),
    "laptop": Recipe(epochs=20, lr=0.2, nesterov=True, one_cycle=True),
    "digits": Recipe(epochs=15, batch=64, nesterov=True, one_cycle=True),
}
TICKS = 10_000  # steps of a schedule that follows the clock; any number does, because positions between steps are used


class Training:
    """Supervised training of a classifier, in place: iterate over it, each epoch yields its mean loss.

    Images stay on their device as bytes and are augmented there.

    Args:
        images: (N, C, H, W) uint8, on the classifier's device.
        labels: (N,) class ids.
        augment: a batch in [0, 1] and a generator -> the augmented batch.
        compute: how the training is computed; None takes what is fastest on the device.

    Attributes:
        epoch: epochs done, the last one in part if the minutes were over.
        steps, seconds: steps done, and the time since the first step began, including the caller's between epochs.

    Raises:
        UserError: minutes without a one-cycle recipe; while iterating, loss or weights that became NaN or
            infinite, in place of the epoch.
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
        self.augment, self.recipe = augment, recipe
        self.epoch, self.steps, self.seconds = 0, 0, 0.0
        if recipe.minutes and not recipe.one_cycle:
            raise UserError("minutes in place of epochs need a one-cycle recipe: take short or laptop.")
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
        self.steps_per_epoch = max(1, len(images) // recipe.batch)
        steps = TICKS if recipe.minutes else self.steps_per_epoch * recipe.epochs
        self.schedule = (
            torch.optim.lr_scheduler.OneCycleLR(self.optimizer, recipe.lr, total_steps=steps)
            if recipe.one_cycle
            else torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, steps)
        )

    def _compute_as(self, compute: Compute) -> None:
        self.compute, self.scaler = compute, compute.scaler(self.images.device)
        compute.lay_out(self.classifier)

    def __iter__(self) -> Iterator[float]:
        begun = time.perf_counter() - self.seconds
        while self.share < 1:
            yield self._train_epoch(begun)
        self.classifier.eval()

    @property
    def share(self) -> float:
        """The share of the training that is done, in [0, 1]: of the minutes, or else of the epochs."""
        if self.recipe.minutes:
            return min(1.0, self.seconds / (60 * self.recipe.minutes))
        return self.epoch / self.recipe.epochs

    def _train_epoch(self, begun: float) -> float:
        self.classifier.train()
        device, size = self.images.device, self.recipe.batch
        order = torch.randperm(len(self.images), generator=self.rng, device=device)
        batches = [batch for batch in order.split(size) if len(batch) == size] or [order]
        before, total = self.steps, torch.zeros((), device=device)
        for batch in batches:
            images = self.augment(self.images[batch].float() / 255, self.rng)
            with self.compute.autocast(device):
                loss = F.cross_entropy(self.classifier(images), self.labels[batch])
            self.optimizer.zero_grad(set_to_none=True)
            self.scaler.scale(loss).backward()
            self.scaler.step(self.optimizer)
            self.scaler.update()
            total += loss.detach()
            self.steps, self.seconds = self.steps + 1, time.perf_counter() - begun
            if self.recipe.minutes:
                self.schedule.last_epoch = self.share * (TICKS - 1) - 1  # the next line steps to the clock's position
            self.schedule.step()
            if self.recipe.minutes and self.share == 1:
                break
        mean = total.item() / (self.steps - before)
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
            "steps": self.steps,
            "seconds": self.seconds,
            "compute": dataclasses.asdict(self.compute),
            "weights": self.classifier.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "rng": self.rng.get_state(),
        }

    def load_state_dict(self, state: dict) -> None:
        """The inverse of `state_dict`, on a training built with the same arguments; `compute` is the saved one."""
        self.epoch, self.steps, self.seconds = state["epoch"], state["steps"], state["seconds"]
        self._compute_as(Compute(**state.get("compute", {})))
        self.classifier.net.load_state_dict(state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.scaler.load_state_dict(state["scaler"])
        self.rng.set_state(state["rng"])


def save_partial(path: Path, about: dict, training: Training) -> None:
    """Save an unfinished training; `about` identifies it: network, data set, recipe, seed and so on."""
    files.save_torch(path, {"about": about, **training.state_dict()})


def resume_training(path: Path, about: dict, training: Training) -> None:
    """Continue the unfinished training at `path`, whose `about` must be equal.

    Raises:
        MissingFile, UserError: no such file, a file that is cut short, or another training (with the differences).
    """
    if not path.is_file():
        raise MissingFile(f"there is no unfinished training at {path}: leave --resume out to begin one.")
    state = files.load_torch(path)
    saved = state.get("about", {}) if isinstance(state, dict) else {}
    different = [name for name, value in about.items() if saved.get(name) != value]
    if different:
        differences = "; ".join(f"{name} {saved.get(name)}, not {about[name]}" for name in different)
        raise UserError(f"{path} is another training ({differences}): resume that training, or remove the file.")
    training.load_state_dict(state)
