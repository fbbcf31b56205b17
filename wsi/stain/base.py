"""What every stain normalisation does: look at a slide's tissue, then change its tiles alike."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Generic, Protocol, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from wsi.errors import StainFitError

WHITE = 240.0
"""Grey level of glass, of 255: where optical density is 0, as in the reference figures."""

GLASS = 0.05
"""Mean optical density (natural logarithm) below which a pixel counts as glass."""

FEWEST = 1000
"""Stained pixels that an estimate needs at least."""

DENSITY = -np.log((np.arange(256, dtype=np.float64) + 1) / WHITE)
"""Optical density of each 8-bit level; below 0 for what is lighter than glass."""

_DENSITY = DENSITY.astype(np.float32)
_MEAN = np.full((1, 3), 1 / 3, np.float32)


class Normaliser(Protocol):
    """Changes the tiles of one slide; the same pixel always becomes the same pixel."""

    def apply(self, tiles: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return normalised uint8 (k, h, w, 3)."""
        ...


class Appearance(Protocol):
    """What an estimate found: a frozen dataclass of plain numbers, which bags record."""


A = TypeVar("A")


@dataclass(frozen=True, kw_only=True)
class StainMethod(ABC, Generic[A]):
    """A stain normalisation; its fields are its settings.

    The appearance of a slide and that of the target are estimated in the same way; a normaliser
    leads from the one to the other.
    """

    REFERENCE: ClassVar  # appearance to aim at where the user gives no target

    target: str | None = None

    @abstractmethod
    def estimate(self, pixels: NDArray[np.uint8]) -> A:
        """Return the appearance of stained pixels, uint8 (N, 3).

        Raises:
            StainFitError: there are too few, or they do not differ as two stains do.
        """

    @abstractmethod
    def normaliser(self, source: A, target: A) -> Normaliser:
        """Return what gives tiles that look like `source` the look of `target`."""


def stained(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return those of uint8 (N, 3) that are denser than glass."""
    return pixels[_DENSITY[pixels].mean(axis=1) >= GLASS]


def density_of(tile: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the optical density (h, w, 3) of uint8 (h, w, 3)."""
    return np.asarray(cv2.LUT(tile, _DENSITY), np.float32)


def put_on_tissue(
    tile: NDArray[np.uint8],
    density: NDArray[np.float32],
    changed: NDArray[np.float32],
    out: NDArray[np.uint8],
) -> None:
    """Write to `out` what `changed` (h, w, 3), in levels of 0 to 255, makes of a tile.

    A stained pixel is changed in full, one as light as glass not at all: white stays white,
    whatever was fitted to the tissue. In between, in proportion to its density.
    """
    weight = np.asarray(cv2.transform(density, _MEAN / GLASS))
    np.clip(weight, 0, 1, out=weight)
    mixed = changed - tile
    mixed *= weight[..., None]
    mixed += tile
    mixed += 0.5  # cutting then rounds
    out[...] = np.clip(mixed, 0, 255, out=mixed)


def check_enough(pixels: NDArray[np.generic], what: str) -> None:
    """Raise StainFitError unless there are FEWEST pixels (N, 3)."""
    if len(pixels) < FEWEST:
        raise StainFitError(f"only {len(pixels)} {what} pixels where {FEWEST} are needed")
