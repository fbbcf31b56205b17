"""Slides in the dress of vendors, as OpenSlide itself sees them."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import openslide
import pytest

from wsi.slides import open_slide
from wsi.slides.dress import level_sizes, pyramid, write_slide

MPP = 0.2265
VENDORS = {
    "generic": "generic-tiff",
    "aperio": "aperio",
    "philips": "philips",
    "leica": "leica",
    "trestle": "trestle",
}
SUFFIX = {"aperio": ".svs", "leica": ".scn"}


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    error = np.square(one.astype(float) - other).mean()
    return 10 * np.log10(255**2 / error)


@pytest.fixture(scope="module")
def levels() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    smooth = cv2.resize(
        rng.uniform(60, 240, (24, 32, 3)), (1000, 700), interpolation=cv2.INTER_CUBIC
    )
    return pyramid(np.clip(smooth, 0, 255).astype(np.uint8), 3)


@pytest.mark.parametrize("dress", VENDORS)
def test_openslide_sees_the_vendor_its_levels_and_the_pixels(tmp_path: Path, levels, dress) -> None:
    path = tmp_path / f"x{SUFFIX.get(dress, '.tif')}"
    write_slide(path, levels, mpp=MPP, dress=dress)
    with openslide.OpenSlide(path) as slide:
        assert slide.properties["openslide.vendor"] == VENDORS[dress]
        assert slide.level_count == 3
        if dress != "leica":  # whose levels cover the glass, not the scan alone
            assert slide.level_dimensions == ((1000, 700), (500, 350), (250, 175))
        for k, level in enumerate(levels):
            read = np.asarray(slide.read_region((0, 0), k, level.shape[1::-1]))
            assert (read[..., 3] == 255).all()
            # Colour as well as brightness: JPEG in the wrong colour space fails here.
            assert psnr(read[..., :3], level) > 30


def test_a_leica_scan_lies_on_a_larger_glass(tmp_path: Path, levels) -> None:
    write_slide(tmp_path / "x.scn", levels, mpp=MPP, dress="leica")
    with open_slide(tmp_path / "x.scn") as slide:
        assert slide.info.bounds0 == (0, 0, 1000, 700)
        assert min(np.subtract(slide.info.size0, (1000, 700))) > 400  # 0.1 mm
        beyond = slide.read((1010, 710), 0, (50, 50))
        assert (beyond == 255).all()
        assert slide.thumbnail(4).pixels.shape == (175, 250, 3)


@pytest.mark.parametrize("dress", ["generic", "aperio", "philips", "leica"])
def test_the_resolution_is_stated_the_vendors_way(tmp_path: Path, levels, dress) -> None:
    path = tmp_path / f"x{SUFFIX.get(dress, '.tif')}"
    write_slide(path, levels, mpp=MPP, dress=dress)
    with openslide.OpenSlide(path) as slide:
        for axis in "xy":
            stated = float(slide.properties[f"openslide.mpp-{axis}"])
            assert stated == pytest.approx(MPP, rel=2e-3)
    assert open_slide(path).info.mpp == pytest.approx((MPP, MPP), rel=2e-3)


@pytest.mark.parametrize("dress", ["generic", "aperio", "trestle"])
def test_no_resolution_is_none(tmp_path: Path, levels, dress) -> None:
    path = tmp_path / f"x{SUFFIX.get(dress, '.tif')}"
    write_slide(path, levels, mpp=None, dress=dress)
    info = open_slide(path).info
    assert (info.mpp, info.mpp_state) == (None, "no-mpp")


def test_lossless_is_lossless(tmp_path: Path, levels) -> None:
    write_slide(tmp_path / "x.tif", levels, mpp=MPP, lossless=True)
    with openslide.OpenSlide(tmp_path / "x.tif") as slide:
        read = np.asarray(slide.read_region((0, 0), 0, (1000, 700)))
    np.testing.assert_array_equal(read[..., :3], levels[0])


@pytest.mark.parametrize(
    ("rounding", "sizes"),
    [("floor", [(101, 51), (50, 25), (25, 12)]), ("ceil", [(101, 51), (51, 26), (26, 13)])],
)
def test_level_sizes_are_rounded_as_asked(rounding, sizes) -> None:
    assert level_sizes((101, 51), 3, 2.0, rounding) == sizes
