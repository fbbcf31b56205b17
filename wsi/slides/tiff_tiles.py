"""Many rectangles out of a level's JPEG tiles: each file tile is read and decoded once."""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from wsi.errors import RegionError
from wsi.slides.base import Box, Region
from wsi.slides.tiff_index import TiffLevel, after_application_markers

_GROUP_BYTES = 8 << 20  # decoded at once per thread, to be cut soon after
_KEPT_BYTES = 192 << 20  # decoded tiles kept for a later row of boxes
_TASK_TILES = 8  # decoded by a thread at a time
_READ_BYTES = 4 << 20  # read from the file at once
_GAP_BYTES = 32 << 10  # read over rather than seek

Pixels = NDArray[np.uint8]
Place = tuple[int, int]  # row and column of a file tile
Decoded = Pixels | RegionError | None


@dataclass
class _Group:
    """Boxes that are cut together, and the file tiles they need."""

    boxes: list[Box] = field(default_factory=list)
    places: list[list[Place]] = field(default_factory=list)
    needed: set[Place] = field(default_factory=set)


class FileTiles:
    """The file tiles of a TIFF, decoded on threads; may be used by one reader at a time."""

    def __init__(self, path: Path, levels: Sequence[TiffLevel], threads: int) -> None:
        self._name = path.name
        self._levels = levels
        self._threads = threads
        self._file = os.open(path, os.O_RDONLY)
        self._close = weakref.finalize(self, os.close, self._file)
        self._pool: ThreadPoolExecutor | None = None
        self.file_s = 0.0  # spent on reading the file, on any thread

    def close(self) -> None:
        """Close the file and end the threads."""
        if self._pool is not None:
            self._pool.shutdown()
        self._close()

    def regions(
        self, level: int, boxes: Sequence[Box], step: int = 1
    ) -> Iterator[Region | RegionError]:
        """Yield the pixels of each box (x, y, w, h) of a level, in turn.

        Boxes count from the level's first pixel; what lies outside of it is transparent.
        A file tile is decoded once and kept while later boxes need it, as far as memory allows;
        boxes that follow the rows of the slide keep little. Threads decode one group ahead.

        Args:
            step: 2 decodes at half size (in the frequency domain); boxes are in those pixels.
        """
        groups, last_use = self._grouped(boxes, self._tile_size(level, step))
        kept: dict[Place, _Waiting] = {}
        size = self._tile_size(level, step)
        done = 0
        for k, group in enumerate(groups):
            kept |= self._decode(level, group.needed - kept.keys(), step)
            ahead = groups[k + 1].needed if k + 1 < len(groups) else set()
            if self._threads > 1:
                kept |= self._decode(level, ahead - kept.keys(), step)
            for box, places in zip(group.boxes, group.places, strict=True):
                tiles = [(place, kept[place].get()) for place in places]
                done += 1
                yield self._cut(level, box, tiles, size, step)
            self._forget(kept, ahead, last_use, done, size[0] * size[1] * 3)

    def _tile_size(self, level: int, step: int) -> tuple[int, int]:
        w, h = self._levels[level].tile
        return w // step, h // step

    def _grouped(
        self, boxes: Sequence[Box], tile: tuple[int, int]
    ) -> tuple[list[_Group], dict[Place, int]]:
        """Return the boxes in groups, and the last box that needs each file tile."""
        tw, th = tile
        most = max(1, self._threads * _GROUP_BYTES // (tw * th * 3))
        groups: list[_Group] = []
        last_use: dict[Place, int] = {}
        for k, (x, y, w, h) in enumerate(boxes):
            places = [
                (r, c)
                for r in range(y // th, -(-(y + h) // th) if w else 0)
                for c in range(x // tw, -(-(x + w) // tw) if h else 0)
            ]
            if not groups or len(groups[-1].needed) >= most:
                groups.append(_Group())
            groups[-1].boxes.append((x, y, w, h))
            groups[-1].places.append(places)
            groups[-1].needed.update(places)
            last_use.update(dict.fromkeys(places, k))
        return groups, last_use

    def _forget(
        self,
        kept: dict[Place, _Waiting],
        ahead: set[Place],
        last_use: dict[Place, int],
        done: int,
        tile_bytes: int,
    ) -> None:
        """Drop tiles that no box to come needs, or that would take too much memory."""
        room = _KEPT_BYTES // tile_bytes
        for place in list(kept):
            if place in ahead:
                continue
            if last_use[place] < done or room <= 0:
                del kept[place]
            else:
                room -= 1

    def _decode(self, level: int, places: set[Place], step: int) -> dict[Place, _Waiting]:
        """Start to decode file tiles, in the order they lie in the file."""
        index = self._levels[level]
        order = sorted(places, key=lambda place: _offset(index, place))
        chunks = [order[k : k + _TASK_TILES] for k in range(0, len(order), _TASK_TILES)]
        waiting: dict[Place, _Waiting] = {}
        for chunk in chunks:
            if self._threads > 1 and len(order) > 1:
                task = self._submit(index, chunk, step)
            else:
                task = _Done(self._decoded(index, chunk, step))
            waiting |= {place: _Waiting(task, k) for k, place in enumerate(chunk)}
        return waiting

    def _submit(self, index: TiffLevel, chunk: list[Place], step: int) -> Future[list[Decoded]]:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._threads, "decode")
        return self._pool.submit(self._decoded, index, chunk, step)

    def _decoded(self, index: TiffLevel, places: list[Place], step: int) -> list[Decoded]:
        """Return the pixels of file tiles; None for one not scanned, an error for a bad one."""
        streams = self._streams(index, places)
        return [self._pixels(index, p, s, step) for p, s in zip(places, streams, strict=True)]

    def _streams(self, index: TiffLevel, places: list[Place]) -> list[memoryview]:
        """Return the bytes of file tiles; neighbours in the file are read together."""
        spans = [_span(index, place) for place in places]
        streams: list[memoryview] = []
        block, start = memoryview(b""), 0
        for k, (offset, count) in enumerate(spans):
            if not start <= offset <= offset + count <= start + len(block):
                end = offset + count
                for later, length in spans[k + 1 :]:
                    if later - end > _GAP_BYTES or later + length - offset > _READ_BYTES:
                        break
                    end = max(end, later + length)
                before = time.perf_counter()
                block, start = memoryview(os.pread(self._file, end - offset, offset)), offset
                self.file_s += time.perf_counter() - before
            streams.append(block[offset - start : offset - start + count])
        return streams

    def _pixels(self, index: TiffLevel, place: Place, stream: memoryview, step: int) -> Decoded:
        if not len(stream) and _span(index, place)[1] == 0:
            return None
        tw, th = index.tile
        try:
            if index.decode is not None:
                pixels = index.decode(bytes(stream))
            else:
                own = stream[after_application_markers(stream) :] if index.head else stream
                pixels = _decode_jpeg(b"".join((index.head, own)), th, tw, step)
        except (ValueError, RuntimeError) as error:
            return self._error(place, str(error))
        if pixels.shape != (th // step, tw // step, 3):
            return self._error(place, f"it is {pixels.shape[1]}x{pixels.shape[0]} px")
        pixels.flags.writeable = False  # several boxes may show the same pixels
        return pixels

    def _error(self, place: Place, why: str) -> RegionError:
        return RegionError(
            f"{self._name}: file tile at row {place[0]}, column {place[1]} cannot be decoded "
            f"({why.strip()}) — copy the slide again from its source"
        )

    def _cut(
        self,
        level: int,
        box: Box,
        tiles: list[tuple[Place, Decoded]],
        size: tuple[int, int],
        step: int,
    ) -> Region | RegionError:
        """Return a box cut out of its file tiles; a view where one tile holds all of it."""
        x, y, w, h = box
        pixels = np.empty((h, w, 3), np.uint8)
        alpha = None
        for (row, column), tile in tiles:
            tx, ty = column * size[0] - x, row * size[1] - y  # the tile's corner within the box
            top, bottom = max(0, ty), min(h, ty + size[1])
            left, right = max(0, tx), min(w, tx + size[0])
            if tile is None:
                alpha = np.full((h, w), 255, np.uint8) if alpha is None else alpha
                alpha[top:bottom, left:right] = 0
            elif isinstance(tile, RegionError):
                return tile
            else:
                part = tile[top - ty : bottom - ty, left - tx : right - tx]
                if len(tiles) == 1:
                    pixels = part
                else:
                    pixels[top:bottom, left:right] = part
        return Region(pixels, self._without_outside(level, box, step, alpha), (x, y))

    def _without_outside(
        self, level: int, box: Box, step: int, alpha: NDArray[np.uint8] | None
    ) -> NDArray[np.uint8] | None:
        """Return `alpha` with what lies outside the level transparent."""
        x, y, w, h = box
        right, bottom = (-(-edge // step) for edge in self._levels[level].size)
        if x >= 0 and y >= 0 and x + w <= right and y + h <= bottom:
            return alpha
        inside = np.zeros((h, w), np.uint8)
        place = slice(max(0, -y), max(0, bottom - y)), slice(max(0, -x), max(0, right - x))
        inside[place] = 255 if alpha is None else alpha[place]
        return inside


@dataclass(frozen=True)
class _Done:
    """The result of what was done at once, read like that of a thread."""

    value: list[Decoded]

    def result(self) -> list[Decoded]:
        return self.value


@dataclass(frozen=True)
class _Waiting:
    """One file tile of several that are decoded together."""

    task: Future[list[Decoded]] | _Done
    index: int

    def get(self) -> Decoded:
        return self.task.result()[self.index]


def _decode_jpeg(stream: bytes, height: int, width: int, step: int) -> Pixels:
    least = (height // step, width // step) if step > 1 else (0, 0)
    try:
        return simplejpeg.decode_jpeg(
            stream, "RGB", min_height=least[0], min_width=least[1], min_factor=step
        )
    except ValueError as error:
        # Padding before the end of the stream is common and harmless; all else is damage.
        if "extraneous bytes before marker 0xd9" not in str(error):
            raise
        return simplejpeg.decode_jpeg(
            stream, "RGB", min_height=least[0], min_width=least[1], min_factor=step, strict=False
        )


def _span(index: TiffLevel, place: Place) -> tuple[int, int]:
    """Return offset and length of a file tile; length 0 where none was scanned."""
    rows, columns = index.counts.shape
    if not (0 <= place[0] < rows and 0 <= place[1] < columns):
        return 0, 0
    return int(index.offsets[place]), int(index.counts[place])


def _offset(index: TiffLevel, place: Place) -> int:
    return _span(index, place)[0]
