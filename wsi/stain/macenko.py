"""Stain normalisation after Macenko: two stain vectors in optical density."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import cv2
import numpy as np
from numpy.typing import NDArray

from wsi.errors import ConfigError, StainFitError
from wsi.stain.base import (
    DENSITY,
    WHITE,
    StainMethod,
    check_enough,
    density_of,
    put_on_tissue,
)

_LEAST_ANGLE = 3.0  # degrees between two stains; haematoxylin and eosin are 15 to 40 apart
_LEAST_COMPONENT = -0.1  # a stain absorbs; noise may say that it emits a little
_LEAST_STRENGTH = 0.1

Vector = tuple[float, float, float]


@dataclass(frozen=True)
class Stains:
    """Two stains as seen on a slide.

    Attributes:
        vectors: optical density in red, green and blue of haematoxylin and of eosin, length 1.
        strengths: 99th percentile of the amount of each.
    """

    vectors: tuple[Vector, Vector]
    strengths: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Macenko(StainMethod[Stains]):
    """Brings the two stains and their strengths to those of a reference, in optical density.

    The two stains are the extreme directions of the tissue's optical densities within the plane
    of their two main axes. Density is counted from grey level 240; glass is left as it is.

    Source: Macenko et al. 2009; steps and constants as in mitkovetta/staining-normalization, from
    which torchstain and others take them. The built-in reference is the stained part of
    torchstain's `data/target.png`. Different here:
    estimated once per slide, on its tissue; glass is left alone; levels are rounded, not cut.

    Args:
        alpha: percentile of the extreme directions, so that stray pixels do not count.
        beta: least optical density, in each channel, of pixels that directions are taken from.
        target: picture to look like, in place of the built-in reference.
    """

    REFERENCE: ClassVar = Stains(
        ((0.7216, 0.6620, 0.2023), (0.3497, 0.9101, 0.2221)), (1.7795, 0.7433)
    )

    alpha: float = 1.0
    beta: float = 0.15
    target: str | None = None

    def __post_init__(self) -> None:
        if not (0 < self.alpha < 50 and 0 < self.beta < 2):
            raise ConfigError(
                f"stain 'macenko': alpha={self.alpha:g} beta={self.beta:g} — alpha is a percentile "
                "above 0 and below 50, beta a density above 0 and below 2"
            )

    def estimate(self, pixels: NDArray[np.uint8]) -> Stains:
        density = DENSITY[pixels]
        dense = density[(density >= self.beta).all(axis=1)]
        check_enough(dense, "stained")
        vectors = self._extremes(dense)
        _check_distinct(vectors)
        amounts = np.linalg.pinv(vectors.T) @ density.T
        strengths = np.percentile(amounts, 99, axis=1)
        if not (strengths >= _LEAST_STRENGTH).all():
            raise StainFitError("one of the two stains is hardly there")
        haematoxylin, eosin = vectors.tolist()
        return Stains((tuple(haematoxylin), tuple(eosin)), tuple(strengths.tolist()))

    def normaliser(self, source: Stains, target: Stains) -> Unmixing:
        gain = np.diag(np.divide(target.strengths, source.strengths))
        unmix = np.linalg.pinv(np.transpose(source.vectors))
        return Unmixing(np.transpose(target.vectors) @ gain @ unmix)

    def _extremes(self, dense: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the stain vectors (2, 3), haematoxylin first."""
        _, axes = np.linalg.eigh(np.cov(dense.T))
        plane = axes[:, 1:]
        # An axis may come out pointing either way; towards the tissue, no angle wraps around.
        plane = plane * np.where((dense @ plane).mean(axis=0) < 0, -1, 1)
        along = dense @ plane
        angles = np.arctan2(along[:, 0], along[:, 1])
        ends = np.percentile(angles, [self.alpha, 100 - self.alpha])
        vectors = np.stack([np.sin(ends), np.cos(ends)], axis=1) @ plane.T
        return vectors[np.argsort(-vectors[:, 0])]  # haematoxylin takes more of the red


@dataclass(frozen=True)
class Unmixing:
    """Optical densities of one slide times a matrix.

    Attributes:
        matrix: (3, 3), from the slide's red, green and blue densities to the target's.
    """

    matrix: NDArray[np.float64]

    def apply(self, tiles: NDArray[np.uint8]) -> NDArray[np.uint8]:
        out = np.empty_like(tiles)
        minus = (-self.matrix).astype(np.float32)
        for tile, result in zip(tiles, out, strict=True):  # one at a time: it fits the cache
            density = density_of(tile)
            light = np.asarray(cv2.transform(density, minus))
            np.exp(light, out=light)
            light *= WHITE
            light -= 1  # added before the logarithm
            put_on_tissue(tile, density, light, result)
        return out


def _check_distinct(vectors: NDArray[np.float64]) -> None:
    angle = np.degrees(np.arccos(np.clip(vectors[0] @ vectors[1], -1, 1)))
    if not angle >= _LEAST_ANGLE or not vectors.min() >= _LEAST_COMPONENT:
        raise StainFitError("its tissue does not show two stains")
