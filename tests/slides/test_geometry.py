"""Field of view and position of tiles where the matrix of pyramids does not go.

Scans that lie on a larger glass, resolutions that differ in x and y, stated bounds, aliasing.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openslide
import pydicom
import pytest

from wsi.errors import NeedsUpsamplingError
from wsi.slides import open_slide
from wsi.slides.dress import Dress, Rounding, level_sizes, write_slide
from wsi.slides.openslide_reader import OpenSlideReader
from wsi.slides.synthetic import position_level, position_pyramid
from wsi.tiling import make_grid

SMALL0 = (1535, 1151)  # odd, so that floor and ceil differ at every level


OFFSETS = [(0, 0), (640, 480), (641.3, 483.7), (1003, 77)]


@pytest.mark.parametrize("factor", [2.0, 3.2])
@pytest.mark.parametrize("rounding", ["floor", "ceil"])
@pytest.mark.parametrize("offset0", OFFSETS)
def test_a_leica_scan_keeps_its_place_wherever_it_lies_on_the_glass(
    extent, tmp_path: Path, offset0: tuple[float, float], rounding: Rounding, factor: float
) -> None:
    levels = position_pyramid(SMALL0, level_sizes(SMALL0, 3, factor, rounding))
    write_slide(tmp_path / "x.scn", levels, mpp=0.25, dress="leica", lossless=True, offset0=offset0)
    with open_slide(tmp_path / "x.scn") as slide:
        x0, y0, w0, h0 = slide.info.bounds0
        assert (w0, h0) == SMALL0
        assert np.abs(np.subtract((x0, y0), offset0)).max() < 1
        for target in (0.25, 0.5, 0.8, 1.0, 1.9):
            edge = 112 * target / 0.25
            for place in [(0, 0), (333, 101), (w0 - edge, h0 - edge)]:
                tile = slide.read_at((x0 + place[0], y0 + place[1]), (112, 112), target)
                position, size = extent(tile, (edge, edge))
                assert np.abs(np.subtract(size, edge)).max() < 1
                assert np.abs(np.subtract(position, place)).max() < 0.5


def test_the_grid_begins_where_the_scan_begins(extent, tmp_path: Path) -> None:
    levels = position_pyramid(SMALL0, level_sizes(SMALL0, 3))
    write_slide(
        tmp_path / "x.scn", levels, mpp=0.25, dress="leica", lossless=True, offset0=(700, 300)
    )
    with open_slide(tmp_path / "x.scn") as slide:
        grid = make_grid(slide.info, _everywhere, tile_px=112, mpp=0.5)
        assert grid.xy0[0].tolist() == [700, 300]
        assert grid.considered == (SMALL0[0] // 224) * (SMALL0[1] // 224)
        tiles = list(slide.read_tiles(map(tuple, grid.xy0.tolist()), 112, 0.5))
    for corner, tile in zip(grid.xy0, tiles, strict=True):
        position, _ = extent(tile, (224, 224))
        assert np.abs(position - (corner - (700, 300))).max() < 0.5


def test_the_pixels_an_aperio_scanner_drops_are_no_background(tmp_path: Path) -> None:
    # Level 1 has 767 columns for 1535: nothing of it shows the last one.
    dark = np.full((1151, 1535, 3), 60, np.uint8)
    write_slide(
        tmp_path / "x.svs", [dark, dark[:575, :767]], mpp=0.25, dress="aperio", lossless=True
    )
    with open_slide(tmp_path / "x.svs") as slide:
        assert slide.info.downsamples == ((1, 1), (2, 2))
        tile = slide.read_at((1535 - 224, 1151 - 224), (112, 112), 0.5)
        # OpenSlide's own seams between file tiles are a grey value off.
        np.testing.assert_allclose(tile, 60, atol=1)
        beyond = slide.read_at((1535 - 222, 1151 - 222), (112, 112), 0.5)
        np.testing.assert_array_equal(beyond[-1, -1], 255)


@pytest.mark.parametrize("dress", ["generic", "philips", "leica", "ome"])
def test_x_and_y_each_have_their_own_resolution(extent, tmp_path: Path, dress: Dress) -> None:
    path = tmp_path / ("x.scn" if dress == "leica" else "x.tif")
    levels = position_pyramid(SMALL0, level_sizes(SMALL0, 3))
    if dress == "philips":
        levels = [position_level((1535 >> k, 1151 >> k), (2.0**k, 2.0**k)) for k in range(3)]
    write_slide(path, levels, mpp=(0.25, 0.26), dress=dress, lossless=True)
    with open_slide(path) as slide:
        assert slide.info.mpp == pytest.approx((0.25, 0.26), rel=1e-4)
        assert any("x and y differ" in note for note in slide.info.notes)
        for target in (0.25, 0.5, 1.0):
            edges = 224 * target / 0.25, 224 * target / 0.26
            corner = 1535 - edges[0], 1151 - edges[1]
            tile = slide.read_at(corner, (224, 224), target)
            position, size = extent(tile, edges)
            assert np.abs(np.subtract(size, edges)).max() < 1
            assert np.abs(np.subtract(position, corner)).max() < 0.5


def test_dicom_states_x_and_y_by_its_pixel_spacing(shared_data: Path, tmp_path: Path) -> None:
    dataset = pydicom.dcmread(shared_data / "slides" / "google_camelyon_jpeg.dcm")
    measures = dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    measures.PixelSpacing = [0.00026, 0.00025]  # mm between rows, then between columns
    dataset.save_as(tmp_path / "x.dcm")
    with open_slide(tmp_path / "x.dcm") as slide:
        assert slide.info.mpp == pytest.approx((0.25, 0.26))
        assert slide.info.size0_of((100, 100), 0.5) == pytest.approx((200, 100 * 0.5 / 0.26))


@pytest.mark.parametrize("mpp", [0.2525, 0.26])
def test_a_slide_a_little_too_coarse_is_enlarged_and_says_so(
    extent, tmp_path: Path, mpp: float
) -> None:
    write_slide(tmp_path / "x.tif", position_pyramid(SMALL0, [SMALL0]), mpp=mpp, lossless=True)
    with open_slide(tmp_path / "x.tif") as slide:
        grid = make_grid(slide.info, _everywhere, tile_px=224, mpp=0.25)
        assert (grid.upsampling, grid.level) == (pytest.approx(mpp / 0.25), 0)
        (tile,) = slide.read_tiles([(501, 702)], 224, 0.25)
        position, size = extent(tile, (224 * 0.25 / mpp,) * 2)
        assert size == pytest.approx((224 * 0.25 / mpp,) * 2, abs=1)
        assert position == pytest.approx((501, 702), abs=0.5)
        with pytest.raises(NeedsUpsamplingError, match="max_upsampling"):
            slide.read_at((0, 0), (224, 224), mpp / 1.051)


BOUNDS = [
    ((100, 80, 900, 700), (100, 80, 900, 700)),
    ((1000, 1000, 9999, 9999), (1000, 1000, 535, 151)),  # beyond the slide: cut
    ((-20, -10, 500, 400), (0, 0, 500, 400)),
    ((5000, 0, 10, 10), (0, 0, 1535, 1151)),  # nothing of it on the slide: not believed
]


@pytest.mark.parametrize(("stated", "bounds0"), BOUNDS)
def test_bounds_as_mirax_states_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stated, bounds0
) -> None:
    write_slide(tmp_path / "x.tif", position_pyramid(SMALL0, [SMALL0]), mpp=0.25, lossless=True)
    real = openslide.OpenSlide

    class Bounded(real):
        @property
        def properties(self):
            keys = [f"openslide.bounds-{key}" for key in ("x", "y", "width", "height")]
            return {**super().properties, **dict(zip(keys, map(str, stated), strict=True))}

    monkeypatch.setattr(openslide, "OpenSlide", Bounded)
    with OpenSlideReader(tmp_path / "x.tif", "x") as slide:
        assert slide.info.bounds0 == bounds0
        grid = make_grid(slide.info, _everywhere, tile_px=50, mpp=0.25)
        assert grid.xy0[0].tolist() == list(bounds0[:2])
        last = grid.xy0[-1] + 50
        assert (last <= np.add(bounds0[:2], bounds0[2:])).all()
        assert (last > np.add(bounds0[:2], bounds0[2:]) - 50).all()
        assert slide.thumbnail(1).pixels.shape[1::-1] == bounds0[2:]


def _everywhere(xy0: np.ndarray, size0: tuple[float, float]) -> np.ndarray:
    return np.ones(len(xy0), np.float32)


@pytest.mark.parametrize("levels", [1, 3])
def test_resampling_does_not_alias(tmp_path: Path, levels: int) -> None:
    checkers = [position_level((1024 >> k,) * 2, (1, 1), checker=True) for k in range(levels)]
    write_slide(tmp_path / "c.tif", checkers, mpp=0.25, lossless=True)
    slide = open_slide(tmp_path / "c.tif")
    for mpp in (0.31, 0.5, 0.61, 0.73, 1.0, 1.37):
        read = max(k for k in range(levels) if 2**k * 0.25 <= mpp)
        factor = mpp / (0.25 * 2**read)
        blue = slide.read_at((100.3, 60.7), (128, 128), mpp)[..., 2].astype(float)
        # An average over `factor` pixels of alternating sign leaves 1 / factor of the swing at
        # most, on each axis; what exceeds it is an alias. Half a grey value is rounding.
        assert np.abs(blue - 127.5).max() <= 127.5 / factor**2 + 1, mpp
        assert abs(blue.mean() - 127.5) < 1.5


def test_each_axis_has_its_own_scale(extent, tmp_path: Path) -> None:
    size0 = (3001, 2000)  # level 1 is 1500 x 1000: ratios 2.00067 and 2
    levels = position_pyramid(size0, [size0, (1500, 1000)])
    write_slide(tmp_path / "a.tif", levels, mpp=0.25, lossless=True)
    slide = open_slide(tmp_path / "a.tif")
    assert slide.info.downsamples[1] == pytest.approx((3001 / 1500, 2.0))
    tile = slide.read_at((2400, 1400), (128, 128), 1.0)
    position, size = extent(tile, (512, 512))
    assert np.abs(np.subtract(position, (2400, 1400))).max() < 0.5
    assert np.abs(np.subtract(size, 512)).max() < 1


def test_tiles_outside_the_slide_are_background(tmp_path: Path) -> None:
    write_slide(tmp_path / "x.tif", [position_level((600, 400), (1, 1))], mpp=0.25, lossless=True)
    with open_slide(tmp_path / "x.tif") as slide:
        assert (slide.read_at((-5000, -5000), (64, 64), 0.5) == 255).all()


def test_read_returns_the_pixels_of_a_level(tmp_path: Path) -> None:
    levels = position_pyramid(SMALL0, level_sizes(SMALL0, 2))
    write_slide(tmp_path / "x.tif", levels, mpp=0.25, lossless=True)
    with open_slide(tmp_path / "x.tif") as slide:
        region = slide.read((1000, 500), 0, (300, 200))
        np.testing.assert_array_equal(region, levels[0][500:700, 1000:1300])
        whole = slide.read((0, 0), 1, slide.info.level_sizes[1])
        np.testing.assert_array_equal(whole, levels[1])
