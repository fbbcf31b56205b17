"""The two terms of NCMI and the two forms of their ratio.

Source: Ye et al. 2026 (arXiv 2601.02543); the closed form of the separation is ours.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from wsi.objectives.simplex import divergence
from wsi.objectives.totals import mean_over_bags, processes, shared_total, total

Form = Literal["sample", "ratio"]

FLOOR = 1e-10  # added to the numerator of the sample form, as in the authors' code


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
