"""Finding tissue: thumbnail, method by name, physical clean-up, and what to do with nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from wsi.files import sha256_file
from wsi.registry import Registry
from wsi.slides import Slide, Thumbnail
from wsi.specs import TissueSpec
from wsi.tissue.clean import cleaned
from wsi.tissue.focus import is_blurred
from wsi.tissue.ink import by_bands
from wsi.tissue.mask import TissueMask

METHODS = Registry(
    "tissue method",
    {
        "od_otsu": "wsi.tissue.threshold:od_otsu",
        "grey_otsu": "wsi.tissue.threshold:grey_otsu",
        "saturation": "wsi.tissue.threshold:saturation",
        "torch:<network>": "wsi.tissue.segmenter:torch_network",
    },
    group="wsi.tissue",
)

_USUAL_MPP = 0.25  # of level 0, where nothing is known: most scanners'
_LEAST_EDGE = 512  # thumbnail pixels along the longer edge that such a slide has at least
_MAX_PX = 6_000_000  # 20 mm x 20 mm at 8 um/px; a larger slide is seen coarser
_BLACK = 12
_PEN_SHARE = 0.002
_GLASS = 185  # grey level that dim glass still reaches
_GLASS_NOISE = 3.0  # sd of grey levels that bare glass does not exceed
_FULL_SHARE = 0.5

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Found:
    """What a method returns.

    Attributes:
        mask: bool (h, w), candidate pixels.
        relaxed: candidates by a more lenient rule, tried when `mask` leaves no piece of tissue.
        ink: marker ink; it is never tissue.
        flags: what a user should know.
    """

    mask: Mask
    relaxed: Mask | None = None
    ink: Mask | None = None
    flags: tuple[str, ...] = ()


Method = Callable[..., Found]


def find_tissue(slide: Slide, spec: TissueSpec) -> tuple[TissueMask, Thumbnail]:
    """Return the tissue mask of a slide and the thumbnail it was made on.

    The method sees only pixels that hold data: transparent and black padding is masked out before
    any threshold is computed. Pieces below `min_area_mm2` are dropped and holes below
    `min_hole_mm2` filled; without a resolution, areas are taken at `spec.mpp` um per pixel.

    Flags: `pen` marker ink was left out; `blur` the slide is far out of focus; `coarse` the slide
    is so large that its thumbnail is coarser than `spec.mpp`; `unreadable` parts of it cannot be
    decoded and count as tissue, so that their tiles are tried; `relaxed` only lower thresholds
    found anything; `whole-bounds` nothing parted the slide, which is full of something, so all
    of it counts; `empty` there is no tissue; `provisional` the slide has no resolution, so scale
    and areas are guesses.

    Raises:
        ConfigError: the method has no such parameter.
        RegionError: the thumbnail cannot be decoded, or hardly any of it.
    """
    params = METHODS.check(spec.method.name, spec.method.params)
    downsample, flags = _downsample(slide, spec)
    thumbnail = slide.thumbnail(downsample)
    valid = thumbnail.valid & by_bands(_not_black, thumbnail.pixels)
    method: Method = METHODS.load(spec.method.name)
    found = method(thumbnail.pixels, valid, **params)
    mpp = slide.info.mpp or (spec.mpp / thumbnail.scale[0], spec.mpp / thumbnail.scale[1])
    um = mpp[0] * thumbnail.scale[0], mpp[1] * thumbnail.scale[1]
    mask, rung = _first_that_holds(found, thumbnail.pixels, valid, um, spec)
    flags += found.flags + _pen(found, valid) + rung
    if is_blurred(thumbnail.pixels, mask):
        flags += ("blur",)
    if thumbnail.unreadable is not None:
        # Nobody knows what is there: its tiles are tried, and counted when they fail.
        mask, flags = mask | thumbnail.unreadable, (*flags, "unreadable")
    return (
        TissueMask(mask, thumbnail.scale, thumbnail.origin0, spec.method.name, params, flags),
        thumbnail,
    )


def recipe_of(spec: TissueSpec) -> dict[str, Any]:
    """Return the settings that decide a mask, as JSON: a file counts by its SHA-256, not its path.

    Raises:
        ConfigError: the method has no such parameter, or a file is not there.
    """
    settings = spec.model_dump(mode="json")
    for key, value in METHODS.check(spec.method.name, spec.method.params).items():
        if isinstance(value, Path):
            stat = value.stat()
            settings["method"][key] = _sha256(value, stat.st_size, stat.st_mtime_ns)
    return settings


@lru_cache(maxsize=8)
def _sha256(path: Path, size: int, changed: int) -> str:
    # A run asks for every slide; the file is read again only when it is another one.
    return sha256_file(path)


def _downsample(slide: Slide, spec: TissueSpec) -> tuple[float, tuple[str, ...]]:
    """Return level-0 pixels per thumbnail pixel, and a flag when memory asks for coarser ones."""
    info = slide.info
    w, h = info.bounds0[2:]
    bound = math.sqrt(w * h / _MAX_PX)
    if info.mpp is None:
        guess = min(spec.mpp / _USUAL_MPP, max(w, h) / _LEAST_EDGE)
        return max(1.0, guess, bound), ("provisional",)
    asked = max(1.0, spec.mpp / max(info.mpp))
    return max(asked, bound), ("coarse",) if bound > asked else ()


def _not_black(pixels: NDArray[np.uint8]) -> Mask:
    red, green, blue = cv2.split(pixels)
    return np.asarray(cv2.max(cv2.max(red, green), blue)) > _BLACK


def _first_that_holds(
    found: Found,
    pixels: NDArray[np.uint8],
    valid: Mask,
    um: tuple[float, float],
    spec: TissueSpec,
) -> tuple[Mask, tuple[str, ...]]:
    """Return the first candidates of which a piece of tissue remains, and what to call them."""
    allowed = valid if found.ink is None else valid & ~found.ink
    mask = np.zeros_like(valid)
    for flags, candidates in _rungs(found, pixels, valid):
        mask = cleaned(
            candidates & allowed,
            allowed,
            um,
            min_area_mm2=spec.min_area_mm2,
            min_hole_mm2=spec.min_hole_mm2,
        )
        if mask.any():
            return mask, flags
    return mask, ("empty",)


def _rungs(
    found: Found, pixels: NDArray[np.uint8], valid: Mask
) -> Iterator[tuple[tuple[str, ...], Mask]]:
    yield (), found.mask
    if found.relaxed is not None:
        yield ("relaxed",), found.relaxed
    if not _is_glass(pixels, valid):
        yield ("whole-bounds",), valid


def _is_glass(pixels: NDArray[np.uint8], valid: Mask) -> bool:
    """Return whether most of a thumbnail is bright, or all of it is the same grey."""
    if not valid.any():
        return True
    grey = np.asarray(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY))[valid]
    return bool((grey < _GLASS).mean() < _FULL_SHARE or grey.std() < _GLASS_NOISE)


def _pen(found: Found, valid: Mask) -> tuple[str, ...]:
    if found.ink is None or np.count_nonzero(found.ink) <= _PEN_SHARE * np.count_nonzero(valid):
        return ()
    return ("pen",)
