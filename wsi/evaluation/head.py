"""The prior that predictions are posteriors at, kept beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from wsi.errors import PredictionsError

PredictsPrior = Literal["training", "uniform"] | None


@dataclass(frozen=True)
class Head:
    """What the probabilities of a predictions table are, as the objective that made them says.

    Attributes:
        predicts_prior: they are p(c | x) at the `training` frequencies or at the `uniform` prior;
            None for scores of the decision rule, posteriors at no known prior.
        training_counts: training slides of each class (C,), by fold.
    """

    predicts_prior: PredictsPrior = "training"
    training_counts: Mapping[int, tuple[int, ...]] = field(default_factory=dict)

    def prior(self, fold: int, C: int) -> np.ndarray | None:
        """Return the prior (C,) of a fold's predictions, None where there is none or it is lost."""
        if self.predicts_prior == "uniform":
            return np.full(C, 1 / C)
        if self.predicts_prior is None or fold not in self.training_counts:
            return None
        counts = np.asarray(self.training_counts[fold], dtype=np.float64)
        return counts / counts.sum()

    def check(self, C: int) -> None:
        """Raise PredictionsError unless every fold has slides of each of C classes."""
        if self.predicts_prior not in ("training", "uniform", None):
            raise PredictionsError(
                f"predictions are of the prior '{self.predicts_prior}' — "
                "it must be training, uniform or null"
            )
        for fold, counts in self.training_counts.items():
            if len(counts) != C or min(counts) < 1:
                raise PredictionsError(
                    f"training counts of fold {fold} are {list(counts)} — "
                    f"give one count above 0 for each of {C} classes"
                )

    def to_json(self) -> dict[str, Any]:
        """Return it as the sidecar of predictions holds it."""
        counts = {str(fold): list(counts) for fold, counts in self.training_counts.items()}
        return {"predicts_prior": self.predicts_prior, "training_counts": counts}

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Head:
        """Return what `to_json` gave.

        Raises:
            ValueError, KeyError, TypeError, AttributeError: it is not of that form.
        """
        counts = values["training_counts"].items()
        whole = {int(fold): tuple(int(n) for n in row) for fold, row in counts}
        return Head(values["predicts_prior"], whole)
