"""Fixed class prototypes: unit vectors as far apart as classes can be."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from wsi.errors import ConfigError

PrototypeKind = Literal["etf", "orthonormal", "axis"]


def unit_prototypes(kind: PrototypeKind, n_classes: int, m: int) -> Tensor:
    """Return unit prototypes (C, m) in torch's default type, the same on every call.

    `etf`: the simplex equiangular tight frame, every pair at cosine -1 / (C - 1). `orthonormal`:
    every pair at cosine 0. Both have mean 0 over the m dimensions, as the normalised sigmoid is
    blind to the all-ones direction to first order. `axis`: e_y, as in the authors' code.

    Raises:
        ConfigError: m is too small for that many classes.
    """
    if m < n_classes + (kind != "axis"):
        raise ConfigError(f"{kind} prototypes of {n_classes} classes need m > {n_classes}, not {m}")
    if kind == "axis":
        return torch.eye(n_classes, m)
    basis = _zero_mean_basis(n_classes, m)
    if kind == "orthonormal":
        return basis.to(torch.get_default_dtype())
    frame = math.sqrt(n_classes / (n_classes - 1)) * (basis - basis.mean(0))
    return frame.to(torch.get_default_dtype())


def _zero_mean_basis(n: int, m: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    draw = torch.randn(m, n, generator=generator, dtype=torch.float64)
    basis, _ = torch.linalg.qr(draw - draw.mean(0))
    return basis.T
