"""Decision rules: how a trained objective turns a bag into class probabilities.

Every objective has its own rule. Two more are open to all: the nearest mean of the training bags,
and a linear probe on the bag embedding. Which one decides is settled after training, where asked
for on validation bags.
"""

from __future__ import annotations

import warnings
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from wsi.errors import TrainingError
from wsi.objectives.simplex import divergences, mean_pairwise_divergence
from wsi.objectives.temperature import fit_temperature

RuleName = Literal["own", "class_mean", "probe"]
Predict = Literal["own", "class_mean", "probe", "auto"]
"""`auto`: the rule with the least class-balanced, temperature-fitted NLL on validation bags."""

RULES: tuple[RuleName, ...] = ("own", "class_mean", "probe")

_TAU_SHARE = 1 / 20  # of the mean distance between means: tau without validation
TAU_RANGE = (1 / 40, 100.0)  # of that distance: perfectly ranked bags ask for tau = 0
_PROBE_C = 1.0  # inverse strength of the probe's ridge, on standardised embeddings


class ClassMeans(nn.Module):
    """Scores -|z - mu_c|^2 / tau of bag embeddings z (B, E); mu_c the mean of class c.

    Up to a term that all classes share this is linear in z.
    """

    means: Tensor
    tau: Tensor

    def __init__(self, n_classes: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("means", torch.zeros(n_classes, dim, dtype=torch.float64))
        self.register_buffer("tau", torch.tensor(1.0, dtype=torch.float64))

    def settle(self, points: Tensor, y: Tensor) -> None:
        """Set the means from training points (n, E) with classes y (n,), and tau from them."""
        self.means.copy_(class_means(points, y, len(self.means)))
        self.tau.fill_(_TAU_SHARE * self.scale)

    @property
    def scale(self) -> float:
        """Return the mean squared distance between two means."""
        C = len(self.means)
        return max((torch.cdist(self.means, self.means) ** 2).sum().item() / (C * (C - 1)), 1e-12)

    def distances(self, points: Tensor) -> Tensor:
        """Return (B, C): the squared distance to each mean."""
        return torch.cdist(points.double(), self.means) ** 2

    def scores(self, points: Tensor) -> Tensor:
        """Return (B, C) float64, higher is likelier."""
        return -self.distances(points) / self.tau

    def linear(self) -> tuple[Tensor, Tensor] | None:
        """Return W (C, E), b (C,): `scores` up to a term that all classes share."""
        return 2 * self.means / self.tau, -(self.means**2).sum(-1) / self.tau


class SimplexMeans(ClassMeans):
    """Scores -KL(p || s_c) / tau of points m p (B, m) of the simplex; s_c the mean p of class c.

    Points come times m, so that p near uniform keeps its digits. Not linear in the embedding.
    """

    @property
    def scale(self) -> float:
        """Return the mean KL between two means."""
        return max(float(mean_pairwise_divergence(_log(self.means))), 1e-12)

    def distances(self, points: Tensor) -> Tensor:
        """Return (B, C): KL(p || s_c)."""
        return divergences(_log(points.double()), _log(self.means))

    def linear(self) -> None:
        """Return None: no W and b would do."""
        return


class LinearProbe(nn.Module):
    """Logistic regression on standardised bag embeddings (B, E), class-balanced, temperature tau.

    The standardisation is folded into the weights, so scores are linear in the embedding.
    """

    weight: Tensor
    bias: Tensor
    tau: Tensor

    def __init__(self, n_classes: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(n_classes, dim, dtype=torch.float64))
        self.register_buffer("bias", torch.zeros(n_classes, dtype=torch.float64))
        self.register_buffer("tau", torch.tensor(1.0, dtype=torch.float64))

    @property
    def scale(self) -> float:
        """Return 1: logits have a scale of their own."""
        return 1.0

    def settle(self, points: Tensor, y: Tensor) -> None:
        """Fit the weights to training points (n, E) with classes y (n,).

        Raises:
            TrainingError: a class does not occur.
        """
        from sklearn.linear_model import LogisticRegression

        _counts(y, len(self.weight))
        x = points.double().cpu().numpy()
        mean, sd = x.mean(0), x.std(0)
        sd = np.where(sd > 1e-12, sd, 1.0)
        fitted = LogisticRegression(C=_PROBE_C, class_weight="balanced", max_iter=1000)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it has converged far enough after that many steps
            fitted.fit((x - mean) / sd, y.cpu().numpy())
        weight, bias = fitted.coef_ / sd, fitted.intercept_ - (fitted.coef_ / sd) @ mean
        if len(self.weight) == 2:  # scikit-learn keeps one row for two classes
            weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
        self.weight.copy_(torch.as_tensor(weight))
        self.bias.copy_(torch.as_tensor(bias))
        self.tau.fill_(1.0)

    def scores(self, points: Tensor) -> Tensor:
        """Return (B, C) float64, higher is likelier."""
        W, b = self.linear()
        return points.double() @ W.T + b

    def linear(self) -> tuple[Tensor, Tensor]:
        """Return W (C, E), b (C,) of `scores`."""
        return self.weight / self.tau, self.bias / self.tau


def class_means(points: Tensor, y: Tensor, n_classes: int) -> Tensor:
    """Return the mean (C, M) float64 of points (n, M) per class.

    Raises:
        TrainingError: a class does not occur.
    """
    counts = _counts(y, n_classes)
    members = nn.functional.one_hot(y, n_classes).double()
    return members.T @ points.double() / counts[:, None]


def means_of_present(points: Tensor, y: Tensor, n_classes: int) -> tuple[Tensor, Tensor]:
    """Return the mean (C, M) float64 of points (n, M) per class, and whether it occurs (C, 1).

    The mean of a class that does not occur is 0. No number is read back from the device.
    """
    members = nn.functional.one_hot(y, n_classes).double()
    counts = members.sum(0)[:, None]
    return members.T @ points.double() / counts.clamp_min(1), counts > 0


def _counts(y: Tensor, n_classes: int) -> Tensor:
    """Return the bags of each class (C,), or raise TrainingError where there is none."""
    counts = torch.bincount(y, minlength=n_classes)
    absent = (counts == 0).nonzero().flatten().tolist()
    if absent:
        raise TrainingError(
            f"class {absent[0]} has no training bag for the decision rule — give bags of every "
            "class, or set objective.predict=own"
        )
    return counts


def fitted_tau(scores: Tensor, y: Tensor, scale: float) -> float:
    """Return the tau, in `TAU_RANGE` times `scale`, of least smoothed NLL of scores / tau."""
    low, high = (share * scale for share in TAU_RANGE)
    found, _ = fit_temperature(
        scores.detach().cpu().numpy(), y.cpu().numpy(), low=low, high=high, smoothed=True
    )
    return found


def balanced_nll(scores: Tensor, y: Tensor) -> float:
    """Return the NLL of softmax(scores / t) at the best t, averaged over classes, then bags."""
    scores_, labels = scores.detach().cpu().double().numpy(), y.cpu().numpy()
    scale = float(np.ptp(scores_, axis=1).mean()) or 1.0
    t, _ = fit_temperature(scores_, labels, low=scale / 1000, high=scale * 1000, smoothed=True)
    log_p = torch.as_tensor(scores_ / t).log_softmax(-1).numpy()
    nll = -log_p[np.arange(len(labels)), labels]
    return float(np.mean([nll[labels == c].mean() for c in np.unique(labels)]))


def _log(scaled: Tensor) -> Tensor:
    return scaled.clamp_min(torch.finfo(scaled.dtype).tiny).log()
