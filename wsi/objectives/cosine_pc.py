"""Cosine softmax to fixed prototypes with the class prior: the plain control of NCMI."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from wsi.objectives.base import BagOutput
from wsi.objectives.checks import require_positive
from wsi.objectives.heads import CosineHead
from wsi.objectives.prior import Prior
from wsi.objectives.prior_softmax import PriorSoftmax
from wsi.objectives.rules import Predict
from wsi.objectives.weights import Weight


class CosinePC(PriorSoftmax):
    """Cosine softmax to fixed prototypes with the class prior: the plain control of NCMI.

    CE(u / T + log pi, y), u_c the cosine to fixed prototype c; decides by the largest u.

    It shares with `ncmi` the projection, the prototypes and the normalisation, and has the prior
    of `pc_softmax`: what NCMI gains beyond this control is its own.

    Args:
        n_classes: C.
        embedding_dim: E of the aggregator.
        class_counts: training bags per class.
        temperature: T.
        m: dimensions of the projection; max(32, 4 C) when not given.
        weight: of a bag by its class; `none`, `balanced` or one number per class.
        prior: pi, the prior of the bags trained on; by default the training frequencies, and
            equal shares with weight=balanced, which trains as if classes were equally frequent.
        predict: which rule decides; see `wsi.objectives.rules`.

    Source: ours; normalised softmax as in Wang et al. 2017 (arXiv 1704.06369), prior as in Menon
    et al. 2021 (arXiv 2007.07314).
    """

    def __init__(
        self,
        n_classes: int,
        embedding_dim: int,
        class_counts: Sequence[int],
        *,
        temperature: float = 0.067,
        m: int | None = None,
        weight: Weight = "none",
        prior: Prior | None = None,
        predict: Predict = "own",
    ) -> None:
        super().__init__(
            n_classes, embedding_dim, class_counts, weight=weight, prior=prior, predict=predict
        )
        require_positive("cosine_pc", temperature=temperature, m=m)
        self._temperature = temperature
        self.head = CosineHead(n_classes, embedding_dim, m)

    def own_scores(self, output: BagOutput) -> Tensor:
        """Return u / T (B, C)."""
        return self.head(output) / self._temperature
