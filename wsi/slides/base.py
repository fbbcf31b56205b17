"""The slide: what is known about it, and reading it at any resolution."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wsi.errors import MissingMppError, NeedsUpsamplingError, RegionError
from wsi.slides.resample import resample

RGB = NDArray[np.uint8]
Box = tuple[int, int, int, int]  # x, y, w, h

_BLOCK_PX = 4_000_000  # level pixels held at once while a thumbnail is built
_LEVEL_TOLERANCE = 1e-3
_ROUNDING = 1e-6
_HALF_OPAQUE = 128
_UNREADABLE_PX = 8  # thumbnail pixels along an unreadable place that is not searched further
_MOST_UNREADABLE = 256  # such places; a slide with more is damaged all over


@dataclass(frozen=True)
class SlideInfo:
    """What is known about a slide without reading its pixels.

    Attributes:
        size0: level-0 size (w, h) in pixels.
        mpp: um per level-0 pixel (x, y), or None when nothing believable says so.
        mpp_source: where mpp comes from: table, openslide, ome-xml, assumed, ...
        mpp_state: ok, no-mpp or implausible-mpp.
        level_sizes: size (w, h) of every level, finest first.
        downsamples: level-0 pixels per level pixel (x, y) of every level, see `own_ratios`.
        bounds0: (x, y, w, h) in level-0 pixels of what was scanned.
        background: RGB that transparent pixels are composited on.
        magnification: objective power, or None. Never used in place of mpp unless asked.
        notes: sentences a user should see.
        reader: name of what decodes the pixels, see `wsi.slides.READERS`.
        reader_note: why a faster reader was not taken; empty when there is nothing to say.
        icc: what the embedded colour profile calls itself, or None when there is none.
        icc_sha256: hash of that profile's bytes.
        associated: names of label, macro and thumbnail images; they are never opened here.
    """

    slide_id: str
    path: Path
    vendor: str
    size0: tuple[int, int]
    mpp: tuple[float, float] | None
    mpp_source: str
    mpp_state: str
    level_sizes: tuple[tuple[int, int], ...]
    downsamples: tuple[tuple[float, float], ...]
    bounds0: tuple[int, int, int, int]
    background: tuple[int, int, int]
    fingerprint: str
    magnification: float | None = None
    notes: tuple[str, ...] = ()
    reader: str = "openslide"
    reader_note: str = ""
    icc: str | None = None
    icc_sha256: str | None = None
    associated: tuple[str, ...] = ()

    def size0_of(self, size_px: tuple[int, int], mpp: float) -> tuple[float, float]:
        """Return the level-0 size (w, h), a float, of `size_px` pixels of `mpp` um each.

        Raises:
            MissingMppError: the slide has no believable resolution.
        """
        if self.mpp is None:
            reason = self.notes[0] if self.notes else "no resolution"
            raise MissingMppError(f"{self.path.name}: {reason}", self.mpp_state)
        return size_px[0] * mpp / self.mpp[0], size_px[1] * mpp / self.mpp[1]

    def level_for(self, downsample: tuple[float, float]) -> int:
        """Return the coarsest level at least as fine as `downsample` (x, y), else level 0."""
        fit = [
            level
            for level, (dx, dy) in enumerate(self.downsamples)
            if dx <= downsample[0] * (1 + _LEVEL_TOLERANCE)
            and dy <= downsample[1] * (1 + _LEVEL_TOLERANCE)
        ]
        return max(fit, key=lambda level: self.downsamples[level][0], default=0)

    def check_upsampling(self, mpp: float, allowed: float) -> float:
        """Return how much finer than the slide `mpp` is (1 when it is not).

        Raises:
            NeedsUpsamplingError: more than `allowed`.
        """
        w, h = self.size0_of((1, 1), mpp)
        factor = max(1.0, 1 / min(w, h))
        if factor > allowed * (1 + _ROUNDING):
            finest = max(self.mpp or (0.0, 0.0))
            raise NeedsUpsamplingError(
                f"{self.path.name} has {finest:.4g} um/px, coarser than tiling.mpp={mpp:g} — ask "
                "for a coarser tiling.mpp, or allow it with "
                f"tiling.max_upsampling={math.ceil(factor * 100) / 100:g}"
            )
        return factor


def own_ratios(
    size0: tuple[int, int], level_sizes: Sequence[tuple[int, int]]
) -> tuple[tuple[float, float], ...]:
    """Return level-0 pixels per level pixel (x, y), each axis by itself.

    OpenSlide's single figure is the mean of both axes, which is wrong for either when a level's
    width and height were rounded differently.
    """
    return tuple((size0[0] / w, size0[1] / h) for w, h in level_sizes)


@dataclass(frozen=True)
class Thumbnail:
    """A whole slide at low power.

    Attributes:
        pixels: uint8 (h, w, 3), transparent composited on the background.
        valid: bool (h, w), False where the slide holds no data.
        unreadable: bool (h, w), True where it holds data that cannot be decoded; None when all
            can.
        scale: level-0 pixels per thumbnail pixel (x, y).
        origin0: level-0 position (x, y) of the thumbnail's corner.
    """

    pixels: RGB
    valid: NDArray[np.bool_]
    scale: tuple[float, float]
    origin0: tuple[int, int] = (0, 0)
    unreadable: NDArray[np.bool_] | None = None


class Region(NamedTuple):
    """Pixels of a level as a reader gives them.

    Attributes:
        pixels: uint8 (h, w, 3), straight colour.
        alpha: uint8 (h, w), or None where all of it is opaque.
        start: where it really begins (x, y), in pixels of the level; a reader that only takes
            whole level-0 positions begins at a fraction of a pixel.
    """

    pixels: RGB
    alpha: NDArray[np.uint8] | None
    start: tuple[float, float]


class View(NamedTuple):
    """A level-0 rectangle as seen on one level.

    Attributes:
        level, step: what is read: pixels of `level`, `step` of them decoded as one.
        box: whole pixels (x, y, w, h) that cover the rectangle; may reach beyond the level.
        start: position (x, y) of the rectangle in these pixels.
        scale: these pixels per output pixel (x, y).
        size_px: output size (w, h).
    """

    level: int
    step: int
    box: Box
    start: tuple[float, float]
    scale: tuple[float, float]
    size_px: tuple[int, int]


class Slide(ABC):
    """One open slide; a context manager.

    Coordinates are (x, y) in the level-0 reference frame, sizes (w, h), arrays (h, w, 3).
    Reading again after an error works: the file is reopened. A slide may be pickled or inherited
    through fork; each process opens the file for itself.
    """

    info: SlideInfo
    decoding_s = 0.0
    """Seconds that `read_tiles` has waited for pixels: reading the file and decoding."""
    resizing_s = 0.0
    """Seconds that `read_tiles` has spent on bringing pixels to the size asked for."""
    file_s = 0.0
    """Seconds of `decoding_s` spent on reading the file, where the reader knows."""

    def __enter__(self) -> Slide:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @abstractmethod
    def close(self) -> None:
        """Release the file; reading opens it again."""

    @property
    def properties(self) -> dict[str, Any]:
        """Return the reader's raw properties; they may name the patient, so never write them."""
        return {}

    @property
    @abstractmethod
    def icc_profile(self) -> bytes | None:
        """Return the embedded ICC profile as it stands in the file, or None."""

    @abstractmethod
    def _region(self, level: int, xy: tuple[int, int], size: tuple[int, int]) -> Region:
        """Return `size` pixels of `level` at `xy`; both in level pixels, wholly inside it.

        Raises:
            RegionError: the pixels cannot be decoded.
        """

    def _regions(
        self, level: int, boxes: Sequence[Box], step: int = 1
    ) -> Iterator[Region | RegionError]:
        """Yield the region of each box (x, y, w, h) of a level in turn, an error as a value.

        A reader that decodes many boxes better together than one by one does so here.

        Args:
            step: pixels of the level in one of the box's; only what `_step` gave.
        """
        for x, y, w, h in boxes:
            if not w * h:
                empty = np.empty((h, w, 3), np.uint8)
                yield Region(empty, None, (x, y))
                continue
            try:
                yield self._region(level, (x, y), (w, h))
            except RegionError as error:
                yield error

    def read(self, xy0: tuple[int, int], level: int, size: tuple[int, int]) -> RGB:
        """Return uint8 (h, w, 3): `size` pixels of `level` from level-0 position `xy0`.

        Outside the slide and where it holds no data stands the background.

        Raises:
            RegionError: an impossible level or size, or pixels that cannot be decoded.
        """
        if not 0 <= level < len(self.info.level_sizes):
            n = len(self.info.level_sizes)
            raise RegionError(f"{self.info.path.name} has no level {level} — it has {n}")
        if min(size) < 1:
            raise RegionError(f"{self.info.path.name}: a region of size {size} — give at least 1x1")
        dx, dy = self.info.downsamples[level]
        box = round(xy0[0] / dx), round(xy0[1] / dy), *size
        view = View(level, 1, box, (box[0], box[1]), (1, 1), size)
        (region,) = self._regions(level, [self._inside(view)])
        if isinstance(region, RegionError):
            raise region
        whole = self._padded(self._composited(region), view)
        left, top = round(box[0] - whole.start[0]), round(box[1] - whole.start[1])
        return _owned(whole.pixels[top : top + size[1], left : left + size[0]])

    def read_at(
        self,
        xy0: tuple[float, float],
        size_px: tuple[int, int],
        mpp: float,
        max_upsampling: float = 1.05,
    ) -> RGB:
        """Return uint8 (h, w, 3): `size_px` pixels of `mpp` um each from level-0 `xy0`.

        The field of view is exact: size_px * mpp um on each axis, resampled with antialiasing
        from the coarsest level that is fine enough.

        Raises:
            MissingMppError: the slide has no believable resolution.
            NeedsUpsamplingError: the slide is coarser than `mpp` by more than `max_upsampling`.
            RegionError: the pixels cannot be decoded.
        """
        self.info.check_upsampling(mpp, max_upsampling)
        return _owned(self._scaled(xy0, self.info.size0_of(size_px, mpp), size_px).pixels)

    def read_tiles(
        self, xy0: Iterable[tuple[int, int]], tile_px: int, mpp: float
    ) -> Iterator[RGB | RegionError | None]:
        """Yield each tile as uint8 (tile_px, tile_px, 3), in the order asked for.

        Where the slide has no data stands None. Where a tile cannot be decoded stands the error,
        as a value: one bad tile does not cost the rest, and the caller decides what it is worth.
        Arrays may be read-only views: tiles cut from one file tile share its pixels.
        """
        size0 = self.info.size0_of((tile_px, tile_px), mpp)
        views = [self._view((x, y), size0, (tile_px, tile_px)) for x, y in xy0]
        if not views:
            return
        boxes = [self._inside(view) for view in views]
        regions = self._regions(views[0].level, boxes, views[0].step)
        for view in views:
            before = time.perf_counter()
            region = next(regions)
            decoded = time.perf_counter()
            self.decoding_s += decoded - before
            if isinstance(region, RegionError):
                yield region
                continue
            shown = self._shown(view, region)
            self.resizing_s += time.perf_counter() - decoded
            yield shown.pixels if shown.alpha is None or shown.alpha.any() else None

    def thumbnail(self, downsample: float) -> Thumbnail:
        """Return the slide's bounds at `downsample` level-0 pixels per pixel, built in blocks.

        Beside the thumbnail itself, four bytes a pixel, memory stays the same for any slide: of
        the level it is read from, no more than four million pixels are held at once.
        """
        x0, y0, w0, h0 = self.info.bounds0
        size = max(1, round(w0 / downsample)), max(1, round(h0 / downsample))
        scale = w0 / size[0], h0 / size[1]
        dx, dy = self.info.downsamples[self.info.level_for(scale)]
        # A level that fits is read at once; of others square blocks share fewest file tiles.
        most_px = _BLOCK_PX * dx * dy / (scale[0] * scale[1])
        step = max(size) if size[0] * size[1] <= most_px else max(1, math.isqrt(int(most_px)))
        pixels = np.empty((size[1], size[0], 3), np.uint8)
        pixels[:] = self.info.background
        valid = np.ones((size[1], size[0]), bool)
        unreadable = np.zeros((size[1], size[0]), bool)
        for left, top, part, block in self._blocks(size, step, scale, (x0, y0)):
            place = slice(top, top + part[1]), slice(left, left + part[0])
            if block is None:
                valid[place], unreadable[place] = False, True
                continue
            pixels[place] = block.pixels
            if block.alpha is not None:
                valid[place] = block.alpha >= _HALF_OPAQUE
        return Thumbnail(pixels, valid, scale, (x0, y0), unreadable if unreadable.any() else None)

    def _blocks(
        self,
        size: tuple[int, int],
        step: int,
        scale: tuple[float, float],
        origin0: tuple[int, int],
    ) -> Iterator[tuple[int, int, tuple[int, int], Region | None]]:
        """Yield left, top, size and pixels of blocks of a thumbnail; None for unreadable ones.

        A block that cannot be decoded is halved until what is bad in it is small, so that one
        damaged file tile does not cost its neighbours.

        Raises:
            RegionError: all of a thumbnail is unreadable, or too many places of it.
        """
        waiting = [
            (left, top, (min(step, size[0] - left), min(step, size[1] - top)))
            for top in range(0, size[1], step)
            for left in range(0, size[0], step)
        ][::-1]
        bad, good = 0, 0
        while waiting:
            left, top, part = waiting.pop()
            corner = origin0[0] + left * scale[0], origin0[1] + top * scale[1]
            try:
                block = self._scaled(corner, (part[0] * scale[0], part[1] * scale[1]), part)
            except RegionError:
                if max(part) > _UNREADABLE_PX:
                    waiting += _quarters(left, top, part)
                    continue
                block, bad = None, bad + 1
                if bad > _MOST_UNREADABLE or not (good or waiting):
                    raise
            good += block is not None
            yield left, top, part, block

    def _scaled(
        self, xy0: tuple[float, float], size0: tuple[float, float], size_px: tuple[int, int]
    ) -> Region:
        """Return a level-0 rectangle resampled to `size_px`."""
        view = self._view(xy0, size0, size_px)
        (region,) = self._regions(view.level, [self._inside(view)], view.step)
        if isinstance(region, RegionError):
            raise region
        return self._shown(view, region)

    def _view(
        self, xy0: tuple[float, float], size0: tuple[float, float], size_px: tuple[int, int]
    ) -> View:
        """Return which whole pixels of which level show a level-0 rectangle at `size_px`."""
        scale0 = size0[0] / size_px[0], size0[1] / size_px[1]
        level = self.info.level_for(scale0)
        dx, dy = self.info.downsamples[level]
        step = self._step(level, (scale0[0] / dx, scale0[1] / dy))
        dx, dy = dx * step, dy * step
        start = xy0[0] / dx, xy0[1] / dy
        scale = scale0[0] / dx, scale0[1] / dy
        w, h = self._size(level, step)
        # Linear interpolation needs a neighbour, but not one from beyond the slide.
        margin = 1 if min(scale) < 1 else 0
        w0, h0 = self.info.size0
        x, right = _span(start[0], scale[0] * size_px[0], margin, w, w0 / dx)
        y, bottom = _span(start[1], scale[1] * size_px[1], margin, h, h0 / dy)
        return View(level, step, (x, y, right - x, bottom - y), start, scale, size_px)

    def _step(self, level: int, scale: tuple[float, float]) -> int:
        """Return how many pixels of `level` a reader may decode as one, for pixels of `scale`."""
        return 1

    def _size(self, level: int, step: int) -> tuple[int, int]:
        w, h = self.info.level_sizes[level]
        return -(-w // step), -(-h // step)

    def _shown(self, view: View, region: Region) -> Region:
        """Return `region`, read for `view`, padded, composited and resampled."""
        region = self._padded(self._composited(region), view)
        offset = view.start[0] - region.start[0], view.start[1] - region.start[1]
        if region.alpha is None:
            h, w = region.pixels.shape[:2]
            if offset == (0, 0) and view.scale == (1, 1) and view.size_px == (w, h):
                return region
            return Region(resample(region.pixels, offset, view.scale, view.size_px), None, (0, 0))
        rgba = np.dstack([region.pixels, region.alpha])
        shown = resample(rgba, offset, view.scale, view.size_px)
        return Region(np.ascontiguousarray(shown[..., :3]), shown[..., 3], (0, 0))

    def _inside(self, view: View) -> Box:
        """Return the part of a view's box inside the level; of no size when there is none."""
        w, h = self._size(view.level, view.step)
        x, y, wide, high = view.box
        left, top = min(max(0, x), w), min(max(0, y), h)
        right, bottom = max(left, min(w, x + wide)), max(top, min(h, y + high))
        return left, top, right - left, bottom - top

    def _padded(self, region: Region, view: View) -> Region:
        """Return a region that reaches beyond its level with transparent background there."""
        x, y, w, h = view.box
        if region.pixels.shape[:2] == (h, w):
            return region
        left, top, wide, high = self._inside(view)
        if (wide, high) == (w, h):
            return region
        pixels = np.empty((h, w, 3), np.uint8)
        pixels[:] = self.info.background
        alpha = np.zeros((h, w), np.uint8)
        place = slice(top - y, top - y + high), slice(left - x, left - x + wide)
        # A reader that begins at a fraction of a pixel may give one more than asked for.
        pixels[place] = region.pixels[:high, :wide]
        alpha[place] = 255 if region.alpha is None else region.alpha[:high, :wide]
        start = x + region.start[0] - left, y + region.start[1] - top
        return Region(pixels, alpha, start)

    def _composited(self, region: Region) -> Region:
        """Return `region` with its colour over the background, alpha kept beside it.

        Before any resampling: a transparent pixel's own colour (black) must not bleed in.
        """
        if region.alpha is None or region.alpha.min(initial=255) == 255:
            return region._replace(alpha=None)
        background = np.asarray(self.info.background, np.float32)
        share = region.alpha[..., None].astype(np.float32) / 255
        colour = np.rint(region.pixels * share + background * (1 - share)).astype(np.uint8)
        return region._replace(pixels=colour)


def _quarters(left: int, top: int, size: tuple[int, int]) -> list[tuple[int, int, tuple[int, int]]]:
    """Return left, top and size of the quarters of a block, the last one first."""
    w, h = (max(1, edge // 2) for edge in size)
    return [
        (x, y, (right - x, bottom - y))
        for y, bottom in ((top + h, top + size[1]), (top, top + h))
        for x, right in ((left + w, left + size[0]), (left, left + w))
        if right > x and bottom > y
    ]


def _owned(pixels: RGB) -> RGB:
    """Return pixels that their receiver may write to: a reader may show its own."""
    return np.require(pixels, requirements=["C_CONTIGUOUS", "WRITEABLE"])


def _span(start: float, extent: float, margin: int, size: int, slide_end: float) -> tuple[int, int]:
    """Return the whole pixels [first, last) that cover an extent, with a margin inside `size`."""
    end = start + extent
    first, last = math.floor(start + _ROUNDING), math.ceil(end - _ROUNDING)
    if end < slide_end + _ROUNDING:
        # What a scanner dropped from the level is slide still, not background: nothing is padded.
        last = min(last, size)
    return (
        max(first - margin, min(first, 0)),
        min(last + margin, max(last, size)),
    )
