"""Reinhard's normalisation against CIELAB by its formula, and torchstain."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsi.errors import StainFitError
from wsi.stain import stained
from wsi.stain.reinhard import Colours, Reinhard

# By torchstain 1.4.1 (numpy) on the stained pixels of its data/target.png: mean and sd of L, a, b.
TARGET_BY_TORCHSTAIN = ((70.0816, 11.9878, -20.1200), (13.9653, 7.1832, 10.0998))
MATRIX = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)


def lab(pixels: np.ndarray) -> np.ndarray:
    """Return CIELAB (D65) of sRGB levels, by the formulas of IEC 61966-2-1 and CIE 15."""
    unit = pixels.astype(float) / 255
    linear = np.where(unit <= 0.04045, unit / 12.92, ((unit + 0.055) / 1.055) ** 2.4)
    ratio = linear @ MATRIX.T / MATRIX.sum(axis=1)
    f = np.where(ratio > 216 / 24389, np.cbrt(ratio), (24389 / 27 * ratio + 16) / 116)
    x, y, z = np.moveaxis(f, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def tissue(n: int = 20_000, seed: int = 0) -> np.ndarray:
    """Return pixels (N, 3) of several pinks and violets, well inside the gamut."""
    rng = np.random.default_rng(seed)
    return rng.normal([170, 110, 160], [18, 14, 12], (n, 3)).clip(60, 215).astype(np.uint8)


def test_the_estimate_is_mean_and_spread_in_cielab() -> None:
    pixels = tissue()
    found, expected = Reinhard().estimate(pixels), lab(pixels)
    np.testing.assert_allclose(found.mean, expected.mean(axis=0), atol=0.15)
    np.testing.assert_allclose(found.spread, expected.std(axis=0), atol=0.05)


def test_tissue_gets_mean_and_spread_of_the_target() -> None:
    target = Colours((65.0, 18.0, -12.0), (7.0, 5.0, 6.0))
    method, pixels = Reinhard(), tissue()
    result = method.normaliser(method.estimate(pixels), target).apply(pixels[None, None])
    became = lab(result[0, 0])
    np.testing.assert_allclose(became.mean(axis=0), target.mean, atol=0.3)
    np.testing.assert_allclose(became.std(axis=0), target.spread, atol=0.2)


def test_each_pixel_moves_as_the_formula_says() -> None:
    target = Colours((65.0, 18.0, -12.0), (7.0, 5.0, 6.0))
    method, pixels = Reinhard(), tissue()
    before = lab(pixels)
    moved = (before - before.mean(axis=0)) / before.std(axis=0) * target.spread + target.mean
    result = method.normaliser(method.estimate(pixels), target).apply(pixels[None, None])
    distance = np.linalg.norm(lab(result[0, 0]) - moved, axis=1)
    assert np.percentile(distance, 99) < 1.0  # levels are whole numbers


def test_the_built_in_reference_is_torchstains_target_picture(shared_data: Path) -> None:
    np.testing.assert_allclose(Reinhard.REFERENCE.mean, TARGET_BY_TORCHSTAIN[0], atol=6e-3)
    np.testing.assert_allclose(Reinhard.REFERENCE.spread, TARGET_BY_TORCHSTAIN[1], atol=6e-3)
    picture = Image.open(shared_data / "regions" / "torchstain_target.png").convert("RGB")
    found = lab(stained(np.asarray(picture).reshape(-1, 3)))
    np.testing.assert_allclose(found.mean(axis=0), Reinhard.REFERENCE.mean, atol=0.1)
    np.testing.assert_allclose(found.std(axis=0), Reinhard.REFERENCE.spread, atol=0.1)


def test_stained_pixels_become_those_of_torchstain(shared_data: Path) -> None:
    torchstain = pytest.importorskip("torchstain")
    theirs = torchstain.normalizers.ReinhardNormalizer(backend="numpy")
    source, target = (
        stained(
            np.asarray(Image.open(shared_data / "regions" / name).convert("RGB")).reshape(-1, 3)
        )
        for name in ("torchstain_source.png", "torchstain_target.png")
    )
    theirs.fit(target[:, None])
    expected = theirs.normalize(source[:, None])
    method = Reinhard()
    recolouring = method.normaliser(method.estimate(source), method.estimate(target))
    ours = recolouring.apply(source[None, :, None])[0]
    assert np.abs(ours.astype(int) - expected).max() <= 2  # they cut to whole numbers


@pytest.mark.parametrize("level", range(239, 256))
def test_glass_stays_glass(level: int) -> None:
    glass = np.full((2, 8, 8, 3), level, np.uint8)
    method = Reinhard()
    recolouring = method.normaliser(method.estimate(tissue()), method.REFERENCE)
    np.testing.assert_array_equal(recolouring.apply(glass), glass)


@pytest.mark.parametrize("level", range(0, 256, 5))
def test_tiles_of_one_colour_give_numbers(level: int) -> None:
    method = Reinhard()
    recolouring = method.normaliser(method.estimate(tissue()), method.REFERENCE)
    result = recolouring.apply(np.full((1, 4, 4, 3), level, np.uint8))
    assert result.dtype == np.uint8
    assert (result == result[0, 0, 0]).all()


def test_any_number_of_tiles_at_once_gives_the_same() -> None:
    tiles = np.random.default_rng(0).integers(0, 256, (5, 16, 24, 3), dtype=np.uint8)
    method = Reinhard()
    recolouring = method.normaliser(method.estimate(tissue()), method.REFERENCE)
    whole = recolouring.apply(tiles)
    for k in range(5):
        np.testing.assert_array_equal(recolouring.apply(tiles[k : k + 1])[0], whole[k])
    assert recolouring.apply(tiles[:0]).shape == (0, 16, 24, 3)


def test_one_colour_and_too_few_pixels_are_refused() -> None:
    with pytest.raises(StainFitError, match="of one colour"):
        Reinhard().estimate(np.full((5000, 3), (150, 80, 140), np.uint8))
    with pytest.raises(StainFitError, match="only 999 stained pixels"):
        Reinhard().estimate(tissue(999))
