"""Center loss: cross-entropy with embeddings drawn to the centre of their class."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from wsi.objectives.base import BagOutput, Objective, class_logits
from wsi.objectives.checks import require_within
from wsi.objectives.precision import full, full_logits
from wsi.objectives.rules import Predict
from wsi.objectives.totals import mean_over_bags, total


class Center(Objective):
    """Cross-entropy with embeddings drawn to the moving centre of their class.

    CE(n, y) + weight / 2 mean_i |z_i - c_{y_i}|^2, z the bag embedding.

    After each step a centre moves by alpha sum_i (z_i - c) / (1 + n) over the n bags of its class,
    those of all processes. Centres start at 0.

    Args:
        n_classes: C.
        embedding_dim: E of the aggregator.
        class_counts: training bags per class.
        weight: lambda.
        alpha: rate of the centres, from 0 to 1.
        predict: which rule decides; see `wsi.objectives.rules`.

    Source: Wen et al. 2016 (A Discriminative Feature Learning Approach for Deep Face Recognition),
    eqs. 2, 4 and 5; both terms are means over the step here and sums there.
    """

    wants = "logits"
    centres: Tensor

    def __init__(
        self,
        n_classes: int,
        embedding_dim: int,
        class_counts: Sequence[int],
        *,
        weight: float = 0.003,
        alpha: float = 0.5,
        predict: Predict = "own",
    ) -> None:
        super().__init__(n_classes, embedding_dim, class_counts, predict=predict)
        require_within("center", 0, 1e6, weight=weight)
        require_within("center", 0, 1, alpha=alpha)
        self._weight, self._alpha = weight, alpha
        self.register_buffer("centres", torch.zeros(n_classes, embedding_dim))

    def forward(self, output: BagOutput, y: Tensor) -> Tensor:
        """Return cross-entropy in nats plus the weighted distances."""
        z = full(output.embedding)
        distances = (z - self.centres.to(z)[y]).square().sum(-1)
        losses = functional.cross_entropy(full_logits(output), y, reduction="none")
        return mean_over_bags(losses + self._weight / 2 * distances, shared=self.training)

    def own_scores(self, output: BagOutput) -> Tensor:
        """Return the logits (B, C)."""
        return class_logits(output)

    @torch.no_grad()
    def after_step(self, output: BagOutput, y: Tensor) -> None:
        """Move the centres of the classes present towards their bags."""
        z = output.embedding.to(self.centres)
        sums = torch.zeros_like(self.centres).index_add_(0, y, z - self.centres[y])
        sums, counts = total(sums), total(torch.bincount(y, minlength=self.n_classes))
        self.centres += self._alpha * sums / (1 + counts[:, None])
