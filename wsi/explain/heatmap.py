"""Signed maps of tiles, drawn over the slide in colours that the colour-blind can tell apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from shapely import get_parts
from shapely.geometry import MultiPolygon, Polygon

from wsi.errors import ExplainError
from wsi.explain.frame import INK, RGB, Frame, Pair, draw_dashed, pale, scale_bar
from wsi.explain.lettering import fitted, text_width, write
from wsi.slides import Thumbnail

Floats = NDArray[np.floating]
Outlines = Sequence[Polygon | MultiPolygon]

_STOPS = np.array(
    [(0, 68, 136), (86, 150, 200), (240, 240, 240), (232, 140, 60), (166, 54, 3)], np.float32
)
"""Blue for values below 0, orange for those above, about equally dark at equal distance."""

_OPACITY = (0.10, 0.80)  # of the colour over a tile of value 0, and at the end of the scale
_SHOWN = 0.995  # quantile of |value| at which the scale ends: one tile must not pale the rest
_CLIPPED = 1.05  # times the scale: a larger value is said to be off it
_LEAST_WIDTH = 720  # head and foot need it
_PAD, _LINE_PX, _KEY_W = 12, 24, 280


@dataclass(frozen=True)
class Legend:
    """What stands around a map.

    Attributes:
        title: the slide; `lines` what was found and what is shown, one below the other.
        unit: of the values; `against` and `toward` what negative and positive ones speak for.
    """

    title: str
    lines: tuple[str, ...]
    unit: str = "nats"
    against: str = "against"
    toward: str = "for"


def draw_heatmap(
    thumbnail: Thumbnail,
    values: NDArray[np.float64],
    xy0: NDArray[np.integer],
    size0: Pair,
    legend: Legend,
    outlines: Outlines = (),
    *,
    mpp: Pair,
    edge_px: int = 1200,
) -> RGB:
    """Return uint8 (h, w, 3): the slide in pale grey, tiles coloured by their signed value.

    The scale is symmetric about 0 and ends near the largest value; what lies beyond is drawn as
    its end and said so. Where tiles overlap, their mean shows.

    Args:
        values: (N,) of tiles at `xy0` (N, 2) of size `size0` (w, h), level-0 px.
        outlines: areas in level-0 px drawn with a dashed line, such as known lesions.
        mpp: um per level-0 pixel (x, y).
        edge_px: longer edge of the slide as drawn.

    Raises:
        ExplainError: no tile lies on the thumbnail.
    """
    frame = Frame.of(thumbnail, mpp, edge_px)
    over, covered = _spread(frame, values, xy0, size0)
    if not covered.any():
        raise ExplainError(
            f"{legend.title}: no tile lies on the thumbnail — give that of the same slide"
        )
    end = scale_end(values)
    picture = pale(thumbnail.pixels, frame.size)
    picture[covered] = _over(picture[covered].astype(np.float32), over[covered] / np.float32(end))
    for polygon in get_parts(list(outlines)):
        for ring in (polygon.exterior, *polygon.interiors):
            draw_dashed(picture, frame.place(np.asarray(ring.coords)[:, :2]))
    return _framed(picture, frame.um_per_px, legend, end, _is_clipped(values, end), bool(outlines))


def scale_end(values: NDArray[np.float64]) -> float:
    """Return the |value| at which colours end: the 99.5th percentile, or the largest of few."""
    size = np.abs(values)
    end = float(np.quantile(size, _SHOWN, method="higher"))
    return end or float(size.max()) or 1.0


def _is_clipped(values: NDArray[np.float64], end: float) -> bool:
    return bool(np.abs(values).max() > end * _CLIPPED)


def _spread(
    frame: Frame, values: NDArray[np.float64], xy0: NDArray[np.integer], size0: Pair
) -> tuple[Floats, NDArray[np.bool_]]:
    """Return (h, w): the mean value over each pixel, and where any tile lies."""
    w, h = frame.size
    total, count = np.zeros((h, w), np.float32), np.zeros((h, w), np.uint16)
    for (left, top, right, bottom), value in zip(frame.boxes(xy0, size0).tolist(), values):
        total[top:bottom, left:right] += np.float32(value)
        count[top:bottom, left:right] += 1
    return total / np.maximum(count, 1), count > 0


def _over(ground: Floats, relative: Floats) -> RGB:
    """Return RGB (n, 3): colours of values (n,) in [-1, 1] over a ground, denser further from 0."""
    relative = np.clip(relative, -1, 1)
    low, high = _OPACITY
    opacity = (low + (high - low) * np.sqrt(np.abs(relative)))[:, None]
    return np.rint(colours(relative) * opacity + ground * (1 - opacity)).astype(np.uint8)


def colours(relative: Floats) -> Floats:
    """Return RGB (n, 3) of values (n,) in [-1, 1]."""
    at = np.linspace(-1, 1, len(_STOPS))
    return np.stack([np.interp(relative, at, _STOPS[:, k]) for k in range(3)], axis=1)


def _framed(
    picture: RGB, um_per_px: float, legend: Legend, end: float, clipped: bool, outlined: bool
) -> RGB:
    """Return the picture on white: title and lines above, scale bar and colour key below."""
    h, w = picture.shape[:2]
    width = max(w, _LEAST_WIDTH) + 2 * _PAD
    head = _PAD + 30 + _LINE_PX * len(legend.lines) + 6
    canvas = np.full((head + h + 74, width, 3), 255, np.uint8)
    left = (width - w) // 2
    canvas[head : head + h, left : left + w] = picture
    room = width - 2 * _PAD
    write(canvas, fitted(legend.title, room, 21, bold=True), (_PAD, _PAD), 21, bold=True)
    for k, line in enumerate(legend.lines):
        write(canvas, fitted(line, room, 16), (_PAD, _PAD + 31 + _LINE_PX * k), 16)
    _draw_bar(canvas, (left, head + h + 14), scale_bar(um_per_px, w), outlined)
    _draw_key(canvas, (width - _PAD, head + h + 14), legend, end, clipped)
    return canvas


def _draw_bar(canvas: RGB, at: tuple[int, int], bar: tuple[float, float], outlined: bool) -> None:
    x, y = at
    length_mm, length_px = bar
    canvas[y : y + 5, x : x + max(1, round(length_px))] = INK
    write(canvas, f"{length_mm:g} mm", (x, y + 10), 15)
    if outlined:
        start = x + max(round(length_px), text_width(f"{length_mm:g} mm", 15)) + 24
        draw_dashed(canvas, np.array([(start, y + 3.0), (start + 36, y + 3.0)]))
        write(canvas, "annotated", (start, y + 10), 15)


def _draw_key(canvas: RGB, at: tuple[int, int], legend: Legend, end: float, clipped: bool) -> None:
    """Draw the colour key with numbers, its right end at `at`."""
    right, y = at
    left = right - _KEY_W
    ramp = np.linspace(-1, 1, _KEY_W, dtype=np.float32)
    canvas[y : y + 14, left:right] = _over(np.full((_KEY_W, 3), 225, np.float32), ramp)
    cv2.rectangle(canvas, (left - 1, y - 1), (right, y + 14), INK, 1)
    canvas[y + 14 : y + 18, left + _KEY_W // 2] = INK
    sign = ("≤ −", "≥ +") if clipped else ("−", "+")
    number = f"{end:.3g}"
    write(canvas, f"{sign[0]}{number}", (left, y + 20), 14)
    write(canvas, f"0 {legend.unit}", (left + _KEY_W // 2, y + 20), 14, anchor="ma")
    write(canvas, f"{sign[1]}{number}", (right, y + 20), 14, anchor="ra")
    write(canvas, fitted(legend.against, _KEY_W // 2 - 6, 13), (left, y + 39), 13)
    write(canvas, fitted(legend.toward, _KEY_W // 2 - 6, 13), (right, y + 39), 13, anchor="ra")
