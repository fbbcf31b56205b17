"""Normalised conditional mutual information (NCMI): the loss and its decision rule.

An embedding becomes a point p of a simplex and each class has a centroid q there. The loss draws
p to its own centroid (the numerator, I(X; P | Y)) and away from the others (the denominator, the
separation Gamma).

Source: Ye et al. 2026 (arXiv 2601.02543); Yang et al. 2023 (arXiv 2309.09123).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from wsi.errors import ConfigError
from wsi.objectives.base import BagOutput, LabelledOutputs, Objective
from wsi.objectives.prototypes import PrototypeKind, unit_prototypes
from wsi.objectives.rules import Predict, SimplexMeans, fitted_tau
from wsi.objectives.simplex import (
    divergence,
    divergences,
    log_nsf,
    log_scaled_nsf,
    log_scaled_softmax,
    mean_pairwise_divergence,
    nearest,
    project,
)

__all__ = [
    "NCMI",
    "log_nsf",
    "log_scaled_nsf",
    "ncmi_terms",
    "nearest",
    "project",
    "ratio_form",
    "sample_form",
]

_FLOOR = 1e-10  # added to the numerator of the sample form, as in the authors' code
_MOMENTUM = 0.99  # of class-mean centroids
_EPS_SHARE = 1e-4  # of D: keeps the denominator above 0 at a wrong prototype when C = 2
_TAU_SHARE = 1 / 20  # of D: tau without validation


def ncmi_terms(a: Tensor, b: Tensor, y: Tensor, prior: Tensor) -> tuple[Tensor, Tensor]:
    """Return num (B,) = KL(p_i || q_{y_i}) and den (B,) = sum_{c != y_i} pi_c KL(q_c || p_i).

    O((B + C) m) in time and memory: the separation needs the mean of all centroids, less the own.

    Args:
        a: log(m p) of the bags (B, m).
        b: log(m q) of the centroids (C, m).
        y: class indices (B,).
        prior: pi (C,); 1 / C for plain NCMI.
    """
    weighted = prior[:, None] * b.exp() / b.shape[-1]
    own = (weighted * b).sum(-1)  # pi_c KL(q_c || uniform)
    others = weighted.sum(0) - weighted
    den = own.sum() - own[y] - (others[y] * a).sum(-1)
    return divergence(a, b[y]), den


def sample_form(
    num: Tensor, den: Tensor, weight: Tensor | None = None, *, eps: float | Tensor = 0.0
) -> Tensor:
    """Return the mean over bags of num / den, weighted by `weight` (B,) where given."""
    ratios = (num + _FLOOR) / (den + eps)
    return ratios.mean() if weight is None else (weight * ratios).sum() / weight.sum()


def ratio_form(
    num: Tensor, den: Tensor, weight: Tensor | None = None, *, eps: float | Tensor = 0.0
) -> Tensor:
    """Return the mean of num over the mean of den, both weighted by `weight` (B,) where given."""
    if weight is None:
        return num.mean() / (den.mean() + eps)
    share = weight / weight.sum()
    return (share * num).sum() / ((share * den).sum() + eps)


class NCMI(Objective):
    """NCMI on a linear projection of the bag embedding, with the decision rule KL(p || q_c).

    f = projection(embedding) in R^m, z = project(f), p = NSF(z). With `balanced` the loss is the
    plain mean of (1 / (C pi_y)) num / den: weights on the numerator alone, no normalisation of
    them, so it holds for one bag.

    Args:
        n_classes: C.
        embedding_dim: E of the aggregator.
        class_counts: training bags per class.
        form: `sample` (authors' code) or `ratio` (the paper's definition).
        centroids: `fixed` prototypes, or `class_mean`: the mean of p per class, their exact
            minimiser, as a moving average that starts from the prototypes.
        prototypes: see `wsi.objectives.prototypes`.
        simplex: `nsf` or `softmax`, the map from z to p.
        temperature: T of the projection.
        prototype_scale: length of the prototypes before the simplex map; 1 / T when not given.
        center: `none`, or `fixed`: the mean of f over one pass before training.
        balanced: class weights on the numerator.
        m: dimensions of the simplex; max(32, 4 C) when not given.
        eps: added to the denominator; 1e-4 of the mean prototype KL when not given.
        predict: which rule decides; see `wsi.objectives.rules`. `own` takes the centroids of the
            loss, `class_mean` the means of training p; both by softmax(-KL / tau), tau fitted on
            validation, and without it a twentieth of the mean KL between centroids or means.
    """

    wants = "embedding"
    own_prior = None
    centroids: Tensor
    centre: Tensor
    eps: Tensor
    tau: Tensor
    weights: Tensor

    def __init__(
        self,
        n_classes: int,
        embedding_dim: int,
        class_counts: Sequence[int],
        *,
        form: Literal["sample", "ratio"] = "sample",
        centroids: Literal["fixed", "class_mean"] = "fixed",
        prototypes: PrototypeKind = "etf",
        simplex: Literal["nsf", "softmax"] = "nsf",
        temperature: float = 0.5,
        prototype_scale: float | None = None,
        center: Literal["none", "fixed"] = "none",
        balanced: bool = True,
        m: int | None = None,
        eps: float | None = None,
        predict: Predict = "class_mean",
    ) -> None:
        super().__init__(n_classes, embedding_dim, class_counts, predict=predict)
        _check_positive(temperature=temperature, prototype_scale=prototype_scale)
        m = max(32, 4 * n_classes) if m is None else m
        self._form, self._updates, self._simplex = form, centroids == "class_mean", simplex
        self._temperature, self._centred = temperature, center == "fixed"
        self.class_mean = SimplexMeans(n_classes, m)
        self.projection = nn.Linear(embedding_dim, m)
        theta = unit_prototypes(prototypes, n_classes, m) * (prototype_scale or 1 / temperature)
        b = self._log_scaled(theta)
        D = mean_pairwise_divergence(b).float()
        self.register_buffer("centroids", b)
        self.register_buffer("centre", torch.zeros(m))
        self.register_buffer("eps", _EPS_SHARE * D if eps is None else torch.tensor(eps))
        self.register_buffer("tau", _TAU_SHARE * D)
        weights = self.balanced_weights() if balanced else torch.ones(n_classes)
        self.register_buffer("weights", weights)

    def forward(self, output: BagOutput, y: Tensor) -> Tensor:
        """Return the NCMI of B bags, a ratio of nats to nats: 0 is perfect."""
        a = self._log_p(output)
        prior = torch.full_like(self.weights, 1 / self.n_classes)
        num, den = ncmi_terms(a, self.centroids, y, prior)
        loss = sample_form if self._form == "sample" else ratio_form
        return loss(self.weights[y] * num, den, eps=self.eps)

    def own_scores(self, output: BagOutput) -> Tensor:
        """Return -KL(p || q_c) / tau (B, C) in float64."""
        return -divergences(self._log_p(output), self.centroids) / self.tau.double()

    def points(self, output: BagOutput) -> Tensor:
        """Return m p (B, m) in float64, in which p near uniform keeps its digits."""
        return self._log_p(output).double().exp()

    def settle_own(self, val: Sequence[tuple[BagOutput, Tensor]]) -> None:
        """Fit tau to validation bags."""
        self.tau.fill_(1.0)
        scores = torch.cat([self.own_scores(output) for output, _ in val])
        D = float(mean_pairwise_divergence(self.centroids))
        self.tau.fill_(fitted_tau(scores, torch.cat([y for _, y in val]), D))

    @torch.no_grad()
    def before_fit(self, outputs: LabelledOutputs) -> None:
        """Set the feature centre to the mean of f over the training bags, with center=fixed."""
        if self._centred:
            features = [self._features(output) for output, _ in outputs]
            self.centre.copy_(torch.cat(features).mean(0))

    @torch.no_grad()
    def after_step(self, output: BagOutput, y: Tensor) -> None:
        """Move the centroids of the classes present towards their mean p."""
        if self._updates:
            sums, counts = self._class_sums(output, y)
            present = counts > 0
            means = sums[present] / counts[present, None]
            moved = _MOMENTUM * self.centroids[present].exp() + (1 - _MOMENTUM) * means
            self.centroids[present] = _log(moved).to(self.centroids.dtype)

    def _class_sums(self, output: BagOutput, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sum of m p per class (C, m) and the bags per class (C,)."""
        scaled = self.points(output)  # double also keeps TF32 out of the product
        members = nn.functional.one_hot(y, self.n_classes).double()
        return members.T @ scaled, members.sum(0)

    def _log_p(self, output: BagOutput) -> Tensor:
        centre = self.centre if self._centred else None
        return self._log_scaled(project(self._features(output), centre, self._temperature))

    def _features(self, output: BagOutput) -> Tensor:
        embedding = output.embedding
        # Half precision would drown the small divergences the loss is made of.
        with torch.autocast(embedding.device.type, enabled=False):
            return self.projection(embedding.to(self.projection.weight.dtype))

    def _log_scaled(self, z: Tensor) -> Tensor:
        return log_scaled_nsf(z) if self._simplex == "nsf" else log_scaled_softmax(z)


def _log(scaled: Tensor) -> Tensor:
    return scaled.clamp_min(torch.finfo(scaled.dtype).tiny).log()


def _check_positive(**settings: float | None) -> None:
    for name, value in settings.items():
        if value is not None and not value > 0:
            raise ConfigError(f"ncmi: {name}={value} must be above 0")
