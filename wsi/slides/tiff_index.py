"""Where the tiles of a tiled JPEG TIFF lie in the file, and what each needs to be decoded."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray

from wsi.errors import SlideOpenError
from wsi.slides.base import SlideInfo
from wsi.slides.leica import ScnArea

VENDORS = frozenset({"aperio", "generic-tiff", "leica", "philips", "trestle"})
"""Formats, as OpenSlide names them, whose levels are plain tiled TIFF pages."""

_JPEG, _CONTIGUOUS, _UPRIGHT = 7, 1, 1
_TRANSFORM = {2: 0, 6: 1}  # TIFF's photometric RGB and YCbCr -> Adobe's colour transform
_MOST_BYTES = 1 << 26
_SOI = b"\xff\xd8"


class UnfitError(Exception):
    """The file is no plain tiled JPEG TIFF; the message says what it is, for `reader_note`."""


@dataclass(frozen=True)
class TiffLevel:
    """The file tiles of one level.

    Attributes:
        size: width and height of the level in pixels.
        tile: width and height of a file tile in pixels.
        offsets, counts: int64 (rows, columns), place and length in bytes; length 0 is a tile
            that was not scanned.
        head: what goes before the own stream of each JPEG tile, colour and shared tables; empty
            where a tile is a whole JPEG already.
        origin: position (x, y) of the first pixel in the frame of the level; 0 but for Leica,
            whose levels are of the whole glass.
        decode: what decodes a tile that is no JPEG, to uint8 (h, w, 3).
    """

    size: tuple[int, int]
    tile: tuple[int, int]
    offsets: NDArray[np.int64]
    counts: NDArray[np.int64]
    head: bytes
    origin: tuple[float, float] = (0.0, 0.0)
    decode: Callable[[bytes], NDArray[np.uint8]] | None = None


def index_levels(
    path: Path, info: SlideInfo, scans: Sequence[ScnArea] = ()
) -> tuple[TiffLevel, ...]:
    """Return the file tiles of every level, finest first.

    The levels are those that `info`, from OpenSlide, tells of; but of an OME-TIFF OpenSlide sees
    the first level alone, and the others are found here.

    Args:
        scans: of a Leica file.

    Raises:
        UnfitError: another format, compression or layout; OpenSlide can read it.
        SlideOpenError: an OME pyramid whose reduced levels nobody can read.
    """
    if info.vendor not in VENDORS:
        raise UnfitError(f"{info.vendor} is not a tiled TIFF")
    try:
        with tifffile.TiffFile(path) as tiff:
            if tiff.is_ome and len(info.level_sizes) == 1 and tiff.pages.first.subifds:
                return _ome_levels(tiff)
            if info.vendor == "leica":
                return _leica_levels(tiff, scans)
            pages = [page for page in tiff.pages if isinstance(page, tifffile.TiffPage)]
            _check_overlaps(info, pages[0])
            levels = tuple(_level(page) for page in _of_levels(pages, info))
    except (tifffile.TiffFileError, OSError, ValueError, LookupError, TypeError) as error:
        raise UnfitError(f"its TIFF directory cannot be read ({error})") from error
    if info.vendor == "aperio" and any((level.counts == 0).any() for level in levels):
        # It distrusts what coarser levels show there, too.
        raise UnfitError("it lacks tiles, which OpenSlide redraws from finer levels")
    return levels


def _ome_levels(tiff: tifffile.TiffFile) -> tuple[TiffLevel, ...]:
    series = tiff.series[0]
    try:
        if len(series.pages) != 1:
            raise UnfitError(f"it holds {len(series.pages)} planes (a stack, or channels)")
        return tuple(_level(level.keyframe, jpeg_only=False) for level in series.levels)
    except UnfitError as error:
        raise SlideOpenError(
            f"{tiff.filename}: an OME-TIFF of {len(series.levels)} levels that cannot be read "
            f"({error}), and OpenSlide sees only the first — convert it to a plain pyramidal TIFF",
            "unsupported-format",
        ) from error


def _leica_levels(tiff: tifffile.TiffFile, scans: Sequence[ScnArea]) -> tuple[TiffLevel, ...]:
    if len(scans) != 1:
        raise UnfitError(f"its glass holds {len(scans)} scans")
    (scan,) = scans
    every = [page for page in tiff.pages if isinstance(page, tifffile.TiffPage)]
    pages = [every[ifd] for ifd in scan.ifds]
    if [(page.imagewidth, page.imagelength) for page in pages] != list(scan.sizes):
        raise UnfitError("its pages are not of the sizes that its XML states")
    x0, y0 = scan.origins[0]
    return tuple(
        replace(_level(page), origin=(x0 / dx, y0 / dy))
        for page, (dx, dy) in zip(pages, scan.downsamples, strict=True)
    )


def _of_levels(pages: list[tifffile.TiffPage], info: SlideInfo) -> list[tifffile.TiffPage]:
    """Return the page of each level: of its size, or (Philips) of its size in whole tiles."""
    found = []
    tiled = [page for page in pages if page.is_tiled]
    for w, h in info.level_sizes:
        for page in tiled:
            exact = (page.imagewidth, page.imagelength) == (w, h)
            padded = info.vendor == "philips" and (
                0 <= page.imagewidth - w < page.tilewidth
                and 0 <= page.imagelength - h < page.tilelength
            )
            if exact or padded:
                found.append(page)
                tiled.remove(page)
                break
        else:
            raise UnfitError(f"no page of its level of {w}x{h} px is tiled")
    return found


def _level(page: tifffile.TiffPage, *, jpeg_only: bool = True) -> TiffLevel:
    is_jpeg = page.compression == _JPEG
    if not page.is_tiled or (jpeg_only and not is_jpeg):
        name = getattr(page.compression, "name", page.compression)
        raise UnfitError(f"it is compressed as {name}, not as tiles of JPEG")
    if (page.samplesperpixel, page.bitspersample) != (3, 8) or page.imagedepth != 1:
        raise UnfitError(f"it has {page.samplesperpixel} samples of {page.bitspersample} bits")
    if page.photometric not in _TRANSFORM or page.planarconfig != _CONTIGUOUS:
        raise UnfitError(f"its colours are stored as {page.photometric!r}")
    if "Orientation" in page.tags and page.tags["Orientation"].value != _UPRIGHT:
        raise UnfitError("it is stored turned")
    columns = -(-page.imagewidth // page.tilewidth)
    rows = -(-page.imagelength // page.tilelength)
    offsets = np.asarray(page.dataoffsets, np.int64)
    counts = np.asarray(page.databytecounts, np.int64)
    if len(offsets) != rows * columns or len(counts) != rows * columns:
        raise UnfitError(f"it has {len(offsets)} tiles where {columns}x{rows} are needed")
    if counts.max(initial=0) > _MOST_BYTES:
        raise UnfitError("it claims tiles of more bytes than any has")
    return TiffLevel(
        (page.imagewidth, page.imagelength),
        (page.tilewidth, page.tilelength),
        offsets.reshape(rows, columns),
        counts.reshape(rows, columns),
        _head(page) if is_jpeg else b"",
        decode=None if is_jpeg else _decoder(page),
    )


def _decoder(page: tifffile.TiffPage) -> Callable[[bytes], NDArray[np.uint8]]:
    def decode(stream: bytes) -> NDArray[np.uint8]:
        pixels, *_ = page.decode(stream, 0)
        if pixels is None:
            raise ValueError("no pixels")
        return np.array(pixels, np.uint8).reshape(page.tilelength, page.tilewidth, 3)

    return decode


def _head(page: tifffile.TiffPage) -> bytes:
    """Return the stream that makes a tile a JPEG whose colours decoders understand.

    TIFF says whether the colours are RGB or YCbCr, a JPEG stream may not; Adobe's marker says it
    within the stream.
    """
    transform = _TRANSFORM[page.photometric]
    tables = page.jpegtables or b""
    if not tables and transform == 1:
        return b""
    marker = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + bytes([transform])
    return _SOI + marker + tables[after_application_markers(tables) : -2]


def after_application_markers(stream: bytes | memoryview) -> int:
    """Return where a JPEG stream goes on after its start and its application markers."""
    at = 2
    while len(stream) > at + 4 and stream[at] == 0xFF and 0xE0 <= stream[at + 1] <= 0xEF:
        at += 2 + (stream[at + 2] << 8 | stream[at + 3])
    return at


def _check_overlaps(info: SlideInfo, page: tifffile.TiffPage) -> None:
    overlaps = re.search(r"OverlapsXY=([ \d]*)", page.description or "")
    if info.vendor == "trestle" and overlaps and any(int(n) for n in overlaps[1].split()):
        raise UnfitError("its tiles overlap")
