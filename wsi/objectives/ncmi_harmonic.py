"""NCMI's ratio taken against each rival class by itself."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from wsi.objectives.base import BagOutput
from wsi.objectives.checks import require_positive
from wsi.objectives.heads import DivergenceHead
from wsi.objectives.prior import Prior
from wsi.objectives.prior_softmax import PriorSoftmax
from wsi.objectives.rules import Predict


class NCMIHarmonic(PriorSoftmax):
    """Inverse powers of divergences to fixed prototypes: NCMI against each rival class.

    -log of pi_y (d_y + eps)^-k over sum_c pi_c (d_c + eps)^-k, d_c = KL(p || q_c) / D.

    That is log(1 + sum_c pi_c / pi_y ((d_y + eps) / (d_c + eps))^k) over the rivals c: NCMI's
    numerator over the distance to each of them. Decides by the least d.

    Args:
        n_classes: C.
        embedding_dim: E of the aggregator.
        class_counts: training bags per class.
        k: sharpness.
        eps: share of D below which distances no longer tell.
        temperature: T of the projection.
        m: dimensions of the simplex; max(32, 4 C) when not given.
        prior: pi, the prior of the bags trained on.
        predict: which rule decides; see `wsi.objectives.rules`.

    Source: ours, after Ye et al. 2026 (arXiv 2601.02543) and the harmonic loss of Baek et al. 2025
    (arXiv 2502.01628).
    """

    def __init__(
        self,
        n_classes: int,
        embedding_dim: int,
        class_counts: Sequence[int],
        *,
        k: float = 4.0,
        eps: float = 0.05,
        temperature: float = 0.5,
        m: int | None = None,
        prior: Prior = "training",
        predict: Predict = "own",
    ) -> None:
        super().__init__(
            n_classes, embedding_dim, class_counts, weight="none", prior=prior, predict=predict
        )
        require_positive("ncmi_harmonic", k=k, eps=eps, temperature=temperature, m=m)
        self._k, self._eps = k, eps
        self.head = DivergenceHead(n_classes, embedding_dim, temperature, m)

    def own_scores(self, output: BagOutput) -> Tensor:
        """Return -k log(d_c + eps) (B, C)."""
        return -self._k * (self.head(output) + self._eps).log()
