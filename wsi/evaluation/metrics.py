"""Every metric once, weighted and vectorised over bootstrap replicates.

Shapes: n rows, C classes, R replicates. A *decision* metric is a function of confusion matrices
(..., C, C) with true classes in rows; a *probability* metric of y (n,), p (n, C) and row weights
(n, R). Inside, NaN stands for undefined; `Metric.__call__` turns it into None with a reason.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from wsi.errors import UnknownNameError
from wsi.registry import suggest

Array = np.ndarray
ECE_BINS = 15


@dataclass(frozen=True)
class Measure:
    """A value, or None with the reason, and the number of classes it averages over."""

    value: float | None
    classes: int
    reason: str = ""


@dataclass(frozen=True)
class Metric:
    """A named metric, and what it is a function of.

    Args:
        of: decisions pool the rows of all folds; probabilities of different models are not
            comparable, so their metrics are averaged over folds.
        averages: the classes it averages over: all declared, those with slides (`present`),
            those with slides and others without (`separable`), or none.
    """

    name: str
    title: str
    of: Literal["decisions", "probabilities"]
    averages: Literal["declared", "present", "separable", "none"]
    compute: Callable[..., Array]
    higher_is_better: bool = True

    def __call__(self, y: Array, p: Array, decided: Array | None = None) -> Measure:
        """Return the metric of true classes y (n,) and probabilities p (n, C).

        Args:
            decided: predicted classes (n,), where they are not those of largest probability.
        """
        used = classes_used(y, p.shape[1], self.averages)
        if len(y) == 0:
            return Measure(None, used, "no slides")
        if self.of == "decisions":
            chosen = p.argmax(axis=1) if decided is None else decided
            value = float(self.compute(confusion_matrix(y, chosen, p.shape[1])))
        else:
            value = float(self.compute(y, p, np.ones((len(y), 1)))[0])
        if np.isnan(value):
            return Measure(None, used, "only one class present")
        return Measure(value, used)


def classes_used(y: Array, C: int, averages: str = "separable") -> int:
    """Return how many classes a metric of these true classes averages over."""
    support = np.bincount(y, minlength=C)
    if averages == "present":
        return int((support > 0).sum())
    if averages == "separable":
        return int(((support > 0) & (support < len(y))).sum())
    return C


def metric_named(name: str) -> Metric:
    """Return a metric by its name.

    Raises:
        UnknownNameError: no metric has that name; the nearest is suggested.
    """
    if name not in METRICS:
        raise UnknownNameError(
            f"unknown metric '{name}'{suggest(name, METRICS)} — known: {', '.join(METRICS)}"
        )
    return METRICS[name]


def monitored(name: str) -> Callable[[Array, Array], float]:
    """Return what training watches as a plain number; undefined is NaN, which it refuses by name.

    Args:
        name: of a metric, or `loss`, with which training only looks at its own figure.
    """
    metric = metric_named("auc" if name == "loss" else name)

    def score(y: Array, p: Array) -> float:
        value = metric(y, p).value
        return float("nan") if value is None else value

    return score


def confusion_matrix(y: Array, decided: Array, C: int) -> Array:
    """Return counts (C, C), true classes in rows."""
    return np.bincount(y * C + decided, minlength=C * C).reshape(C, C)


def class_f1(confusion: Array) -> Array:
    """Return F1 of each class (..., C); a class neither present nor predicted counts 0."""
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    return ratio(2 * hits, confusion.sum(-1) + confusion.sum(-2), undefined=0.0)


def macro_f1(confusion: Array) -> Array:
    """Return the mean F1 over all declared classes.

    An absent class counts 0, as in scikit-learn's `f1_score(labels=range(C), average="macro",
    zero_division=0)`: the class list never depends on the slides at hand.
    """
    return np.where(confusion.sum((-2, -1)) > 0, class_f1(confusion).mean(-1), np.nan)


def micro_f1(confusion: Array) -> Array:
    """Return micro-F1, which for one label per slide is accuracy."""
    return ratio(np.trace(confusion, axis1=-2, axis2=-1), confusion.sum((-2, -1)))


def balanced_accuracy(confusion: Array) -> Array:
    """Return the mean recall over the classes present."""
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    return mean_defined(ratio(hits, confusion.sum(-1)))


def quadratic_kappa(confusion: Array) -> Array:
    """Return Cohen's kappa with quadratic weights, for classes in their order (Cohen 1968)."""
    C = confusion.shape[-1]
    grade = np.arange(C)
    cost = (grade[:, None] - grade) ** 2
    expected = confusion.sum(-1)[..., :, None] * confusion.sum(-2)[..., None, :]
    observed = (cost * confusion).sum((-2, -1)) * confusion.sum((-2, -1))
    return 1 - ratio(observed, (cost * expected).sum((-2, -1)))


def class_auc(positive: Array, score: Array, weights: Array) -> Array:
    """Return the area under the ROC curve (R,) of one class against the rest; ties count half."""
    hits, misses = steps(positive, score, weights)
    above = np.cumsum(misses, axis=0)  # misses that score at least as high as each step
    below = above[-1] - above + misses / 2
    return ratio((hits * below).sum(0), hits.sum(0) * misses.sum(0))


def class_average_precision(positive: Array, score: Array, weights: Array) -> Array:
    """Return the average precision (R,) of one class against the rest, without interpolation.

    Undefined without a single negative, where any score would get 1.
    """
    hits, misses = steps(positive, score, weights)
    found = np.cumsum(hits, axis=0)
    precision = ratio(found, found + np.cumsum(misses, axis=0), undefined=0.0)
    value = ratio((hits * precision).sum(0), hits.sum(0))
    return np.where(misses.sum(0) > 0, value, np.nan)


def auc(y: Array, p: Array, weights: Array) -> Array:
    """Return one-vs-rest AUC (R,), the mean over the classes where it is defined."""
    return _one_vs_rest(class_auc, y, p, weights)


def average_precision(y: Array, p: Array, weights: Array) -> Array:
    """Return one-vs-rest average precision (R,), the mean over the classes where defined."""
    return _one_vs_rest(class_average_precision, y, p, weights)


def nll(y: Array, p: Array, weights: Array) -> Array:
    """Return the mean negative log-likelihood in nats (R,).

    Probabilities are clipped at the smallest float64 step (2.2e-16), so a certain mistake costs
    36 nats and not infinity.
    """
    true = np.clip(p[np.arange(len(y)), y], np.finfo(np.float64).eps, 1)
    return ratio(-np.log(true) @ weights, weights.sum(0))


def brier(y: Array, p: Array, weights: Array) -> Array:
    """Return the Brier score (R,): squared error summed over classes, 0 to 2 (Brier 1950)."""
    return ratio(((p - np.eye(p.shape[1])[y]) ** 2).sum(1) @ weights, weights.sum(0))


def ece(y: Array, p: Array, weights: Array) -> Array:
    """Return the expected calibration error (R,) of the top class, 15 equal bins (a, b].

    Source: Guo et al. 2017, eq. 3.
    """
    confidence = p.max(axis=1)
    gap = (p.argmax(axis=1) == y) - confidence
    per_bin = (np.eye(ECE_BINS)[calibration_bin(confidence)] * gap[:, None]).T @ weights
    return ratio(np.abs(per_bin).sum(0), weights.sum(0))


def calibration_bin(confidence: Array) -> Array:
    """Return which of the 15 bins (a, b] each confidence (n,) lies in, from 0."""
    return np.clip(np.ceil(confidence * ECE_BINS).astype(int) - 1, 0, ECE_BINS - 1)


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("macro_f1", "macro-F1", "decisions", "declared", macro_f1),
        Metric("auc", "AUC (one-vs-rest)", "probabilities", "separable", auc),
        Metric("micro_f1", "micro-F1 (accuracy)", "decisions", "none", micro_f1),
        Metric("balanced_accuracy", "balanced accuracy", "decisions", "present", balanced_accuracy),
        Metric(
            "average_precision",
            "average precision (one-vs-rest)",
            "probabilities",
            "separable",
            average_precision,
        ),
        Metric("quadratic_kappa", "quadratic kappa", "decisions", "none", quadratic_kappa),
        Metric("nll", "negative log-likelihood", "probabilities", "none", nll, False),
        Metric("brier", "Brier score", "probabilities", "none", brier, False),
        Metric("ece", "expected calibration error", "probabilities", "none", ece, False),
    )
}
"""All metrics by name."""


def per_class(y: Array, p: Array, decided: Array) -> list[dict[str, float | int | None]]:
    """Return precision, recall, f1, support, auc and average_precision of each class.

    What is undefined is None: precision of a class never predicted, recall of an absent one. F1
    is then 0, as macro-F1 counts it.
    """
    confusion = confusion_matrix(y, decided, p.shape[1])
    hits = np.diagonal(confusion)
    precision = ratio(hits, confusion.sum(0))
    recall = ratio(hits, confusion.sum(1))
    f1 = class_f1(confusion)
    ones = np.ones((len(y), 1))
    return [
        {
            "precision": defined(precision[c]),
            "recall": defined(recall[c]),
            "f1": float(f1[c]),
            "support": int((y == c).sum()),
            "auc": defined(class_auc(y == c, p[:, c], ones)[0]),
            "average_precision": defined(class_average_precision(y == c, p[:, c], ones)[0]),
        }
        for c in range(p.shape[1])
    ]


def defined(value: float) -> float | None:
    """Return the value, or None for NaN."""
    return None if np.isnan(value) else float(value)


def _one_vs_rest(of_class: Callable[..., Array], y: Array, p: Array, weights: Array) -> Array:
    return mean_defined(
        np.stack([of_class(y == c, p[:, c], weights) for c in range(p.shape[1])], axis=-1)
    )


def steps(positive: Array, score: Array, weights: Array) -> tuple[Array, Array]:
    """Return the weight of positives and negatives at each distinct score, highest first."""
    order = np.argsort(-score, kind="stable")
    ranked = score[order]
    starts = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])
    inside = positive[order, None]
    weights = weights[order]
    hits = np.add.reduceat(weights * inside, starts, axis=0)
    return hits, np.add.reduceat(weights * ~inside, starts, axis=0)


def ratio(numerator: Array, denominator: Array, undefined: float = np.nan) -> Array:
    """Return the quotient, and `undefined` where the denominator is 0."""
    numerator, denominator = np.broadcast_arrays(numerator, denominator)
    out = np.full(numerator.shape, undefined, dtype=np.float64)
    return np.divide(numerator, denominator, out=out, where=denominator > 0)


def mean_defined(values: Array) -> Array:
    """Return the mean over the last axis of what is not NaN; NaN where nothing is."""
    known = ~np.isnan(values)
    return ratio(np.where(known, values, 0).sum(-1), known.sum(-1))
