"""The overlay of a slide: its picture with tissue outlined, tiles marked and a scale bar."""

from __future__ import annotations

import math
from collections.abc import Iterator

import cv2
import numpy as np
from numpy.typing import NDArray

from wsi.errors import RegionError
from wsi.slides import Slide, Thumbnail
from wsi.tiling import TileGrid
from wsi.tissue import TissueMask

TISSUE_COLOR = (0, 114, 178)
TILE_COLOR = (230, 159, 0)
LEFT_OUT_COLOR = (30, 30, 30)
"""Colour-blind safe (Okabe & Ito 2008): blue outlines, orange edges, dark crosses."""

_EDGE_PX = 1000
_SHARP_PX = 16_000_000  # level pixels worth decoding again for a sharper picture
_LINES_FROM_PX = 10  # edges of smaller tiles would hide what they cover
_DIMMED = 0.8  # brightness outside the kept tiles; inside, the stain keeps its colour
_BAR_SHARE = 0.25  # longest scale bar, of the picture's width

RGB = NDArray[np.uint8]


def sharp_thumbnail(slide: Slide, thumbnail: Thumbnail) -> Thumbnail:
    """Return the slide at about 1000 px, where `thumbnail` is smaller and reading more is cheap.

    Tissue is found on very few pixels of a small slide, too few to judge it by. Where more cannot
    be decoded `thumbnail` will do: whether such a slide is used is not for a picture to say.
    """
    downsample = max(1.0, max(slide.info.bounds0[2:]) / _EDGE_PX)
    w, h = slide.info.level_sizes[slide.info.level_for((downsample, downsample))]
    if max(thumbnail.pixels.shape[:2]) >= _EDGE_PX or w * h > _SHARP_PX:
        return thumbnail
    try:
        return slide.thumbnail(downsample)
    except RegionError:
        return thumbnail


def draw_overlay(
    thumbnail: Thumbnail,
    tissue: TissueMask,
    grid: TileGrid | None = None,
    left_out: NDArray[np.bool_] | None = None,
    mpp: tuple[float, float] | None = None,
) -> RGB:
    """Return a picture (h, w, 3) of 1000 px: tissue outlined in blue, kept tiles in orange.

    The picture is dimmed where no tile is kept; where one is, it keeps its colours.

    Args:
        thumbnail: of the same part of the slide as the mask, at any scale.
        left_out: bool (N,), tiles of the grid that were not embedded; they are crossed out.
        mpp: um per level-0 pixel; there is a scale bar where it is known.
    """
    picture, scale = _resized(thumbnail)
    if grid is not None:
        out = np.zeros(len(grid), bool) if left_out is None else left_out
        corners = (grid.xy0 - np.asarray(thumbnail.origin0)) / scale
        extent = grid.size0[0] / scale[0], grid.size0[1] / scale[1]
        boxes = np.rint(np.hstack([corners, corners + extent])).astype(int)
        _draw_tiles(picture, boxes[~out], boxes[out])
    _draw_outline(picture, tissue)
    if mpp is not None:
        _draw_scale_bar(picture, scale[0] * mpp[0] / 1000)
    return picture


def _resized(thumbnail: Thumbnail) -> tuple[RGB, tuple[float, float]]:
    """Return the thumbnail at the overlay's size and its level-0 pixels per pixel (x, y)."""
    h, w = thumbnail.pixels.shape[:2]
    zoom = _EDGE_PX / max(h, w)
    size = max(1, round(w * zoom)), max(1, round(h * zoom))
    method = cv2.INTER_AREA if zoom < 1 else cv2.INTER_LINEAR
    picture = np.asarray(cv2.resize(thumbnail.pixels, size, interpolation=method), np.uint8)
    return picture, (thumbnail.scale[0] * w / size[0], thumbnail.scale[1] * h / size[1])


def _draw_tiles(picture: RGB, kept: NDArray[np.int_], left_out: NDArray[np.int_]) -> None:
    """Dim all but the kept boxes (N, 4), left, top, right, bottom; edge these, cross out others."""
    inside = np.zeros(picture.shape[:2], np.uint8)
    lines, crosses = np.zeros_like(inside), np.zeros_like(inside)
    for x, y, right, bottom in _whole(kept):
        cv2.rectangle(inside, (x, y), (right, bottom), 1, cv2.FILLED)
        if right - x >= _LINES_FROM_PX:
            cv2.rectangle(lines, (x, y), (right, bottom), 1, 1)
    for x, y, right, bottom in _whole(left_out):
        cv2.line(crosses, (x, y), (right, bottom), 1, 1)
        cv2.line(crosses, (x, bottom), (right, y), 1, 1)
    # Corners are whole level-0 pixels, so neighbours may part by a hair.
    inside = np.asarray(cv2.morphologyEx(inside, cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8)))
    outside = inside == 0
    picture[outside] = np.rint(picture[outside] * _DIMMED).astype(np.uint8)
    edges, _ = cv2.findContours(inside, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    _blend(picture, lines, TILE_COLOR, 0.6)
    cv2.drawContours(picture, edges, -1, TILE_COLOR, 2, cv2.LINE_AA)
    _blend(picture, crosses, LEFT_OUT_COLOR, 0.9)


def _whole(boxes: NDArray[np.int_]) -> Iterator[tuple[int, int, int, int]]:
    """Yield boxes with their last pixel in place of the first beyond, so that neighbours touch."""
    for x, y, right, bottom in boxes.tolist():
        yield x, y, max(x, right - 1), max(y, bottom - 1)


def _blend(
    picture: RGB, where: NDArray[np.uint8], color: tuple[int, int, int], share: float
) -> None:
    drawn = where.astype(bool)
    mixed = picture[drawn] * (1 - share) + np.asarray(color) * share
    picture[drawn] = np.rint(mixed).astype(np.uint8)


def _draw_outline(picture: RGB, tissue: TissueMask) -> None:
    """Draw the mask's edge on a thin white rim, so that it is seen on any stain."""
    h, w = picture.shape[:2]
    mask = cv2.resize(tissue.mask.astype(np.uint8), (w, h), interpolation=cv2.INTER_NEAREST)
    edges, _ = cv2.findContours(np.asarray(mask), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(picture, edges, -1, (255, 255, 255), 4, cv2.LINE_AA)
    cv2.drawContours(picture, edges, -1, TISSUE_COLOR, 2, cv2.LINE_AA)


def bar_length_mm(width_mm: float) -> float:
    """Return the longest of 1, 2 or 5 times a power of ten mm that a scale bar may have.

    >>> bar_length_mm(30.0), bar_length_mm(1.0)
    (5.0, 0.2)
    """
    room = width_mm * _BAR_SHARE
    power = 10.0 ** math.floor(math.log10(room))
    # A step too many in the last digit must not cost a whole step of the bar.
    return max(k * power for k in (1, 2, 5) if k * power <= room * (1 + 1e-9))


def _draw_scale_bar(picture: RGB, mm_per_px: float) -> None:
    """Draw a bar with its length on a white plate, bottom left."""
    h, w = picture.shape[:2]
    length = bar_length_mm(w * mm_per_px)
    px = max(1, round(length / mm_per_px))
    text, face = f"{length:.6g} mm", cv2.FONT_HERSHEY_SIMPLEX
    (text_w, text_h), _ = cv2.getTextSize(text, face, 0.9, 2)
    pad, plate_w = 10, max(px, text_w) + 20
    plate_h = text_h + 3 * pad + 6
    if plate_w > w or plate_h > h:
        return  # a strip of a few pixels has no room for it
    top = h - plate_h
    cv2.rectangle(picture, (0, top), (plate_w - 1, h - 1), (255, 255, 255), cv2.FILLED)
    cv2.putText(picture, text, (pad, top + pad + text_h), face, 0.9, (20, 20, 20), 2, cv2.LINE_AA)
    bar = (pad, h - pad - 6), (pad + px - 1, h - pad - 1)
    cv2.rectangle(picture, *bar, (20, 20, 20), cv2.FILLED)
