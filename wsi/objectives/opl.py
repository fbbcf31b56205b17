"""Orthogonal projection loss: embeddings of a class aligned, those of others at right angles."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional

from wsi.objectives.base import BagOutput, class_logits
from wsi.objectives.checks import require_within
from wsi.objectives.heads import cosines
from wsi.objectives.pairs import PairObjective, masked_mean, require_repeats
from wsi.objectives.precision import full, full_logits
from wsi.objectives.rules import Predict


class OPL(PairObjective):
    """Cross-entropy with embeddings aligned within classes, at right angles between (pairs).

    CE(n, y) + weight [(1 - s) + gamma |d|].

    s and d are the mean cosines of embeddings over pairs of equal and of different classes in the
    step. Without a pair of equal classes 1 - s is 0, without one of different classes d is.

    Args:
        n_classes: C.
        embedding_dim: E of the aggregator.
        class_counts: training bags per class.
        weight: lambda, of the pair terms.
        gamma: of |d| within them.
        predict: which rule decides; see `wsi.objectives.rules`.

    Raises:
        TrainingError: no class has two training bags.

    Source: Ranasinghe et al. 2021 (arXiv 2103.14021), eqs. 3-6; their code takes d without
    absolute value, which rewards opposite embeddings.
    """

    wants = "logits"

    def __init__(
        self,
        n_classes: int,
        embedding_dim: int,
        class_counts: Sequence[int],
        *,
        weight: float = 1.0,
        gamma: float = 0.5,
        predict: Predict = "own",
    ) -> None:
        super().__init__(n_classes, embedding_dim, class_counts, predict=predict)
        require_within("opl", 0, 1e6, weight=weight, gamma=gamma)
        require_repeats("opl", class_counts)
        self._weight, self._gamma = weight, gamma

    def forward(self, output: BagOutput, y: Tensor) -> Tensor:
        """Return cross-entropy in nats plus the pair terms."""
        same, different = self.pairs(y)
        z = full(output.embedding)
        u = cosines(z, z)
        pair_terms = masked_mean(1 - u, same) + self._gamma * masked_mean(u, different).abs()
        return functional.cross_entropy(full_logits(output), y) + self._weight * pair_terms

    def own_scores(self, output: BagOutput) -> Tensor:
        """Return the logits (B, C)."""
        return class_logits(output)
