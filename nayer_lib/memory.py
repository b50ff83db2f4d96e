"""The memory M (Algorithm 1, lines 11 and 13): every image made so far, on the device, one byte a pixel.

M is a pool whose rows are images; other methods keep other rows beside it or in its place (SpaceshipNet's activations,
CMI's features).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .errors import UserError


class Pool:
    """Rows made so far, each with its label and the round that made it; a ring if `capacity` is given (Table 10).

    A row is one tensor or several. `draw` walks through a shuffled order, so every row is drawn once before any row is
    drawn twice; `add` starts a new order, which has the new rows.

    Args:
        kinds: shape and dtype of each tensor of a row.
        capacity: rows to keep, the newest ones; None keeps all rows.
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
        self.added = 0  # rows ever added, also those that were overwritten
        self._next = 0  # the place of the next row
        self._order = torch.empty(0, dtype=torch.long, device=device)  # the rest of the present shuffled order

    def __len__(self) -> int:
        return self._count

    @property
    def row_bytes(self) -> int:
        """The bytes of one row, with its label and its round."""
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
        """A column with the oldest row first: a ring that has wrapped starts in the middle."""
        start = self._next if self._count == self.capacity else 0
        return column[: self._count].roll(-start, 0) if start else column[: self._count]

    def add(self, rows: Sequence[Tensor], labels: Tensor, round_number: int) -> None:
        """M <- M + rows: each tensor (B, ...), cast to its kind; labels (B,)."""
        if self.capacity is not None:
            rows, labels = [column[-self.capacity :] for column in rows], labels[-self.capacity :]
        if self.capacity is None or self._count < self.capacity:
            self._grow(self._next + len(labels))
        room = len(self._labels) if self.capacity is None else self.capacity
        places = (self._next + torch.arange(len(labels), device=labels.device)) % room
        for kept, new in zip(self._rows, rows, strict=True):
            kept[places] = new.detach().to(kept.dtype)
        self._labels[places] = labels
        self._rounds[places] = round_number
        self._next = (self._next + len(labels)) % room if self.capacity is not None else self._next + len(labels)
        self._count = min(self._count + len(labels), room)
        self.added += len(labels)
        self._order = self._order[:0]

    def draw(self, n: int, rng: torch.Generator, *columns: int, oldest_last: bool = False) -> tuple[Tensor, ...]:
        """Tensors of n rows, (n, ...) each, and their labels: Algorithm 1, line 13.

        Args:
            columns: which of a row's tensors; by default the first.
            oldest_last: the same rows, in the order of the rounds that made them, the newest first.

        Raises:
            UserError: the memory is empty.
        """
        if not self._count:
            raise UserError("the memory is empty: run at least one synthesis round before the student learns.")
        while len(self._order) < n:
            shuffle = torch.randperm(self._count, generator=rng, device=self._order.device)
            self._order = torch.cat([self._order, shuffle])
        chosen, self._order = self._order[:n], self._order[n:]
        if oldest_last:
            chosen = chosen[self._rounds[chosen].argsort(descending=True, stable=True)]
        drawn = [self._rows[column] for column in columns or (0,)] + [self._labels]
        return tuple(column.index_select(0, chosen) for column in drawn)

    def choose(self, n: int, rng: torch.Generator) -> Tensor:
        """The first tensor of n different rows, (n, ...), drawn uniformly; (0, ...) while the pool holds fewer than n.

        Unlike `draw` it has no order to walk through: each call is independent of those before it.
        """
        if self._count < n:
            return self._rows[0][:0]
        chosen = torch.randperm(self._count, generator=rng, device=self._order.device)[:n]
        return self._rows[0].index_select(0, chosen)

    def _grow(self, needed: int) -> None:
        """Make room for `needed` rows by doubling: the mean cost of adding a row is constant."""
        if needed <= len(self._labels):
            return
        count = max(needed, 2 * len(self._labels))
        if self.capacity is not None:
            count = min(count, self.capacity)

        def grown(old: Tensor) -> Tensor:
            new = old.new_empty(count, *old.shape[1:])
            new[: len(old)] = old
            return new

        for place, column in enumerate(self._rows):  # one after the other: only one column is in memory twice
            self._rows[place] = grown(column)
        self._labels, self._rounds = grown(self._labels), grown(self._rounds)

    def state_dict(self) -> dict:
        """The whole pool, for an exact resume; rows, labels and rounds with the oldest first.

        Rows are not copied unless a ring has wrapped: clone them to keep them beyond the next `add`.
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
        capacity: images to keep, the newest ones; None keeps all images.
    """

    def __init__(self, image_shape: tuple[int, int, int], device: torch.device | str, capacity: int | None = None):
        super().__init__([(image_shape, torch.uint8)], device, capacity)

    @property
    def images(self) -> Tensor:
        """(N, C, H, W) uint8, the oldest first."""
        return self.rows[0]

    def add(self, images: Tensor, labels: Tensor, round_number: int) -> None:
        """M <- M + images: (B, C, H, W), kept as bytes; labels (B,)."""
        super().add([self.as_bytes(images)], labels, round_number)

    @staticmethod
    def as_bytes(images: Tensor) -> Tensor:
        """Images in [0, 1], floored to uint8 as in an image file; values outside of [0, 1] are cut off."""
        return (images.detach().clamp(0, 1) * 255).to(torch.uint8)


def newest_of_each(images: Tensor, labels: Tensor, classes: int, count: int) -> Tensor:
    """The newest `count` images of each class, newest first and white where it has fewer: (classes * count, C, H, W).

    images: (N, C, H, W), uint8 or in [0, 1]; labels: (N,). Later ones are newer.
    """
    if images.dtype == torch.uint8:
        images = images.float() / 255
    rows = torch.ones(classes, count, *images.shape[1:])
    for k in range(classes):
        newest = images[labels == k].flip(0)[:count]
        rows[k, : len(newest)] = newest
    return rows.flatten(0, 1)
