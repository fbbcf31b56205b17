"""Tissue by thresholds on colour and optical density."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from wsi.tissue.find import Found
from wsi.tissue.ink import ink_pixels

_SATURATION = (10.0, 32.0)  # floor and cap of the threshold, of 255
_DENSITY = (0.03, 0.12)  # floor and cap, in optical density
_RELAXED = (5.0, 0.02)
_PEN_SHARE = 0.002


def od_otsu(pixels: NDArray[np.uint8], valid: NDArray[np.bool_], *, pen: bool = True) -> Found:
    """Return pixels that are both coloured and dense, by Otsu's thresholds within bounds.

    Otsu's threshold is data-driven but runs away where there is no background (a slide full of
    tissue) or no tissue; a floor and a cap from what glass and pale tissue look like hold it.
    When nothing passes, the floors are relaxed and the mask says so.

    Args:
        pixels: uint8 (h, w, 3) thumbnail.
        valid: bool (h, w), where the slide holds data.
        pen: leave out green, blue, red and black marker ink by hue.
    """
    if not valid.any():
        return Found(np.zeros_like(valid))
    smooth = np.asarray(cv2.medianBlur(pixels, 3), np.uint8)
    hsv = np.asarray(cv2.cvtColor(smooth, cv2.COLOR_RGB2HSV), np.uint8)
    density = _density(smooth, valid)
    saturation = hsv[..., 1].astype(np.float32)
    ink = _ink(smooth) & valid if pen else np.zeros_like(valid)
    seen = valid & ~ink
    mask = (
        seen
        & (saturation > _otsu(saturation[seen], _SATURATION))
        & (density > _otsu(density[seen], _DENSITY))
    )
    flags = ("pen",) if ink.sum() > _PEN_SHARE * valid.sum() else ()
    if not mask.any():
        mask = seen & (saturation > _RELAXED[0]) & (density > _RELAXED[1])
        flags = (*flags, "relaxed") if mask.any() else flags
    return Found(mask, flags)


def _density(pixels: NDArray[np.uint8], valid: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return mean optical density (h, w) against the slide's own white."""
    white = np.percentile(pixels[valid].reshape(-1, 3), 95, axis=0)
    white = np.clip(white, 200, 255).astype(np.float32)
    share = np.clip((pixels.astype(np.float32) + 1) / (white + 1), None, 1)
    return -np.log10(share).mean(axis=2)


def _otsu(values: NDArray[np.float32], limits: tuple[float, float]) -> float:
    low, high = limits
    top = float(values.max()) if values.size else 0.0
    if top <= low:
        return low
    scaled = np.rint(values / top * 255).astype(np.uint8)
    level, _ = cv2.threshold(scaled, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    return float(np.clip(level / 255 * top, low, high))


def _ink(pixels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return marker ink (h, w), specks left out and strokes widened a little."""
    ink = ink_pixels(pixels).astype(np.uint8)
    solid = cv2.morphologyEx(ink, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    return np.asarray(cv2.dilate(solid, np.ones((5, 5), np.uint8))).astype(bool)
