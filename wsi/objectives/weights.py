"""Weights of bags by class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from wsi.errors import ConfigError

Weight = Literal["none", "balanced"] | list[float]
"""1 for every bag, 1 / (C pi_y) with pi the training frequencies, or one weight per class."""


def class_weights(weight: Weight, class_counts: Sequence[int]) -> Tensor:
    """Return the weight of a bag by its class (C,) float32.

    Raises:
        ConfigError: the weights are not one per class, or not all above 0.
    """
    C = len(class_counts)
    if weight == "none":
        return torch.ones(C)
    if weight == "balanced":
        counts = torch.tensor(list(class_counts), dtype=torch.float64)
        return (counts.sum() / (C * counts)).float()
    if len(weight) != C:
        raise ConfigError(f"weight: {len(weight)} weights for {C} classes, give one each")
    if not all(value > 0 for value in weight):
        raise ConfigError(f"weight={list(weight)}: every weight must be above 0")
    return torch.tensor([float(value) for value in weight])
