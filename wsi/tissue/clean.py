"""From candidate pixels to pieces of tissue of a physical size."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

_CLOSING_UM = 40.0

Mask = NDArray[np.bool_]


def cleaned(
    candidates: Mask,
    allowed: Mask,
    um: tuple[float, float],
    *,
    min_area_mm2: float,
    min_hole_mm2: float,
) -> Mask:
    """Return candidate pixels (h, w) closed over 40 um, without small holes and small pieces.

    Nothing outside `allowed` is ever tissue: a pen stroke stays out even where the tissue around
    it would close over it.

    Args:
        allowed: bool (h, w), where tissue may lie.
        um: edge of a pixel (x, y) in um.
        min_area_mm2: pieces smaller than this are dropped.
        min_hole_mm2: holes smaller than this are filled.
    """
    if not candidates.any():
        return np.zeros_like(candidates)
    size = tuple(1 + 2 * round(_CLOSING_UM / 2 / u) for u in um)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size[0], size[1]))
    closed = cv2.morphologyEx(candidates.view(np.uint8), cv2.MORPH_CLOSE, kernel)
    mm2 = um[0] * um[1] / 1e6
    free = np.asarray(closed == 0)
    filled = ~_without_small(free, min_hole_mm2 / mm2, keep_border=True)
    return _without_small(filled & allowed, min_area_mm2 / mm2, keep_border=False)


def _without_small(mask: Mask, min_px: float, *, keep_border: bool) -> Mask:
    """Return `mask` without components under `min_px` pixels."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8))
    keep = stats[:, cv2.CC_STAT_AREA] >= min_px
    if keep_border:  # what reaches the edge of the picture is background, not a hole
        H, W = mask.shape
        left, top = stats[:, cv2.CC_STAT_LEFT], stats[:, cv2.CC_STAT_TOP]
        right, bottom = left + stats[:, cv2.CC_STAT_WIDTH], top + stats[:, cv2.CC_STAT_HEIGHT]
        keep |= (left == 0) | (top == 0) | (right == W) | (bottom == H)
    keep[0] = False
    if keep[1:].all():
        return mask
    return np.take(keep, np.asarray(labels, np.int32))
