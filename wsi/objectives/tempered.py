"""An own rule whose scores have no scale of their own, until validation bags give it one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from wsi.objectives.base import BagOutput, Objective
from wsi.objectives.rules import Predict, fitted_tau

_SHARE = 1 / 20  # of the scale: tau without validation


class TemperedObjective(Objective, ABC):
    """Decides by softmax(r / tau) of raw scores r, tau fitted on validation bags.

    Args:
        n_classes: C.
        embedding_dim: E of the aggregator.
        class_counts: training bags per class.
        scale: how far the raw scores of a bag at its target lie apart; without validation tau is
            a twentieth of it.
        predict: which rule decides; see `wsi.objectives.rules`.
    """

    own_prior = None
    tau: Tensor

    def __init__(
        self,
        n_classes: int,
        embedding_dim: int,
        class_counts: Sequence[int],
        *,
        scale: float,
        predict: Predict,
    ) -> None:
        super().__init__(n_classes, embedding_dim, class_counts, predict=predict)
        self._scale = scale
        self.register_buffer("tau", torch.tensor(_SHARE * scale, dtype=torch.float64))

    @abstractmethod
    def raw_scores(self, output: BagOutput) -> Tensor:
        """Return r (B, C), higher is likelier."""

    def own_scores(self, output: BagOutput) -> Tensor:
        """Return r / tau (B, C)."""
        r = self.raw_scores(output)
        return r / self.tau.to(r)

    def settle_own(self, val: Sequence[tuple[BagOutput, Tensor]]) -> None:
        """Set tau to the one with the least smoothed NLL on validation bags."""
        r = torch.cat([self.raw_scores(output).double() for output, _ in val])
        self.tau.fill_(fitted_tau(r, torch.cat([y for _, y in val]), self._scale))
