"""Figures of a trained NCMI on labelled bags, for logs and alarms."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from wsi.objectives.simplex import divergences

_TINY = torch.finfo(torch.float64).tiny


def information(a: Tensor, y: Tensor, n_classes: int) -> dict[str, Any]:
    """Return concentration I, separation Gamma and their ratio NCMI of bags in nats.

    I = E KL(P || s_Y), s_y the mean p of class y of these bags; Gamma = E[1{Y != V} KL(s_Y || P_U)]
    with Y and V independent; both at the class shares of these bags. A class without bags adds
    nothing, and has None in `concentration_by_class`; NCMI is None where Gamma is 0.

    Args:
        a: log(m p) (n, m).
        y: class indices (n,).
        n_classes: C.
    """
    a = a.double()
    members = nn.functional.one_hot(y, n_classes).double()
    counts = members.sum(0)
    share = counts / counts.sum()
    b = class_mean_logs(a, y, n_classes)
    s = b.exp() / a.shape[-1]
    kl = divergences(a, b).gather(1, y[:, None]).squeeze(1)
    of_class = members.T @ kl / counts.clamp_min(1)
    mean_a = members.T @ a / counts.clamp_min(1)[:, None]
    # E over bags of class v of KL(s_y || p) = sum s_y b_y - s_y . E_v[a]
    apart = ((s * b).sum(-1, keepdim=True) - s @ mean_a.T).clamp_min(0).fill_diagonal_(0.0)
    gamma = float((share[:, None] * share * apart).sum())
    concentration = float((share * of_class).sum())
    return {
        "concentration": concentration,
        "separation": gamma,
        "ncmi": concentration / gamma if gamma > 0 else None,
        "concentration_by_class": [
            float(value) if count else None for value, count in zip(of_class, counts, strict=True)
        ],
    }


def class_mean_logs(a: Tensor, y: Tensor, n_classes: int) -> Tensor:
    """Return log(m s_c) (C, m) float64, s_c the mean p of class c; 0 for a class without bags."""
    members = nn.functional.one_hot(y, n_classes).double()
    counts = members.sum(0)
    means = members.T @ a.double().exp() / counts.clamp_min(1)[:, None]
    return torch.where(counts[:, None] > 0, means.clamp_min(_TINY).log(), 0.0)


def disagreement(a: Tensor, y: Tensor, b: Tensor) -> float:
    """Return the share of bags whose nearest centroid b (C, m) is not their nearest class mean."""
    n_classes = len(b)
    means = divergences(a, class_mean_logs(a, y, n_classes))
    absent = torch.bincount(y, minlength=n_classes) == 0
    means[:, absent] = torch.inf
    return float((divergences(a, b).argmin(-1) != means.argmin(-1)).double().mean())
