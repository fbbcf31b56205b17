"""Tiled JPEG TIFFs decoded directly: OpenSlide's pixels, several times as fast.

OpenSlide says what the slide is and remains the reference: before the first read, file tiles of
every level are compared with OpenSlide's, bit by bit, and where one differs OpenSlide reads on.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from wsi.errors import RegionError, SlideOpenError
from wsi.slides.base import Box, Region, Slide, SlideInfo, own_ratios
from wsi.slides.openslide_reader import HIDDEN_LEVELS, OpenSlideReader
from wsi.slides.tiff_index import TiffLevel, index_levels
from wsi.slides.tiff_tiles import FileTiles

_WHOLE_FRACTION = 1 / 160  # OpenSlide interpolates in steps of 1/128 of a pixel
_HALF_TOLERANCE = 1e-3


class TiffReader(Slide):
    """A slide of tiled JPEG pages, opened by OpenSlide and decoded by us.

    Raises:
        UnfitError: the file is another kind of TIFF, or none; use `OpenSlideReader`.
    """

    def __init__(
        self,
        path: Path,
        slide_id: str,
        *,
        table_mpp: float | None = None,
        use_magnification: bool = False,
        assume_mpp: float | None = None,
        half_dct: bool = False,
        threads: int = 1,
    ) -> None:
        self._reference = OpenSlideReader(
            path,
            slide_id,
            table_mpp=table_mpp,
            use_magnification=use_magnification,
            assume_mpp=assume_mpp,
        )
        self._index: tuple[TiffLevel, ...] | None = index_levels(
            path, self._reference.info, self._reference.scn
        )
        self._half_dct = half_dct
        self._threads = threads
        self._trust: bool | None = None
        self._tiles: FileTiles | None = None
        self._pid = os.getpid()
        self.info = replace(_with_levels(self._reference.info, self._index), reader="tiff")

    @property
    def properties(self) -> dict[str, Any]:
        return self._reference.properties

    @property
    def icc_profile(self) -> bytes | None:
        return self._reference.icc_profile

    def close(self) -> None:
        if self._tiles is not None and self._pid == os.getpid():
            self._tiles.close()
        self._tiles = None
        self._reference.close()

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_tiles": None, "_index": None}

    @property
    def _levels(self) -> tuple[TiffLevel, ...]:
        if self._index is None:  # in a process that was given this slide
            self._index = index_levels(self.info.path, self._reference.info, self._reference.scn)
        return self._index

    def _region(self, level: int, xy: tuple[int, int], size: tuple[int, int]) -> Region:
        (region,) = self._regions(level, [(*xy, *size)])
        if isinstance(region, RegionError):
            raise region
        return region

    def _regions(
        self, level: int, boxes: Sequence[Box], step: int = 1
    ) -> Iterator[Region | RegionError]:
        if self._is_trusted():
            return self._own(level, boxes, step)
        return self._reference._regions(level, boxes, step)

    def _step(self, level: int, scale: tuple[float, float]) -> int:
        tile = self._levels[level].tile
        halves = self._levels[level].decode is None and not (tile[0] % 2 or tile[1] % 2)
        coarse = min(scale) >= 2 * (1 - _HALF_TOLERANCE)
        return 2 if self._half_dct and halves and coarse and self._is_trusted() else 1

    def _own(self, level: int, boxes: Sequence[Box], step: int) -> Iterator[Region | RegionError]:
        x0, y0 = (origin / step for origin in self._levels[level].origin)
        if (x0, y0) != (0, 0):
            boxes = [_moved(box, -x0, -y0) for box in boxes]
        failed = False
        tiles = self._open_tiles()
        for region in tiles.regions(level, boxes, step):
            self.file_s = tiles.file_s
            if isinstance(region, RegionError):
                failed = True
                yield region
            else:
                yield region._replace(start=(region.start[0] + x0, region.start[1] + y0))
        if failed:  # the file may have been mended or replaced when it is read again
            self.close()

    def _open_tiles(self) -> FileTiles:
        if self._tiles is None or self._pid != os.getpid():
            self._tiles = FileTiles(self.info.path, self._levels, self._threads)
            self._pid = os.getpid()
        return self._tiles

    # -- trust ---------------------------------------------------------------------------------

    def _is_trusted(self) -> bool:
        if self._trust is None:
            shared = range(len(self._reference.info.level_sizes))
            differing = next((k for k in shared if not self._agrees(k)), None)
            self._trust = differing is None
            if differing is not None:
                note = f"level {differing} decodes to other pixels than OpenSlide's"
                if len(shared) < len(self._levels):
                    raise SlideOpenError(
                        f"{self.info.path.name}: its {note}, and OpenSlide does not see the other "
                        "levels — convert it to a plain pyramidal TIFF",
                        "unsupported-format",
                    )
                self.info = replace(self.info, reader="openslide", reader_note=note)
        return self._trust

    def _agrees(self, level: int) -> bool:
        """Return whether OpenSlide gives the same pixels in file tiles of this level."""
        places = _samples(self._levels[level])[: 2 if level == 0 else 1]
        boxes = (self._comparable(level, place) for place in places)
        return all(self._same(level, box) for box in boxes if box)

    def _comparable(self, level: int, place: tuple[int, int]) -> Box | None:
        """Return a box within a file tile that OpenSlide reads without interpolation."""
        index = self._levels[level]
        size, origin = self.info.level_sizes[level], index.origin
        x, y = place[1] * index.tile[0], place[0] * index.tile[1]
        w, h = min(index.tile[0], index.size[0] - x), min(index.tile[1], index.size[1] - y)
        if self._reference.scn:  # read at whole pixels of the scan
            return round(x + origin[0]), round(y + origin[1]), w - 1, h - 1
        downsample = self._reference.level_downsamples[level]
        x, w = _whole_start(x, w, downsample)
        y, h = _whole_start(y, h, downsample)
        w, h = min(w, size[0] - x), min(h, size[1] - y)
        return (x, y, w, h) if w > 0 and h > 0 else None

    def _same(self, level: int, box: Box) -> bool:
        (own,) = self._own(level, [box], 1)
        (reference,) = self._reference._regions(level, [box])
        if isinstance(own, RegionError) or isinstance(reference, RegionError):
            return True  # damage says nothing about the decoder, and is told where it is met
        left = round(reference.start[0] - own.start[0])
        top = round(reference.start[1] - own.start[1])
        h, w = reference.pixels.shape[:2]
        return np.array_equal(own.pixels[top : top + h, left : left + w], reference.pixels)


def _moved(box: Box, x: float, y: float) -> Box:
    """Return the whole pixels that cover a box moved by a fraction of a pixel."""
    left, top = math.floor(box[0] + x), math.floor(box[1] + y)
    right, bottom = math.ceil(box[0] + x + box[2]), math.ceil(box[1] + y + box[3])
    return left, top, right - left, bottom - top


def _with_levels(info: SlideInfo, levels: Sequence[TiffLevel]) -> SlideInfo:
    """Return `info` with the levels that OpenSlide does not see."""
    if len(levels) == len(info.level_sizes):
        return info
    sizes = tuple(level.size for level in levels)
    return replace(
        info,
        level_sizes=sizes,
        downsamples=own_ratios(info.size0, sizes),
        notes=tuple(note for note in info.notes if note != HIDDEN_LEVELS),
    )


def _samples(level: TiffLevel) -> list[tuple[int, int]]:
    """Return the file tile with most in it, and the first one that was scanned."""
    rows, columns = np.nonzero(level.counts)
    if not len(rows):
        return []
    fullest = np.unravel_index(int(level.counts.argmax()), level.counts.shape)
    return [(int(fullest[0]), int(fullest[1])), (int(rows[0]), int(columns[0]))]


def _whole_start(start: int, length: int, downsample: float) -> tuple[int, int]:
    """Return where, from `start` on, a whole level-0 position is a whole level pixel; what is left.

    OpenSlide takes whole level-0 positions and interpolates unless they fall on a level's pixel.
    """
    for shift in range(max(1, length // 2)):
        fraction = round((start + shift) * downsample) / downsample - (start + shift)
        if 0 <= fraction < _WHOLE_FRACTION:
            return start + shift, length - shift
    return start, 0
