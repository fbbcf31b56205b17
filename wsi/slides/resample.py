"""Antialiased resampling of a rectangle with fractional edges, exact in scale and offset."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

_DRIFT = 0.01  # of a source pixel over the whole output: not worth weights


def resample(
    pixels: NDArray[np.uint8],
    origin: tuple[float, float],
    scale: tuple[float, float],
    size: tuple[int, int],
) -> NDArray[np.uint8]:
    """Return `pixels` resampled so that output pixel (i, j) covers exactly its own rectangle.

    Output pixel i spans source pixels [origin + i * scale, origin + (i + 1) * scale) on each axis.
    Downsampling averages that area (antialiased); upsampling interpolates linearly. Library
    resizers round the rectangle to whole pixels, which moves tiles by up to half a pixel; so the
    weights are made here and only whole factors at whole offsets, and whole pictures, go to OpenCV.

    Args:
        pixels: uint8 (h, w, channels).
        origin: (x, y) of the output's top-left corner in source pixels.
        scale: source pixels per output pixel, (x, y).
        size: output (w, h).
    """
    if shortcut := _whole(pixels, origin, scale, size):
        left, top, fx, fy = shortcut
        block = pixels[top : top + fy * size[1], left : left + fx * size[0]]
        if (fx, fy) == (1, 1):
            return block.copy()
        return np.asarray(cv2.resize(block, size, interpolation=cv2.INTER_AREA), np.uint8)
    if _is_all(pixels, origin, scale, size):
        return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8)
    h, w, channels = pixels.shape
    across = _sparse_weights(origin[0], scale[0], size[0], w)
    down = _sparse_weights(origin[1], scale[1], size[1], h)
    rows = down @ pixels.reshape(h, w * channels).astype(np.float32)
    columns = rows.reshape(size[1], w, channels).transpose(1, 0, 2).reshape(w, -1)
    result = (across @ columns).reshape(size[0], size[1], channels).transpose(1, 0, 2)
    return np.clip(np.rint(result), 0, 255).astype(np.uint8)


@lru_cache(maxsize=256)
def _sparse_weights(origin: float, scale: float, n_out: int, n_in: int) -> csr_array:
    # An output pixel sees only a few source pixels; tiles of one grid share their weights.
    return csr_array(axis_weights(origin, scale, n_out, n_in))


def axis_weights(origin: float, scale: float, n_out: int, n_in: int) -> NDArray[np.float32]:
    """Return weights (n_out, n_in), rows summing to 1: area for scale >= 1, linear below.

    What lies outside the source is left out and the rest normalised, so edges are not darkened.
    """
    if scale >= 1:
        start = origin + np.arange(n_out)[:, None] * scale
        pixel = np.arange(n_in)[None, :]
        weights = np.minimum(start + scale, pixel + 1) - np.maximum(start, pixel)
    else:
        centre = origin + (np.arange(n_out)[:, None] + 0.5) * scale - 0.5
        centre = np.clip(centre, 0, n_in - 1)
        weights = 1 - np.abs(np.arange(n_in)[None, :] - centre)
    weights = np.clip(weights, 0, None)
    total = weights.sum(axis=1, keepdims=True)
    return (weights / np.where(total > 0, total, 1)).astype(np.float32)


def _is_all(
    pixels: NDArray[np.uint8],
    origin: tuple[float, float],
    scale: tuple[float, float],
    size: tuple[int, int],
) -> bool:
    """Return whether the output is the whole picture made smaller, to 1/100 of a pixel."""
    h, w = pixels.shape[:2]
    beyond = abs(scale[0] * size[0] - w), abs(scale[1] * size[1] - h)
    return min(scale) >= 1 and max(*map(abs, origin), *beyond) < _DRIFT


def _whole(
    pixels: NDArray[np.uint8],
    origin: tuple[float, float],
    scale: tuple[float, float],
    size: tuple[int, int],
) -> tuple[int, int, int, int] | None:
    fx, fy = round(scale[0]), round(scale[1])
    left, top = round(origin[0]), round(origin[1])
    drift = max(
        abs(left - origin[0]),
        abs(top - origin[1]),
        abs(fx - scale[0]) * size[0],
        abs(fy - scale[1]) * size[1],
    )
    inside = top + fy * size[1] <= pixels.shape[0] and left + fx * size[0] <= pixels.shape[1]
    return (left, top, fx, fy) if drift < _DRIFT and inside and left >= 0 and top >= 0 else None
