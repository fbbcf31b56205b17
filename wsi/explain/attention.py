"""Attention per tile: taken from a model, ranked, and drawn over the slide."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray
from shapely import get_parts
from shapely.geometry import MultiPolygon, Polygon

from wsi.bags import ALL_TILES, TileFilter
from wsi.errors import ExplainError
from wsi.explain.frame import INK, RGB, Frame, Pair, draw_dashed, pale, scale_bar
from wsi.slides import Thumbnail

if TYPE_CHECKING:
    from wsi.data import Reader
    from wsi.training.model import Model


_SUM_TOLERANCE = 1e-3  # attention comes as float32, of up to 100,000 tiles
_OPACITY = (0.30, 0.72)  # of the colour over a tile without attention, and with the most
_FOOT_PX = 40
_LEAST_WIDTH = 255  # the foot needs it
_KEY_PX = 90  # of the ramp of colours
_RAMP = np.asarray(
    cv2.applyColorMap(np.arange(256, dtype=np.uint8)[:, None], cv2.COLORMAP_VIRIDIS), np.uint8
)[:, 0, ::-1]


@dataclass(frozen=True, eq=False)
class Attention:
    """How a model divides its attention over the tiles of one slide.

    Args:
        slide_id: the slide's id.
        xy0: (N, 2) top-left corners in level-0 px.
        size0: tile size (w, h) in level-0 px.
        weight: (N,), not negative, summing to 1: the mean over heads.

    Raises:
        ExplainError: shapes differ, a weight is negative or not finite, or they do not sum to 1.
    """

    slide_id: str
    xy0: NDArray[np.integer]
    size0: Pair
    weight: NDArray[np.float64]

    def __post_init__(self) -> None:
        n = len(self.weight)
        if n == 0 or self.weight.shape != (n,) or self.xy0.shape != (n, 2):
            raise ExplainError(
                f"{self.slide_id}: weights {self.weight.shape} and corners {self.xy0.shape} — "
                "give (N,) and (N, 2), of the same tiles"
            )
        if min(self.size0) <= 0:
            raise ExplainError(f"{self.slide_id}: tiles of size {self.size0} — give level-0 pixels")
        if not (self.weight >= 0).all() or abs(self.weight.sum() - 1) > _SUM_TOLERANCE:
            raise ExplainError(
                f"{self.slide_id}: attention must be 0 or more and sum to 1, it sums to "
                f"{self.weight.sum():g} — verify the checkpoint"
            )


def attention_of(
    model: Model,
    read: Reader,
    slide_ids: Sequence[str],
    *,
    tiles: TileFilter = ALL_TILES,
    size0: Pair | None = None,
    device: str = "cpu",
) -> list[Attention]:
    """Return the model's attention on each slide, in the order of `slide_ids`.

    Labels are not seen. One bag is in memory at a time.

    Args:
        read: slide id to bag; the `read` of a bag store.
        tiles: which tiles of a bag are used, as in the run, so that they are those it saw.
        size0: tile size (w, h) in level-0 px, for bags that do not carry their own.

    Raises:
        ExplainError: the aggregator has no attention, or the same for all tiles (max and mean);
            or a bag does not say where its tiles lie.
        TrainingError: a prediction is not finite.
    """
    return [_attention(model, read, i, tiles, size0, device) for i in slide_ids]


def _attention(
    model: Model,
    read: Reader,
    slide_id: str,
    tiles: TileFilter,
    size0: Pair | None,
    device: str,
) -> Attention:
    # Imported here, so that drawing alone does not load torch.
    from wsi.data import BagDataset, CachedReader
    from wsi.training.predict import predict

    cached = CachedReader(read, sys.maxsize)
    dataset = BagDataset(cached, [slide_id], tiles=tiles)
    name = model.card.aggregator
    heads = predict(model, dataset, device, attention=True).attention
    if heads is None:
        raise ExplainError(f"aggregator '{name}' has no attention to show — train one that has")
    weight = heads[0].astype(np.float64).mean(axis=1)
    if len(weight) > 1 and np.ptp(weight) == 0:
        raise ExplainError(
            f"{slide_id}: aggregator '{name}' gives all {len(weight)} tiles the same attention, "
            "so there is nothing to show — train one that tells tiles apart"
        )
    _, xy0 = dataset.tiles(0)
    if xy0 is None:
        raise ExplainError(f"{slide_id}: the bag has no coordinates — extract it again")
    return Attention(slide_id, xy0, size0 or tile_size(slide_id, cached(slide_id)), weight)


def tile_size(slide_id: str, bag: Any) -> Pair:
    """Return the size (w, h) of a bag's tiles in level-0 px, as its provenance says."""
    made = getattr(bag, "provenance", None)
    size = (made.tiling.get("resolved") or {}).get("size0") if made is not None else None
    if size is None:
        raise ExplainError(
            f"{slide_id}: the bag does not say how large its tiles are on the slide — give size0"
        )
    return float(size[0]), float(size[1])


def top_tiles(attention: Attention, k: int = 5) -> NDArray[np.intp]:
    """Return the rows of the k largest weights, largest first, ties in row order."""
    return np.argsort(-attention.weight, kind="stable")[:k]


def draw_attention(
    thumbnail: Thumbnail,
    attention: Attention,
    outlines: Sequence[Polygon | MultiPolygon] | None = None,
    *,
    mpp: Pair,
    edge_px: int = 700,
    foot_times: int = 1,
) -> RGB:
    """Return uint8 (h, w, 3): the slide in pale grey, its tiles coloured by attention.

    Colours (viridis) are relative to the slide's largest weight; where tiles overlap, the larger
    weight shows. Below the slide stand a scale bar and the colour key. The picture has square
    pixels, whatever those of the slide are.

    Args:
        outlines: areas in level-0 px drawn with a dashed line, such as known lesions.
        mpp: um per level-0 pixel (x, y).
        edge_px: longer edge of the slide as drawn.
        foot_times: how much larger its foot is, for a picture that will be shown reduced.

    Raises:
        ExplainError: no tile lies on the thumbnail.
    """
    frame = Frame.of(thumbnail, mpp, edge_px)
    over = _relative_map(frame, attention)
    if over.max() < 0:
        raise ExplainError(
            f"{attention.slide_id}: no tile lies on the thumbnail — give that of the same slide"
        )
    picture = pale(thumbnail.pixels, frame.size)
    _blend(picture, over)
    for polygon in get_parts(list(outlines or ())):
        for ring in (polygon.exterior, *polygon.interiors):
            draw_dashed(picture, frame.place(np.asarray(ring.coords)[:, :2]))
    return _with_foot(picture, frame.um_per_px, foot_times)


def _relative_map(frame: Frame, attention: Attention) -> NDArray[np.float32]:
    """Return (h, w): the largest relative weight over each pixel, -1 where no tile lies."""
    w, h = frame.size
    over = np.full((h, w), -1, np.float32)
    relative = (attention.weight / attention.weight.max()).astype(np.float32)
    boxes = frame.boxes(attention.xy0, attention.size0)
    for (left, top, right, bottom), value in zip(boxes.tolist(), relative, strict=True):
        part = over[top:bottom, left:right]
        np.maximum(part, value, out=part)
    return over


def _blend(picture: RGB, over: NDArray[np.float32]) -> None:
    tiles = over >= 0
    picture[tiles] = _over(picture[tiles].astype(np.float32), over[tiles])


def _over(ground: NDArray[np.float32], relative: NDArray[np.float32]) -> RGB:
    """Return RGB (n, 3): the colours of values (n,) over a ground (n, 3), denser where higher."""
    low, high = _OPACITY
    opacity = (low + (high - low) * relative)[:, None]
    return np.rint(_colours(relative) * opacity + ground * (1 - opacity)).astype(np.uint8)


def _colours(relative: NDArray[np.float32]) -> RGB:
    """Return RGB (n, 3) of values (n,) in [0, 1]."""
    return _RAMP[np.rint(relative * 255).astype(np.uint8)]


def _with_foot(picture: RGB, um_per_px: float, times: int) -> RGB:
    """Return the picture on white, with a scale bar on the left and the colour key on the right."""
    h, w = picture.shape[:2]
    width = max(w, _LEAST_WIDTH * times)
    canvas = np.full((h + _FOOT_PX * times, width, 3), 255, np.uint8)
    left = (width - w) // 2
    canvas[:h, left : left + w] = picture
    _draw_bar(canvas, h, *scale_bar(um_per_px, w), times)
    _draw_key(canvas, h, times)
    return canvas


def _draw_bar(canvas: RGB, top: int, length_mm: float, length_px: float, times: int) -> None:
    right = 8 + max(1, round(length_px))
    canvas[top + 14 * times : top + 18 * times, 8:right] = INK
    _write(canvas, f"{length_mm:g} mm", (8, top + 34 * times), times)


def _draw_key(canvas: RGB, top: int, times: int) -> None:
    right, wide = canvas.shape[1] - 8, _KEY_PX * times
    pale = np.full((wide, 3), 0.85 * 255, np.float32)  # as over pale tissue
    canvas[top + 12 * times : top + 20 * times, right - wide : right] = _over(
        pale, np.linspace(0, 1, wide, dtype=np.float32)
    )
    below, beside = top + 34 * times, right - wide - 6 * times
    _write(canvas, "0", (right - wide, below), times)
    _write(canvas, "largest", (right - _width("largest", times), below), times)
    _write(canvas, "attention", (beside - _width("attention", times), top + 20 * times), times)


def _write(canvas: RGB, text: str, xy: tuple[int, int], times: int) -> None:
    size = 0.42 * times
    cv2.putText(canvas, text, xy, cv2.FONT_HERSHEY_SIMPLEX, size, INK, times, cv2.LINE_AA)


def _width(text: str, times: int) -> int:
    (width, _), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.42 * times, times)
    return math.ceil(width)
