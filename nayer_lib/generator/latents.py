"""Everything that can enter the generator G: the columns of Table 3 as interchangeable modules.

A latent maps a round's pseudo-labels (B,) to generator inputs (B, r). `redraw` is what Algorithm 1's line 5 does to
it: the noisy layer gets new weights, plain noise gets new vectors. Between two redraws the same labels give the same
inputs, up to what training changes.
"""

import torch
from torch import Tensor, nn

from ..errors import UserError, unknown
from .noisy_layer import NoisyLayer


class NoisyText(nn.Module):
    """NAYER: constant label-text embeddings through a redrawn layer, Z(e_y) of Eq. 3.

    Args:
        table: (K, e), the pool P.
        noise_dim: r.
        batch: B, images of a round.
        per_head: labels a head serves; K is the paper's K-to-1.
        redraw_norm: start the BatchNorm over at each redraw too (docs/divergences.md, D10).
    """

    def __init__(self, table: Tensor, noise_dim: int, batch: int, per_head: int, redraw_norm: bool = False):
        super().__init__()
        self.register_buffer("table", table, persistent=False)  # constant: the pool's file is its home
        self.layer = NoisyLayer(table.shape[1], noise_dim, batch, per_head)
        self.redraw_norm = redraw_norm

    def redraw(self, rng: torch.Generator | None = None) -> None:
        """A new noisy layer; the embeddings stay."""
        self.layer.redraw(rng, norm=self.redraw_norm)

    def forward(self, labels: Tensor) -> Tensor:
        """(B,) -> (B, r)."""
        return self.layer(self.table[labels])


class Noise(nn.Module):
    """The classic source (Fig. 2a): z ~ N(0, I_r), one vector an image, drawn once a round and not optimised."""

    def __init__(self, noise_dim: int, batch: int):
        super().__init__()
        self.register_buffer("z", torch.empty(batch, noise_dim))
        self.redraw()

    def redraw(self, rng: torch.Generator | None = None) -> None:
        """New vectors."""
        self.z.normal_(generator=rng)

    def forward(self, labels: Tensor) -> Tensor:
        """(B,) -> (B, r); the labels do not enter."""
        return self.z[: len(labels)].clone()  # `redraw` writes in place


LATENTS = ("noisy", "noise")


def build_latent(name: str, table: Tensor, noise_dim: int, batch: int, redraw_norm: bool = False) -> nn.Module:
    """A latent by its name: "noisy" (NAYER, K-to-1) or "noise" (z).

    Raises:
        UserError: unknown name, or a batch in which BatchNorm has nothing to compare.
    """
    if name not in LATENTS:
        raise unknown("latent", name, LATENTS)
    if batch < 2:
        raise UserError("a synthesis batch needs at least 2 images: BatchNorm has nothing to compare in one.")
    if name == "noise":
        return Noise(noise_dim, batch)
    return NoisyText(table, noise_dim, batch, per_head=len(table), redraw_norm=redraw_norm)
