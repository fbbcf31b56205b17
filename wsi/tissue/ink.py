"""Marker ink by colour: what haematoxylin and eosin cannot look like."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

_REACH_PX = 48  # how far the thin part of a coloured stroke may lie from full ink
_KINDS = 3  # green to blue, red, black
_BAND_PX = 500_000

Picture = NDArray[np.uint8]
Mask = NDArray[np.bool_]


def ink_pixels(pixels: Picture) -> Mask:
    """Return which pixels (h, w) of uint8 RGB (h, w, 3) have the colour of full marker ink.

    OpenCV's hue runs 0-180: green 35-90, cyan and blue 90-118; haematoxylin lies above 120 and
    eosin above 145. Red ink is told from eosin by having almost no green, and hardly more blue;
    black ink by having no colour. Meant for a low power, a few um per pixel, where nuclei are
    averaged away.
    """
    foreign, crimson, black = _full(_Channels(pixels))
    return foreign | crimson | black


def ink_strokes(pixels: Picture) -> Mask:
    """Return where (h, w) marker strokes lie on a thumbnail: full ink and its thin parts.

    Thin ink lets tissue through, and its colour alone could be tissue; so it counts only where
    it touches full ink. Specks are left out and strokes widened by two pixels.
    """
    kinds = np.asarray(by_bands(_kinds, pixels), np.uint8)
    strokes = np.zeros(kinds.shape, np.uint8)
    for kind, reach in enumerate((_REACH_PX, _REACH_PX, None)):
        full = kinds >> kind & 1
        seeds = cv2.morphologyEx(full, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
        if seeds.any():
            thin = np.asarray(kinds >> kind + _KINDS & 1, np.uint8)
            strokes |= _grown(np.asarray(seeds, np.uint8), thin, reach)
    if not strokes.any():
        return strokes.view(bool)
    return np.asarray(cv2.dilate(strokes, np.ones((5, 5), np.uint8))).view(bool)


def by_bands(rule: Callable[[Picture], np.ndarray], pixels: Picture) -> np.ndarray:
    """Return `rule` of a picture (h, w, 3), a value per pixel, computed in bands of rows.

    The planes in between are then small, however large the picture.
    """
    h, w = pixels.shape[:2]
    rows = max(1, _BAND_PX // max(1, w))
    return np.concatenate([rule(pixels[top : top + rows]) for top in range(0, h, rows)])


def _kinds(pixels: Picture) -> Picture:
    """Return, as bits, which kinds of full ink and then of thin ink each pixel could be."""
    channels = _Channels(pixels)
    kinds = np.zeros(pixels.shape[:2], np.uint8)
    for bit, where in enumerate((*_full(channels), *_thin(channels))):
        kinds |= where.view(np.uint8) << bit
    return kinds


class _Channels:
    def __init__(self, pixels: Picture) -> None:
        hsv = np.asarray(cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV), np.uint8)
        self.hue, self.saturation, self.bright = (np.asarray(c) for c in cv2.split(hsv))
        self.red, self.green, self.blue = (np.asarray(c) for c in cv2.split(pixels))
        dullest = cv2.min(cv2.min(self.red, self.green), self.blue)
        self.chroma = np.asarray(cv2.subtract(self.bright, dullest))


def _full(c: _Channels) -> tuple[Mask, Mask, Mask]:
    """Return full ink: green to blue, red, black."""
    foreign = (c.hue >= 35) & (c.hue <= 118) & (c.saturation > 60)
    crimson = (c.red > 130) & (c.green < 60) & (c.blue < 80)
    crimson &= np.asarray(cv2.subtract(c.blue, c.green)) < 30
    black = (c.bright < 60) & (c.chroma < 30)
    return foreign, crimson, black


def _thin(c: _Channels) -> tuple[Mask, Mask, Mask]:
    """Return what could be thin ink of the same three kinds, and could be tissue by itself."""
    foreign = (c.hue >= 35) & (c.hue <= 118) & (c.saturation > 30)
    # Eosin has more blue: its hue lies below 168 where it is that saturated.
    reddish = ((c.hue >= 167) | (c.hue <= 4)) & (c.saturation > 90) & (c.red > 130)
    grey = (c.bright < 125) & (c.chroma < 50)
    return foreign, reddish, grey


def _grown(seeds: Picture, thin: Picture, reach: int | None) -> Picture:
    """Return `seeds` with the pieces of `thin` that touch them, no farther than `reach`."""
    field = seeds | thin
    if reach is not None:
        near = cv2.distanceTransform(1 - seeds, cv2.DIST_L2, 3) <= reach
        field &= np.asarray(near, np.uint8)
    n, found = cv2.connectedComponents(field)
    labels = np.asarray(found, np.int32)
    touched = np.zeros(n, np.uint8)
    touched[labels[seeds.astype(bool)]] = 1
    return np.take(touched, labels)
