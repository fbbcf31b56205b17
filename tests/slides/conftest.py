"""The oracle of geometry: where a tile of a position-encoded slide comes from."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy.optimize import curve_fit

from wsi.slides.synthetic import PERIOD0, RAMP0

Pair = tuple[float, float]
Extent = Callable[[np.ndarray, Pair], tuple[Pair, Pair]]


@pytest.fixture(scope="session")
def extent() -> Extent:
    """Position and size (x, y) of a tile in level-0 px, read off its colours.

    Independent of the reader: the position code is fitted by least squares to mean red over
    columns and mean green over rows, starting from the best of all positions on the slide.
    """

    def found(tile: np.ndarray, guess: Pair) -> tuple[Pair, Pair]:
        axes = [_fit(tile[..., k].astype(float).mean(axis=k), guess[k]) for k in (0, 1)]
        return (axes[0][0], axes[1][0]), (axes[0][1], axes[1][1])

    return found


def _fit(profile: np.ndarray, size: float) -> Pair:
    n = len(profile)
    k = np.arange(n) + 0.5

    def code(k: np.ndarray, start: float | np.ndarray, size: float, gain: float = 1) -> np.ndarray:
        x = start + k * size / n
        wave = 60 * np.sin(2 * np.pi * x / PERIOD0)
        return 128 + 50 * (2 * x / RAMP0 - 1) + gain * wave

    starts = np.arange(-200, RAMP0, 8)
    errors = np.square(code(k, starts[:, None], size) - profile).sum(axis=1)
    best = starts[int(np.argmin(errors))]
    (start, size, _), _ = curve_fit(code, k, profile, p0=[best, size, 1])
    return float(start), float(size)
