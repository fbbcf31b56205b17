"""The tiles that speak most for a class, chosen within and over slides, and drawn side by side."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from wsi.explain.frame import INK, RGB, Pair
from wsi.explain.lettering import fitted, text_width, write

_TILE_PX, _GAP = 176, 12
_CAPTION_PX, _HEAD_PX = 40, 66


def strongest(
    values: NDArray[np.float64], xy0: NDArray[np.integer], size0: Pair, k: int
) -> NDArray[np.intp]:
    """Return the rows of up to `k` tiles of largest positive value that do not overlap.

    Largest first, ties in row order.
    """
    chosen: list[int] = []
    for row in np.argsort(-values, kind="stable"):
        if len(chosen) == k or values[row] <= 0:
            break
        apart = np.abs(np.asarray(xy0)[chosen] - np.asarray(xy0)[row]) >= np.floor(size0)
        if apart.any(axis=1).all():
            chosen.append(int(row))
    return np.asarray(chosen, np.intp)


def draw_gallery(
    title: str, note: str, tiles: Sequence[tuple[RGB, str, str]], *, columns: int = 6
) -> RGB:
    """Return uint8 (h, w, 3): tiles in reading order, two lines of caption below each.

    Args:
        tiles: pixels (px, px, 3), the slide, and what stands below its name.
    """
    columns = max(1, min(columns, len(tiles)))
    rows = -(-len(tiles) // columns)
    cell_h = _TILE_PX + _CAPTION_PX + _GAP
    width = _GAP + columns * (_TILE_PX + _GAP)
    words = max(text_width(title, 21, bold=True), text_width(note, 14)) + 2 * _GAP
    canvas = np.full((_HEAD_PX + rows * cell_h, max(width, words), 3), 255, np.uint8)
    write(canvas, title, (_GAP, _GAP), 21, bold=True)
    write(canvas, note, (_GAP, _GAP + 30), 14)
    for k, (pixels, slide_id, value) in enumerate(tiles):
        x, y = _GAP + k % columns * (_TILE_PX + _GAP), _HEAD_PX + k // columns * cell_h
        canvas[y : y + _TILE_PX, x : x + _TILE_PX] = _sized(pixels)
        cv2.rectangle(canvas, (x, y), (x + _TILE_PX - 1, y + _TILE_PX - 1), INK, 1)
        write(canvas, fitted(slide_id, _TILE_PX, 13), (x, y + _TILE_PX + 4), 13)
        write(canvas, value, (x, y + _TILE_PX + 21), 13)
    return canvas


def _sized(pixels: RGB) -> RGB:
    method = cv2.INTER_AREA if pixels.shape[0] > _TILE_PX else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(pixels, (_TILE_PX, _TILE_PX), interpolation=method), np.uint8)
