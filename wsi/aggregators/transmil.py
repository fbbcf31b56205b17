"""TransMIL: tiles that look at each other, and a position encoding on their grid.

Source: Shao et al. 2021, *TransMIL: Transformer based Correlated Multiple Instance Learning*,
arXiv 2106.00908.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from wsi.aggregators.attention import (
    Kind,
    SelfAttention,
    check_heads,
    landmarks_of,
    starts,
    with_class_token,
    without_first,
)
from wsi.aggregators.base import Aggregator, Output, Packed
from wsi.aggregators.grid import Array, GridConvolution, coordinates_of, neighbours, tile_cells
from wsi.aggregators.landmarks import tile_landmarks


class TransMIL(Aggregator):
    """A class token and two layers of self-attention, with convolutions on the grid between.

    h_i = ReLU(W x_i); t = (class token, h); t += attention(LN(t)); t += PPEG(t); t += attention(
    LN(t)); z = LN(t)_class. The attention given back is the class token's in the last layer.

    Where we differ from the paper:
    - The paper squares the bag by repeating its first tiles and reads rows of that square as
      neighbours, so its result depends on the order of tiles and neighbours are not neighbours.
      Here the kernels of 7, 5 and 3 run over the true grid, which is read from `xy0`; empty cells
      count as zeros; tiles of one cell count as their mean; nothing is repeated.
    - Attention is exact by default, the paper's Nystrom approximation an option. Exact attention
      takes memory linear in the tiles and time in their square: about 20 times as long for
      100,000 tiles as by landmarks on a CPU. Its landmarks are means of tiles that lie
      near one another, not of tiles that follow one another, and the class token is its own.
      The convolution along the sequence of tiles, which goes with it, is left out.
    - The last layer is computed for the class token alone, exactly; nothing else of it is used.
    - Dropout acts on z alone.

    Args:
        dim: features per tile, D.
        n_classes: C, or None for no head.
        hidden: E.
        heads: H, a divisor of `hidden`.
        attention: `exact`, or `nystrom`, in time linear in the tiles.
        landmarks: of the approximation; bags with no more tiles are computed exactly.
        position: `grid`, or `none` for bags without coordinates.
        dropout: share of the bag embedding dropped in training.
        instance_dropout: share of tiles left out in training, at least one kept per bag.
        attention_entropy: weight of the attention's negative entropy in the loss (AEM).
    """

    uses_coordinates: ClassVar[bool] = True

    def __init__(
        self,
        dim: int,
        n_classes: int | None,
        *,
        hidden: int = 512,
        heads: int = 8,
        attention: Kind = "exact",
        landmarks: int = 256,
        position: Literal["grid", "none"] = "grid",
        dropout: float = 0.25,
        instance_dropout: float = 0.0,
        attention_entropy: float = 0.0,
    ) -> None:
        super().__init__(
            dim,
            n_classes,
            embedding_dim=hidden,
            instance_dropout=instance_dropout,
            attention_entropy=attention_entropy,
        )
        check_heads("transmil", hidden, heads)
        self.landmarks = landmarks_of("transmil", attention, landmarks)
        self.embed = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU())
        self.class_token = nn.Parameter(torch.randn(1, hidden))
        self.norms = nn.ModuleList([nn.LayerNorm(hidden) for _ in range(3)])
        self.first, self.last = SelfAttention(hidden, heads), SelfAttention(hidden, heads)
        self.position = GridConvolution(hidden, (7, 5, 3)) if position == "grid" else None
        self.dropout = nn.Dropout(dropout)

    def aggregate(self, batch: Packed) -> Output:
        """Return embedding (B, E), logits (B, C) or None, attention (sum N, H).

        Raises:
            BagMismatchError: the tiles have no coordinates and position is not `none`.
        """
        corners = coordinates_of(batch, "transmil") if self.position is not None else None
        marks = tile_landmarks(batch, self.landmarks, class_token=True)
        sizes = [n + 1 for n in batch.sizes]
        tokens = with_class_token(self.embed(batch.x), self.class_token, batch.sizes)
        tokens = tokens + self.first(self.norms[0](tokens), sizes, marks)
        if corners is not None:
            tokens = self._with_position(tokens, sizes, corners)
        seen, attention = self.last.of_class_token(self.norms[1](tokens), sizes)
        z = self.norms[2](tokens[starts(sizes).to(tokens.device)] + seen)
        embedding = self.dropout(z)
        return Output(embedding, self.classify(embedding), attention)

    def _with_position(self, tokens: Tensor, sizes: Sequence[int], corners: list[Array]) -> Tensor:
        """Return tokens plus, for tiles, the convolution of the cells they stand on."""
        assert self.position is not None
        tiles = without_first(tokens, sizes)
        places, near = _cells(corners, self.position.radius)
        places, near = places.to(tokens.device), near.to(tokens.device)
        cells = tiles.new_zeros(len(near), tiles.shape[1]).index_add(0, places, tiles)
        cells = cells / torch.bincount(places)[:, None].to(cells.dtype)
        added = self.position(cells, near)[places]
        return tokens + with_class_token(added, torch.zeros_like(added[:1]), [n - 1 for n in sizes])


def _cells(corners: list[Array], radius: int) -> tuple[Tensor, Tensor]:
    """Return the cell (sum N,) of each tile, and the neighbours (M, K) of all bags' cells."""
    bags, places, first = [], [], 0
    for xy0 in corners:
        cells, place = np.unique(tile_cells(xy0), axis=0, return_inverse=True)
        bags.append((first, neighbours(cells, radius)))
        places.append(place.reshape(-1) + first)
        first += len(cells)
    near = [np.where(found == len(found), first, found + start) for start, found in bags]
    return torch.from_numpy(np.concatenate(places)), torch.from_numpy(np.concatenate(near))
