"""Square loss on the logits: regression to the label."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional

from wsi.objectives.base import BagOutput, class_logits
from wsi.objectives.checks import require_positive
from wsi.objectives.precision import full_logits
from wsi.objectives.rules import Predict
from wsi.objectives.tempered import TemperedObjective
from wsi.objectives.totals import mean_over_bags


class Square(TemperedObjective):
    """Square loss on the logits: regression to the label.

    mean_i (1 / C) [k (n_y - M)^2 + sum_{j != y} n_j^2], n the logits.

    Args:
        n_classes: C.
        embedding_dim: E of the aggregator.
        class_counts: training bags per class.
        k: weight of the label's logit; above 1 for many classes.
        M: target of the label's logit; above 1 for many classes.
        predict: which rule decides; see `wsi.objectives.rules`.

    Source: Hui & Belkin 2021 (arXiv 2006.07322), eq. 1; k=1, M=1 up to 42 classes there.
    """

    wants = "logits"

    def __init__(
        self,
        n_classes: int,
        embedding_dim: int,
        class_counts: Sequence[int],
        *,
        k: float = 1.0,
        M: float = 1.0,
        predict: Predict = "own",
    ) -> None:
        require_positive("square", k=k, M=M)
        super().__init__(n_classes, embedding_dim, class_counts, scale=M, predict=predict)
        self._k, self._M = k, M

    def forward(self, output: BagOutput, y: Tensor) -> Tensor:
        """Return the mean square loss."""
        n = full_logits(output)
        label = functional.one_hot(y, self.n_classes).to(n)
        weight = 1 + (self._k - 1) * label
        losses = (weight * (n - self._M * label) ** 2).mean(-1)
        return mean_over_bags(losses, shared=self.training)

    def raw_scores(self, output: BagOutput) -> Tensor:
        """Return the logits (B, C)."""
        return class_logits(output)
