"""Points of the probability simplex over m feature dimensions, and divergences between them.

Everything works on a = log(m p), which is near 0 where p is near uniform, so that small
divergences keep their digits in float32.

Source: Ye et al. 2026 (arXiv 2601.02543) for the normalised sigmoid; the stable form is ours.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

_FAR = 10.0  # from here the largest entry rules the mean and log-softmax loses nothing


def project(f: Tensor, mu: Tensor | None, T: float, eps: float = 1e-12) -> Tensor:
    """Return z (B, m) = (f - mu) / max(|f - mu|, eps) / T: the direction of f at temperature T."""
    centred = f if mu is None else f - mu
    return centred / centred.norm(dim=-1, keepdim=True).clamp_min(eps) / T


def log_nsf(z: Tensor) -> Tensor:
    """Return log p (..., m), p_i = sigmoid(z_i) / sum_j sigmoid(z_j), the normalised sigmoid."""
    return functional.logsigmoid(z).log_softmax(-1)


def log_scaled_nsf(z: Tensor) -> Tensor:
    """Return a (..., m) = log(m p), p the normalised sigmoid of z."""
    return log_scaled_softmax(functional.logsigmoid(z))


def log_scaled_softmax(g: Tensor) -> Tensor:
    """Return a (..., m) = log(m p), p = softmax(g), right in float32 even for nearly equal g.

    a = g - log mean_k e^{g_k} with g centred; log_softmax(g) + log m would subtract two numbers
    near log m. Rows with a dominant entry take that form, where it loses nothing.
    """
    g = g - g.mean(-1, keepdim=True)
    far = g.amax(-1, keepdim=True) > _FAR
    near = g.masked_fill(far, 0.0)  # masked before expm1: an unused infinity has NaN gradients
    a_near = near - near.expm1().mean(-1, keepdim=True).log1p()
    a_far = g.log_softmax(-1) + math.log(g.shape[-1])
    return torch.where(far, a_far, a_near)


def divergence(a: Tensor, b: Tensor) -> Tensor:
    """Return KL(p || q) (...) of a = log(m p), b = log(m q), both (..., m).

    The sum is q_k (e^d d - expm1(d)), d = a - b, in which no term is negative: the plain form
    cancels and, in float32, turns negative near convergence.
    """
    p, q = a.exp() / a.shape[-1], b.exp() / b.shape[-1]
    d = a - b
    far = d > 1  # here p (d - 1) + q cancels nothing, and e^d might overflow
    near = d.masked_fill(far, 0.0)
    return torch.where(far, p * (d - 1) + q, q * (near.exp() * near - near.expm1())).sum(-1)


def divergences(a: Tensor, b: Tensor) -> Tensor:
    """Return KL(p_i || q_c) (B, C) in float64, for decisions: a (B, m), b (C, m)."""
    a, b = a.double(), b.double()
    p = a.exp() / a.shape[-1]
    return ((p * a).sum(-1, keepdim=True) - p @ b.T).clamp_min(0.0)


def nearest(a: Tensor, b: Tensor) -> Tensor:
    """Return the class (B,) with the least KL(p || q_c); ties go to the lowest index."""
    return divergences(a, b).argmin(-1)


def mean_pairwise_divergence(b: Tensor) -> Tensor:
    """Return D, the mean KL(q_c || q_c') over ordered pairs of different rows of b (C, m)."""
    C = len(b)
    return divergences(b, b).fill_diagonal_(0.0).sum() / (C * (C - 1))
