"""One picture of a slide: in its colours, and with its map beside it."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from wsi.explain.frame import Frame
from wsi.slides import Thumbnail

_GAP_PX = 12
_WIDE = 1.4  # from this width to height on, two pictures lie below each other


def plain(thumbnail: Thumbnail, mpp: tuple[float, float], edge_px: int) -> NDArray[np.uint8]:
    """Return the slide in its colours, uint8 (h, w, 3), with square pixels.

    Args:
        mpp: um per level-0 pixel (x, y).
        edge_px: longer edge.
    """
    size = Frame.of(thumbnail, mpp, edge_px).size
    method = cv2.INTER_AREA if size[0] < thumbnail.pixels.shape[1] else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(thumbnail.pixels, size, interpolation=method), np.uint8)


def beside(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return two pictures (h, w, 3) on white: side by side, or below each other if wide."""
    (h, w), (h2, w2) = first.shape[:2], second.shape[:2]
    if w > _WIDE * h:
        canvas = np.full((h + _GAP_PX + h2, max(w, w2), 3), 255, np.uint8)
        canvas[:h, :w], canvas[h + _GAP_PX :, :w2] = first, second
    else:
        canvas = np.full((max(h, h2), w + _GAP_PX + w2, 3), 255, np.uint8)
        canvas[:h, :w], canvas[:h2, w + _GAP_PX :] = first, second
    return canvas
