"""Cosine softmax with learned class vectors."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from wsi.objectives.base import BagOutput, Objective
from wsi.objectives.checks import require_positive
from wsi.objectives.heads import cosines
from wsi.objectives.precision import full
from wsi.objectives.rules import Predict
from wsi.objectives.totals import mean_over_bags


class CosineCE(Objective):
    """Cosine softmax with learned class vectors.

    CE(u / T, y), u_c the cosine between the bag embedding and the learned vector of class c.

    Args:
        n_classes: C.
        embedding_dim: E of the aggregator.
        class_counts: training bags per class.
        temperature: T.
        predict: which rule decides; see `wsi.objectives.rules`.

    Source: Wang et al. 2017 (arXiv 1704.06369).
    """

    wants = "embedding"

    def __init__(
        self,
        n_classes: int,
        embedding_dim: int,
        class_counts: Sequence[int],
        *,
        temperature: float = 0.067,
        predict: Predict = "own",
    ) -> None:
        super().__init__(n_classes, embedding_dim, class_counts, predict=predict)
        require_positive("cosine_ce", temperature=temperature)
        self._temperature = temperature
        self.vectors = nn.Parameter(
            torch.randn(n_classes, embedding_dim) / math.sqrt(embedding_dim)
        )

    def forward(self, output: BagOutput, y: Tensor) -> Tensor:
        """Return the mean cross-entropy in nats."""
        losses = functional.cross_entropy(self.own_scores(output), y, reduction="none")
        return mean_over_bags(losses, shared=self.training)

    def own_scores(self, output: BagOutput) -> Tensor:
        """Return u / T (B, C)."""
        return cosines(full(output.embedding), self.vectors) / self._temperature
