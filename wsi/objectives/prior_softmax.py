"""What losses share that are a cross-entropy of scores under a class prior."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch import Tensor
from torch.nn import functional

from wsi.objectives.base import BagOutput, Objective
from wsi.objectives.heads import M_NOT_GIVEN
from wsi.objectives.prior import Prior, log_prior, retargeted
from wsi.objectives.rules import Predict
from wsi.objectives.totals import mean_over_bags
from wsi.objectives.weights import Weight, class_weights


class PriorSoftmax(Objective):
    """mean_i w_{y_i} CE(s_i + log pi, y_i), s the own scores, which are read without the prior.

    Args:
        n_classes: C.
        embedding_dim: E of the aggregator.
        class_counts: training bags per class.
        weight: of a bag by its class; `none`, `balanced` or one number per class.
        prior: pi; by default the training frequencies, and equal shares with weight=balanced,
            which trains as if classes were equally frequent.
        predict: which rule decides; see `wsi.objectives.rules`.
    """

    wants = "embedding"
    when_not_given: ClassVar[Mapping[str, str]] = {
        **M_NOT_GIVEN,
        "prior": "training, or uniform with weight=balanced",
    }
    log_pi: Tensor
    weights: Tensor

    def __init__(
        self,
        n_classes: int,
        embedding_dim: int,
        class_counts: Sequence[int],
        *,
        weight: Weight,
        prior: Prior | None,
        predict: Predict,
    ) -> None:
        super().__init__(n_classes, embedding_dim, class_counts, predict=predict)
        usual: Prior = "uniform" if weight == "balanced" else "training"
        # Weights of one's own, or a prior that is not that of the bags as weighted, shift it.
        self.own_prior = "uniform" if prior in (None, usual) and isinstance(weight, str) else None
        self.register_buffer("weights", class_weights(weight, class_counts))
        self.register_buffer("log_pi", log_prior(prior or usual, class_counts))

    def forward(self, output: BagOutput, y: Tensor) -> Tensor:
        """Return the mean cross-entropy in nats."""
        scores = retargeted(self.own_scores(output), self.log_pi)
        losses = functional.cross_entropy(scores, y, reduction="none")
        return mean_over_bags(self.weights.to(losses)[y] * losses, shared=self.training)
