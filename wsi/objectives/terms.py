"""The two terms of NCMI and the two forms of their ratio.

Source: Ye et al. 2026 (arXiv 2601.02543); the closed form of the separation is ours.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from wsi.objectives.simplex import divergence, log_scaled_nsf, log_scaled_softmax
from wsi.objectives.totals import mean_over_bags, processes, shared_total, total

Form = Literal["sample", "ratio"]

FLOOR = 1e-10  # added to the numerator of the sample form, as in the authors' code


def centroid_sums(b: Tensor, prior: Tensor) -> tuple[Tensor, Tensor]:
    """Return pi_c KL(q_c || uniform) (C,) and sum_c pi_c q_c (m,): what all bags share.

    Args:
        b: log(m q) of the centroids (C, m).
        prior: pi (C,).
    """
    q = b.exp() / b.shape[-1]
    return prior * (q * b).sum(-1), (prior[:, None] * q).sum(0)


def ncmi_terms(
    a: Tensor,
    b: Tensor,
    y: Tensor,
    prior: Tensor,
    sums: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Return num (B,) = KL(p_i || q_{y_i}) and den (B,) = sum_{c != y_i} pi_c KL(q_c || p_i).

    O((B + C) m) in time and memory: the separation needs the mean of all centroids, less the own.

    Args:
        a: log(m p) of the bags (B, m).
        b: log(m q) of the centroids (C, m).
        y: class indices (B,).
        prior: pi (C,); 1 / C for plain NCMI.
        sums: `centroid_sums` of b and prior, where known.
    """
    shares, mean = centroid_sums(b, prior) if sums is None else sums
    own = b[y]
    den = shares.sum() - shares[y] - (_others(own, y, prior, mean) * a).sum(-1)
    return divergence(a, own), den


def terms_of_directions(
    z: Tensor, b: Tensor, y: Tensor, prior: Tensor, sums: tuple[Tensor, Tensor], *, nsf: bool
) -> tuple[Tensor, Tensor]:
    """Return `ncmi_terms` of a = log(m p), p = NSF(z) or softmax(z), with gradient in z alone.

    The gradient is the closed form: a quarter of the work of going back through the logarithms.

    Args:
        z: directions (B, m).
        b: log(m q) of the centroids (C, m), constant.
        y: class indices (B,).
        prior: pi (C,).
        sums: `centroid_sums` of b and prior.
        nsf: the normalised sigmoid, in place of softmax.
    """
    return _Terms.apply(z, b, y, prior, sums, nsf)  # pyright: ignore[reportReturnType]


class _Terms(torch.autograd.Function):
    """With s = sigmoid(-z), or 1 for softmax, and d = a - b_y:

    d num / dz = s p (d - num); d den / dz = s (W p - sum_{c != y} pi_c q_c), W = sum_{c != y} pi_c.
    """

    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        b: Tensor,
        y: Tensor,
        prior: Tensor,
        sums: tuple[Tensor, Tensor],
        nsf: bool,
    ) -> tuple[Tensor, Tensor]:
        a = log_scaled_nsf(z) if nsf else log_scaled_softmax(z)
        num, den = ncmi_terms(a, b, y, prior, sums)
        ctx.save_for_backward(z, a, b[y], y, prior, sums[1], num)
        ctx.nsf = nsf
        return num, den

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        z, a, own, y, prior, mean, num = ctx.saved_tensors
        of_num, of_den = (gradient[:, None] for gradient in gradients)
        p = a.exp() / a.shape[-1]
        others_share = (prior.sum() - prior[y])[:, None]
        toward = p * (a - own - num[:, None])
        apart = others_share * p - _others(own, y, prior, mean)
        gradient = of_num * toward + of_den * apart
        return (gradient * torch.sigmoid(-z) if ctx.nsf else gradient), *(None,) * 5


def _others(own: Tensor, y: Tensor, prior: Tensor, mean: Tensor) -> Tensor:
    """Return sum_{c != y} pi_c q_c (B, m) from log(m q_y) (B, m) and the sum over all c (m,)."""
    return mean - prior[y, None] * own.exp() / own.shape[-1]


def sample_form(
    num: Tensor,
    den: Tensor,
    weight: Tensor | None = None,
    *,
    eps: float | Tensor = 0.0,
    shared: bool = False,
) -> Tensor:
    """Return the mean over bags of num / den, weighted by `weight` (B,) where given.

    With `shared` the bags of all processes are meant.
    """
    ratios = (num + FLOOR) / (den + eps)
    if weight is None:
        return mean_over_bags(ratios, shared=shared)
    summed = torch.stack([(weight * ratios).sum(), weight.sum()])
    top, bottom = shared_total(summed) if shared else summed
    return top / bottom


def ratio_form(
    num: Tensor,
    den: Tensor,
    weight: Tensor | None = None,
    *,
    eps: float | Tensor = 0.0,
    shared: bool = False,
) -> Tensor:
    """Return the mean of num over the mean of den, both weighted by `weight` (B,) where given.

    With `shared` the bags of all processes are meant: the ratio of their means, not the mean of
    the processes' ratios.
    """
    weight = torch.ones_like(num) if weight is None else weight
    summed = torch.stack([(weight * num).sum(), (weight * den).sum()])
    n = weight.sum()
    if shared and processes() > 1:
        summed, n = shared_total(summed), total(n)
    return summed[0] / n / (summed[1] / n + eps)
