"""Whether a slide is far out of focus, by the Laplacian of its thumbnail."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

_BAND_PX = 1_000_000  # looked at; a larger picture is sampled in bands of rows
_BAND_ROWS = 128
_ENOUGH_PX = 200
_FLAT = 2.0  # sd of grey levels below which there is no structure to judge
_FINE_TO_COARSE = 0.5
_FINE_TO_CONTRAST = 0.12


def is_blurred(pixels: NDArray[np.uint8], tissue: NDArray[np.bool_]) -> bool:
    """Return whether the tissue on a thumbnail (h, w, 3) lacks all fine structure.

    Two ratios, neither of which depends on the strength of the stain: the mean absolute Laplacian
    at full to that at half size, and the root mean square Laplacian to the contrast. Sharp
    thumbnails have 0.8 and 0.9 or more, blur of a thumbnail pixel (8 um) or more brings the one
    below 0.5 or the other below 0.12. Finer blur cannot be seen at this power.
    """
    inside = cv2.erode(tissue.view(np.uint8), np.ones((5, 5), np.uint8), borderValue=0)
    fine, coarse, grey = (_Moments() for _ in range(3))
    for rows in _bands(*tissue.shape):
        picture = np.asarray(cv2.cvtColor(pixels[rows], cv2.COLOR_RGB2GRAY), np.uint8)
        within = np.asarray(inside[rows], np.uint8)
        half = picture.shape[1] // 2, picture.shape[0] // 2
        if min(half) < 1:
            continue
        small = cv2.resize(picture, half, interpolation=cv2.INTER_AREA)
        within_small = cv2.resize(within, half, interpolation=cv2.INTER_NEAREST)
        fine.add(cv2.Laplacian(picture, cv2.CV_16S), within)
        coarse.add(cv2.Laplacian(small, cv2.CV_16S), within_small)
        grey.add(picture, within)
    if fine.n < _ENOUGH_PX or grey.sd < _FLAT:
        return False
    soft = fine.mean_absolute < _FINE_TO_COARSE * coarse.mean_absolute
    return bool(soft or fine.sd < _FINE_TO_CONTRAST * grey.sd)


def _bands(h: int, w: int) -> list[slice]:
    n = max(1, min(h, _BAND_PX // max(1, w)) // _BAND_ROWS)
    if h * w <= _BAND_PX:
        return [slice(0, h)]
    return [slice(int(top), int(top) + _BAND_ROWS) for top in np.linspace(0, h - _BAND_ROWS, n)]


class _Moments:
    """Sums over the pixels seen so far."""

    def __init__(self) -> None:
        self.n = 0
        self._absolute = self._sum = self._squares = 0.0

    def add(self, values: np.ndarray, where: np.ndarray) -> None:
        seen = values[where.view(bool)].astype(np.float32)
        self.n += seen.size
        self._absolute += float(np.abs(seen).sum(dtype=np.float64))
        self._sum += float(seen.sum(dtype=np.float64))
        self._squares += float(np.square(seen).sum(dtype=np.float64))

    @property
    def mean_absolute(self) -> float:
        return self._absolute / max(1, self.n)

    @property
    def sd(self) -> float:
        n = max(1, self.n)
        return max(0.0, self._squares / n - (self._sum / n) ** 2) ** 0.5
