"""Pictures and shapes that show where tissue and tiles were found."""

from __future__ import annotations

from pathlib import Path

import cv2
import h5py
import numpy as np

from wsi.extract import Located
from wsi.files import file_name_of, publish, publish_bytes
from wsi.geojson import Shape, write_geojson
from wsi.slides import SlideInfo

_EDGE_PX = 900
_TISSUE_COLOR = (0, 114, 178)  # colour-blind safe blue and orange
_TILE_COLOR = (230, 159, 0)


def write_located(out: Path, info: SlideInfo, located: Located) -> None:
    """Write thumbnail, tissue outline and tiles of one slide below `out`."""
    name = file_name_of(info.slide_id)
    write_thumbnail(out / "thumbnails" / f"{name}.jpg", located)
    outline = located.tissue.outlines()
    shapes = [Shape(part, "Tissue", _TISSUE_COLOR) for part in outline.geoms]
    origin = info.bounds0[0], info.bounds0[1]
    write_geojson(out / "tissue" / f"{name}.geojson", shapes, origin)
    _write_tiles(out / "tiles" / f"{name}.h5", info, located)


def write_thumbnail(path: Path, located: Located) -> None:
    """Write a JPEG of the slide with tissue outlined and kept tiles drawn."""
    pixels = draw_located(located)
    done, data = cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))
    if done:
        publish_bytes(path, data.tobytes())


def draw_located(located: Located) -> np.ndarray:
    """Return the thumbnail (h, w, 3) with tissue outlined in blue and tiles in orange."""
    thumbnail, grid = located.thumbnail, located.grid
    h, w = thumbnail.pixels.shape[:2]
    zoom = _EDGE_PX / max(h, w)
    size = max(1, round(w * zoom)), max(1, round(h * zoom))
    method = cv2.INTER_AREA if zoom < 1 else cv2.INTER_LINEAR
    picture = np.asarray(cv2.resize(thumbnail.pixels, size, interpolation=method), np.uint8)
    scale = thumbnail.scale[0] * w / size[0], thumbnail.scale[1] * h / size[1]
    corners = (grid.xy0 - np.asarray(thumbnail.origin0)) / scale
    extent = np.asarray(grid.size0) / scale
    for corner in corners:
        start, end = np.rint(corner).astype(int), np.rint(corner + extent).astype(int)
        cv2.rectangle(picture, start.tolist(), end.tolist(), _TILE_COLOR, 1, cv2.LINE_AA)
    mask = cv2.resize(located.tissue.mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
    outlines, _ = cv2.findContours(np.asarray(mask), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    cv2.drawContours(picture, outlines, -1, _TISSUE_COLOR, 2, cv2.LINE_AA)
    return picture


def _write_tiles(path: Path, info: SlideInfo, located: Located) -> None:
    grid = located.grid
    with publish(path) as temporary, h5py.File(temporary, "w") as file:
        coords = file.create_dataset("coords", data=grid.xy0)
        file.create_dataset("tissue", data=grid.tissue.astype(np.float16))
        coords.attrs.update(
            slide_id=info.slide_id,
            tile_px=grid.tile_px,
            mpp=grid.mpp,
            size0=grid.size0,
            level=grid.level,
            upsampling=grid.upsampling,
            considered=grid.considered,
        )
