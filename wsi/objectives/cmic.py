"""Cross-entropy constrained by conditional mutual information (CMIC)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from wsi.objectives.base import BagOutput, LabelledOutputs, class_logits
from wsi.objectives.checks import require_within
from wsi.objectives.pairs import PairObjective
from wsi.objectives.precision import full_logits, no_autocast
from wsi.objectives.rules import Predict, class_means, means_of_present

_MOMENTUM = 0.9  # of the centroids


class CMIC(PairObjective):
    """Cross-entropy constrained by conditional mutual information of class probabilities (pairs).

    CE(n, y) + lambda mean_i KL(p_i || Q_{y_i}) - beta mean_{u,v} 1{y_u != y_v} H(p_u, p_v).

    p is the softmax of the logits and Q_c the centroid of class c in the simplex of classes: the
    mean of p over its training bags before the first step, then a moving average. H is the
    cross-entropy -sum p_u log p_v, and its mean is over all B^2 pairs of the step. The last term
    has no lower bound: with a large beta logits grow until weight decay stops them.

    Args:
        n_classes: C.
        embedding_dim: E of the aggregator.
        class_counts: training bags per class.
        weight: lambda, of the concentration.
        beta: of the separation.
        predict: which rule decides; see `wsi.objectives.rules`.

    Source: Yang et al. 2023 (arXiv 2309.09123); the moving average stands for their own
    mini-batches of one class.
    """

    wants = "logits"
    own_prior = None
    centroids: Tensor
    seen: Tensor

    def __init__(
        self,
        n_classes: int,
        embedding_dim: int,
        class_counts: Sequence[int],
        *,
        weight: float = 0.5,
        beta: float = 0.1,
        predict: Predict = "own",
    ) -> None:
        super().__init__(n_classes, embedding_dim, class_counts, predict=predict)
        require_within("cmic", 0, 1e6, weight=weight, beta=beta)
        self._weight, self._beta = weight, beta
        self.register_buffer("centroids", torch.full((n_classes, n_classes), 1 / n_classes))
        self.register_buffer("seen", torch.zeros(n_classes, dtype=torch.bool))

    def forward(self, output: BagOutput, y: Tensor) -> Tensor:
        """Return cross-entropy, concentration and separation, in nats; may be below 0."""
        log_p = full_logits(output).log_softmax(-1)
        _, different = self.pairs(y)
        log_q = self.centroids.to(log_p).clamp_min(torch.finfo(log_p.dtype).tiny).log()[y]
        # A class without centroid has no concentration yet.
        concentration = (self.seen[y] * (log_p.exp() * (log_p - log_q)).sum(-1)).mean()
        with no_autocast(log_p):
            cross = -log_p.exp() @ log_p.T
        separation = (different * cross).mean()
        ce = functional.nll_loss(log_p, y)
        return ce + self._weight * concentration - self._beta * separation

    def own_scores(self, output: BagOutput) -> Tensor:
        """Return the logits (B, C)."""
        return class_logits(output)

    @torch.no_grad()
    def before_fit(self, outputs: LabelledOutputs) -> None:
        """Set the centroids to the class means of p."""
        p, y = (
            torch.cat(parts)
            for parts in zip(*((full_logits(o).softmax(-1), labels) for o, labels in outputs))
        )
        self.centroids.copy_(class_means(p, y, self.n_classes))
        self.seen.fill_(True)

    @torch.no_grad()
    def after_step(self, output: BagOutput, y: Tensor) -> None:
        """Move the centroids of the classes present towards their mean p."""
        p = full_logits(output).softmax(-1).to(self.centroids)
        mean, present = means_of_present(p, y, self.n_classes)
        mean = mean.to(self.centroids)
        moved = torch.where(self.seen[:, None], self.centroids.lerp(mean, 1 - _MOMENTUM), mean)
        self.centroids.copy_(torch.where(present, moved, self.centroids))
        self.seen.logical_or_(present[:, 0])
