"""The noisy layer Z: where NAYER keeps its randomness (Section 3.3, Eq. 3).

    Z(e_y) = Linear(BatchNorm(e_y))

Other data-free methods feed the generator a random *vector*. NAYER feeds it the same label-text embedding every time
and draws a random *layer*: `redraw()` throws the old weights away at the start of each synthesis round (Algorithm 1,
line 5), so the same label lands somewhere new in the generator's input space.
"""

import math

import torch
from torch import Tensor, nn


class NoisyLayer(nn.Module):
    """H linear heads behind one BatchNorm; samples [i*n, (i+1)*n) of a batch go through head i.

    K-to-1 (Section 3.3) is n = K: a head serves each class once, and a batch of B images needs H = ceil(B / K) heads.
    Two images of one class in a batch differ only through their heads. 1-to-1 is n = 1.

    Args:
        embed_dim: e, the width of the text encoder's output.
        noise_dim: r, the generator's input width (1000 in Section 3.3).
        batch: B, images of a round.
        per_head: n, samples a head serves.
        concat_dim: numbers of noise that the heads read beside BN(e); 0 except for Table 3's "cat".

    The spread of fresh weights is N(0, 1): the paper does not give it, the released code does (docs/divergences.md).
    """

    def __init__(self, embed_dim: int, noise_dim: int, batch: int, per_head: int, concat_dim: int = 0):
        super().__init__()
        self.per_head = min(per_head, batch)
        heads = math.ceil(batch / self.per_head)
        self.norm = nn.BatchNorm1d(embed_dim)
        self.weight = nn.Parameter(torch.empty(heads, embed_dim + concat_dim, noise_dim))
        self.bias = nn.Parameter(torch.empty(heads, 1, noise_dim))
        self.redraw()

    @torch.no_grad()
    def redraw(self, rng: torch.Generator | None = None, norm: bool = False) -> None:
        """Algorithm 1, line 5: new weights ~ N(0, 1), biases 0. `norm` starts the BatchNorm over as well (D10)."""
        self.weight.normal_(generator=rng)
        self.bias.zero_()
        if norm:
            self.norm.reset_parameters()

    def forward(self, lte: Tensor, added: Tensor | None = None, appended: Tensor | None = None) -> Tensor:
        """(B, e) label-text embeddings -> (B, r) generator inputs, Eq. 3. B may be smaller than `batch`.

        Table 3's other random sources enter behind the BatchNorm: `added` (B, e) is added to its output ("sum"),
        `appended` (B, concat_dim) is concatenated ("cat").
        """
        heads = math.ceil(len(lte) / self.per_head)
        rows = self.norm(lte)
        if added is not None:
            rows = rows + added
        if appended is not None:
            rows = torch.cat([rows, appended], 1)
        rows = nn.functional.pad(rows, (0, 0, 0, heads * self.per_head - len(lte)))  # the last head may be short
        rows = rows.view(heads, self.per_head, -1)
        return torch.baddbmm(self.bias[:heads], rows, self.weight[:heads]).flatten(0, 1)[: len(lte)]
