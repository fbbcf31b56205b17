"""Finding tissue: thumbnail, method by name, physical clean-up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from wsi.registry import Registry
from wsi.slides import Slide, Thumbnail
from wsi.specs import TissueSpec
from wsi.tissue.mask import TissueMask

METHODS = Registry("tissue method", {"od_otsu": "wsi.tissue.threshold:od_otsu"}, group="wsi.tissue")

_EDGE_WITHOUT_MPP = 1024  # thumbnail pixels along the longer edge when um are unknown
_CLOSING_UM = 40.0
_BLACK = 12


@dataclass(frozen=True)
class Found:
    """What a method returns: candidate pixels, and flags for the user."""

    mask: NDArray[np.bool_]
    flags: tuple[str, ...] = ()


Method = Callable[..., Found]


def find_tissue(slide: Slide, spec: TissueSpec) -> tuple[TissueMask, Thumbnail]:
    """Return the tissue mask of a slide and the thumbnail it was made on.

    The method sees only pixels that hold data: transparent and black padding is masked out before
    any threshold is computed. Pieces below `min_area_mm2` are dropped and holes below
    `min_hole_mm2` filled; without a resolution, areas are taken at `spec.mpp` um per pixel.

    Raises:
        ConfigError: the method has no such parameter.
        RegionError: the thumbnail cannot be decoded.
    """
    params = METHODS.check(spec.method.name, spec.method.params)
    thumbnail = slide.thumbnail(_downsample(slide, spec))
    valid = thumbnail.valid & (thumbnail.pixels.max(axis=2) > _BLACK)
    method: Method = METHODS.load(spec.method.name)
    found = method(thumbnail.pixels, valid, **params)
    mpp = slide.info.mpp or (spec.mpp / thumbnail.scale[0], spec.mpp / thumbnail.scale[1])
    um = mpp[0] * thumbnail.scale[0], mpp[1] * thumbnail.scale[1]
    mask = _cleaned(found.mask & valid, valid, um, spec)
    flags = found.flags if mask.any() else (*found.flags, "empty")
    return (
        TissueMask(mask, thumbnail.scale, thumbnail.origin0, spec.method.name, params, flags),
        thumbnail,
    )


def _downsample(slide: Slide, spec: TissueSpec) -> float:
    info = slide.info
    if info.mpp is None:
        return max(1.0, max(info.bounds0[2:]) / _EDGE_WITHOUT_MPP)
    return max(1.0, spec.mpp / max(info.mpp))


def _cleaned(
    mask: NDArray[np.bool_], valid: NDArray[np.bool_], um: tuple[float, float], spec: TissueSpec
) -> NDArray[np.bool_]:
    size = tuple(1 + 2 * round(_CLOSING_UM / 2 / u) for u in um)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size[0], size[1]))
    closed = np.asarray(cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_CLOSE, kernel))
    mm2 = um[0] * um[1] / 1e6
    closed = ~_without_small(~closed.astype(bool), spec.min_hole_mm2 / mm2, keep_border=True)
    return _without_small(closed & valid, spec.min_area_mm2 / mm2, keep_border=False)


def _without_small(
    mask: NDArray[np.bool_], min_px: float, *, keep_border: bool
) -> NDArray[np.bool_]:
    """Return `mask` without components under `min_px` pixels."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    keep = stats[:, cv2.CC_STAT_AREA] >= min_px
    if keep_border:  # what reaches the edge of the picture is background, not a hole
        H, W = mask.shape
        left, top = stats[:, cv2.CC_STAT_LEFT], stats[:, cv2.CC_STAT_TOP]
        right, bottom = left + stats[:, cv2.CC_STAT_WIDTH], top + stats[:, cv2.CC_STAT_HEIGHT]
        keep |= (left == 0) | (top == 0) | (right == W) | (bottom == H)
    keep[0] = False
    return keep[np.asarray(labels, np.int32)]
