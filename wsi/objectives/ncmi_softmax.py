"""A softmax of divergences: NCMI's geometry in a probabilistic head with the class prior."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from wsi.objectives.base import BagOutput
from wsi.objectives.checks import require_positive
from wsi.objectives.heads import DivergenceHead
from wsi.objectives.prior import Prior
from wsi.objectives.prior_softmax import PriorSoftmax
from wsi.objectives.rules import Predict
from wsi.objectives.weights import Weight


class NCMISoftmax(PriorSoftmax):
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
        super().__init__(
            n_classes, embedding_dim, class_counts, weight=weight, prior=prior, predict=predict
        )
        require_positive("ncmi_softmax", kappa=kappa, temperature=temperature, m=m)
        self._kappa = kappa
        self.head = DivergenceHead(n_classes, embedding_dim, temperature, m)

    def own_scores(self, output: BagOutput) -> Tensor:
        """Return -kappa KL(p || q_c) / D (B, C)."""
        return -self._kappa * self.head(output)
