"""Where level-0 positions lie on a picture of the slide, and what every such picture shares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from wsi.slides import Thumbnail

RGB = NDArray[np.uint8]
Pair = tuple[float, float]

BAR_MM = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Lengths a scale bar may have."""

INK = (45, 45, 45)
_BAR_SHARE = 0.25  # of the picture's width, at most
_PALENESS = 0.35  # how far the slide is moved towards white
_DASH_PX, _GAP_PX = 9, 5
_FIXED_BITS = 4  # cv2 takes positions in 1/16 pixel


def scale_bar(um_per_px: float, width_px: int) -> tuple[float, float]:
    """Return the longest round length (mm) within a quarter of a width, and its pixels."""
    room = _BAR_SHARE * width_px * um_per_px / 1000
    length = max((mm for mm in BAR_MM if mm <= room), default=BAR_MM[0])
    return length, length * 1000 / um_per_px


@dataclass(frozen=True)
class Frame:
    """Level-0 positions to picture pixels.

    Attributes:
        origin0: level-0 position of the picture's corner.
        scale: level-0 pixels per picture pixel (x, y).
        size: of the picture (w, h) in pixels.
    """

    origin0: tuple[int, int]
    scale: Pair
    size: tuple[int, int]
    um_per_px: float

    @staticmethod
    def of(thumbnail: Thumbnail, mpp: Pair, edge_px: int) -> Frame:
        """Return the frame of a picture of square pixels whose longer edge is `edge_px`."""
        h, w = thumbnail.pixels.shape[:2]
        extent0 = w * thumbnail.scale[0], h * thumbnail.scale[1]
        extent_um = extent0[0] * mpp[0], extent0[1] * mpp[1]
        um_per_px = max(extent_um) / edge_px
        size = max(1, round(extent_um[0] / um_per_px)), max(1, round(extent_um[1] / um_per_px))
        scale = extent0[0] / size[0], extent0[1] / size[1]
        # From the pixels as they came out, not as they were asked for.
        return Frame(thumbnail.origin0, scale, size, extent_um[0] / size[0])

    def place(self, xy0: NDArray[Any]) -> NDArray[np.float64]:
        """Return picture positions (n, 2) of level-0 positions (n, 2)."""
        return (xy0 - np.asarray(self.origin0)) / self.scale

    def boxes(self, xy0: NDArray[Any], size0: Pair) -> NDArray[np.int_]:
        """Return (n, 4) left, top, right, bottom in whole pixels, none negative, of n tiles."""
        first = np.rint(self.place(xy0)).astype(int)
        # Corners are whole level-0 pixels, so neighbours may lie a fraction apart: no seam.
        last = np.rint(self.place(xy0 + np.ceil(size0))).astype(int)
        last = np.maximum(last, first + 1)  # a tile below one pixel still shows
        return np.hstack([np.maximum(first, 0), np.maximum(last, 0)])  # no wrap-around of slices


def pale(pixels: RGB, size: tuple[int, int]) -> RGB:
    """Return pixels (h, w, 3) at `size` (w, h), in pale grey, for colours to lie on."""
    method = cv2.INTER_AREA if size[0] < pixels.shape[1] else cv2.INTER_CUBIC
    grey = cv2.cvtColor(cv2.resize(pixels, size, interpolation=method), cv2.COLOR_RGB2GRAY)
    pale = 255 - (255 - grey.astype(np.float32)) * (1 - _PALENESS)
    return np.repeat(np.rint(pale).astype(np.uint8)[..., None], 3, axis=2)


def draw_dashed(picture: RGB, ring: NDArray[np.float64]) -> None:
    """Draw a closed line as dark dashes on a white rim, to be seen on any colour."""
    fixed = np.rint(ring * 2**_FIXED_BITS).astype(np.int32)
    cv2.polylines(picture, [fixed], True, (255, 255, 255), 4, cv2.LINE_AA, _FIXED_BITS)
    steps = np.hypot(*np.diff(ring, axis=0).T)
    along = np.concatenate([[0.0], np.cumsum(steps)])
    for start in np.arange(0, along[-1], _DASH_PX + _GAP_PX):
        end = min(start + _DASH_PX, along[-1])
        stops = np.unique(np.r_[start, along[(along > start) & (along < end)], end])
        dash = np.stack([np.interp(stops, along, ring[:, k]) for k in (0, 1)], axis=1)
        fixed = np.rint(dash * 2**_FIXED_BITS).astype(np.int32)
        cv2.polylines(picture, [fixed], False, INK, 2, cv2.LINE_AA, _FIXED_BITS)
