"""Accuracy and AUC of repeated cross-validation, the floor beside it, and paired differences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from benchmarks.classic.cells import Bags, Cell, bags_of, fold_of, read
from wsi.errors import ConfigError
from wsi.splits import Fold

LEVEL = 0.95


@dataclass(frozen=True)
class Folds:
    """Figures of every fold (J,), repetitions one after another.

    Attributes:
        ratio: test bags per bag learnt from, in the mean fold.
    """

    accuracy: np.ndarray
    auc: np.ndarray
    repetitions: int
    ratio: float

    def by_repetition(self, values: np.ndarray) -> np.ndarray:
        """Return the mean over the folds of each repetition."""
        return values.reshape(self.repetitions, -1).mean(1)


@dataclass(frozen=True)
class Estimate:
    """A mean over folds with its interval."""

    value: float
    low: float
    high: float


def corrected(values: np.ndarray, ratio: float, level: float = LEVEL) -> Estimate:
    """Return the mean of J fold figures or differences, with Nadeau and Bengio's interval.

    Folds share training bags, so their variance is raised to (1 / J + ratio) s^2.

    Args:
        values: (J,).
        ratio: n_test / n_train.

    Source: Nadeau and Bengio 2003, Inference for the Generalization Error, eq. 14; for repeated
    cross-validation Bouckaert and Frank 2004.
    """
    J, mean = len(values), float(values.mean())
    half = float(stats.t.ppf((1 + level) / 2, J - 1)) * float(
        np.sqrt((1 / J + ratio) * values.var(ddof=1))
    )
    return Estimate(mean, mean - half, mean + half)


def of_model(cells: Sequence[Cell]) -> Folds:
    """Return the figures of one model's fits, which must be complete.

    Raises:
        ConfigError: a fit is missing.
    """
    scores, folds = [], []
    for cell in cells:
        found = read(cell)
        if found is None:
            raise ConfigError(f"{cell.path} is not there — run the command without --page first")
        scores.append(np.asarray(found["p"]))
        folds.append(fold_of(cell))
        if tuple(found["slide_ids"]) != folds[-1].test:
            raise ConfigError(f"{cell.path} holds other bags than its fold — remove it")
    return _scored(cells[0], scores, folds)


def of_floor(cells: Sequence[Cell], *, whole: bool = True) -> Folds:
    """Return the figures of logistic regression on mean tiles, on the folds of `cells`.

    Args:
        whole: learn from the validation bags, too, since it has nothing to choose.
    """
    bags, folds = bags_of(cells[0].made), [fold_of(cell) for cell in cells]
    means = {s: np.asarray(bags.read(s).features, np.float64).mean(0) for s in bags.y}
    return _scored(cells[0], [_floor(fold, means, bags, whole) for fold in folds], folds)


def _floor(fold: Fold, means: dict[str, np.ndarray], bags: Bags, whole: bool) -> np.ndarray:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    learnt = (*fold.train, *fold.val) if whole else fold.train
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
    model.fit([means[s] for s in learnt], [bags.y[s] for s in learnt])
    return model.predict_proba([means[s] for s in fold.test])[:, 1]


def _scored(first: Cell, scores: Sequence[np.ndarray], folds: Sequence[Fold]) -> Folds:
    from sklearn.metrics import accuracy_score, roc_auc_score

    y = bags_of(first.made).y
    truth = [np.array([y[s] for s in fold.test]) for fold in folds]
    ratio = float(np.mean([len(f.test) / (len(f.train) + len(f.val)) for f in folds]))
    return Folds(
        accuracy=np.array([accuracy_score(t, p > 0.5) for t, p in zip(truth, scores)]),
        auc=np.array([roc_auc_score(t, p) for t, p in zip(truth, scores)]),
        repetitions=len(folds) // first.n_folds,
        ratio=ratio,
    )
