"""`texture-v1`: features of stain and texture that need no weights.

Baseline features, not a foundation model. Made for tiles of 256 px at 0.5 um per pixel: the
filters start at 1 um per pixel, where nuclei are discs of 4 to 12 pixels.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from wsi.encoders.base import Encoder
from wsi.encoders.catalog import CATALOG
from wsi.encoders.filters import (
    autocorrelation,
    blur,
    correlation,
    gabor_bank,
    gabor_energy,
    halve,
    lost_detail,
    moments,
    peak_strength,
    quantiles,
)
from wsi.files import sha256_json

VERSION = 1

# Optical densities of haematoxylin and eosin (Ruifrok and Johnston 2001). What neither explains,
# at right angles to both, is the third.
_HAEMATOXYLIN = (0.650, 0.704, 0.286)
_EOSIN = (0.072, 0.990, 0.105)
_RGB_QUANTILES = (0.1, 0.5, 0.9)
_STAIN_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_LAGS_PX = (1, 2, 4, 8)
# Each blur takes the image from one scale to the next, 1.6 times as wide: 1.5, 2.4, 3.84 and
# 6.14 um. The difference of two neighbours answers most to discs of about 5, 8 and 13 um across.
_FIRST_BLUR_PX = 1.5
_NEXT_BLURS_PX = (1.874, 2.998, 2.399)  # the last on an image halved once more
_PEAK_FLOOR = 0.02  # optical density; fainter spots are noise
_GLASS_DENSITY = (0.05, 0.15)  # all glass below, all tissue above
_CHUNK = 8  # tiles at a time on a CPU, so that they stay in its cache

# Width, centre and scale of each group of features; (value - centre) / scale is of about unit
# size on H&E. The figures are rounded from openly licensed slides and never change in a version.
_GROUPS: dict[str, tuple[int, float, float]] = {
    "rgb_mean": (3, 0.65, 0.12),
    "rgb_std": (3, 0.15, 0.06),
    "rgb_skewness": (3, 0.0, 0.85),
    "rgb_quantiles": (9, 0.64, 0.2),
    "stain_mean": (3, 0.19, 0.08),
    "stain_std": (3, 0.11, 0.06),
    "stain_skewness": (3, 0.6, 1.0),
    "stain_quantiles": (15, 0.19, 0.12),
    "stain_correlation": (1, 0.65, 0.25),
    "glass": (1, 0.12, 0.2),
    "detail": (8, 0.054, 0.033),
    "patchiness": (2, 0.07, 0.055),
    "autocorrelation": (8, 0.46, 0.25),
    "gabor_fine": (8, 0.027, 0.014),
    "gabor_middle": (8, 0.028, 0.015),
    "gabor_coarse": (8, 0.024, 0.0135),
    "nuclei_std": (3, 0.024, 0.0155),
    "nuclei_tail": (3, 0.036, 0.027),
    "nuclei_density": (3, 5.0, 3.0),
    "nuclei_strength": (3, 0.06, 0.036),
}
FEATURE_NAMES = tuple(
    f"{name}_{k}" for name, (width, _, _) in _GROUPS.items() for k in range(width)
)


class TextureEncoder(Encoder):
    """Moments and quantiles of colour and stain, Gabor energies, nucleus-sized spots.

    Energies are sorted over orientation, so a tile turned by 90 degrees keeps its features.
    """

    min_tile_px = 32

    def __init__(self, device: str = "cpu") -> None:
        self.info = CATALOG["texture-v1"].info
        self.fingerprint = sha256_json(
            {"name": self.info.name, "version": VERSION, "groups": _GROUPS, "dim": self.info.dim}
        )
        self._device = torch.device(device)
        self._unmix = _unmixing().to(self._device)
        self._bank = gabor_bank().to(self._device)
        table = [row for width, *row in _GROUPS.values() for _ in range(width)]
        self._centre, self._scale = torch.tensor(table, device=self._device).unbind(1)

    def _embed(self, tiles: Tensor) -> Tensor:
        size = _CHUNK if self._device.type == "cpu" else 256
        return torch.cat([self._features(part.to(self._device)) for part in tiles.split(size)])

    def _features(self, tiles: Tensor) -> Tensor:
        groups = self._groups(tiles.permute(0, 3, 1, 2).float())
        raw = torch.cat([groups[name].flatten(1) for name in _GROUPS], dim=1)
        return (raw - self._centre) / self._scale

    def _groups(self, pixels: Tensor) -> dict[str, Tensor]:
        """Return each group's raw features (B, ...) of `pixels` (B, 3, h, w) in [0, 255]."""
        stains = self.stains(pixels)
        half = halve(stains)
        return {
            **_colour(halve(pixels) / 255, half),
            **self._texture(stains[:, :2], half[:, :2]),
            **_nuclei(half[:, :1]),
        }

    def stains(self, pixels: Tensor) -> Tensor:
        """Return densities of haematoxylin, eosin and the rest (B, 3, h, w), log10 units.

        Source: Ruifrok and Johnston 2001, colour deconvolution.
        """
        density = -torch.log10((pixels + 1) / 256)
        return (self._unmix @ density.flatten(2)).view_as(density)

    def _texture(self, stains: Tensor, half: Tensor) -> dict[str, Tensor]:
        quarter = halve(half)
        eighth = halve(quarter)
        levels = [stains, half, quarter, eighth, halve(eighth)]
        detail = [lost_detail(a, b) for a, b in itertools.pairwise(levels)]
        energies = [
            gabor_energy(level, self._bank).sort(dim=-1, descending=True).values
            for level in (half, quarter, eighth)
        ]
        return {
            "detail": torch.stack(detail, dim=1),
            "patchiness": functional.avg_pool2d(eighth, 4).std(dim=(2, 3), correction=0),
            "autocorrelation": torch.stack([autocorrelation(half, k) for k in _LAGS_PX], dim=1),
            **dict(zip(("gabor_fine", "gabor_middle", "gabor_coarse"), energies, strict=True)),
        }

    def _input(self, tile_px: int) -> tuple[int, int]:
        return tile_px, tile_px

    def _details(self) -> dict[str, Any]:
        return {"version": VERSION}


def _colour(rgb: Tensor, stains: Tensor) -> dict[str, Tensor]:
    """Return statistics of half-size `rgb` in [0, 1] and `stains`, each (B, 3, h, w)."""
    low, high = _GLASS_DENSITY
    density = stains.clamp(min=0).sum(1)
    groups = {
        "stain_correlation": correlation(stains[:, :1], stains[:, 1:2]),
        "glass": ((high - density) / (high - low)).clamp(0, 1).mean(dim=(1, 2))[:, None],
    }
    for name, image, ranks in (
        ("rgb", rgb, _RGB_QUANTILES),
        ("stain", stains, _STAIN_QUANTILES),
    ):
        mean, std, skewness = moments(image.flatten(2))
        ranked = quantiles(halve(image).flatten(2), ranks)
        groups |= {f"{name}_mean": mean, f"{name}_std": std}
        groups |= {f"{name}_skewness": skewness, f"{name}_quantiles": ranked}
    return groups


def _nuclei(haematoxylin: Tensor) -> dict[str, Tensor]:
    """Return how many, how strong and how large the spots of `haematoxylin` (B, 1, h, w) are."""
    smooth = blur(haematoxylin, _FIRST_BLUR_PX)
    spreads, tails, densities, strengths = [], [], [], []
    for scale, sigma in enumerate(_NEXT_BLURS_PX):
        if scale == len(_NEXT_BLURS_PX) - 1:
            smooth = halve(smooth)
        wider = blur(smooth, sigma)
        spots = smooth - wider
        density, strength = peak_strength(spots, _PEAK_FLOOR)
        spreads.append(spots.std(dim=(1, 2, 3), correction=0))
        tails.append(spots.clamp(min=0).pow(4).mean(dim=(1, 2, 3)).pow(0.25))
        densities.append(density)
        strengths.append(strength)
        smooth = wider
    names = ("nuclei_std", "nuclei_tail", "nuclei_density", "nuclei_strength")
    figures = (spreads, tails, densities, strengths)
    return {name: torch.stack(f, dim=1) for name, f in zip(names, figures, strict=True)}


def _unmixing() -> Tensor:
    """Return the matrix (stain, channel) that turns optical densities into stain densities."""
    stains = torch.tensor([_HAEMATOXYLIN, _EOSIN], dtype=torch.float64)
    stains = torch.cat([stains, torch.linalg.cross(stains[0], stains[1])[None]])
    stains = stains / stains.norm(dim=1, keepdim=True)
    return torch.linalg.inv(stains.T).float()
