"""Cross-entropy: plain, weighted by class, with smoothed labels."""

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


class CrossEntropy(Objective):
    """Cross-entropy: CE(n, y) of the logits n; plain, class-balanced, or with smoothed labels.

    mean_i w_{y_i} (-sum_c t_ic log softmax(n_i)_c), n the logits, t the label.

    The weight multiplies each bag and the mean is plain. torch's weighted mean divides by the sum
    of the weights instead, which cancels them for a batch of one bag. In training mode under
    `torch.distributed` the mean is over the bags of all processes. Balanced weights make the head's
    probabilities those under equal shares of classes.

    Args:
        n_classes: C.
        embedding_dim: E of the aggregator.
        class_counts: training bags per class.
        weight: `none`, `balanced` for 1 / (C pi_y) with pi the training frequencies, or one weight
            per class.
        label_smoothing: t is 1 - label_smoothing + label_smoothing / C for the label and
            label_smoothing / C for each other class.
        predict: which rule decides; see `wsi.objectives.rules`.

    Source: label smoothing, Szegedy et al. 2016 (arXiv 1512.00567), section 7.
    """

    wants = "logits"
    weights: Tensor

    def __init__(
        self,
        n_classes: int,
        embedding_dim: int,
        class_counts: Sequence[int],
        *,
        weight: Weight = "none",
        label_smoothing: float = 0.0,
        predict: Predict = "own",
    ) -> None:
        super().__init__(n_classes, embedding_dim, class_counts, predict=predict)
        require_within("ce", 0, 1, label_smoothing=label_smoothing)
        self._smoothing = label_smoothing
        if label_smoothing > 0 or isinstance(weight, list):
            self.own_prior = None
        else:
            self.own_prior = "uniform" if weight == "balanced" else "training"
        self.register_buffer("weights", class_weights(weight, class_counts))

    def forward(self, output: BagOutput, y: Tensor) -> Tensor:
        """Return the mean weighted cross-entropy in nats."""
        n = full_logits(output)
        losses = functional.cross_entropy(n, y, reduction="none", label_smoothing=self._smoothing)
        return mean_over_bags(self.weights.to(n)[y] * losses, shared=self.training)

    def own_scores(self, output: BagOutput) -> Tensor:
        """Return the logits (B, C)."""
        return class_logits(output)
