"""Regression of the cosine to a fixed prototype: what NCMI is to first order, without rivals."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from wsi.objectives.base import BagOutput
from wsi.objectives.checks import require_positive
from wsi.objectives.heads import M_NOT_GIVEN, CosineHead
from wsi.objectives.rules import Predict
from wsi.objectives.tempered import TemperedObjective
from wsi.objectives.totals import mean_over_bags
from wsi.objectives.weights import Weight, class_weights


class DotRegression(TemperedObjective):
    """Regression of the cosine to a fixed prototype: (1 - u_y)^2 / 2, class-balanced.

    mean_i w_{y_i} (1 - u_{y_i})^2 / 2, u_c the cosine to fixed prototype c.

    Args:
        n_classes: C.
        embedding_dim: E of the aggregator.
        class_counts: training bags per class.
        m: dimensions of the projection; max(32, 4 C) when not given.
        weight: `none`, `balanced`, or one weight per class.
        predict: which rule decides; see `wsi.objectives.rules`.

    Source: dot-regression loss, Yang et al. 2022 (arXiv 2203.09081), eq. 9, with unit embeddings.
    """

    wants = "embedding"
    weights: Tensor
    when_not_given = M_NOT_GIVEN

    def __init__(
        self,
        n_classes: int,
        embedding_dim: int,
        class_counts: Sequence[int],
        *,
        m: int | None = None,
        weight: Weight = "balanced",
        predict: Predict = "own",
    ) -> None:
        require_positive("dot_regression", m=m)
        apart = n_classes / (n_classes - 1)  # 1 less the cosine of two prototypes
        super().__init__(n_classes, embedding_dim, class_counts, scale=apart, predict=predict)
        self.head = CosineHead(n_classes, embedding_dim, m)
        self.register_buffer("weights", class_weights(weight, class_counts))

    def forward(self, output: BagOutput, y: Tensor) -> Tensor:
        """Return the mean weighted square of what the cosine lacks."""
        u = self.head(output).gather(1, y[:, None])[:, 0]
        return mean_over_bags(self.weights.to(u)[y] * (1 - u) ** 2 / 2, shared=self.training)

    def raw_scores(self, output: BagOutput) -> Tensor:
        """Return u (B, C)."""
        return self.head(output)
