"""Information in predictions: conditional mutual information, NCMI, and what labels they tell.

n rows, C classes, m dimensions of the simplex; everything in nats. `NCMIMetric` asks how tightly
the points p of each class lie together, and how far from the other classes; it needs no meaning of
p. `pmi` and what follows take p (or logits) for probabilities of the classes.

Source: Yang et al. 2023 (arXiv 2309.09123); Ye et al. 2026 (arXiv 2601.02543); Qin & Kim 2019
(arXiv 1911.10688) for pmi.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import logsumexp, xlogy

from wsi.errors import ConfigError, PredictionsError
from wsi.evaluation.metrics import Measure

Array = np.ndarray
Separation = Literal["KL_QP", "H", "KL"]
Weighting = Literal["empirical", "balanced"]

_SUM_TOLERANCE = 5e-3  # wider than that of predictions tables, which are checked already
_NOTHING = 1e-12  # nats: below this a separation is rounding


@dataclass(frozen=True)
class NCMIScores:
    """What `NCMIMetric.compute` returns; None where undefined, with the reason.

    Attributes:
        cmi: I(X; P | Y), the mean divergence of points from the mean of their class; 0 is perfect.
        separation: Gamma, the mean divergence between points and means of different classes.
        ncmi: cmi / separation. Comparable between models of the same classes, simplex dimensions,
            temperature and map to the simplex only.
        per_class: the cmi of each class, None for a class without points.
        counts: points of each class.
        reason: why a figure is None.
    """

    cmi: float | None
    separation: float | None
    ncmi: float | None
    per_class: tuple[float | None, ...]
    counts: tuple[int, ...]
    reason: str = ""


class NCMIMetric:
    """NCMI of a data set, gathered batch by batch and merged in any order.

    Sums of p, log p and p log p per class are enough: O(C m) memory for any number of points. The
    figures are *not* comparable across m, temperatures or maps to the simplex (softmax, NSF).

    Args:
        n_classes: C.
        dims: m; for predictions of classes, C.
    """

    def __init__(self, n_classes: int, dims: int) -> None:
        if n_classes < 2 or dims < 2:
            raise ConfigError(
                f"NCMI of {n_classes} classes in {dims} dimensions is undefined — give 2 or more"
            )
        # Logarithms are of m p, which differences of nearly equal entropies survive better.
        self._n = np.zeros(n_classes, dtype=np.int64)
        self._p = np.zeros((n_classes, dims))
        self._log_p = np.zeros((n_classes, dims))
        self._p_log_p = np.zeros(n_classes)

    @property
    def n_classes(self) -> int:
        """Return C."""
        return self._p.shape[0]

    @property
    def dims(self) -> int:
        """Return m."""
        return self._p.shape[1]

    def update(self, p: Array, y: Array) -> None:
        """Add points p (n, m), rows of which sum to 1, of classes y (n,).

        A p of exactly 0 is counted as such: it makes the separation infinite, thus undefined,
        where another class's mean is above 0. `update_log` keeps what would underflow.

        Raises:
            PredictionsError: another shape, no probabilities, or an unknown class.
        """
        p = np.asarray(p, dtype=np.float64)
        total = p.sum(axis=-1, keepdims=True)
        if not (
            np.isfinite(p).all() and (p >= 0).all() and (abs(total - 1) < _SUM_TOLERANCE).all()
        ):
            raise PredictionsError(
                "points of the simplex must be finite, not negative and sum to 1 — "
                "give probabilities, not logits"
            )
        with np.errstate(divide="ignore"):
            self.update_log(np.log(p / total), y)

    def update_log(self, log_p: Array, y: Array) -> None:
        """Add points given as log p (n, m), normalised; -inf is a p of 0."""
        log_p, y = np.asarray(log_p, dtype=np.float64), np.asarray(y)
        self._check(log_p, y)
        centred = log_p + np.log(self.dims)
        p = np.exp(log_p)
        p_log_p = np.where(p > 0, p * np.where(p > 0, centred, 0), 0).sum(axis=1)
        # Sums over runs of equal classes: no one-hot product, in which 0 times -inf is NaN.
        order = np.argsort(y, kind="stable")
        present, starts = np.unique(y[order], return_index=True)
        self._n += np.bincount(y, minlength=self.n_classes)
        if len(present):
            for total, rows in ((self._p, p), (self._log_p, centred), (self._p_log_p, p_log_p)):
                total[present] += np.add.reduceat(rows[order], starts, axis=0)

    def merge(self, other: NCMIMetric) -> None:
        """Add the points that another metric has seen.

        Raises:
            PredictionsError: it is of other classes or dimensions.
        """
        if self._p.shape != other._p.shape:
            raise PredictionsError(
                f"cannot merge {other.n_classes} classes in {other.dims} dimensions into "
                f"{self.n_classes} in {self.dims} — give metrics of one model's outputs"
            )
        self._n += other._n
        self._p += other._p
        self._log_p += other._log_p
        self._p_log_p += other._p_log_p

    def compute(
        self, separation: Separation = "KL_QP", weighting: Weighting = "empirical"
    ) -> NCMIScores:
        """Return CMI, separation and their ratio over all points seen.

        Y and V are independent draws of a class, s_c the mean of p in class c, P a point of V's.

        Args:
            separation: `KL_QP` E[1{Y != V} KL(s_Y || P)]; `KL` the same of points, E[1{Y != V}
                KL(P_X || P)]; `H` E[1{Y != V} H(s_Y, P)], the cross-entropy of arXiv 2309.09123.
            weighting: classes by their `empirical` frequencies, or `balanced` for equal weights of
                the classes that have points.
        """
        counts = tuple(int(n) for n in self._n)
        here = self._n > 0
        if not here.any():
            return NCMIScores(None, None, None, (None,) * len(counts), counts, "no slides")
        n = self._n[here].astype(np.float64)
        weight = n / n.sum() if weighting == "empirical" else np.full(len(n), 1 / len(n))
        mean = self._p[here] / n[:, None]
        of_mean = xlogy(mean, self.dims * mean).sum(axis=1)
        of_points = self._p_log_p[here] / n
        each = np.maximum(of_points - of_mean, 0)
        per_class = np.full(len(counts), np.nan)
        per_class[here] = each
        cross = _cross(mean, self._log_p[here] / n[:, None], weight)
        pairs = weight * (1 - weight)
        own = {"KL_QP": of_mean, "KL": of_points, "H": np.full(len(n), np.log(self.dims))}
        gamma = float(pairs @ own[separation] - cross)
        known = tuple(None if np.isnan(v) else float(v) for v in per_class)
        return _scores(float(weight @ each), gamma, len(n), known, counts)

    def _check(self, log_p: Array, y: Array) -> None:
        if log_p.ndim != 2 or log_p.shape[1] != self.dims or y.shape != log_p.shape[:1]:
            raise PredictionsError(
                f"points {log_p.shape} of classes {y.shape} are not (n, {self.dims}) and (n,) — "
                "give one row of the simplex and one class per slide"
            )
        if len(y) and (y.min() < 0 or y.max() >= self.n_classes):
            raise PredictionsError(
                f"classes {int(y.min())} to {int(y.max())} are not within 0 to "
                f"{self.n_classes - 1} — leave out slides without a label"
            )
        if not (abs(np.exp(log_p).sum(axis=1) - 1) < _SUM_TOLERANCE).all():
            raise PredictionsError("log p are of no probabilities — give log_softmax of the logits")


def _cross(mean: Array, log_p: Array, weight: Array) -> float:
    """Return sum over classes y != v of w_y w_v s_y·log(m p_v), -inf where a p of 0 is met.

    Of two classes or more: a dimension with both a p of 0 and mass then always has some pair of
    different classes of which one has mass where a point of the other has none.
    """
    zero = np.isneginf(log_p)
    if (zero.any(axis=0) & (mean > 0).any(axis=0)).any():
        return -np.inf
    weighted = weight[:, None] * np.where(zero, 0, log_p)
    return float((weight[:, None] * mean * (weighted.sum(axis=0) - weighted)).sum())


def _scores(
    cmi: float,
    gamma: float,
    present: int,
    per_class: tuple[float | None, ...],
    counts: tuple[int, ...],
) -> NCMIScores:
    """Return the figures, the ratio only where it means something."""
    if present < 2:
        return NCMIScores(cmi, None, None, per_class, counts, "only one class present")
    if np.isinf(gamma):
        reason = "a probability is exactly 0, so the separation is infinite"
        return NCMIScores(cmi, None, None, per_class, counts, reason)
    if gamma < _NOTHING:
        return NCMIScores(cmi, 0.0, None, per_class, counts, "the classes are not separated at all")
    return NCMIScores(cmi, gamma, cmi / gamma, per_class, counts)


def ncmi(
    p: Array, y: Array, C: int, separation: Separation = "KL_QP", weighting: Weighting = "empirical"
) -> NCMIScores:
    """Return CMI, separation and NCMI of points p (n, m) of classes y (n,); see `NCMIMetric`."""
    metric = NCMIMetric(C, np.shape(p)[-1])
    metric.update(p, y)
    return metric.compute(separation, weighting)


def log_likelihoods(p: Array, prior: Sequence[float] | Array) -> Array:
    """Return log p(x | c) up to a constant of the row (n, C), of posteriors p at a prior (C,).

    A p of 0 gives -inf.
    """
    with np.errstate(divide="ignore"):
        return np.log(np.asarray(p, dtype=np.float64)) - np.log(_prior(prior, trained=True))


def pmi(log_likelihood: Array, prior: Sequence[float] | Array) -> Array:
    """Return pmi(x, c) = log p(c | x) / p(c) in nats (n, C), of a head at a prior (C,).

    Args:
        log_likelihood: log p(x | c) up to a constant of the row (n, C): the logits of a PC-softmax
            head, the logits less log prior of a cross-entropy head (`ce_pmi`), or
            `log_likelihoods` of probabilities. The prior may be another than that of training.
    """
    L = np.asarray(log_likelihood, dtype=np.float64)
    return L - logsumexp(L, b=_prior(prior), axis=-1, keepdims=True)


def pc_pmi(logits: Array, prior: Sequence[float] | Array) -> Array:
    """Return pmi (n, C) of a PC-softmax head: n_c - log sum_j pi_j exp n_j."""
    return pmi(logits, prior)


def ce_pmi(logits: Array, prior: Sequence[float] | Array) -> Array:
    """Return pmi (n, C) of a cross-entropy head trained at a prior: log_softmax(n)_c - log pi_c."""
    pi = _prior(prior, trained=True)
    return pmi(np.asarray(logits, dtype=np.float64) - np.log(pi), pi)


def retarget(p: Array, pi_from: Sequence[float] | Array, pi_to: Sequence[float] | Array) -> Array:
    """Return posteriors (n, C) at the prior `pi_to`, of posteriors p at the prior `pi_from`.

    Bayes' rule under a shift of the prior alone: p(x | c) stays as it was. A class may have no
    place in `pi_to`, and then gets 0.

    Raises:
        ConfigError: a prior is none, or 0 for a class in `pi_from`.
    """
    ratio = _prior(pi_to) / _prior(pi_from, trained=True)
    scaled = np.asarray(p, dtype=np.float64) * ratio
    return scaled / scaled.sum(axis=-1, keepdims=True)


def mutual_information(pmis: Array, y: Array) -> Measure:
    """Return mean_i pmi(x_i, y_i) of held-out rows in nats; at most `bound(y, prior)`.

    An estimate from below of the information that inputs hold on labels. Negative when the
    predictions are surer than right.
    """
    if len(y) == 0:
        return Measure(None, pmis.shape[1], "no slides")
    value = float(pmis[np.arange(len(y)), y].mean())
    if not np.isfinite(value):
        return Measure(None, pmis.shape[1], "a true class has a probability of exactly 0")
    return Measure(value, pmis.shape[1])


def bound(y: Array, prior: Sequence[float] | Array) -> float:
    """Return mean_i -log prior_{y_i}: what a perfect head would reach, in nats.

    It is the entropy of the labels only where the prior is their own frequency.
    """
    return float(-np.log(_prior(prior)[y]).mean())


def entropy(prior: Sequence[float] | Array) -> float:
    """Return the entropy of a prior in nats."""
    pi = _prior(prior)
    return float(-xlogy(pi, pi).sum())


def _prior(values: Sequence[float] | Array, *, trained: bool = False) -> Array:
    """Return a checked prior (C,)."""
    pi = np.asarray(values, dtype=np.float64)
    if pi.ndim != 1 or not np.isfinite(pi).all() or (pi < 0).any() or abs(pi.sum() - 1) > 1e-6:
        raise ConfigError(f"a prior must be probabilities that sum to 1, not {pi.tolist()}")
    if trained and (pi == 0).any():
        absent = ", ".join(str(c) for c in np.flatnonzero(pi == 0))
        raise ConfigError(
            f"class {absent} has no share of the training prior, so its probabilities mean nothing "
            "— leave it out of the classes"
        )
    return pi
