"""Normalised conditional mutual information (NCMI): the loss and its decision rule.

An embedding becomes a point p of a simplex and each class has a centroid q there. The loss draws
p to its own centroid (the numerator, I(X; P | Y)) and away from the others (the denominator, the
separation Gamma).

Source: Ye et al. 2026 (arXiv 2601.02543); Yang et al. 2023 (arXiv 2309.09123).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from wsi.errors import TrainingError
from wsi.objectives.base import BagOutput, LabelledOutputs, Objective
from wsi.objectives.centre import Centre, CentreKind
from wsi.objectives.centroids import (
    CentroidKind,
    Centroids,
    FixedCentroids,
    LearnedCentroids,
    MeanCentroids,
)
from wsi.objectives.ncmi_figures import disagreement, information
from wsi.objectives.ncmi_settings import WHEN_NOT_GIVEN, NCMISettings, SimplexMap
from wsi.objectives.prototypes import PrototypeKind, unit_prototypes
from wsi.objectives.rules import Predict, SimplexMeans, fitted_tau
from wsi.objectives.simplex import (
    divergences,
    log_nsf,
    log_scaled_nsf,
    log_scaled_softmax,
    mean_pairwise_divergence,
    nearest,
    project,
)
from wsi.objectives.terms import Form, ncmi_terms, ratio_form, sample_form, terms_of_directions

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

_EPS_SHARE = 1e-4  # of D: keeps the denominator above 0 at a wrong prototype when C = 2
_TAU_SHARE = 1 / 20  # of D: tau without validation
_MERGED = 1e-12  # D of centroids that have become one
_SHORTEST = 1e-6  # norm of f - mu below which its direction is noise; bounds the gradient
_OFFICIAL_SHORTEST = 1e-12
_OFFICIAL_OFFSET = 1e-6  # added to the prototypes in the authors' code


class NCMI(Objective):
    """NCMI on a linear projection of the bag embedding, with the decision rule KL(p || q_c).

    f = projection(embedding) in R^m, z = project(f), p = NSF(z). With `balanced` the loss is the
    plain mean of (1 / (C pi_y)) num / den: weights on the numerator alone, no normalisation of
    them, so it holds for one bag. In training mode under `torch.distributed` the loss is that of
    the joined batch of all processes, and so are centroids and centre.

    Args:
        n_classes: C.
        embedding_dim: E of the aggregator.
        class_counts: training bags per class.
        form: `sample` (authors' code; the default) or `ratio` (the paper's definition).
        centroids: `fixed` prototypes (the default); `class_mean`: the mean of p per class, their
            exact minimiser, as a moving average that starts from the prototypes; `learned`: by
            gradient on the batch of each step, after it.
        centroid_lr: rate of the learned centroids; needed with them.
        centroid_momentum: momentum of the learned centroids; 0 when not given.
        prototypes: `etf` (the default), `orthonormal` or `axis`; see `wsi.objectives.prototypes`.
        prototype_scale: length of the prototypes before the simplex map; 1 / T when not given.
        simplex: `nsf` (the default) or `softmax`, the map from z to p.
        temperature: T of the projection; 0.5 when not given.
        center: `none` (the default); `fixed`: the mean of f over one pass before training; `ema`:
            a bias-corrected moving average over batches of at least two bags.
        center_momentum: of the moving average; 0.999 when not given.
        balanced: class weights on the numerator; true when not given.
        m: dimensions of the simplex; max(32, 4 C) when not given.
        eps: added to the denominator; 1e-4 of the mean prototype KL when not given.
        official: do as the published code does, on the embedding itself. Settings that
            contradict it are refused.
        predict: which rule decides; see `wsi.objectives.rules`. `own` takes the centroids of the
            loss, `class_mean` the means of training p; both by softmax(-KL / tau), tau fitted on
            validation, and without it a twentieth of the mean KL between centroids or means.

    Raises:
        ConfigError: a setting is impossible, does nothing beside the others, or contradicts
            `official`.
    """

    wants = "embedding"
    when_not_given = WHEN_NOT_GIVEN
    own_prior = None
    eps: Tensor
    tau: Tensor
    weights: Tensor

    def __init__(
        self,
        n_classes: int,
        embedding_dim: int,
        class_counts: Sequence[int],
        *,
        form: Form | None = None,
        centroids: CentroidKind | None = None,
        centroid_lr: float | None = None,
        centroid_momentum: float | None = None,
        prototypes: PrototypeKind | None = None,
        prototype_scale: float | None = None,
        simplex: SimplexMap | None = None,
        temperature: float | None = None,
        center: CentreKind | None = None,
        center_momentum: float | None = None,
        balanced: bool | None = None,
        m: int | None = None,
        eps: float | None = None,
        official: bool = False,
        predict: Predict = "class_mean",
    ) -> None:
        super().__init__(n_classes, embedding_dim, class_counts, predict=predict)
        settings = NCMISettings(
            form=form,
            centroids=centroids,
            centroid_lr=centroid_lr,
            centroid_momentum=centroid_momentum,
            prototypes=prototypes,
            prototype_scale=prototype_scale,
            simplex=simplex,
            temperature=temperature,
            center=center,
            center_momentum=center_momentum,
            balanced=balanced,
            m=m,
            eps=eps,
        ).resolved(n_classes, embedding_dim, official=official)
        self._form: Form = settings["form"]
        self._nsf: bool = settings["simplex"] == "nsf"
        self._temperature: float = settings["temperature"]
        self._official = official
        self._moves = settings["centroids"] != "fixed" or settings["center"] == "ema"
        m = int(settings["m"])
        self.projection = nn.Identity() if official else nn.Linear(embedding_dim, m)
        self.class_mean = SimplexMeans(n_classes, m)
        self.centre = Centre(
            m, settings["center"], momentum=settings["center_momentum"], first_copy=official
        )
        self.centroids = self._centroids(settings, n_classes, m)
        D = mean_pairwise_divergence(self.centroids.b).to(self.centroids.b.dtype)
        given = settings["eps"]
        self.register_buffer("eps", _EPS_SHARE * D if given is None else torch.full_like(D, given))
        self.register_buffer("tau", _TAU_SHARE * D)
        weights = self.balanced_weights() if settings["balanced"] else torch.ones(n_classes)
        self.register_buffer("weights", weights.to(D.dtype))

    def _centroids(self, settings: dict[str, Any], n_classes: int, m: int) -> Centroids:
        theta = settings["prototype_scale"] * unit_prototypes(settings["prototypes"], n_classes, m)
        if self._official:
            theta = theta + _OFFICIAL_OFFSET
        if settings["centroids"] == "learned":
            rate, momentum = settings["centroid_lr"], settings["centroid_momentum"]
            return LearnedCentroids(theta, self._log_scaled, rate=rate, momentum=momentum)
        kind = {"fixed": FixedCentroids, "class_mean": MeanCentroids}[settings["centroids"]]
        return kind(theta, self._log_scaled)

    def forward(self, output: BagOutput, y: Tensor) -> Tensor:
        """Return the NCMI of B bags, a ratio of nats to nats: 0 is perfect."""
        f = self._features(output)
        if self._official and self.training:
            self.centre.see(f)  # before it is used, as in the authors' code
        b, sums, prior = self.centroids.b, self.centroids.sums(), self._prior()
        terms = terms_of_directions(self._directions(f), b, y, prior, sums, nsf=self._nsf)
        return self._ratio(terms, y, shared=self.training)

    def own_scores(self, output: BagOutput) -> Tensor:
        """Return -KL(p || q_c) / tau (B, C) in float64."""
        return -divergences(self._log_p(output), self.centroids.b) / self.tau.double()

    def points(self, output: BagOutput) -> Tensor:
        """Return m p (B, m) in float64, in which p near uniform keeps its digits."""
        return self._log_p(output).double().exp()

    def settle_own(self, val: Sequence[tuple[BagOutput, Tensor]]) -> None:
        """Fit tau to validation bags."""
        self.tau.fill_(1.0)
        scores = torch.cat([self.own_scores(output) for output, _ in val])
        D = max(float(mean_pairwise_divergence(self.centroids.b)), _MERGED)
        self.tau.fill_(fitted_tau(scores, torch.cat([y for _, y in val]), D))

    @torch.no_grad()
    def before_fit(self, outputs: LabelledOutputs) -> None:
        """Set the feature centre to the mean of f over the training bags, with center=fixed."""
        if self.centre.kind != "fixed":
            return
        sums, count = torch.zeros_like(self.centre.value, dtype=torch.float64), 0
        for output, y in outputs:
            sums, count = sums + self._features(output).double().sum(0), count + len(y)
        self.centre.set(sums, count)

    def after_step(self, output: BagOutput, y: Tensor) -> None:
        """Let centroids and centre that move see the batch, of all processes together."""
        if not self._moves:
            return
        with torch.no_grad():
            f = self._features(output)
            a = self._log_scaled(self._directions(f))
        self.centroids.move(
            a, y, lambda b: self._ratio(ncmi_terms(a, b, y, self._prior()), y, shared=True)
        )
        if self.centre.kind == "ema" and not self._official:
            self.centre.see(f)

    @torch.no_grad()
    def figures(self, outputs: LabelledOutputs) -> dict[str, Any]:
        """Return what tells a healthy fit from a sick one, in nats and shares.

        `concentration`, `separation`, `ncmi` and `concentration_by_class` are those of these bags
        about their own class means. `saturation` is the mean of sigmoid(-max z): gradients pass
        through the normalised sigmoid in its proportion; None with softmax. `rule_disagreement`:
        share of bags for which nearest centroid and nearest class mean differ. `centre_drift`:
        how far the centre went since the last call, relative to its length; None unless it moves.
        """
        z, y = self._all(outputs)
        a = self._log_scaled(z)
        return {
            **information(a, y, self.n_classes),
            "saturation": float(torch.sigmoid(-z.amax(-1)).mean()) if self._nsf else None,
            "rule_disagreement": disagreement(a, y, self.centroids.b),
            "centre_drift": self.centre.drift(),
        }

    def _all(self, outputs: LabelledOutputs) -> tuple[Tensor, Tensor]:
        parts = [(self._directions(self._features(output)), y) for output, y in outputs]
        if not parts:
            raise TrainingError("ncmi: no bag to take figures of — give labelled outputs")
        z, y = zip(*parts, strict=True)
        return torch.cat(z), torch.cat(y)

    def _prior(self) -> Tensor:
        return torch.full_like(self.weights, 1 / self.n_classes)

    def _ratio(self, terms: tuple[Tensor, Tensor], y: Tensor, *, shared: bool) -> Tensor:
        num, den = terms
        form = sample_form if self._form == "sample" else ratio_form
        return form(self.weights[y] * num, den, eps=self.eps, shared=shared)

    def _log_p(self, output: BagOutput) -> Tensor:
        return self._log_scaled(self._directions(self._features(output)))

    def _directions(self, f: Tensor) -> Tensor:
        shortest = _OFFICIAL_SHORTEST if self._official else _SHORTEST
        return project(f, self.centre(), self._temperature, shortest)

    def _features(self, output: BagOutput) -> Tensor:
        embedding = output.embedding
        if embedding.ndim != 2 or embedding.shape[1] != self.embedding_dim:
            raise TrainingError(
                f"ncmi: an embedding of shape {tuple(embedding.shape)} came, (B, "
                f"{self.embedding_dim}) is needed — pool it to one vector per bag or image"
            )
        # Half precision would drown the small divergences the loss is made of.
        with torch.autocast(embedding.device.type, enabled=False):
            return self.projection(embedding.to(self.weights.dtype))

    def _log_scaled(self, z: Tensor) -> Tensor:
        return log_scaled_nsf(z) if self._nsf else log_scaled_softmax(z)
