"""The memory M (Algorithm 1, lines 11 and 13): every image made so far, on the device, one byte a pixel.

Beside it the same for what is not images (SpaceshipNet's activations), a bank of features of images, for CMI, and a
ring of mini-batches, for methods that replay.
"""

import math
from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor

from .errors import UserError


class Pool:
    """What was made so far with its label and the round that made it; a ring if `capacity` bounds it (Table 10).

    A row is one tensor or several. Drawing walks through a shuffled order, so every row is seen once before any is seen
    twice; new rows are in the order as soon as they are added.

    Args:
        kinds: shape and dtype of each tensor of a row.
        capacity: rows to keep, the oldest leaving first; None keeps all of them.
    """

    def __init__(
        self,
        kinds: Sequence[tuple[tuple[int, ...], torch.dtype]],
        device: torch.device | str,
        capacity: int | None = None,
    ):
        if capacity is not None and capacity < 1:
            raise UserError(f"the memory must hold at least one image, not {capacity}.")
        self.capacity = capacity
        self._rows = [torch.empty(0, *shape, dtype=dtype, device=device) for shape, dtype in kinds]
        self._labels = torch.empty(0, dtype=torch.long, device=device)
        self._rounds = torch.empty(0, dtype=torch.long, device=device)
        self._count = 0  # rows held
        self.added = 0  # rows ever added, those that have left among them
        self._next = 0  # where the next one goes
        self._order = torch.empty(0, dtype=torch.long, device=device)  # what is left to draw of the present shuffle

    def __len__(self) -> int:
        return self._count

    @property
    def row_bytes(self) -> int:
        """What one row takes, with its label and its round."""
        columns = [*self._rows, self._labels, self._rounds]
        return sum(math.prod(column.shape[1:]) * column.itemsize for column in columns)

    @property
    def rows(self) -> list[Tensor]:
        """Each tensor of the rows, (N, ...), the oldest first."""
        return [self._by_age(column) for column in self._rows]

    @property
    def labels(self) -> Tensor:
        """(N,) pseudo-labels, the oldest first."""
        return self._by_age(self._labels)

    @property
    def rounds(self) -> Tensor:
        """(N,) the synthesis round that made each row, from 0."""
        return self._by_age(self._rounds)

    def _by_age(self, column: Tensor) -> Tensor:
        """A ring that has wrapped starts in the middle of its rows."""
        start = self._next if self._count == self.capacity else 0
        return column[: self._count].roll(-start, 0) if start else column[: self._count]

    def add(self, rows: Sequence[Tensor], labels: Tensor, round: int) -> None:
        """M <- M + rows: each tensor (B, ...), cast to its kind; labels (B,)."""
        if self.capacity is not None:
            rows, labels = [column[-self.capacity :] for column in rows], labels[-self.capacity :]
        if self.capacity is None or self._count < self.capacity:
            self._grow(self._next + len(labels))
        room = len(self._labels) if self.capacity is None else self.capacity
        places = (self._next + torch.arange(len(labels), device=labels.device)) % room
        for mine, column in zip(self._rows, rows, strict=True):
            mine[places] = column.detach().to(mine.dtype)
        self._labels[places] = labels
        self._rounds[places] = round
        self._next = (self._next + len(labels)) % room if self.capacity is not None else self._next + len(labels)
        self._count = min(self._count + len(labels), room)
        self.added += len(labels)
        self._order = self._order[:0]

    def draw(self, n: int, rng: torch.Generator, column: int = 0) -> tuple[Tensor, Tensor]:
        """One tensor of n rows, (n, ...), and their labels: Algorithm 1, line 13.

        Raises:
            UserError: the memory is empty.
        """
        if not self._count:
            raise UserError("the memory is empty: run at least one synthesis round before the student learns.")
        while len(self._order) < n:
            shuffle = torch.randperm(self._count, generator=rng, device=self._order.device)
            self._order = torch.cat([self._order, shuffle])
        chosen, self._order = self._order[:n], self._order[n:]
        return self._rows[column].index_select(0, chosen), self._labels.index_select(0, chosen)

    def _grow(self, needed: int) -> None:
        """Make room for `needed` rows by doubling: adding costs the same on average however many there are."""
        if needed <= len(self._labels):
            return
        count = max(needed, 2 * len(self._labels))
        if self.capacity is not None:
            count = min(count, self.capacity)

        def grown(old: Tensor) -> Tensor:
            new = old.new_empty(count, *old.shape[1:])
            new[: len(old)] = old
            return new

        for place, column in enumerate(self._rows):  # one after the other: at most one stands there twice
            self._rows[place] = grown(column)
        self._labels, self._rounds = grown(self._labels), grown(self._rounds)

    def state_dict(self) -> dict:
        """All of it, for an exact resume; rows, labels and rounds stand by age.

        Rows are not copied unless a ring has wrapped: whoever keeps them beyond the next `add` must do that.
        """
        return {
            "rows": self.rows,
            "labels": self.labels,
            "rounds": self.rounds,
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
        self._count, self._next, self.added = len(state["labels"]), state["next"], state["added"]
        start = self._next if self._count == self.capacity else 0  # a ring that has wrapped starts in the middle

        def placed(column: Tensor) -> Tensor:
            column = column.to(self._order.device, copy=True)
            return column.roll(start, 0) if start else column

        self._rows = [placed(column) for column in state["rows"]]
        self._labels, self._rounds = placed(state["labels"]), placed(state["rounds"])
        self._order = state["order"].to(self._order.device, copy=True)


class Memory(Pool):
    """M: a row is an image as uint8.

    Args:
        image_shape: (C, H, W).
        capacity: images to keep, the oldest leaving first; None keeps all of them.
    """

    def __init__(self, image_shape: tuple[int, int, int], device: torch.device | str, capacity: int | None = None):
        super().__init__([(image_shape, torch.uint8)], device, capacity)

    @property
    def images(self) -> Tensor:
        """(N, C, H, W) uint8, the oldest first."""
        return self.rows[0]

    def add(self, images: Tensor, labels: Tensor, round: int) -> None:
        """M <- M + images: (B, C, H, W), kept as bytes; labels (B,)."""
        super().add([self.as_bytes(images)], labels, round)

    @staticmethod
    def as_bytes(images: Tensor) -> Tensor:
        """Floored to uint8 as an image file would be; what lies outside [0, 1], where pixels are free to, is cut."""
        return (images.detach().clamp(0, 1) * 255).to(torch.uint8)


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

    @property
    def bytes(self) -> int:
        """What it takes, full or not."""
        return self._rows.nbytes

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
        self.capacity = capacity
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
