"""The memory M (Algorithm 1, lines 11 and 13): every image made so far, on the device, one byte a pixel.

Beside it a bank of features of such images, for CMI, and a ring of mini-batches, for methods that replay.
"""

from collections import deque

import torch
from torch import Tensor

from .errors import UserError


class Memory:
    """Images as uint8 with their label and the round that made them; a ring if `capacity` bounds it (Table 10).

    Drawing walks through a shuffled order, so every image is seen once before any is seen twice; new images are in
    the order as soon as they are added.

    Args:
        image_shape: (C, H, W).
        capacity: images to keep, the oldest leaving first; None keeps all of them.
    """

    def __init__(self, image_shape: tuple[int, int, int], device: torch.device | str, capacity: int | None = None):
        if capacity is not None and capacity < 1:
            raise UserError(f"the memory must hold at least one image, not {capacity}.")
        self.capacity = capacity
        self._images = torch.empty(0, *image_shape, dtype=torch.uint8, device=device)
        self._labels = torch.empty(0, dtype=torch.long, device=device)
        self._rounds = torch.empty(0, dtype=torch.long, device=device)
        self._count = 0  # images held
        self.added = 0  # images ever added, those that have left among them
        self._next = 0  # where the next one goes
        self._order = torch.empty(0, dtype=torch.long, device=device)  # what is left to draw of the present shuffle

    def __len__(self) -> int:
        return self._count

    @property
    def images(self) -> Tensor:
        """(N, C, H, W) uint8, the oldest first."""
        return self._by_age(self._images)

    @property
    def labels(self) -> Tensor:
        """(N,) pseudo-labels, the oldest first."""
        return self._by_age(self._labels)

    @property
    def rounds(self) -> Tensor:
        """(N,) the synthesis round that made each image, from 0."""
        return self._by_age(self._rounds)

    def _by_age(self, rows: Tensor) -> Tensor:
        """A ring that has wrapped starts in the middle of its rows."""
        start = self._next if self._count == self.capacity else 0
        return rows[: self._count].roll(-start, 0) if start else rows[: self._count]

    def add(self, images: Tensor, labels: Tensor, round: int) -> None:
        """M <- M + images: (B, C, H, W), kept as bytes; labels (B,)."""
        batch = self.as_bytes(images)
        if self.capacity is not None:
            batch, labels = batch[-self.capacity :], labels[-self.capacity :]
        if self.capacity is None or self._count < self.capacity:
            self._grow(self._next + len(batch))
        room = len(self._images) if self.capacity is None else self.capacity
        places = (self._next + torch.arange(len(batch), device=batch.device)) % room
        self._images[places] = batch
        self._labels[places] = labels
        self._rounds[places] = round
        self._next = (self._next + len(batch)) % room if self.capacity is not None else self._next + len(batch)
        self._count = min(self._count + len(batch), room)
        self.added += len(batch)
        self._order = self._order[:0]

    @staticmethod
    def as_bytes(images: Tensor) -> Tensor:
        """Floored to uint8 as an image file would be; what lies outside [0, 1], where pixels are free to, is cut."""
        return (images.detach().clamp(0, 1) * 255).to(torch.uint8)

    def draw(self, n: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """n images, (n, C, H, W) uint8, and their labels: Algorithm 1, line 13.

        Raises:
            UserError: the memory is empty.
        """
        if not self._count:
            raise UserError("the memory is empty: run at least one synthesis round before the student learns.")
        while len(self._order) < n:
            shuffle = torch.randperm(self._count, generator=rng, device=self._order.device)
            self._order = torch.cat([self._order, shuffle])
        chosen, self._order = self._order[:n], self._order[n:]
        return self._images.index_select(0, chosen), self._labels.index_select(0, chosen)

    def _grow(self, needed: int) -> None:
        """Make room for `needed` images by doubling: adding costs the same on average however many there are."""
        if needed <= len(self._images):
            return
        rows = max(needed, 2 * len(self._images))
        if self.capacity is not None:
            rows = min(rows, self.capacity)
        for name in ("_images", "_labels", "_rounds"):
            old = getattr(self, name)
            new = old.new_empty(rows, *old.shape[1:])
            new[: len(old)] = old
            setattr(self, name, new)

    def state_dict(self) -> dict:
        """All of it, for an exact resume; the rows of images, labels and rounds stand by age."""
        return {
            "images": self.images.clone(),
            "labels": self.labels.clone(),
            "rounds": self.rounds.clone(),
            "next": self._next,
            "added": self.added,
            "capacity": self.capacity,
            "order": self._order.clone(),
        }

    def load_state_dict(self, state: dict) -> None:
        """The inverse of `state_dict`, onto this memory's own device.

        Raises:
            UserError: the state is of a memory with another capacity.
        """
        if state["capacity"] != self.capacity:
            raise UserError(f"this state holds a memory of {state['capacity']} images, not of {self.capacity}.")
        self._count, self._next, self.added = len(state["images"]), state["next"], state["added"]
        start = self._next if self._count == self.capacity else 0  # a ring that has wrapped starts in the middle
        for name in ("images", "labels", "rounds"):
            rows = state[name].to(self._images.device, copy=True)
            setattr(self, f"_{name}", rows.roll(start, 0) if start else rows)
        self._order = state["order"].to(self._images.device, copy=True)


class FeatureBank:
    """The newest features, one row each: a ring on the device that never takes more room than `capacity` rows.

    Args:
        width: numbers of a feature.
        capacity: rows to keep, the oldest leaving first.
    """

    def __init__(self, width: int, capacity: int, device: torch.device | str):
        self._rows = torch.empty(capacity, width, device=device)
        self._count = 0  # rows held
        self._next = 0  # where the next one goes

    def __len__(self) -> int:
        return self._count

    def add(self, features: Tensor) -> None:
        """(n, width), detached."""
        room = len(self._rows)
        features = features.detach()[-room:]
        places = (self._next + torch.arange(len(features), device=features.device)) % room
        self._rows[places] = features
        self._next = (self._next + len(features)) % room
        self._count = min(self._count + len(features), room)

    def draw(self, n: int, rng: torch.Generator) -> Tensor:
        """n different rows, (n, width), each as likely; none, (0, width), as long as it holds fewer."""
        if self._count < n:
            return self._rows[:0]
        chosen = torch.randperm(self._count, generator=rng, device=self._rows.device)[:n]
        return self._rows.index_select(0, chosen)

    def state_dict(self) -> dict:
        """What it holds, for an exact resume."""
        return {"rows": self._rows[: self._count].clone(), "next": self._next}

    def load_state_dict(self, state: dict) -> None:
        """The inverse of `state_dict`, in place of whatever this bank held."""
        self._count, self._next = len(state["rows"]), state["next"]
        self._rows[: self._count] = state["rows"]


class BatchRing:
    """The newest mini-batches of images, whole ones, as bytes like the memory M's: a float would take four times as
    much room, and what is cut off is less than a step of an image file.

    Args:
        capacity: mini-batches to keep, the oldest leaving first.
        device: where they are kept.
    """

    def __init__(self, capacity: int, device: torch.device | str):
        self._batches: deque[Tensor] = deque(maxlen=capacity)
        self._device = device

    def __len__(self) -> int:
        return len(self._batches)

    def push(self, images: Tensor) -> None:
        """(n, C, H, W) in [0, 1], kept as one mini-batch."""
        self._batches.append(Memory.as_bytes(images).to(self._device))

    def draw(self, rng: torch.Generator) -> Tensor:
        """One of the mini-batches, each as likely, (n, C, H, W) uint8.

        Raises:
            UserError: there is none yet.
        """
        if not self._batches:
            raise UserError("the ring is empty: push a mini-batch before drawing one.")
        return self._batches[int(torch.randint(len(self), (), generator=rng, device=self._device))].clone()

    def state_dict(self) -> dict:
        """What it holds, the oldest first, for an exact resume."""
        return {"batches": [batch.clone() for batch in self._batches]}

    def load_state_dict(self, state: dict) -> None:
        """The inverse of `state_dict`, in place of whatever this ring held."""
        self._batches.clear()
        self._batches.extend(batch.to(self._device, copy=True) for batch in state["batches"])
