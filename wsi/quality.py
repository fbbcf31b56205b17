"""How good a tile is: blur, pen ink and tissue folds, each scored from 0 (none) to 1.

Scores are computed on the tile as it was read, before any stain normalisation. They say what a
tile looks like, not what is wrong with it: dense lymphoid tissue is a little like a fold, and a
tile without any structure is like one out of focus. Look at a slide's extremes before filtering.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from wsi.tissue.ink import ink_pixels

Tiles = NDArray[np.uint8]
Scores = dict[str, NDArray[np.float16]]

_FINE, _COARSE = 1.0, 2.0  # scales, in tile pixels, at which detail is compared
_NOISE = 0.05  # mean square of the fine Laplacian that compressed, empty glass still has
_INK_UM = 4.0  # a pen stroke is far wider than this, a nucleus is not
_FOLD_UM = 8.0  # nuclei are averaged away
_LAYERS = 1.5  # a fold is two layers of tissue; the threshold lies halfway
_SPREADS = 3.0  # robust standard deviations above the slide's median
_TO_SD = 1.4826  # of a median absolute deviation, for a normal distribution


@dataclass(frozen=True)
class FoldRule:
    """What counts as folded on one slide.

    Attributes:
        threshold: saturation minus intensity above this, in [-1, 1].
        um: um per pixel at which it was found, so that nuclei are averaged away.
    """

    threshold: float
    um: float


def fold_rule(pixels: Tiles, tissue: NDArray[np.bool_], um: float) -> FoldRule:
    """Return what counts as folded on a slide, from its tissue at low power.

    Where tissue lies double, it is darker and more saturated. The threshold is the saturation
    minus intensity (HSI) that the slide's median tissue colour would have at one and a half times
    its optical density, and at least three robust standard deviations above the tissue's median.

    Source: the difference image and a threshold of each slide's own as in Kothari et al. 2013;
    they find theirs from the number of connected regions.

    Args:
        pixels: uint8 RGB (h, w, 3), the slide at low power.
        tissue: bool (h, w).
        um: um per pixel of both.
    """
    if um <= _FOLD_UM / 2:
        small = _reduced(pixels, um, _FOLD_UM)
        h, w = small.shape[:2]
        share = cv2.resize(tissue.astype(np.float32), (w, h), interpolation=cv2.INTER_AREA)
        pixels, tissue = small, np.asarray(share) > 0.5
        um = _FOLD_UM
    if not tissue.any():
        return FoldRule(1.0, um)
    found = pixels[tissue]
    depth = _depth(found)
    middle = float(np.median(depth))
    spread = _TO_SD * float(np.median(np.abs(depth - middle)))
    thicker = 255 * (np.median(found, axis=0) / 255) ** _LAYERS
    return FoldRule(max(float(_depth(thicker)), middle + _SPREADS * spread), um)


def tile_scores(tiles: Tiles, mpp: float, rule: FoldRule) -> Scores:
    """Return `blur`, `pen` and `fold` of each tile, float16 (N,) in [0, 1].

    Args:
        tiles: uint8 RGB (N, h, w, 3).
        mpp: um per tile pixel.
        rule: of the slide the tiles are from.
    """
    rows = []
    for tile in tiles:
        low = _low_power(tile, mpp)
        rows.append((blur(tile), _ink_share(low), _fold_share(low, rule)))
    columns = np.asarray(rows, np.float16).reshape(len(rows), 3).T
    return dict(zip(("blur", "pen", "fold"), np.ascontiguousarray(columns), strict=True))


def blur(tile: Tiles) -> float:
    """Return how blurred a tile is, s^2 / (s^2 + 4) for structure blurred by s tile pixels.

    So 0 is sharp, 0.2 a blur of 1 pixel (Gaussian sigma), 0.5 of 2, 0.8 of 4 pixels. Detail is
    measured as the mean square of the Laplacian of Gaussian at two scales, 1 and 2 pixels. Their
    ratio hardly depends on contrast or stain. Structure of all sizes (white noise) that was
    blurred by s gives ((s^2 + 1) / (s^2 + 4))^3, from which s follows. Real tissue has less fine
    structure than that, so even a sharp tile is above 0, and the more the finer the resolution:
    compare tiles of one resolution. A tile with nothing in it scores 1.

    Source: variance of the Laplacian as a focus measure, Pertuz et al. 2013 (LAPV); the ratio to
    a blurred copy as in Crete et al. 2007. The mapping to [0, 1] is ours.
    """
    grey = np.asarray(cv2.cvtColor(tile, cv2.COLOR_RGB2GRAY)).astype(np.float32)
    fine = cv2.Laplacian(_smooth(grey, _FINE), cv2.CV_32F)
    coarse = _smooth(fine, math.sqrt(_COARSE**2 - _FINE**2))  # the order makes no difference
    ratio = ((_power(coarse) + _NOISE) / (_power(fine) + _NOISE)) ** (1 / 3)
    sharpest = _FINE**2 / _COARSE**2
    return float(np.clip((ratio - sharpest) / (1 - sharpest), 0, 1))


def _smooth(picture: cv2.typing.MatLike, sigma: float) -> cv2.typing.MatLike:
    taps = 2 * math.ceil(3 * sigma) + 1
    return cv2.GaussianBlur(picture, (taps, taps), sigma)


def _power(picture: cv2.typing.MatLike) -> float:
    return cv2.norm(picture, cv2.NORM_L2SQR) / picture.size


def pen(tile: Tiles, mpp: float) -> float:
    """Return the share of a tile that has the colour of marker ink, seen at 4 um per pixel."""
    return _ink_share(_low_power(tile, mpp))


def fold(tile: Tiles, mpp: float, rule: FoldRule) -> float:
    """Return the share of a tile that looks folded, see `fold_rule`."""
    return _fold_share(_low_power(tile, mpp), rule)


@dataclass(frozen=True)
class _Low:
    """A tile at low power: pixels, and um per pixel."""

    pixels: Tiles
    um: float


def _low_power(tile: Tiles, mpp: float) -> _Low:
    pixels = _reduced(tile, mpp, _INK_UM)
    return _Low(pixels, mpp * tile.shape[1] / pixels.shape[1])


def _ink_share(low: _Low) -> float:
    return float(ink_pixels(low.pixels).mean())


def _fold_share(low: _Low, rule: FoldRule) -> float:
    return float((_depth(_reduced(low.pixels, low.um, rule.um)) > rule.threshold).mean())


def _depth(pixels: NDArray[np.generic]) -> NDArray[np.float32]:
    """Return saturation minus intensity (HSI) of RGB (..., 3) in 0-255, in [-1, 1]."""
    red, green, blue = (np.asarray(pixels[..., k], np.float32) for k in range(3))
    mean = (red + green + blue) / 3
    least = np.minimum(np.minimum(red, green), blue)
    return np.asarray(1 - least / np.maximum(mean, 1) - mean / 255, np.float32)


def _reduced(picture: Tiles, mpp: float, um: float) -> Tiles:
    """Return a picture of `mpp` at about `um` per pixel; never enlarged."""
    h, w = picture.shape[:2]
    size = max(1, round(w * mpp / um)), max(1, round(h * mpp / um))
    if size[0] >= w:
        return picture
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8)
