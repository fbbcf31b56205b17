"""Stain normalisation after Reinhard: mean and spread of colour in CIELAB."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import cv2
import numpy as np
from numpy.typing import NDArray

from wsi.errors import StainFitError
from wsi.stain.base import StainMethod, check_enough, density_of, put_on_tissue

_LEAST_SPREAD = 0.5  # of L, a and b; below it there is one colour, and noise would be stretched

_UNIT = (np.arange(256) / 255).astype(np.float32)


@dataclass(frozen=True)
class Colours:
    """Mean and standard deviation of L, a and b (CIELAB, D65) over a slide's tissue."""

    mean: tuple[float, float, float]
    spread: tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Reinhard(StainMethod[Colours]):
    """Brings mean and standard deviation of the tissue's L, a and b to those of a reference.

    Source: Reinhard et al. 2001, in CIELAB as torchstain and StainTools have it. Different here:
    estimated once per slide, on its tissue; glass is left alone. The built-in reference is the
    stained part of torchstain's `data/target.png`.

    Args:
        target: picture to look like, in place of the built-in reference.
    """

    REFERENCE: ClassVar = Colours((70.08, 11.99, -20.12), (13.97, 7.18, 10.10))

    target: str | None = None

    def estimate(self, pixels: NDArray[np.uint8]) -> Colours:
        check_enough(pixels, "stained")
        lab = _lab(cv2.LUT(pixels[None], _UNIT))[0].astype(np.float64)
        mean, spread = lab.mean(axis=0), lab.std(axis=0)
        if not (spread >= _LEAST_SPREAD).all():
            raise StainFitError("its tissue is of one colour")
        return Colours(tuple(mean.tolist()), tuple(spread.tolist()))

    def normaliser(self, source: Colours, target: Colours) -> Recolouring:
        scale = np.divide(target.spread, source.spread)
        shift = target.mean - scale * source.mean
        return Recolouring(tuple(scale.tolist()), tuple(shift.tolist()))


@dataclass(frozen=True)
class Recolouring:
    """L, a and b of one slide, each times a factor plus a shift."""

    scale: tuple[float, float, float]
    shift: tuple[float, float, float]

    def apply(self, tiles: NDArray[np.uint8]) -> NDArray[np.uint8]:
        out = np.empty_like(tiles)
        matrix = np.column_stack([np.diag(self.scale), self.shift]).astype(np.float32)
        for tile, result in zip(tiles, out, strict=True):  # one at a time: it fits the cache
            lab = cv2.transform(_lab(cv2.LUT(tile, _UNIT)), matrix)
            changed = np.asarray(cv2.cvtColor(lab, cv2.COLOR_Lab2RGB), np.float32)
            changed *= 255
            put_on_tissue(tile, density_of(tile), changed, result)
        return out


def _lab(unit: NDArray[np.generic]) -> NDArray[np.float32]:
    return np.asarray(cv2.cvtColor(np.asarray(unit, np.float32), cv2.COLOR_RGB2Lab), np.float32)
