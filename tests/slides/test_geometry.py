"""Field of view and position of tiles, told by slides whose colour encodes position."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import curve_fit

from wsi.errors import NeedsUpsamplingError
from wsi.slides import Slide, open_slide
from wsi.slides.dress import Dress, Rounding, level_sizes, write_slide
from wsi.slides.synthetic import PERIOD0, RAMP0, position_level, position_pyramid

SIZE0 = (3071, 2303)  # odd, so that floor and ceil differ at every level
TILE_PX = 224


def _extent(
    tile: np.ndarray, guess: tuple[float, float]
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return position and size (x, y) of a tile in level-0 px, read off its colours.

    Independent of the reader: the position code is fitted by least squares to mean red over
    columns and mean green over rows, starting from the best of all positions on the slide.
    """
    found = [_fit(tile[..., k].astype(float).mean(axis=k), guess[k]) for k in (0, 1)]
    return (found[0][0], found[1][0]), (found[0][1], found[1][1])


def _fit(profile: np.ndarray, size: float) -> tuple[float, float]:
    n = len(profile)
    k = np.arange(n) + 0.5

    def code(k: np.ndarray, start: float, size: float, gain: float = 1) -> np.ndarray:
        x = start + k * size / n
        wave = 60 * np.sin(2 * np.pi * x / PERIOD0)
        return 128 + 50 * (2 * x / RAMP0 - 1) + gain * wave

    starts = np.arange(-200, RAMP0, 8)
    errors = [np.square(code(k, start, size) - profile).sum() for start in starts]
    best = starts[int(np.argmin(errors))]
    (start, size, _), _ = curve_fit(code, k, profile, p0=[best, size, 1])
    return float(start), float(size)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("position")


def _slide(folder: Path, rounding: Rounding, mpp: float, factor: float = 2.0) -> Slide:
    path = folder / f"{rounding}-{factor}-{mpp}.tif"
    if not path.exists():
        pixels = folder / f"{rounding}-{factor}.npz"
        if not pixels.exists():
            sizes = level_sizes(SIZE0, 3 if factor > 2 else 4, factor, rounding)
            np.savez(pixels, *position_pyramid(SIZE0, sizes))
        with np.load(pixels) as levels:
            write_slide(path, [levels[k] for k in levels.files], mpp=mpp, lossless=True)
    return open_slide(path)


@pytest.mark.parametrize("target", [0.25, 0.5, 1.0])
@pytest.mark.parametrize("mpp", [0.2265, 0.243, 0.5])
@pytest.mark.parametrize("rounding", ["floor", "ceil"])
def test_tiles_cover_the_field_asked_for(
    folder: Path, rounding: Rounding, mpp: float, target: float
) -> None:
    slide = _slide(folder, rounding, mpp)
    if mpp > target * 1.05:
        with pytest.raises(NeedsUpsamplingError):
            slide.read_at((0, 0), (TILE_PX, TILE_PX), target)
    wanted = TILE_PX * target / mpp
    corners = [(0, 0), (1001, 503), (SIZE0[0] - int(wanted) - 1, SIZE0[1] - int(wanted) - 1)]
    for x, y in corners:
        tile = slide.read_at((x, y), (TILE_PX, TILE_PX), target, max_upsampling=2.1)
        position, size = _extent(tile, (wanted, wanted))
        assert np.abs(np.subtract(size, wanted)).max() < 1
        assert np.abs(np.subtract(position, (x, y))).max() < 0.5


def test_a_factor_that_is_no_integer_keeps_its_place(folder: Path) -> None:
    slide = _slide(folder, "floor", 0.25, factor=3.2)
    tile = slide.read_at((1500, 1000), (TILE_PX, TILE_PX), 1.0)
    position, size = _extent(tile, (896, 896))
    assert np.abs(np.subtract(size, 896)).max() < 1
    assert np.abs(np.subtract(position, (1500, 1000))).max() < 0.5


@pytest.mark.parametrize("rounding", ["floor", "ceil"])
@pytest.mark.parametrize("dress", ["aperio", "trestle"])
def test_vendors_keep_field_and_place(tmp_path: Path, dress: Dress, rounding: Rounding) -> None:
    levels = position_pyramid(SIZE0, level_sizes(SIZE0, 4, 2.0, rounding))
    _check_place(tmp_path / "x.svs", levels, dress)


@pytest.mark.parametrize("rounding", ["floor", "ceil"])
def test_philips_levels_have_the_scale_their_header_states(
    tmp_path: Path, rounding: Rounding
) -> None:
    # Philips states the spacing of every level; what does not divide is dropped or padded.
    sizes = level_sizes(SIZE0, 4, 2.0, rounding)
    levels = [position_level(size, (2.0**k, 2.0**k)) for k, size in enumerate(sizes)]
    _check_place(tmp_path / "x.tif", levels, "philips")


def _check_place(path: Path, levels: list[np.ndarray], dress: Dress) -> None:
    write_slide(path, levels, mpp=0.25, dress=dress, quality=95)
    with open_slide(path, mpp=0.25) as slide:
        for target, corner in [(0.5, (2600, 1800)), (1.0, (2100, 1300)), (2.0, (1200, 450))]:
            wanted = TILE_PX * target / 0.25
            tile = slide.read_at(corner, (TILE_PX, TILE_PX), target)
            position, size = _extent(tile, (wanted, wanted))
            assert np.abs(np.subtract(size, wanted)).max() < 1
            assert np.abs(np.subtract(position, corner)).max() < 0.5


def test_resampling_does_not_alias(tmp_path: Path) -> None:
    checker = position_level((1024, 1024), (1, 1), checker=True)
    write_slide(tmp_path / "c.tif", [checker], mpp=0.25, lossless=True)
    slide = open_slide(tmp_path / "c.tif")
    for mpp in (0.5, 0.61, 1.0, 1.37):
        blue = slide.read_at((100.3, 60.7), (128, 128), mpp)[..., 2].astype(float)
        # The checkerboard swings by 255; what is left of it is an alias.
        assert blue.std() < 255 / 2 * (0.25 / mpp) ** 1, mpp
        assert abs(blue.mean() - 127.5) < 1.5


def test_each_axis_has_its_own_scale(tmp_path: Path) -> None:
    size0 = (3001, 2000)  # level 1 is 1500 x 1000: ratios 2.00067 and 2
    levels = position_pyramid(size0, [size0, (1500, 1000)])
    write_slide(tmp_path / "a.tif", levels, mpp=0.25, lossless=True)
    slide = open_slide(tmp_path / "a.tif")
    assert slide.info.downsamples[1] == pytest.approx((3001 / 1500, 2.0))
    tile = slide.read_at((2400, 1400), (128, 128), 1.0)
    position, size = _extent(tile, (512, 512))
    assert np.abs(np.subtract(position, (2400, 1400))).max() < 0.5
    assert np.abs(np.subtract(size, 512)).max() < 1


def test_tiles_outside_the_slide_are_background(folder: Path) -> None:
    slide = _slide(folder, "floor", 0.243)
    tile = slide.read_at((-5000, -5000), (64, 64), 0.5)
    assert (tile == 255).all()


def test_read_returns_the_pixels_of_a_level(folder: Path) -> None:
    slide = _slide(folder, "floor", 0.243)
    with np.load(folder / "floor-2.0.npz") as levels:
        level0, level1 = levels["arr_0"], levels["arr_1"]
    assert (slide.read((1000, 500), 0, (300, 200)) == level0[500:700, 1000:1300]).all()
    whole = slide.read((0, 0), 1, slide.info.level_sizes[1])
    assert (whole == level1).all()
