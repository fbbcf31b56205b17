"""What happens to a tile's pixels between the slide and the encoder, the same for all of a slide.

Read, then sRGB (quality is judged here), then stain normalisation, then the encoder.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi.errors import StainFitError
from wsi.slides import Slide
from wsi.slides.profile import ToSrgb
from wsi.specs import PixelsSpec
from wsi.stain import Normaliser, StainPlan, plan_stain
from wsi.tiling import TileGrid
from wsi.tissue import TissueMask

_SAMPLE_TILES = 48
_PIXELS_PER_TILE = 4096


@dataclass(frozen=True)
class PixelPlan:
    """The steps that all slides of a recipe go through.

    Attributes:
        spec: the settings.
        stain: the stain normalisation, ready to be fitted.
    """

    spec: PixelsSpec = field(default_factory=PixelsSpec)
    stain: StainPlan | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """Return those settings, as JSON, that are not the defaults."""
        plain = {"half_dct": self.spec.half_dct, "srgb": self.spec.srgb}
        chosen: dict[str, Any] = {name: value for name, value in plain.items() if value}
        return chosen | ({"stain": self.stain.settings} if self.stain else {})

    @property
    def changes_colour(self) -> bool:
        """Return whether tiles may look other than on the slide."""
        return self.spec.srgb or self.stain is not None


@dataclass(frozen=True)
class PixelSteps:
    """The steps fitted to one slide; pure functions of the pixels.

    Attributes:
        srgb: conversion by the slide's profile, or None.
        normaliser: stain normalisation, or None.
        record: what was found on the slide: `colour`, the state of its profile; `stain`, the
            fitted figures.
    """

    srgb: ToSrgb | None = None
    normaliser: Normaliser | None = None
    record: dict[str, Any] = field(default_factory=dict)

    def to_srgb(self, tiles: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return tiles (k, h, w, 3) as the first step leaves them: what was scanned, in sRGB."""
        return self.srgb.apply(tiles) if self.srgb else tiles

    def normalise(self, tiles: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return tiles (k, h, w, 3), already in sRGB, with their stains normalised."""
        return self.normaliser.apply(tiles) if self.normaliser else tiles

    def apply(self, tiles: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return tiles (k, h, w, 3) as the encoder sees them."""
        return self.normalise(self.to_srgb(tiles))


def plan_pixels(spec: PixelsSpec) -> PixelPlan:
    """Return the steps that `spec` asks for.

    Raises:
        UnknownNameError: there is no stain normalisation of that name.
        ConfigError: one of its settings is wrong, or its target picture cannot be used.
    """
    return PixelPlan(spec, plan_stain(spec.stain, srgb=spec.srgb) if spec.stain else None)


def fit_pixels(slide: Slide, tissue: TissueMask, grid: TileGrid, plan: PixelPlan) -> PixelSteps:
    """Return the steps fitted to a slide; without tiles nothing needs to be fitted.

    Stains are estimated on tissue pixels of some tiles, as large as the encoder sees them: at low
    power stains mix. Which tiles and pixels is drawn from the slide's fingerprint.

    Raises:
        StainFitError: the slide has too little stained tissue, or it does not show two stains.
    """
    srgb = ToSrgb(slide.icc_profile) if plan.spec.srgb else None
    record: dict[str, Any] = {"colour": srgb.state} if srgb else {}
    if plan.stain is None or not len(grid):
        return PixelSteps(srgb, None, record)
    pixels, tiles = _tissue_pixels(slide, tissue, grid, srgb)
    try:
        normaliser, found = plan.stain.fit(pixels)
    except StainFitError as error:
        raise StainFitError(
            f"{slide.info.path.name}: {error} ({tiles} of {len(grid)} tiles looked at) — check its "
            "overlay for what was taken as tissue, take it off the list, or run it without "
            "pixels.stain"
        ) from error
    return PixelSteps(srgb, normaliser, record | {"stain": {"tiles": tiles, **found}})


def _tissue_pixels(
    slide: Slide, tissue: TissueMask, grid: TileGrid, srgb: ToSrgb | None
) -> tuple[NDArray[np.uint8], int]:
    """Return tissue pixels (N, 3) of a bounded sample of tiles, and how many tiles that were.

    Tiles that cannot be read are passed over here: what they are worth is decided when embedding.
    """
    rng = _generator(slide.info.fingerprint)
    rows = np.sort(rng.choice(len(grid), min(len(grid), _SAMPLE_TILES), replace=False))
    parts = []
    corners = [(int(x), int(y)) for x, y in grid.xy0[rows]]
    tiles = slide.read_tiles(corners, grid.tile_px, grid.mpp)
    for corner, tile in zip(corners, tiles, strict=True):
        if isinstance(tile, np.ndarray):
            inside = tissue.under(corner, grid.size0, (grid.tile_px, grid.tile_px))
            pixels = (srgb.apply(tile) if srgb else tile)[inside]
            if len(pixels) > _PIXELS_PER_TILE:
                pixels = pixels[rng.choice(len(pixels), _PIXELS_PER_TILE, replace=False)]
            parts.append(pixels)
    return np.concatenate(parts) if parts else np.empty((0, 3), np.uint8), len(parts)


def _generator(fingerprint: str) -> np.random.Generator:
    seed = int.from_bytes(hashlib.sha256(fingerprint.encode()).digest()[:8], "big")
    return np.random.default_rng(seed)
