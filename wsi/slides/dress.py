"""Writing pyramidal TIFFs in the dress of several vendors, as OpenSlide recognises them.

For synthetic slides: demos, tutorials and tests that need a slide of known content.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import tifffile
from numpy.typing import NDArray

from wsi.errors import ConfigError
from wsi.files import publish
from wsi.slides.jpeg_tiles import SAMPLING, JpegCoding, Photometric, Subsampling
from wsi.slides.vendor_headers import SOFTWARE, Dress, Scan, description

__all__ = ["Dress", "Photometric", "Rounding", "Subsampling", "level_sizes", "pyramid"]
__all__ += ["write_slide"]

Rounding = Literal["floor", "ceil", "round"]
Sizes = Sequence[tuple[int, int]]

_TURN: dict[Rounding, Callable[[float], int]] = {
    "floor": math.floor,
    "ceil": math.ceil,
    "round": lambda edge: math.floor(edge + 0.5),
}
_ROUNDING = 1e-9


def pyramid(
    level0: NDArray[np.uint8], levels: int, factor: float = 2.0, rounding: Rounding = "floor"
) -> list[NDArray[np.uint8]]:
    """Return `level0` and its area-averaged reductions; each covers the whole of level 0."""
    h, w = level0.shape[:2]
    sizes = level_sizes((w, h), levels, factor, rounding)
    return [level0] + [
        np.asarray(cv2.resize(level0, size, interpolation=cv2.INTER_AREA), np.uint8)
        for size in sizes[1:]
    ]


def level_sizes(
    size0: tuple[int, int], levels: int, factor: float = 2.0, rounding: Rounding = "floor"
) -> list[tuple[int, int]]:
    """Return (w, h) of each level, rounded one way as scanners do."""

    def turned(edge: int, k: int) -> int:
        # 3072 / 3.2**2 is 300 and a bit in binary: no reason to round it up to 301.
        exact = edge / factor**k
        near = round(exact)
        return max(1, near if abs(exact - near) < _ROUNDING * exact else _TURN[rounding](exact))

    return [(turned(size0[0], k), turned(size0[1], k)) for k in range(levels)]


def write_slide(
    path: Path,
    levels: Sequence[NDArray[np.uint8]],
    *,
    mpp: float | tuple[float, float] | None,
    dress: Dress = "generic",
    magnification: float = 40,
    quality: int = 85,
    lossless: bool = False,
    tile: int = 256,
    photometric: Photometric = "ycbcr",
    subsampling: Subsampling | None = None,
    shared_tables: bool = False,
    bigtiff: bool = False,
    missing: Sequence[tuple[int, int]] = (),
    downsamples: Sequence[tuple[float, float]] | None = None,
    offset0: tuple[float, float] = (0, 0),
) -> None:
    """Write a tiled TIFF of `levels` (uint8 (h, w, 3), finest first) that OpenSlide opens.

    Args:
        mpp: um per level-0 pixel, one or (x, y), stated the vendor's way; None states nothing.
        lossless: deflate in place of JPEG.
        tile: edge of a file tile in pixels, a multiple of 16.
        photometric: colour space of the JPEG streams.
        subsampling: of chroma; 420 when not given, and RGB streams have none.
        shared_tables: one JPEGTables tag and abbreviated tiles, as scanners write.
        missing: (level, tile number row by row) of file tiles left out: byte count 0.
        downsamples: level-0 pixels per level pixel (x, y) that a Philips header states; when not
            given the whole factor, or the ratio of the sizes where no whole factor fits.
        offset0: level-0 position of the scan on the glass (leica only).

    Raises:
        ConfigError: settings that contradict each other or name no tile of the slide.
    """
    sizes = tuple((a.shape[1], a.shape[0]) for a in levels)
    _check(sizes, tile, dress, photometric, subsampling, missing, offset0)
    both = (mpp, mpp) if isinstance(mpp, int | float) else mpp
    stated = tuple(downsamples or (_stated(sizes[0], size) for size in sizes))
    scan = Scan(sizes, stated, both, magnification, (tile, tile), offset0)
    coding = JpegCoding(quality, photometric, subsampling or "420", shared_tables)
    encode = _deflated if lossless else coding.encode
    with publish(path) as temporary, tifffile.TiffWriter(temporary, bigtiff=bigtiff) as tiff:
        for k, level in enumerate(levels):
            absent = {index for at, index in missing if at == k}
            tiff.write(
                _encoded(level, tile, encode, absent),
                shape=level.shape,
                dtype=np.uint8,
                tile=(tile, tile),
                photometric="rgb",
                metadata=None,
                description=description(dress, scan, k),
                software=SOFTWARE.get(dress, "wsi"),
                subfiletype=1 if k and dress in ("philips", "generic", "ome") else 0,
                subifds=len(levels) - 1 if dress == "ome" and not k else None,
                **({"compression": "zlib"} if lossless else _jpeg_tags(coding)),
                **_resolution_tags(dress, both, sizes, k),
            )


def _check(
    sizes: Sizes,
    tile: int,
    dress: Dress,
    photometric: Photometric,
    subsampling: Subsampling | None,
    missing: Sequence[tuple[int, int]],
    offset0: tuple[float, float],
) -> None:
    if tile < 16 or tile % 16:
        raise ConfigError(f"tile={tile}: TIFF tiles are multiples of 16 pixels — take 240 or 256")
    if photometric == "rgb" and subsampling not in (None, "444"):
        raise ConfigError(f"RGB streams have no chroma to subsample — leave out {subsampling}")
    if dress != "leica" and offset0 != (0, 0):
        raise ConfigError(f"{dress} slides begin at (0, 0) — only leica has offset0")
    for level, index in missing:
        if not 0 <= level < len(sizes):
            raise ConfigError(f"missing: no level {level} — there are {len(sizes)}")
        across, down = (math.ceil(edge / tile) for edge in sizes[level])
        if not 0 <= index < across * down:
            raise ConfigError(f"missing: no tile {index} on level {level} — {across * down} tiles")


def _stated(size0: tuple[int, int], size: tuple[int, int]) -> tuple[float, float]:
    """Return the whole factor where a remainder of less than a pixel explains the sizes."""

    def scale(edge0: int, edge: int) -> float:
        whole = round(edge0 / edge)
        return whole if abs(edge0 - whole * edge) < whole else edge0 / edge

    return scale(size0[0], size[0]), scale(size0[1], size[1])


def _encoded(
    level: NDArray[np.uint8],
    tile: int,
    encode: Callable[[NDArray[np.uint8]], bytes],
    absent: set[int],
) -> Iterator[bytes]:
    """Yield the file tiles of a level, row by row; an absent one is empty."""
    h, w = level.shape[:2]
    corners = [(y, x) for y in range(0, h, tile) for x in range(0, w, tile)]
    for index, (y, x) in enumerate(corners):
        part = level[y : y + tile, x : x + tile]
        rest = (0, tile - part.shape[0]), (0, tile - part.shape[1]), (0, 0)
        # The last pixels go on beyond the edge: a step there would ring back into the slide.
        yield b"" if index in absent else encode(np.pad(part, rest, mode="edge"))


def _deflated(tile: NDArray[np.uint8]) -> bytes:
    return zlib.compress(tile.tobytes(), 1)


def _jpeg_tags(coding: JpegCoding) -> dict[str, Any]:
    rgb = coding.photometric == "rgb"
    return {
        "compression": "jpeg",
        "compressionargs": {"outcolorspace": coding.photometric},
        "subsampling": (1, 1) if rgb else SAMPLING[coding.subsampling],
        "jpegtables": coding.tables(),
    }


def _resolution_tags(
    dress: Dress, mpp: tuple[float, float] | None, sizes: Sizes, level: int
) -> dict[str, Any]:
    if mpp is None or dress not in ("generic", "leica"):
        return {}
    per_cm = [1e4 / m * n / n0 for m, n, n0 in zip(mpp, sizes[level], sizes[0], strict=True)]
    return {"resolution": (per_cm[0], per_cm[1]), "resolutionunit": "CENTIMETER"}
