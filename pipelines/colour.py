"""What the colour steps did: a picture of some tiles before and after, and a count of slides."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import cv2
import numpy as np

from wsi.files import file_name_of, publish_bytes
from wsi.pixels import PixelSteps
from wsi.slides import Slide
from wsi.tiling import TileGrid

CONVERTED = "converted"

_TILES = 6
_TILE_EDGE_PX = 200
_GAP_PX = 6
_CAPTION_PX = 22


class Colours:
    """How many slides have which state of colour profile."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def add(self, state: str) -> None:
        """Count a slide; one whose profile was not asked for has no state."""
        if state:
            self.counts[state] += 1

    def __bool__(self) -> bool:
        return bool(self.counts)

    def __str__(self) -> str:
        left = [f"{n} {state}" for state, n in sorted(self.counts.items()) if state != CONVERTED]
        n = self.counts[CONVERTED]
        told = f"colour: {n} slide{'' if n == 1 else 's'} converted to sRGB"
        return f"{told}; left as scanned: {', '.join(left)}" if left else told


def write_colour_strip(out: Path, slide: Slide, grid: TileGrid, steps: PixelSteps) -> None:
    """Write `thumbnails/<id>.colour.jpg`: tiles as on the slide, below them as encoded."""
    tiles = _some_tiles(slide, grid)
    if not len(tiles):
        return
    done, stain = steps.record.get("colour"), steps.record.get("stain", {}).get("name")
    caption = ", ".join(filter(None, [done and f"sRGB: {done}", stain]))
    rows = [
        _row(tiles, "as on the slide"),
        _row(steps.apply(tiles), f"as the encoder sees them ({caption})"),
    ]
    picture = np.vstack(rows)
    written, data = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    if written:
        name = file_name_of(slide.info.slide_id)
        publish_bytes(out / "thumbnails" / f"{name}.colour.jpg", data.tobytes())


def _some_tiles(slide: Slide, grid: TileGrid) -> np.ndarray:
    """Return up to six tiles (k, h, w, 3), spread over the better half by tissue."""
    full = np.flatnonzero(grid.tissue >= np.median(grid.tissue))
    rows = full[np.unique(np.linspace(0, len(full) - 1, _TILES).round().astype(int))]
    corners = [(int(x), int(y)) for x, y in grid.xy0[rows]]
    read = slide.read_tiles(corners, grid.tile_px, grid.mpp)
    tiles = [tile for tile in read if isinstance(tile, np.ndarray)]
    return np.stack(tiles) if tiles else np.empty((0, 0, 0, 3), np.uint8)


def _row(tiles: np.ndarray, caption: str) -> np.ndarray:
    edge = _TILE_EDGE_PX
    shown = [cv2.resize(tile, (edge, edge), interpolation=cv2.INTER_AREA) for tile in tiles]
    height = _CAPTION_PX + edge + _GAP_PX
    row = np.full((height, max(3, len(tiles)) * (edge + _GAP_PX) + _GAP_PX, 3), 255, np.uint8)
    for k, tile in enumerate(shown):
        left = _GAP_PX + k * (edge + _GAP_PX)
        row[_CAPTION_PX : _CAPTION_PX + edge, left : left + edge] = tile
    place = (_GAP_PX, _CAPTION_PX - 7)
    cv2.putText(row, caption, place, cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
    return row
