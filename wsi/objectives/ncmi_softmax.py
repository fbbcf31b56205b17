"""A softmax of divergences: NCMI's geometry in a probabilistic head with the class prior."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional

from wsi.objectives.base import BagOutput, Objective
from wsi.objectives.checks import require_positive
from wsi.objectives.heads import DivergenceHead
from wsi.objectives.prior import Prior, log_prior, retargeted
from wsi.objectives.rules import Predict
from wsi.objectives.totals import mean_over_bags
from wsi.objectives.weights import Weight, class_weights


class NCMISoftmax(Objective):
    """Softmax of divergences to fixed prototypes with the class prior: NCMI as a likelihood.

    CE(-kappa KL(p || q_c) / D + log pi, y); decides by the least KL(p || q_c).

    p and the fixed prototypes q_c are those of `ncmi`, D is the mean KL between prototypes. Unlike
    NCMI's ratio, the loss looks hardest at bags that are wrong. As T grows it tends to a cosine
    softmax of temperature C / (kappa (C - 1)).

    Args:
        n_classes: C.
        embedding_dim: E of the aggregator.
        class_counts: training bags per class.
        kappa: sharpness; 20 to 40 works.
        temperature: T of the projection.
        m: dimensions of the simplex; max(32, 4 C) when not given.
        weight: of a bag by its class; `none`, `balanced` or one number per class.
        prior: pi, the prior of the bags trained on; by default the training frequencies, and
            equal shares with weight=balanced, which trains as if classes were equally frequent.
        predict: which rule decides; see `wsi.objectives.rules`.

    Source: ours, after Ye et al. 2026 (arXiv 2601.02543).
    """

    wants = "embedding"
    log_pi: Tensor
    weights: Tensor

    def __init__(
        self,
        n_classes: int,
        embedding_dim: int,
        class_counts: Sequence[int],
        *,
        kappa: float = 30.0,
        temperature: float = 0.5,
        m: int | None = None,
        weight: Weight = "none",
        prior: Prior | None = None,
        predict: Predict = "own",
    ) -> None:
        super().__init__(n_classes, embedding_dim, class_counts, predict=predict)
        require_positive("ncmi_softmax", kappa=kappa, temperature=temperature, m=m)
        self._kappa = kappa
        self.head = DivergenceHead(n_classes, embedding_dim, temperature, m)
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

    def own_scores(self, output: BagOutput) -> Tensor:
        """Return -kappa KL(p || q_c) / D (B, C)."""
        return -self._kappa * self.head(output)
