"""Synthetic slides: H&E-like tissue with planted lesions, and position-encoded pyramids.

The tissue is drawn at 0.5 um/px from random fields: eosin fibres, haematoxylin nuclei, two
stains mixed in optical density, then scaled to the site's resolution. Lesions differ from normal
tissue in the size and arrangement of nuclei, while the area that nuclei cover, and so the mean
colour, is the same everywhere. Lymphoid aggregates, which are no lesion, occur on every slide.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from shapely.geometry import Polygon

from wsi.geojson import Shape, write_geojson
from wsi.slides.dress import Dress, pyramid, write_slide

CLASSES = ("normal", "large-cell", "small-cell")
"""Class names of synthetic slides: no lesion, or a lesion of large or of small nuclei."""

DRAWN_MPP = 0.5
_LEVEL_MULTIPLE = 16  # of two reductions by 4
RAMP0 = 4096.0
PERIOD0 = 128.0
"""Level-0 pixels over which the position code rises once, and of one wave."""
Field = NDArray[np.float32]


@dataclass(frozen=True)
class Site:
    """A scanner and its stain: what makes sites differ.

    Attributes:
        mpp: um per level-0 pixel.
        hematoxylin, eosin: optical density (R, G, B) of full stain.
        strength: mean amount of each stain (haematoxylin, eosin).
    """

    name: str
    mpp: float
    dress: Dress
    hematoxylin: tuple[float, float, float]
    eosin: tuple[float, float, float]
    strength: tuple[float, float]


SITES = (
    Site("a", 0.2265, "philips", (0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (1.0, 0.55)),
    Site("b", 0.243, "generic", (0.60, 0.76, 0.35), (0.15, 0.90, 0.22), (1.15, 0.45)),
    Site("c", 0.25, "aperio", (0.70, 0.62, 0.34), (0.05, 0.85, 0.08), (0.9, 0.65)),
)


@dataclass(frozen=True)
class Tissue:
    """What is drawn: edge lengths, and how far lesions differ from normal tissue.

    Attributes:
        size_um: slide extent (w, h).
        coverage: share of the area that nuclei cover, the same in every kind of tissue.
        radius_um: mean nuclear radius by kind; a slide draws its own around it.
        radius_spread: relative sd of that mean from slide to slide; classes overlap by it.
        lesion_share: (lowest, highest) share of the tissue area that a lesion takes.
    """

    size_um: tuple[int, int] = (1536, 1152)
    coverage: float = 0.16
    radius_um: dict[str, float] = field(
        default_factory=lambda: {
            "normal": 3.6,
            "large-cell": 6.4,
            "small-cell": 2.1,
            "lymphoid": 2.9,
        }
    )
    radius_spread: float = 0.08
    lesion_share: tuple[float, float] = (0.09, 0.118)


@dataclass(frozen=True)
class Drawing:
    """A slide before it is written: RGB at 0.5 um/px, its tissue and its lesions."""

    pixels: NDArray[np.uint8]
    tissue: NDArray[np.bool_]
    lesions: tuple[Polygon, ...]


def draw(label: str, site: Site, seed: int, tissue: Tissue | None = None) -> Drawing:
    """Return a slide of class `label` as site `site` would scan it; the same for the same seed.

    Lesion outlines are in pixels of the drawing.
    """
    spec = tissue or Tissue()
    rng = np.random.default_rng([seed, 20260])
    w, h = (round(edge / DRAWN_MPP) for edge in spec.size_um)
    present = _fragments(rng, (w, h))
    lesion, outlines = _lesion(rng, present, spec, label)
    lymphoid = _patch(rng, present & ~lesion, 0.05 * present.sum())
    kinds = {"normal": present & ~lesion & ~lymphoid, "lymphoid": lymphoid}
    if label != "normal":
        kinds[label] = lesion
    nuclei = np.zeros((h, w), np.float32)
    for kind, region in kinds.items():
        radius = spec.radius_um[kind] * (1 + spec.radius_spread * rng.standard_normal())
        _stamp_nuclei(rng, nuclei, region, radius, spec.coverage)
    fibres = _fibres(rng, (w, h)) * present
    return Drawing(_stained(rng, nuclei, fibres, site), present, outlines)


def write_synthetic(
    path: Path, label: str, site: Site, seed: int, tissue: Tissue | None = None
) -> Drawing:
    """Write a synthetic slide to `path` and its lesions to `<stem>.geojson` beside it."""
    drawing = draw(label, site, seed, tissue)
    h, w = drawing.pixels.shape[:2]
    scale = DRAWN_MPP / site.mpp
    size0 = round(w * scale), round(h * scale)
    level0 = np.asarray(cv2.resize(drawing.pixels, size0, interpolation=cv2.INTER_CUBIC), np.uint8)
    level0 = _padded(level0, _LEVEL_MULTIPLE)
    write_slide(path, pyramid(level0, 3, 4.0), mpp=site.mpp, dress=site.dress)
    factor = size0[0] / w, size0[1] / h
    shapes = [
        Shape(Polygon([(x * factor[0], y * factor[1]) for x, y in outline.exterior.coords]), label)
        for outline in drawing.lesions
    ]
    write_geojson(path.with_suffix(".geojson"), shapes)
    return drawing


def _padded(level0: NDArray[np.uint8], multiple: int) -> NDArray[np.uint8]:
    """Return the picture with more glass on the right and below, to whole multiples.

    Every level then has exactly the scale its header states.
    """
    down, right = (-edge % multiple for edge in level0.shape[:2])
    padded = cv2.copyMakeBorder(level0, 0, down, 0, right, cv2.BORDER_REPLICATE)
    return np.asarray(padded, np.uint8)


def _smooth(rng: np.random.Generator, size: tuple[int, int], scale_px: float) -> Field:
    """Return a random field (h, w) of zero mean and unit sd, varying over `scale_px`."""
    shrink = max(1.0, scale_px / 4)
    small = max(8, round(size[0] / shrink)), max(8, round(size[1] / shrink))
    noise = rng.standard_normal((small[1], small[0]), dtype=np.float32)
    noise = cv2.GaussianBlur(noise, (0, 0), 4, borderType=cv2.BORDER_REFLECT)
    noise = (noise - noise.mean()) / noise.std()
    return np.asarray(cv2.resize(noise, size, interpolation=cv2.INTER_CUBIC), np.float32)


def _fragments(rng: np.random.Generator, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Return one or two lobed pieces of tissue with a free margin."""
    w, h = size
    y, x = np.mgrid[0:h, 0:w].astype(np.float32)
    wobble = _smooth(rng, size, min(size) / 5) * 0.12
    present = np.zeros((h, w), bool)
    n = int(rng.integers(1, 3))
    for k in range(n):
        centre = w * (k + 0.5) / n + rng.normal(0, 0.02 * w), h * rng.uniform(0.45, 0.55)
        axes = w * rng.uniform(0.32, 0.38) / n, h * rng.uniform(0.32, 0.38)
        distance = np.hypot((x - centre[0]) / axes[0], (y - centre[1]) / axes[1])
        present |= distance + wobble < 1
    margin = round(0.04 * min(size))
    frame = np.zeros_like(present)
    frame[margin:-margin, margin:-margin] = True
    return present & frame


def _patch(rng: np.random.Generator, allowed: NDArray[np.bool_], area: float) -> NDArray[np.bool_]:
    """Return a lobed region of about `area` pixels around a random allowed point."""
    h, w = allowed.shape
    inner = cv2.erode(allowed.astype(np.uint8), np.ones((9, 9), np.uint8), iterations=6)
    rows, columns = np.nonzero(inner if inner.any() else allowed)
    k = int(rng.integers(len(rows)))
    y, x = np.mgrid[0:h, 0:w].astype(np.float32)
    distance = np.hypot(x - columns[k], y - rows[k]) / np.sqrt(area / np.pi)
    distance += _smooth(rng, (w, h), max(8.0, np.sqrt(area) / 2)) * 0.15
    inside = np.where(allowed, distance, np.inf)
    limit = np.partition(inside.ravel(), int(area))[int(area)]
    region = (inside <= limit).astype(np.uint8)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(region)
    if count < 2:
        return region.astype(bool)
    return labels == 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))


def _lesion(
    rng: np.random.Generator, present: NDArray[np.bool_], spec: Tissue, label: str
) -> tuple[NDArray[np.bool_], tuple[Polygon, ...]]:
    if label == "normal":
        return np.zeros_like(present), ()
    region = _patch(rng, present, rng.uniform(*spec.lesion_share) * present.sum())
    contours, _ = cv2.findContours(
        region.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE
    )
    polygons = (Polygon(c[:, 0, :] + 0.5).buffer(0) for c in contours if len(c) >= 3)
    return region, tuple(p for p in polygons if isinstance(p, Polygon) and p.area > 1)


def _stamp_nuclei(
    rng: np.random.Generator,
    nuclei: Field,
    region: NDArray[np.bool_],
    radius_um: float,
    coverage: float,
) -> None:
    """Add nuclei to `nuclei` until they cover `coverage` of `region`."""
    area = int(region.sum())
    if not area:
        return
    radius = radius_um / DRAWN_MPP
    n = int(-np.log(1 - coverage) * area / (np.pi * radius**2))  # overlap of random discs
    rows, columns = np.nonzero(region)
    chosen = rng.integers(len(rows), size=n)
    elongation = rng.uniform(1.0, 1.5, n)
    size = radius * np.exp(rng.normal(0, 0.12, n)) * np.exp(-(0.12**2))
    angle = rng.uniform(0, 180, n)
    depth = rng.uniform(0.75, 1.0, n)
    for k in range(n):
        centre = int(columns[chosen[k]] * 16), int(rows[chosen[k]] * 16)
        axes = int(16 * size[k] * elongation[k] ** 0.5), int(16 * size[k] / elongation[k] ** 0.5)
        cv2.ellipse(nuclei, centre, axes, angle[k], 0, 360, float(depth[k]), -1, cv2.LINE_AA, 4)


def _fibres(rng: np.random.Generator, size: tuple[int, int]) -> Field:
    """Return eosin density (h, w): wavy fibres whose direction drifts over the tissue."""
    phase = _smooth(rng, size, 220) * 5 + _smooth(rng, size, 40) * 1.2
    grain = _smooth(rng, size, 5) * 0.12
    return np.clip(0.75 + 0.18 * np.sin(phase * 6) + grain, 0.2, 1.4).astype(np.float32)


def _stained(
    rng: np.random.Generator, nuclei: Field, fibres: Field, site: Site
) -> NDArray[np.uint8]:
    """Return RGB from stain densities by Beer-Lambert, with the slide's own stain strength."""
    strength = np.asarray(site.strength) * np.exp(rng.normal(0, 0.10, 2))
    chromatin = cv2.GaussianBlur(nuclei, (0, 0), 0.8)
    chromatin = chromatin * (1 + 0.15 * _smooth(rng, nuclei.shape[::-1], 3))
    density = (
        (chromatin * strength[0])[..., None] * np.asarray(site.hematoxylin, np.float32)
        + (fibres * strength[1])[..., None] * np.asarray(site.eosin, np.float32)
        + 0.02
    )
    noise = rng.standard_normal((*nuclei.shape, 1), dtype=np.float32) * 2.0
    return np.clip(np.rint(245 * np.exp(-density) + noise), 0, 255).astype(np.uint8)


def position_level(
    size: tuple[int, int],
    downsample: tuple[float, float],
    *,
    checker: bool = False,
) -> NDArray[np.uint8]:
    """Return one level (h, w, 3) whose colour tells the level-0 position of every pixel.

    At level-0 position x, red is 128 + 50 * (2x/RAMP0 - 1) + 60 * sin(2 pi x / PERIOD0), and so is
    green along y: the slope tells roughly where a tile lies, the phase of the wave tells it to
    1/100 of a pixel whatever rounding does to the grey values. Blue is constant, or a checkerboard
    of single level pixels whose visibility after resampling measures aliasing.
    """
    w, h = size
    level = np.empty((h, w, 3), np.uint8)
    level[..., 0] = _grey(_position_code((np.arange(w) + 0.5) * downsample[0]))[None, :]
    level[..., 1] = _grey(_position_code((np.arange(h) + 0.5) * downsample[1]))[:, None]
    odd = (np.arange(w)[None, :] + np.arange(h)[:, None]) % 2
    level[..., 2] = 255 * odd if checker else 128
    return level


def position_pyramid(
    size0: tuple[int, int], sizes: Sequence[tuple[int, int]]
) -> list[NDArray[np.uint8]]:
    """Return levels of the given sizes, each covering the whole of level 0 on each axis."""
    return [position_level(s, (size0[0] / s[0], size0[1] / s[1])) for s in sizes]


def _grey(code: NDArray[np.floating]) -> NDArray[np.uint8]:
    return np.rint(code).clip(0, 255).astype(np.uint8)


def _position_code(x: NDArray[np.floating]) -> NDArray[np.floating]:
    return 128 + 50 * (2 * x / RAMP0 - 1) + 60 * np.sin(2 * np.pi * x / PERIOD0)
