"""What every aggregator takes and gives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from wsi.aggregators.layers import BranchHead
from wsi.errors import BagError, BagMismatchError, ConfigError


class Packed(Protocol):
    """What an aggregator reads of a batch: tiles of B bags laid end to end."""

    @property
    def x(self) -> Tensor: ...
    @property
    def sizes(self) -> tuple[int, ...]: ...
    @property
    def slide_ids(self) -> tuple[str, ...]: ...
    @property
    def y(self) -> Tensor | None: ...
    @property
    def xy0(self) -> Tensor | None: ...


@dataclass(frozen=True, eq=False)
class Output:
    """What an aggregator says about B bags.

    Attributes:
        embedding: (B, E), one vector per bag.
        logits: (B, C), or None when built without a head.
        attention: (sum N, H), summing to 1 within each bag and head, or None. In training with
            instance dropout it covers the tiles that were kept; in evaluation always all.
        evidence: exact per-tile class evidence (sum N, C), or None.
        aux_loss: a scalar the loop adds to the objective's loss, or None.
    """

    embedding: Tensor
    logits: Tensor | None = None
    attention: Tensor | None = None
    evidence: Tensor | None = None
    aux_loss: Tensor | None = None


@dataclass(frozen=True, eq=False)
class KeptTiles:
    """A packed batch that holds some of the tiles of another; see `Packed`."""

    x: Tensor
    sizes: tuple[int, ...]
    slide_ids: tuple[str, ...]
    y: Tensor | None = None
    xy0: Tensor | None = None


@dataclass(frozen=True, eq=False)
class TileTerms:
    """The terms of a bag embedding that is a weighted sum of tiles: z^h = sum_i a_ih h_i^h.

    Attributes:
        h: tile features (sum N, E), cut into H equal parts, one per head.
        attention: a (sum N, H), summing to 1 within each bag and head.
    """

    h: Tensor
    attention: Tensor


class Aggregator(nn.Module, ABC):
    """A bag to an embedding and logits, the same alone or packed with others.

    Subclasses take `(dim, n_classes, *, <settings>)` and implement `aggregate`. They are
    permutation-invariant in the tiles unless they say that they use coordinates. One with
    attention lists the two options below among its settings and hands them up.

    Attributes:
        uses_coordinates: the result depends on `xy0`, if the batch has it.
        needs_head: it cannot be built without classes, so objectives on the embedding are refused.

    Args:
        dim: features per tile, D.
        n_classes: C, or None for no head: then the objective works on the embedding.
        embedding_dim: E.
        instance_dropout: share of the tiles left out at random in training; at least one of each
            bag is kept.
        attention_entropy: weight of the negative entropy of the attention, averaged over bags and
            heads, in the loss of training: above 0, attention spreads over more tiles. Source:
            Zhang et al. 2024, arXiv 2406.15303 (AEM).
    """

    uses_coordinates: ClassVar[bool] = False
    needs_head: ClassVar[bool] = False
    head: nn.Linear | BranchHead | None

    def __init__(
        self,
        dim: int,
        n_classes: int | None,
        embedding_dim: int,
        *,
        instance_dropout: float = 0.0,
        attention_entropy: float = 0.0,
    ) -> None:
        super().__init__()
        if dim < 1 or embedding_dim < 1:
            raise ConfigError(f"an aggregator of {dim} -> {embedding_dim} features is impossible")
        if not 0 <= instance_dropout < 1:
            raise ConfigError(
                f"instance_dropout={instance_dropout} is no share of tiles to leave out — "
                "give 0 or more and less than 1"
            )
        if not 0 <= attention_entropy < float("inf"):
            raise ConfigError(
                f"attention_entropy={attention_entropy} is no weight — give 0 or more"
            )
        self.dim = dim
        self.embedding_dim = embedding_dim
        self.instance_dropout = instance_dropout
        self.attention_entropy = attention_entropy
        self.head = nn.Linear(embedding_dim, n_classes) if n_classes is not None else None

    def forward(self, batch: Packed) -> Output:
        """Return what the aggregator says about each bag of `batch`.

        Raises:
            BagError: a bag has no tile.
            BagMismatchError: the tiles do not have `dim` features, or do not fill the bags.
        """
        self._check(batch)
        if not self.training:
            return self.aggregate(batch)
        if self.instance_dropout > 0:
            batch = _thinned(batch, self.instance_dropout)
        output = self.aggregate(batch)
        if self.attention_entropy == 0 or output.attention is None:
            return output
        term = self.attention_entropy * _negative_entropy(output.attention, len(batch.sizes))
        return replace(output, aux_loss=term if output.aux_loss is None else output.aux_loss + term)

    @abstractmethod
    def aggregate(self, batch: Packed) -> Output:
        """Return the output for a batch whose shapes have been checked."""

    def tile_terms(self, batch: Packed) -> TileTerms | None:
        """Return what each tile adds to the bag embedding, in evaluation mode; None by default.

        Only where nothing non-linear follows the weighted sum, `h` does not depend on the other
        tiles, and a tile that is left out leaves the weights of the others in proportion.
        """
        return None

    def classify(self, embedding: Tensor) -> Tensor | None:
        """Return logits (B, C) of embeddings (B, E), or None without a head.

        In the precision of the head's weights, also under autocast: it costs next to nothing for
        one vector per bag, and losses take differences of logits.
        """
        if self.head is None:
            return None
        with torch.autocast(embedding.device.type, enabled=False):
            return self.head(embedding.to(next(self.head.parameters()).dtype))

    def linear_head(self) -> tuple[Tensor, Tensor] | None:
        """Return W (C, E), b (C,) in which logits are linear in the embedding, or None."""
        if isinstance(self.head, BranchHead):
            return self.head.dense()
        return None if self.head is None else (self.head.weight, self.head.bias)

    def _check(self, batch: Packed) -> None:
        if batch.x.ndim != 2 or batch.x.shape[1] != self.dim:
            raise BagMismatchError(
                f"{batch.slide_ids[0]}: tiles of shape {tuple(batch.x.shape)} reached a model of "
                f"{self.dim} features — use bags of the encoder it was trained on"
            )
        for size, slide_id in zip(batch.sizes, batch.slide_ids, strict=True):
            if size < 1:
                raise BagError(f"{slide_id}: the bag has no tile — leave the slide out")
        if sum(batch.sizes) != len(batch.x):
            raise BagMismatchError(
                f"{batch.slide_ids[0]}: {len(batch.x)} tiles do not fill bags of "
                f"{sum(batch.sizes)} — pack them with wsi.data.pack"
            )


def needed_classes(name: str, n_classes: int | None, instead: str) -> int:
    """Return `n_classes`, which the aggregator `name` cannot do without.

    Args:
        instead: names of aggregators to propose.

    Raises:
        ConfigError: there is none, since the objective works on the embedding.
    """
    if n_classes is None:
        raise ConfigError(
            f"aggregator '{name}' has an output per class, which an objective on the embedding "
            "(ncmi, ncmi_softmax, ncmi_harmonic, cosine_pc, cosine_ce, dot_regression, supcon) "
            "does not give it — use one on logits, such as ce, pc_softmax, focal or hybrid, or "
            f"aggregator={instead}"
        )
    return n_classes


def _thinned(batch: Packed, share: float) -> KeptTiles:
    """Return the batch without a random `share` of its tiles, drawn from torch's CPU generator.

    Drawn on the host, where sizes are needed to cut bags, so that a device is not waited for.
    """
    draws = torch.rand(sum(batch.sizes))
    kept = draws >= share
    parts = kept.split(batch.sizes)
    for part, values in zip(parts, draws.split(batch.sizes), strict=True):
        part[values.argmax()] = True  # the last that would be left out
    rows = kept.nonzero().squeeze(1)
    return KeptTiles(
        x=batch.x[rows.to(batch.x.device)],
        sizes=tuple(torch.stack([part.sum() for part in parts]).tolist()),
        slide_ids=batch.slide_ids,
        y=batch.y,
        xy0=None if batch.xy0 is None else batch.xy0[rows.to(batch.xy0.device)],
    )


def _negative_entropy(attention: Tensor, bags: int) -> Tensor:
    """Return sum_i a_i log a_i of attention (sum N, H), averaged over bags and heads."""
    a = attention.float()
    least = torch.finfo(a.dtype).tiny  # the slope of a log a is infinite at 0
    return (a * a.clamp_min(least).log()).sum() / (bags * a.shape[1])
