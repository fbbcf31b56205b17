"""Focal loss: cross-entropy that looks away from bags already right."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional

from wsi.objectives.base import BagOutput, Objective, class_logits
from wsi.objectives.checks import require_within
from wsi.objectives.precision import full_logits
from wsi.objectives.rules import Predict
from wsi.objectives.totals import mean_over_bags
from wsi.objectives.weights import Weight, class_weights


class Focal(Objective):
    """Focal loss, (1 - p_y)^gamma (-log p_y): looks away from bags already right.

    mean_i w_{y_i} (1 - p_{y_i})^gamma (-log p_{y_i}), p the softmax of the logits.

    Its minimiser is flatter than the posterior, so that p ranks but does not estimate.

    Args:
        n_classes: C.
        embedding_dim: E of the aggregator.
        class_counts: training bags per class.
        gamma: how fast bags already right lose their say; 0 is cross-entropy.
        weight: `none`, `balanced`, or one weight per class; alpha of the paper.
        predict: which rule decides; see `wsi.objectives.rules`.

    Source: Lin et al. 2017 (arXiv 1708.02002), eq. 5, with a softmax in place of sigmoids.
    """

    wants = "logits"
    own_prior = None
    weights: Tensor

    def __init__(
        self,
        n_classes: int,
        embedding_dim: int,
        class_counts: Sequence[int],
        *,
        gamma: float = 2.0,
        weight: Weight = "none",
        predict: Predict = "own",
    ) -> None:
        super().__init__(n_classes, embedding_dim, class_counts, predict=predict)
        require_within("focal", 0, 100, gamma=gamma)
        self._gamma = gamma
        self.register_buffer("weights", class_weights(weight, class_counts))

    def forward(self, output: BagOutput, y: Tensor) -> Tensor:
        """Return the mean focal loss in nats."""
        log_p = full_logits(output).log_softmax(-1)
        label = functional.one_hot(y, self.n_classes).bool()
        # 1 - p from the other classes: it keeps its digits where p is near 1, and a gradient there.
        log_rest = log_p.masked_fill(label, float("-inf")).logsumexp(-1)
        losses = -(self._gamma * log_rest).exp() * log_p.gather(1, y[:, None])[:, 0]
        return mean_over_bags(self.weights.to(log_p)[y] * losses, shared=self.training)

    def own_scores(self, output: BagOutput) -> Tensor:
        """Return the logits (B, C)."""
        return class_logits(output)
