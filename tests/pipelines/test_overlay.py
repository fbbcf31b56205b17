"""The overlay shows tissue and tiles where they are."""

from __future__ import annotations

from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest

from pipelines.overlay import draw_located, write_located
from wsi.extract import Located, Tiling, locate
from wsi.geojson import read_geojson
from wsi.slides import SlideInfo, open_slide
from wsi.specs import TissueSpec

TILING = Tiling(mpp=1.0, tile_px=128, stride_um=None, min_tissue=0.05, max_upsampling=1.05)


@pytest.fixture(scope="module")
def found(slide_folder: Path) -> tuple[SlideInfo, Located]:
    with open_slide(slide_folder / "a.svs", "site/a") as slide:
        return slide.info, locate(slide, TissueSpec(), TILING)


def coloured(picture: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    return np.abs(picture.astype(int) - colour).max(axis=2) < 40


def test_the_outline_is_a_circle_around_the_disc(found) -> None:
    picture = draw_located(found[1])
    assert max(picture.shape[:2]) == 900
    y, x = np.nonzero(coloured(picture, (0, 114, 178)))
    radii = np.hypot(x + 0.5 - 450, y + 0.5 - 450)
    # Drawn with radius 0.35 of the width; the thumbnail's pixels are 8 um, 14 here.
    assert np.quantile(radii, [0.05, 0.95]) == pytest.approx([0.35 * 900] * 2, abs=16)


def test_tiles_are_drawn_at_their_corners(found) -> None:
    picture, grid = draw_located(found[1]), found[1].grid
    drawn = coloured(picture, (230, 159, 0))
    for x, y in grid.xy0 / 1024 * 900:
        column, row = round(x), round(y)
        assert drawn[max(0, row - 1) : row + 2, column + 5 : column + 60].any(axis=0).mean() > 0.6


def test_files_hold_what_was_located(found, tmp_path: Path) -> None:
    info, located = found
    write_located(tmp_path, info, located)
    with h5py.File(tmp_path / "tiles" / "site%2Fa.h5") as file:
        coords = file["coords"]
        np.testing.assert_array_equal(coords[:], located.grid.xy0)  # pyright: ignore[reportIndexIssue]
        attributes = dict(coords.attrs)
    assert attributes["slide_id"] == "site/a"
    assert (attributes["tile_px"], attributes["mpp"]) == (128, 1.0)
    assert attributes["size0"] == pytest.approx((256, 256))
    shapes = read_geojson(tmp_path / "tissue" / "site%2Fa.geojson")
    area = located.tissue.mask.sum() * np.prod(located.tissue.scale)
    assert sum(s.geometry.area for s in shapes) == pytest.approx(area)
    assert {s.name for s in shapes} == {"Tissue"}
    picture = cv2.imread(str(tmp_path / "thumbnails" / "site%2Fa.jpg"))
    assert picture is not None
    assert picture.shape == (900, 900, 3)
    # Red and blue are not exchanged on the way to the file: tissue is pink, tiles are orange.
    assert picture[450, 450, 2] > picture[450, 450, 1]


def test_a_slide_without_tissue_has_a_picture_too(slide_folder: Path, tmp_path: Path) -> None:
    with open_slide(slide_folder / "glass.tif") as slide:
        located = locate(slide, TissueSpec(), TILING)
        write_located(tmp_path, slide.info, located)
    assert len(located.grid) == 0
    assert (tmp_path / "thumbnails" / "glass.jpg").stat().st_size > 500
    assert read_geojson(tmp_path / "tissue" / "glass.geojson") == []
