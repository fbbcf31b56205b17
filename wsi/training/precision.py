"""In which type training multiplies matrices.

Half precision is for the aggregator's products alone: weights, optimiser, objective and all that
is validated, predicted or saved stay float32, so a checkpoint says the same on every machine.
"""

from __future__ import annotations

from typing import Literal

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.precision import MixedPrecision

from wsi.encoders.compute import settle_precision

Precision = Literal["fp32", "bf16"]

_GAINS = 1 << 17
"""Weights of a first layer (D x E) below which bf16 loses more on small bags than it need gain."""


def precision_of(asked: str, device: torch.device, dim: int, embedding_dim: int) -> Precision:
    """Return the type a fit computes in: a matter of settings and model, never of a bag's size.

    Args:
        asked: `fit.precision`.
        device: where it computes.
        dim: features per tile, D.
        embedding_dim: E of the aggregator.
    """
    if asked != "auto":
        return "bf16" if asked == "bf16" else "fp32"
    native = settle_precision("auto", device) == "bf16"
    return "bf16" if native and dim * embedding_dim >= _GAINS else "fp32"


def fabric_of(device: str, precision: Precision) -> Fabric:
    """Return the plumbing of one device, `cpu`, `cuda` or `cuda:<index>`."""
    chosen = torch.device(device)
    one = 1 if chosen.index is None else [chosen.index]
    devices = 1 if chosen.type == "cpu" else one
    half = MixedPrecision("bf16-mixed", chosen.type) if precision == "bf16" else None
    return Fabric(accelerator=chosen.type, devices=devices, plugins=half)
