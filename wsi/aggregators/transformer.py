"""A plain transformer over tiles, with where they lie.

Source: Vaswani et al. 2017, arXiv 1706.03762, as an encoder with norms before each part; class
token and position encoding as in Dosovitskiy et al. 2020, arXiv 2010.11929, in two dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from wsi.aggregators.attention import (
    Kind,
    Landmarks,
    SelfAttention,
    check_heads,
    landmarks_of,
    starts,
    with_class_token,
)
from wsi.aggregators.base import Aggregator, Output, Packed
from wsi.aggregators.grid import coordinates_of, sincos, tile_positions
from wsi.aggregators.landmarks import tile_landmarks
from wsi.aggregators.layers import segment_mean
from wsi.errors import ConfigError


class Transformer(Aggregator):
    """Layers of self-attention and feed-forward, then the class token or the mean over tiles.

    h_i = ReLU(W x_i) + p_i; t = (class token, h) or h; per layer t += attention(LN(t)), then
    t += W2 GELU(W1 LN(t)); z = LN(t)_class or mean_i LN(t_i). Positions are counted in tile
    steps, so slides of any resolution speak the same unit, and from the middle of the tissue.

    Exact attention takes memory linear in the tiles and time in their square; for bags of more
    than some ten thousand tiles `attention=nystrom` is the affordable choice. With the class
    token the last layer is computed for it alone, which changes nothing.

    Args:
        dim: features per tile, D.
        n_classes: C, or None for no head.
        hidden: E, a multiple of 4.
        heads: H, a divisor of `hidden`.
        layers: L.
        feedforward: width of the inner layer of the feed-forward, in units of `hidden`.
        pooling: `class`, whose attention to the tiles is given back, or `mean`, without attention.
        position: `sincos`, or `none` for bags without coordinates.
        attention: `exact`, or `nystrom`, in time linear in the tiles.
        landmarks: of the approximation; bags with no more tiles are computed exactly.
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
        hidden: int = 256,
        heads: int = 4,
        layers: int = 2,
        feedforward: int = 2,
        pooling: Literal["class", "mean"] = "class",
        position: Literal["sincos", "none"] = "sincos",
        attention: Kind = "exact",
        landmarks: int = 256,
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
        check_heads("transformer", hidden, heads)
        if layers < 1 or feedforward < 1 or hidden % 4:
            raise ConfigError(
                f"transformer: layers={layers} and feedforward={feedforward} must be 1 or more, "
                f"and hidden={hidden} a multiple of 4"
            )
        self.landmarks = landmarks_of("transformer", attention, landmarks)
        self.position = position
        self.embed = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU())
        self.class_token = nn.Parameter(torch.randn(1, hidden)) if pooling == "class" else None
        made = [_Layer(hidden, heads, feedforward) for _ in range(layers)]
        self.inner, self.last = nn.ModuleList(made[:-1]), made[-1]
        self.norm = nn.LayerNorm(hidden)
        self.dropout = nn.Dropout(dropout)

    def aggregate(self, batch: Packed) -> Output:
        """Return embedding (B, E), logits (B, C) or None, attention (sum N, H) or None.

        Raises:
            BagMismatchError: the tiles have no coordinates and position is not `none`.
        """
        h = self.embed(batch.x)
        if self.position == "sincos":
            positions = [tile_positions(xy0) for xy0 in coordinates_of(batch, "transformer")]
            h = h + sincos(positions, h.shape[1]).to(h)
        marks = tile_landmarks(batch, self.landmarks, class_token=self.class_token is not None)
        z, attention = self._pooled(h, batch.sizes, marks)
        embedding = self.dropout(z)
        return Output(embedding, self.classify(embedding), attention)

    def _pooled(
        self, h: Tensor, sizes: Sequence[int], marks: Landmarks | None
    ) -> tuple[Tensor, Tensor | None]:
        if self.class_token is None:
            for layer in (*self.inner, self.last):
                h = layer(h, sizes, marks)
            return segment_mean(self.norm(h), sizes), None
        tokens, longer = with_class_token(h, self.class_token, sizes), [n + 1 for n in sizes]
        for layer in self.inner:
            tokens = layer(tokens, longer, marks)
        z, attention = self.last.of_class_token(tokens, longer)
        return self.norm(z), attention


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int, feedforward: int) -> None:
        super().__init__()
        inner = width * feedforward
        self.attention_norm, self.feedforward_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = SelfAttention(width, heads)
        self.feedforward = nn.Sequential(
            nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width)
        )

    def forward(self, tokens: Tensor, sizes: Sequence[int], marks: Landmarks | None) -> Tensor:
        tokens = tokens + self.attention(self.attention_norm(tokens), sizes, marks)
        return tokens + self.feedforward(self.feedforward_norm(tokens))

    def of_class_token(self, tokens: Tensor, sizes: Sequence[int]) -> tuple[Tensor, Tensor]:
        seen, attention = self.attention.of_class_token(self.attention_norm(tokens), sizes)
        token = tokens[starts(sizes).to(tokens.device)] + seen
        return token + self.feedforward(self.feedforward_norm(token)), attention
