"""Squentropy: cross-entropy plus a square on the logits of the other classes."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional

from wsi.objectives.base import BagOutput, Objective, class_logits
from wsi.objectives.precision import full_logits
from wsi.objectives.rules import Predict
from wsi.objectives.totals import mean_over_bags


class Squentropy(Objective):
    """Cross-entropy plus the square of the other logits; without settings of its own.

    CE(n, y) + mean_i 1 / (C - 1) sum_{j != y} n_j^2, n the logits.

    Args:
        n_classes: C.
        embedding_dim: E of the aggregator.
        class_counts: training bags per class.
        predict: which rule decides; see `wsi.objectives.rules`.

    Source: Hui, Belkin & Wright 2023 (arXiv 2302.03952), eq. 1.
    """

    wants = "logits"
    own_prior = None

    def __init__(
        self,
        n_classes: int,
        embedding_dim: int,
        class_counts: Sequence[int],
        *,
        predict: Predict = "own",
    ) -> None:
        super().__init__(n_classes, embedding_dim, class_counts, predict=predict)

    def forward(self, output: BagOutput, y: Tensor) -> Tensor:
        """Return the mean squentropy."""
        n = full_logits(output)
        label = functional.one_hot(y, self.n_classes).bool()
        square = n.masked_fill(label, 0.0).square().sum(-1) / (self.n_classes - 1)
        losses = functional.cross_entropy(n, y, reduction="none") + square
        return mean_over_bags(losses, shared=self.training)

    def own_scores(self, output: BagOutput) -> Tensor:
        """Return the logits (B, C)."""
        return class_logits(output)
