"""Heads with fixed prototypes: a linear projection of the bag embedding, compared with them."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from wsi.objectives.base import BagOutput
from wsi.objectives.precision import no_autocast
from wsi.objectives.prototypes import unit_prototypes
from wsi.objectives.simplex import (
    divergences,
    log_scaled_nsf,
    mean_pairwise_divergence,
    project,
)

M_NOT_GIVEN = {"m": "max(32, 4 C)"}
"""What `m` of these heads is when it is not given, in words."""


class CosineHead(nn.Module):
    """Cosines between f = projection(embedding) in R^m and the fixed zero-mean simplex ETF.

    Args:
        n_classes: C.
        embedding_dim: E.
        m: dimensions of f; max(32, 4 C) when not given.
    """

    prototypes: Tensor

    def __init__(self, n_classes: int, embedding_dim: int, m: int | None = None) -> None:
        super().__init__()
        m = max(32, 4 * n_classes) if m is None else m
        self.projection = nn.Linear(embedding_dim, m)
        self.register_buffer("prototypes", unit_prototypes("etf", n_classes, m))

    def features(self, output: BagOutput) -> Tensor:
        """Return f (B, m) in at least float32."""
        return project_embedding(self.projection, output.embedding)

    def forward(self, output: BagOutput) -> Tensor:
        """Return u (B, C) = cos(f, theta_c)."""
        return cosines(self.features(output), self.prototypes)


class DivergenceHead(CosineHead):
    """KL(p || q_c) / D: p and q_c the normalised sigmoids of f / |f| / T and theta_c / T.

    D is the mean KL(q_c || q_c') over pairs of prototypes, so figures compare across T and m.

    Args:
        n_classes: C.
        embedding_dim: E.
        temperature: T.
        m: dimensions of the simplex; max(32, 4 C) when not given.
    """

    centroids: Tensor
    D: Tensor

    def __init__(
        self, n_classes: int, embedding_dim: int, temperature: float, m: int | None = None
    ) -> None:
        super().__init__(n_classes, embedding_dim, m)
        self._temperature = temperature
        b = log_scaled_nsf(self.prototypes.double() / temperature)
        self.register_buffer("centroids", b)
        self.register_buffer("D", mean_pairwise_divergence(b))

    def forward(self, output: BagOutput) -> Tensor:
        """Return KL(p || q_c) / D (B, C)."""
        f = self.features(output)
        # In double the products keep out of TF32, which would drown divergences of 1e-3.
        a = log_scaled_nsf(project(f.double(), None, self._temperature))
        return (divergences(a, self.centroids) / self.D).to(f.dtype)


def project_embedding(projection: nn.Module, embedding: Tensor) -> Tensor:
    """Return projection(embedding) (B, m) in at least float32, also under autocast."""
    dtype = next(projection.parameters()).dtype
    with no_autocast(embedding):
        return projection(embedding.to(dtype))


def cosines(f: Tensor, vectors: Tensor) -> Tensor:
    """Return (B, C): the cosine between each row of f (B, m) and each of `vectors` (C, m)."""
    with no_autocast(f):
        return functional.normalize(f, dim=-1) @ functional.normalize(vectors, dim=-1).to(f).T
