"""Class priors: what a head is trained under, and what it is read under."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from wsi.errors import ConfigError

Prior = Literal["training", "uniform"] | list[float]
"""The class frequencies of the training bags, equal shares, or one share per class."""

_SUM_TOLERANCE = 1e-3  # shares typed with three decimals


def log_prior(prior: Prior, class_counts: Sequence[int], setting: str = "prior") -> Tensor:
    """Return log pi (C,) float64.

    Args:
        prior: see `Prior`.
        class_counts: training bags per class, all above 0.
        setting: the name of the setting, for messages.

    Raises:
        ConfigError: the shares are not one per class, not all above 0, or do not sum to 1.
    """
    C = len(class_counts)
    if prior == "uniform":
        shares = [1 / C] * C
    elif prior == "training":
        shares = [count / sum(class_counts) for count in class_counts]
    else:
        shares = [float(share) for share in prior]
        _check(shares, C, setting)
    pi = torch.tensor(shares, dtype=torch.float64)
    return (pi / pi.sum()).log()


def retargeted(n: Tensor, log_pi: Tensor) -> Tensor:
    """Return n + log pi' (B, C): scores under equal shares, read under the prior pi' (C,).

    Their softmax is the posterior where classes occur with frequencies pi'.

    Source: Saerens et al. 2002, eq. 2.4.
    """
    return n + log_pi.to(n)


def _check(shares: Sequence[float], n_classes: int, setting: str) -> None:
    if len(shares) != n_classes:
        raise ConfigError(
            f"{setting}: {len(shares)} shares for {n_classes} classes — give one each"
        )
    if not all(share > 0 for share in shares):  # a share of 0 has no logarithm
        raise ConfigError(f"{setting}={list(shares)}: every share must be above 0")
    if not math.isclose(sum(shares), 1, abs_tol=_SUM_TOLERANCE):
        raise ConfigError(f"{setting}={list(shares)} sums to {sum(shares):g} — shares sum to 1")
