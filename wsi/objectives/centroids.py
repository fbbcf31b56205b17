"""Class centroids on the simplex: fixed, moving with the class means, or learned by gradient.

All hold b = log(m q) (C, m). Those that move do so on the mini-batch of the network's step, after
it: the two halves of an alternating minimisation.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from wsi.errors import TrainingError
from wsi.objectives.totals import mean_gradient, total

CentroidKind = Literal["fixed", "class_mean", "learned"]

_MOMENTUM = 0.99  # of class-mean centroids

ToSimplex = Callable[[Tensor], Tensor]
"""theta (C, m) to log(m q) (C, m)."""

LossOfCentroids = Callable[[Tensor], Tensor]
"""log(m q) (C, m) to the loss of the batch, a scalar, of all processes together."""


class Centroids(nn.Module, ABC):
    """Class centroids q_c; `b` is log(m q) (C, m)."""

    b: Tensor

    def __init__(self, theta: Tensor, to_simplex: ToSimplex) -> None:
        super().__init__()
        self.register_buffer("b", to_simplex(theta).to(torch.get_default_dtype()))

    @abstractmethod
    def move(self, a: Tensor, y: Tensor, loss: LossOfCentroids) -> None:
        """Move after a step on bags a = log(m p) (B, m), without gradient, of classes y (B,)."""


class FixedCentroids(Centroids):
    """Prototypes that stay."""

    def move(self, a: Tensor, y: Tensor, loss: LossOfCentroids) -> None:
        """Do nothing."""


class MeanCentroids(Centroids):
    """Moving averages of p per class: the mean is the exact minimiser of the numerator."""

    @torch.no_grad()
    def move(self, a: Tensor, y: Tensor, loss: LossOfCentroids) -> None:
        """Move the centroids of the classes present towards their mean p."""
        members = nn.functional.one_hot(y, len(self.b)).double()
        # In double, as TF32 would round the product.
        sums, counts = total(members.T @ a.double().exp()), total(members.sum(0))[:, None]
        moved = _MOMENTUM * self.b.double().exp() + (1 - _MOMENTUM) * sums / counts.clamp_min(1)
        log = moved.clamp_min(torch.finfo(self.b.dtype).tiny).log().to(self.b.dtype)
        self.b.copy_(torch.where(counts > 0, log, self.b))


class LearnedCentroids(Centroids):
    """q = simplex map of theta (C, m), by gradient descent of its own on theta.

    Classes absent from a batch would feel repulsion only, and drift; they stay.

    Args:
        theta: where to start (C, m).
        to_simplex: map of theta to log(m q).
        rate: of the descent. Only tiny ones help: centroids that run away lower the loss
            while accuracy falls.
        momentum: of the descent.
    """

    theta: Tensor
    velocity: Tensor

    def __init__(
        self, theta: Tensor, to_simplex: ToSimplex, *, rate: float, momentum: float
    ) -> None:
        super().__init__(theta, to_simplex)
        self._to_simplex, self._rate, self._momentum = to_simplex, rate, momentum
        self.register_buffer("theta", theta.to(torch.get_default_dtype()))
        self.register_buffer("velocity", torch.zeros_like(self.theta))

    def move(self, a: Tensor, y: Tensor, loss: LossOfCentroids) -> None:
        """Take one step down the loss of this batch.

        Raises:
            TrainingError: the loss has no gradient in theta, or one that is zero or not finite.
        """
        gradient = mean_gradient(self._gradient(loss))
        present = total(torch.bincount(y, minlength=len(self.theta)).double()) > 0
        gradient = torch.where(present[:, None], gradient, 0.0)
        size = gradient.abs().sum()
        if not (size > 0 and size.isfinite()):
            raise _stuck(f"a gradient of {float(size):g}")
        with torch.no_grad():
            moved = self._momentum * self.velocity + gradient
            self.velocity.copy_(torch.where(present[:, None], moved, self.velocity))
            self.theta.sub_(self._rate * present[:, None] * self.velocity)
            self.b.copy_(self._to_simplex(self.theta))

    def _gradient(self, loss: LossOfCentroids) -> Tensor:
        with torch.enable_grad():
            theta = self.theta.detach().clone().requires_grad_()
            value = loss(self._to_simplex(theta))
            found = None
            if value.requires_grad:
                (found,) = torch.autograd.grad(value, theta, allow_unused=True)
        if found is None:
            raise _stuck("no gradient")
        return found


def _stuck(found: str) -> TrainingError:
    return TrainingError(
        f"ncmi: centroids=learned got {found} of the loss in the centroids, so they cannot be "
        "trained — use centroids=fixed or class_mean"
    )
