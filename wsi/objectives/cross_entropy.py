"""Cross-entropy, plain or class-balanced."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from wsi.objectives.base import BagOutput, Objective, class_logits
from wsi.objectives.rules import Predict
from wsi.objectives.totals import mean_over_bags


class CrossEntropy(Objective):
    """mean_i w_{y_i} (-log softmax(n_i)_{y_i}), n the logits.

    The weight multiplies each bag and the mean is plain. torch's weighted mean divides by the sum
    of the weights instead, which cancels them for a batch of one bag. In training mode under
    `torch.distributed` the mean is over the bags of all processes.

    Args:
        n_classes: C.
        embedding_dim: E of the aggregator.
        class_counts: training bags per class.
        weight: `none`, or `balanced` for 1 / (C pi_y), pi the training frequencies.
        predict: which rule decides; see `wsi.objectives.rules`.
    """

    wants = "logits"
    weights: Tensor

    def __init__(
        self,
        n_classes: int,
        embedding_dim: int,
        class_counts: Sequence[int],
        *,
        weight: Literal["none", "balanced"] = "none",
        predict: Predict = "own",
    ) -> None:
        super().__init__(n_classes, embedding_dim, class_counts, predict=predict)
        weights = self.balanced_weights() if weight == "balanced" else torch.ones(n_classes)
        self.register_buffer("weights", weights)

    def forward(self, output: BagOutput, y: Tensor) -> Tensor:
        """Return the mean weighted cross-entropy in nats."""
        logits = class_logits(output)
        losses = functional.cross_entropy(logits, y, reduction="none")
        weighted = self.weights.to(logits.dtype)[y] * losses
        return mean_over_bags(weighted, shared=self.training)

    def own_scores(self, output: BagOutput) -> Tensor:
        """Return the logits (B, C)."""
        return class_logits(output)
