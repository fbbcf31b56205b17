"""The slide: what is known about it, and reading it at any resolution."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi.errors import MissingMppError, NeedsUpsamplingError, RegionError
from wsi.slides.resample import resample

RGB = NDArray[np.uint8]

_BLOCK_PX = 4_000_000  # level pixels held at once while a thumbnail is built
_LEVEL_TOLERANCE = 1e-3
_ROUNDING = 1e-6
_HALF_OPAQUE = 128


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
        scale: level-0 pixels per thumbnail pixel (x, y).
        origin0: level-0 position (x, y) of the thumbnail's corner.
    """

    pixels: RGB
    valid: NDArray[np.bool_]
    scale: tuple[float, float]
    origin0: tuple[int, int] = (0, 0)


class Slide(ABC):
    """One open slide; a context manager.

    Coordinates are (x, y) in the level-0 reference frame, sizes (w, h), arrays (h, w, 3).
    Reading again after an error works: the file is reopened. A slide may be pickled or inherited
    through fork; each process opens the file for itself.
    """

    info: SlideInfo

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

    @abstractmethod
    def _region(
        self, level: int, xy: tuple[int, int], size: tuple[int, int]
    ) -> tuple[NDArray[np.uint8], tuple[float, float]]:
        """Return RGBA uint8 (h, w, 4), straight alpha, and where it really starts.

        `xy` and `size` are pixels of `level` and lie inside it. The start returned is in level
        pixels; it differs from `xy` where the reader only takes whole level-0 positions.

        Raises:
            RegionError: the pixels cannot be decoded.
        """

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
        rgba, _ = self._clamped(level, (round(xy0[0] / dx), round(xy0[1] / dy)), size)
        return _rgb(rgba)

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
        return _rgb(self._scaled(xy0, self.info.size0_of(size_px, mpp), size_px))

    def read_tiles(
        self, xy0: Iterable[tuple[int, int]], tile_px: int, mpp: float
    ) -> Iterator[RGB | RegionError | None]:
        """Yield each tile as uint8 (tile_px, tile_px, 3), in the order asked for.

        Where the slide has no data stands None. Where a tile cannot be decoded stands the error,
        as a value: one bad tile does not cost the rest, and the caller decides what it is worth.
        """
        size0 = self.info.size0_of((tile_px, tile_px), mpp)
        for x, y in xy0:
            try:
                rgba = self._scaled((float(x), float(y)), size0, (tile_px, tile_px))
            except RegionError as error:
                yield error
            else:
                yield _rgb(rgba) if rgba[..., 3].any() else None

    def thumbnail(self, downsample: float) -> Thumbnail:
        """Return the slide's bounds at `downsample` level-0 pixels per pixel, built in blocks.

        Memory stays small for any slide: no more than a few million pixels are held at once.
        """
        x0, y0, w0, h0 = self.info.bounds0
        size = max(1, round(w0 / downsample)), max(1, round(h0 / downsample))
        scale = w0 / size[0], h0 / size[1]
        dx, dy = self.info.downsamples[self.info.level_for(scale)]
        step = max(1, int(math.sqrt(_BLOCK_PX * dx * dy / (scale[0] * scale[1]))))
        pixels = np.empty((size[1], size[0], 4), np.uint8)
        for top in range(0, size[1], step):
            for left in range(0, size[0], step):
                part = min(step, size[0] - left), min(step, size[1] - top)
                corner = x0 + left * scale[0], y0 + top * scale[1]
                block = self._scaled(corner, (part[0] * scale[0], part[1] * scale[1]), part)
                pixels[top : top + part[1], left : left + part[0]] = block
        valid = pixels[..., 3] >= _HALF_OPAQUE
        return Thumbnail(_rgb(pixels), valid, scale, (x0, y0))

    def _scaled(
        self, xy0: tuple[float, float], size0: tuple[float, float], size_px: tuple[int, int]
    ) -> NDArray[np.uint8]:
        """Return RGBA (h, w, 4) of a level-0 rectangle resampled to `size_px`."""
        scale0 = size0[0] / size_px[0], size0[1] / size_px[1]
        level = self.info.level_for(scale0)
        dx, dy = self.info.downsamples[level]
        start = xy0[0] / dx, xy0[1] / dy
        extent = size0[0] / dx, size0[1] / dy
        # Linear interpolation needs a neighbour, but not one from beyond the slide.
        margin = 1 if min(scale0[0] / dx, scale0[1] / dy) < 1 else 0
        x, right = _span(start[0], extent[0], margin, self.info.level_sizes[level][0])
        y, bottom = _span(start[1], extent[1], margin, self.info.level_sizes[level][1])
        rgba, real = self._clamped(level, (x, y), (right - x, bottom - y))
        offset = start[0] - real[0], start[1] - real[1]
        return resample(rgba, offset, (extent[0] / size_px[0], extent[1] / size_px[1]), size_px)

    def _clamped(
        self, level: int, xy: tuple[int, int], size: tuple[int, int]
    ) -> tuple[NDArray[np.uint8], tuple[float, float]]:
        """Return a region that may reach beyond the level; outside it is transparent."""
        w, h = self.info.level_sizes[level]
        left, top = max(0, xy[0]), max(0, xy[1])
        right, bottom = min(w, xy[0] + size[0]), min(h, xy[1] + size[1])
        if right <= left or bottom <= top:
            return self._blank(size), (float(xy[0]), float(xy[1]))
        inner, real = self._region(level, (left, top), (right - left, bottom - top))
        inner = self._composited(inner)
        origin = xy[0] + real[0] - left, xy[1] + real[1] - top
        if (right - left, bottom - top) == size:
            return inner, origin
        outer = self._blank(size)
        outer[top - xy[1] : bottom - xy[1], left - xy[0] : right - xy[0]] = inner
        return outer, origin

    def _blank(self, size: tuple[int, int]) -> NDArray[np.uint8]:
        return np.full((size[1], size[0], 4), (*self.info.background, 0), np.uint8)

    def _composited(self, rgba: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return `rgba` with its colour over the background, alpha kept beside it.

        Before any resampling: a transparent pixel's own colour (black) must not bleed in.
        """
        alpha = rgba[..., 3:]
        if alpha.min() == 255:
            return rgba
        background = np.asarray(self.info.background, np.float32)
        share = alpha.astype(np.float32) / 255
        colour = np.rint(rgba[..., :3] * share + background * (1 - share)).astype(np.uint8)
        return np.concatenate([colour, alpha], axis=-1)


def _span(start: float, extent: float, margin: int, size: int) -> tuple[int, int]:
    """Return the whole pixels [first, last) that cover an extent, with a margin inside `size`."""
    first, last = math.floor(start + _ROUNDING), math.ceil(start + extent - _ROUNDING)
    return (
        max(first - margin, min(first, 0)),
        min(last + margin, max(last, size)),
    )


def _rgb(rgba: NDArray[np.uint8]) -> RGB:
    return np.ascontiguousarray(rgba[..., :3])
