"""The inputs of the generator G: the columns of Table 3 as interchangeable modules.

A latent maps a round's pseudo-labels (B,) to generator inputs (B, r). `redraw` is Algorithm 1's line 5: the noisy
layer gets new weights, noise gets new vectors. Between two redraws the same labels give the same inputs, except for
what training changes.

The paper does not define Table 3's inputs. Here all columns that read a label share one definition, so that two columns
differ in one thing only: BN(e), perhaps with noise, then linear heads that start from N(0, 1).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import UserError, unknown
from .noisy_layer import NoisyLayer


@dataclass(frozen=True)
class Column:
    """One column of Table 3 that reads a label.

    Attributes:
        source: e is the label's "text" embedding or its "onehot" vector.
        heads: a head serves each of the "classes" once (K-to-1), one "image" (1-to-1), or the whole "batch".
        redrawn: new heads every round; else the heads persist, also when the generator is rebuilt.
        noise: a z joins: "sum", BN(e) + beta z; "cat", [BN(e); z]; or "".
    """

    source: str = "text"
    heads: str = "batch"
    redrawn: bool = False
    noise: str = ""


COLUMNS = {
    "noisy": Column(heads="classes", redrawn=True),  # NAYER (K-to-1)
    "noisy_1to1": Column(heads="image", redrawn=True),  # NAYER (1-to-1)
    "noisy_one": Column(heads="batch", redrawn=True),  # one head for the whole batch, redrawn
    "noisy_kept": Column(heads="classes"),  # NAYER (woRI) with K-to-1's many heads
    "lte": Column(),  # LTE; under this one definition also NAYER (woRI) with one head
    "onehot": Column(source="onehot"),  # OH
    "cat_lte": Column(noise="cat"),
    "cat_onehot": Column(source="onehot", noise="cat"),
    "sum_lte": Column(noise="sum"),
    "sum_onehot": Column(source="onehot", noise="sum"),
}
LATENTS = (*COLUMNS, "noise")


class LabelLatent(nn.Module):
    """A column that reads the label: BN(e), perhaps with noise, through heads that are redrawn or kept.

    Args:
        table: (K, e), the pool P; the one-hot columns take its number of rows only.
        noise_dim: r.
        batch: B, images of a round.
        beta: of "sum": BN(e) has variance 1, so beta = 1 is as much noise as signal.
        concat_dim: width of z in "cat".
        redraw_norm: start the BatchNorm over at each redraw too (docs/divergences.md, D10).
    """

    def __init__(
        self,
        column: Column,
        table: Tensor,
        noise_dim: int,
        batch: int,
        beta: float = 1.0,
        concat_dim: int = 100,
        redraw_norm: bool = False,
    ):
        super().__init__()
        table = torch.eye(len(table)) if column.source == "onehot" else table
        self.column, self.beta, self.redraw_norm = column, beta, redraw_norm
        self.register_buffer("table", table, persistent=False)  # constant: the pool's file is its home
        per_head = {"classes": len(table), "image": 1, "batch": batch}[column.heads]
        concat_dim = concat_dim if column.noise == "cat" else 0
        self.layer = NoisyLayer(table.shape[1], noise_dim, batch, per_head, concat_dim)
        width = {"sum": table.shape[1], "cat": concat_dim, "": 0}[column.noise]
        self.register_buffer("z", torch.zeros(batch, width))
        self.redraw()

    def redraw(self, rng: torch.Generator | None = None) -> None:
        """New heads where the column redraws them, new z where it has one; the embeddings stay."""
        if self.column.redrawn:
            self.layer.redraw(rng, norm=self.redraw_norm)
        self.z.normal_(generator=rng)

    def forward(self, labels: Tensor) -> Tensor:
        """(B,) -> (B, r)."""
        z = self.z[: len(labels)].clone()  # `redraw` writes in place
        return self.layer(
            self.table[labels],
            added=self.beta * z if self.column.noise == "sum" else None,
            appended=z if self.column.noise == "cat" else None,
        )


class Noise(nn.Module):
    """The classic source (Fig. 2a): z ~ N(0, I_r), one vector an image, drawn once a round.

    Args:
        learned: z is then optimised along with the generator (FM, CMI).
    """

    def __init__(self, noise_dim: int, batch: int, learned: bool = False):
        super().__init__()
        z = torch.empty(batch, noise_dim)
        if learned:
            self.z = nn.Parameter(z)
        else:
            self.register_buffer("z", z)
        self.redraw()

    @torch.no_grad()
    def redraw(self, rng: torch.Generator | None = None) -> None:
        """New vectors, in place, so that an existing optimiser goes on with them."""
        self.z.normal_(generator=rng)

    def forward(self, labels: Tensor) -> Tensor:
        """(B,) -> (B, r); the labels do not enter."""
        return self.z[: len(labels)].clone()  # `redraw` writes in place


def build_latent(
    name: str,
    table: Tensor,
    noise_dim: int,
    batch: int,
    beta: float = 1.0,
    concat_dim: int = 100,
    redraw_norm: bool = False,
) -> nn.Module:
    """A latent by its name: a key of COLUMNS, or "noise" (z).

    Raises:
        UserError: unknown name, or a batch of one image, which BatchNorm cannot normalise.
    """
    if name not in LATENTS:
        raise unknown("latent", name, LATENTS)
    if batch < 2:
        raise UserError("a synthesis batch needs at least 2 images: BatchNorm has nothing to compare in one.")
    if name == "noise":
        return Noise(noise_dim, batch)
    return LabelLatent(COLUMNS[name], table, noise_dim, batch, beta, concat_dim, redraw_norm)


# --- controls in place of text ----------------------------------------------------------------------------------------

EMBEDDINGS = ("text", "orthogonal", "permuted", "one_hot", "two_hot")


def control_table(name: str, table: Tensor, factors: Tensor | None, seed: int) -> Tensor:
    """The pool P, or a control in its place, to find out what about the text helps.

    Args:
        name: "text" (the pool itself); "orthogonal", random orthogonal vectors of the same norms: no structure;
            "permuted", the same vectors given to the wrong classes: wrong structure; "one_hot", the class's own axis;
            "two_hot", a one-hot vector for each factor of the class, side by side: structure without language.
        table: (K, e).
        factors: (K, F) integers, e.g. ink and digit; None where the data set's classes have none.

    Returns:
        (K, e) float32; (K, K) for "one_hot", (K, sum of factor sizes) for "two_hot".

    Raises:
        UserError: unknown name; more classes than dimensions for "orthogonal"; no factors for "two_hot".
    """
    if name not in EMBEDDINGS:
        raise unknown("embedding", name, EMBEDDINGS)
    rng = torch.Generator().manual_seed(seed)
    classes, width = table.shape
    if name == "orthogonal":
        if classes > width:
            raise UserError(f"{classes} vectors of {width} numbers cannot be orthogonal: take a wider encoder.")
        directions = torch.linalg.qr(torch.randn(width, classes, generator=rng)).Q.T
        return directions * table.norm(dim=1, keepdim=True)
    if name == "permuted":
        order = torch.randperm(classes, generator=rng)
        wrong = torch.empty_like(order)
        wrong[order] = order.roll(1)  # one cycle through all classes: no class keeps its vector
        return table[wrong]
    if name == "one_hot":
        return torch.eye(classes)
    if name == "two_hot":
        if factors is None:
            raise UserError("this data set's classes have no factors for a two-hot code: use color_digits.")
        return torch.cat([torch.nn.functional.one_hot(column).float() for column in factors.T], 1)
    return table
