"""Slides through OpenSlide: the reference reader for every vendor format it knows."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
import openslide
import tifffile

from wsi.errors import RegionError, SlideOpenError
from wsi.files import sampled_fingerprint, sha256_bytes
from wsi.slides.base import Region, Slide, SlideInfo
from wsi.slides.downsamples import true_downsamples, true_sizes
from wsi.slides.leica import scn_areas
from wsi.slides.profile import profile_name
from wsi.slides.resolution import resolve_mpp

_MAX_EDGE = 1 << 22
_OPAQUE_FROM = 128
HIDDEN_LEVELS = (
    "OME-TIFF: OpenSlide reads level 0 of its pyramid only — slides.reader=auto reads all"
)


class OpenSlideReader(Slide):
    """A slide opened by OpenSlide.

    OpenSlide latches errors: after one failed read every later read on that handle fails. So the
    handle is dropped on any error and the next read opens the file afresh.
    """

    def __init__(
        self,
        path: Path,
        slide_id: str,
        *,
        table_mpp: float | None = None,
        use_magnification: bool = False,
        assume_mpp: float | None = None,
        note: str = "",
    ) -> None:
        self._path = path
        self._handle: openslide.OpenSlide | None = None
        self._pid = os.getpid()
        handle = self._open()
        properties, profile = handle.properties, _profile(handle)
        self.level_downsamples = tuple(handle.level_downsamples)
        """OpenSlide's own figures: what it divides level-0 positions by."""
        vendor = properties.get("openslide.vendor", "unknown")
        self.scn = scn_areas(path) if vendor == "leica" else ()
        """Scans on a Leica glass; none for other vendors."""
        resolution = resolve_mpp(
            properties,
            table_mpp=table_mpp,
            use_magnification=use_magnification,
            assume_mpp=assume_mpp,
            scn_mpp=self.scn[0].mpp if self.scn else None,
        )
        sizes = handle.level_dimensions
        scales = true_downsamples(vendor, sizes, self.level_downsamples, properties)
        if self.scn:
            scales = self.scn[0].downsamples
        self.info = SlideInfo(
            slide_id=slide_id,
            path=path,
            vendor=vendor,
            size0=handle.dimensions,
            mpp=resolution.mpp,
            mpp_source=resolution.source,
            mpp_state=resolution.state,
            level_sizes=true_sizes(sizes, scales),
            downsamples=scales,
            bounds0=_bounds(properties, handle.dimensions),
            background=_background(properties),
            fingerprint=sampled_fingerprint(path),
            magnification=_magnification(properties),
            notes=resolution.notes + _ome_note(path, properties, handle.level_count),
            reader_note=note,
            icc=profile_name(profile),
            icc_sha256=sha256_bytes(profile) if profile is not None else None,
            associated=tuple(sorted(handle.associated_images)),
        )

    @property
    def properties(self) -> dict[str, str]:
        return dict(self._open().properties)

    @property
    def icc_profile(self) -> bytes | None:
        return _profile(self._open())

    def close(self) -> None:
        if self._handle is not None and self._pid == os.getpid():
            self._handle.close()
        self._handle = None

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_handle": None}

    def _open(self) -> openslide.OpenSlide:
        if self._handle is None or self._pid != os.getpid():
            try:
                self._handle = openslide.OpenSlide(self._path)
            except openslide.OpenSlideUnsupportedFormatError as error:
                raise SlideOpenError(
                    f"{self._path.name} is not a slide format that OpenSlide knows — "
                    "copy it again, convert it, or take it off the list",
                    "unsupported-format",
                ) from error
            except openslide.OpenSlideError as error:
                raise SlideOpenError(
                    f"{self._path.name} cannot be opened ({error}) — copy it again from its source"
                ) from error
            self._pid = os.getpid()
            _check_dimensions(self._path, self._handle.dimensions)
        return self._handle

    def _region(self, level: int, xy: tuple[int, int], size: tuple[int, int]) -> Region:
        location, start = self._request(level, xy, size)
        try:
            image = self._open().read_region(location, level, size)
        except openslide.OpenSlideError as error:
            self.close()
            raise RegionError(
                f"{self._path.name}: level {level}, {size[0]}x{size[1]} px at level-0 {location} "
                f"cannot be decoded ({error}) — copy the slide again from its source"
            ) from error
        rgba = np.asarray(image)
        # Between file tiles a fractional start leaves seams of partial alpha over correct colour;
        # real transparency is all or nothing.
        alpha = np.asarray(cv2.extractChannel(rgba, 3))
        if alpha.min() >= _OPAQUE_FROM:
            alpha = None
        else:
            alpha = np.where(alpha >= _OPAQUE_FROM, np.uint8(255), np.uint8(0))
        return Region(np.asarray(cv2.cvtColor(rgba, cv2.COLOR_RGBA2RGB), np.uint8), alpha, start)

    def _request(
        self, level: int, xy: tuple[int, int], size: tuple[int, int]
    ) -> tuple[tuple[int, int], tuple[float, float]]:
        """Return the level-0 position to ask for and where, in level pixels, the answer begins.

        OpenSlide takes a whole level-0 position and divides it by its mean downsample, so a region
        starts at a fraction of a level pixel; the fraction is reported, not ignored.
        """
        stated = self.level_downsamples[level]
        if self.scn:
            area = min(self.scn, key=lambda area: area.distance(level, (*xy, *size)))
            return area.request(level, xy, stated)
        location = round(xy[0] * stated), round(xy[1] * stated)
        return location, (location[0] / stated, location[1] / stated)


def _check_dimensions(path: Path, size: tuple[int, int]) -> None:
    if not all(0 < edge <= _MAX_EDGE for edge in size):
        raise SlideOpenError(
            f"{path.name} claims {size[0]}x{size[1]} pixels — copy it again from its source",
            "implausible-dimensions",
        )


def _bounds(properties: Mapping[str, str], size0: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return the scanned rectangle, cut to the slide; the whole slide when none is stated."""
    try:
        x, y, w, h = (
            int(properties[f"openslide.bounds-{k}"]) for k in ("x", "y", "width", "height")
        )
    except (KeyError, ValueError):
        return 0, 0, *size0
    x, y = max(0, x), max(0, y)
    w, h = min(w, size0[0] - x), min(h, size0[1] - y)
    return (x, y, w, h) if w > 0 and h > 0 else (0, 0, *size0)


def _background(properties: Mapping[str, str]) -> tuple[int, int, int]:
    try:
        value = int(properties.get("openslide.background-color", "FFFFFF"), 16)
    except ValueError:
        value = 0xFFFFFF
    return value >> 16 & 255, value >> 8 & 255, value & 255


def _magnification(properties: Mapping[str, str]) -> float | None:
    try:
        return float(properties["openslide.objective-power"])
    except (KeyError, ValueError):
        return None


def _profile(handle: openslide.OpenSlide) -> bytes | None:
    """Return the embedded ICC profile as it stands in the file, sound or not."""
    # Each region carries the bytes; an empty one decodes nothing. `color_profile` parses them.
    return handle.read_region((0, 0), 0, (0, 0)).info.get("icc_profile")


def _ome_note(path: Path, properties: Mapping[str, str], levels: int) -> tuple[str, ...]:
    """Return a note where an OME-TIFF has levels below its first page; OpenSlide ignores them."""
    is_ome = "openmicroscopy.org/Schemas/OME" in properties.get("tiff.ImageDescription", "")
    if not is_ome or levels > 1:
        return ()
    try:
        with tifffile.TiffFile(path) as tiff:
            hidden = len(tiff.pages.first.subifds or ())
    except (tifffile.TiffFileError, OSError, ValueError, LookupError):
        return ()
    return (HIDDEN_LEVELS,) if hidden else ()
