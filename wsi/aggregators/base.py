"""What every aggregator takes and gives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

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
        attention: (sum N, H), summing to 1 within each bag and head, or None.
        evidence: exact per-tile class evidence (sum N, C), or None.
        aux_loss: a scalar the loop adds to the objective's loss, or None.
    """

    embedding: Tensor
    logits: Tensor | None = None
    attention: Tensor | None = None
    evidence: Tensor | None = None
    aux_loss: Tensor | None = None


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
    permutation-invariant in the tiles unless they read `xy0`.

    Args:
        dim: features per tile, D.
        n_classes: C, or None for no head: then the objective works on the embedding.
        embedding_dim: E.
    """

    def __init__(self, dim: int, n_classes: int | None, embedding_dim: int) -> None:
        super().__init__()
        if dim < 1 or embedding_dim < 1:
            raise ConfigError(f"an aggregator of {dim} -> {embedding_dim} features is impossible")
        self.dim = dim
        self.embedding_dim = embedding_dim
        self.head = nn.Linear(embedding_dim, n_classes) if n_classes is not None else None

    def forward(self, batch: Packed) -> Output:
        """Return what the aggregator says about each bag of `batch`.

        Raises:
            BagError: a bag has no tile.
            BagMismatchError: the tiles do not have `dim` features, or do not fill the bags.
        """
        self._check(batch)
        return self.aggregate(batch)

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
            return self.head(embedding.to(self.head.weight.dtype))

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
