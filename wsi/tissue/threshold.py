"""Tissue by thresholds: on colour and optical density, on grey, on saturation.

Every method takes a thumbnail (h, w, 3) and where it holds data (h, w), and returns `Found`. Its
keyword-only parameters are its settings.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from wsi.tissue.find import Found
from wsi.tissue.ink import by_bands, ink_strokes

_SATURATION = (10, 32)  # floor and cap of Otsu's threshold, of 255
_DENSITY = (0.03, 0.12)  # floor and cap, in optical density
_RELAXED = (5, 0.02)  # saturation and density when nothing passes
_COLOUR = 15  # grey levels between the channels that noise does not reach
_COLOUR_PX = 200  # fewer pixels of colour are no tissue: the smallest fragment has more
_DENSE = 0.12  # density above the slide's own brightest part, for pictures without colour
_GREY_CONTRAST = 8  # grey levels by which tissue is darker than the slide's own glass

Picture = NDArray[np.uint8]
Mask = NDArray[np.bool_]


def od_otsu(pixels: Picture, valid: Mask, *, pen: bool = True) -> Found:
    """Return pixels that are both coloured and dense, by Otsu's thresholds within bounds.

    Otsu's threshold is data-driven but runs away where there is no background (a slide full of
    tissue) or no tissue; a floor and a cap from what glass and pale tissue look like hold it.
    When nothing passes, lower floors are tried; where the whole picture has no colour, density
    alone.

    Args:
        pixels: uint8 (h, w, 3) thumbnail.
        valid: bool (h, w), where the slide holds data.
        pen: leave out green, blue, red and black marker ink.
    """
    if not valid.any():
        return Found(np.zeros_like(valid))
    smooth = np.asarray(cv2.medianBlur(pixels, 3), np.uint8)
    saturation = _saturation(smooth)
    colourless = _is_colourless(smooth, valid)
    ink = _ink(smooth, valid, pen and not colourless)
    seen = valid & ~ink
    density = _density(smooth, valid)
    coloured = saturation > _otsu(saturation, seen, *_SATURATION)
    unit = _DENSITY_UNIT
    dense = density > _otsu(density, seen, *(round(limit * unit) for limit in _DENSITY))
    relaxed = seen & (saturation > _RELAXED[0]) & (density > round(_RELAXED[1] * unit))
    if colourless:
        relaxed |= seen & _darker(smooth, seen)
    return Found(seen & coloured & dense, relaxed, ink)


def grey_otsu(pixels: Picture, valid: Mask, *, pen: bool = True) -> Found:
    """Return pixels darker than Otsu's threshold on grey: for stains without much colour.

    Otsu always parts a picture in two, noise too; so tissue must also be darker than the slide's
    own glass (its brightest twentieth) by a few grey levels.

    Args:
        pixels: uint8 (h, w, 3) thumbnail.
        valid: bool (h, w), where the slide holds data.
        pen: leave out green, blue, red and black marker ink.
    """
    if not valid.any():
        return Found(np.zeros_like(valid))
    smooth = np.asarray(cv2.medianBlur(pixels, 3), np.uint8)
    ink = _ink(smooth, valid, pen and not _is_colourless(smooth, valid))
    seen = valid & ~ink
    grey = np.asarray(cv2.cvtColor(smooth, cv2.COLOR_RGB2GRAY), np.uint8)
    glass = _percentiles(grey, seen, 95)[0]
    threshold = _otsu(grey, seen, 0, glass - _GREY_CONTRAST)
    return Found(seen & (grey <= threshold), None, ink)


def saturation(pixels: Picture, valid: Mask, *, threshold: float = 20, pen: bool = True) -> Found:
    """Return pixels more saturated than a fixed threshold: the same rule on every slide.

    Args:
        pixels: uint8 (h, w, 3) thumbnail.
        valid: bool (h, w), where the slide holds data.
        threshold: saturation of HSV, 0 to 255, above which a pixel is tissue.
        pen: leave out green, blue, red and black marker ink.
    """
    smooth = np.asarray(cv2.medianBlur(pixels, 3), np.uint8)
    ink = _ink(smooth, valid, pen and not _is_colourless(smooth, valid))
    return Found(valid & ~ink & (_saturation(smooth) > threshold), None, ink)


_DENSITY_UNIT = 255 / 1.5  # of the 8-bit density: 1.5 is nearly black
_FINER = 64  # steps of one while the channels are summed


def _saturation(pixels: Picture) -> Picture:
    return by_bands(
        lambda rows: cv2.extractChannel(cv2.cvtColor(rows, cv2.COLOR_RGB2HSV), 1), pixels
    )


def _is_colourless(pixels: Picture, valid: Mask) -> bool:
    """Return whether a picture is a grey one, in which dark pixels are not marker ink."""
    coloured = by_bands(lambda rows: _chroma(rows) > _COLOUR, pixels)
    return bool(np.count_nonzero(coloured & valid) < _COLOUR_PX)


def _chroma(pixels: Picture) -> Picture:
    red, green, blue = cv2.split(pixels)
    highest, lowest = cv2.max(cv2.max(red, green), blue), cv2.min(cv2.min(red, green), blue)
    return np.asarray(cv2.subtract(highest, lowest), np.uint8)


def _ink(pixels: Picture, valid: Mask, pen: bool) -> Mask:
    return ink_strokes(pixels) & valid if pen else np.zeros_like(valid)


def _density(pixels: Picture, valid: Mask) -> Picture:
    """Return mean optical density (h, w) against the slide's own white, in 1/170 of a unit."""
    total = np.zeros(pixels.shape[:2], np.uint16)
    for k in range(3):
        channel = np.asarray(cv2.extractChannel(pixels, k), np.uint8)
        white = float(np.clip(_percentiles(channel, valid, 95)[0], 200, 255))
        density = -np.log10(np.clip((np.arange(256) + 1) / (white + 1), None, 1)) / 3
        table = np.rint(density * _DENSITY_UNIT * _FINER).astype(np.uint16)
        cv2.add(total, cv2.LUT(channel, table), total)
    return np.asarray(cv2.convertScaleAbs(total, alpha=1 / _FINER), np.uint8)


def _darker(pixels: Picture, seen: Mask) -> Mask:
    """Return what is clearly darker than the brightest part of a picture, however dim it is."""
    grey = np.asarray(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), np.uint8)
    return grey < _percentiles(grey, seen, 95)[0] * 10**-_DENSE


def _histogram(values: Picture, where: Mask) -> NDArray[np.float64]:
    counts = cv2.calcHist([values], [0], where.view(np.uint8), [256], [0, 256])
    return np.asarray(counts, np.float64).ravel()


def _percentiles(values: Picture, where: Mask, *shares: float) -> list[int]:
    """Return percentiles of 8-bit values where `where` holds, from their histogram."""
    cumulated = np.cumsum(_histogram(values, where))
    return [int(np.searchsorted(cumulated, cumulated[-1] * share / 100)) for share in shares]


def _otsu(values: Picture, where: Mask, low: float, high: float) -> float:
    """Return Otsu's threshold of 8-bit values, held within [low, high]; above it is class two.

    Source: Otsu 1979, eq. 18: the between-class variance from zeroth and first moments.
    """
    counts = _histogram(values, where)
    weight, moment = np.cumsum(counts), np.cumsum(counts * np.arange(256))
    rest = weight[-1] - weight
    parted = (weight > 0) & (rest > 0)
    if not parted.any():
        return low
    between = np.zeros(256)
    below = moment[parted] / weight[parted]
    above = (moment[-1] - moment[parted]) / rest[parted]
    between[parted] = weight[parted] * rest[parted] * (above - below) ** 2
    return float(np.clip(int(np.argmax(between)), low, high))
