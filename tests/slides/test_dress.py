"""Slides in the dress of vendors, as OpenSlide itself sees them."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import cv2
import numpy as np
import openslide
import pytest
import tifffile

from wsi.errors import ConfigError
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


@pytest.mark.parametrize("mpp", [0.2265, 0.243, 0.25, 0.35, 0.5])
@pytest.mark.parametrize("dress", ["generic", "aperio", "philips", "leica"])
def test_the_resolution_is_stated_the_vendors_way(tmp_path: Path, levels, dress, mpp) -> None:
    path = tmp_path / f"x{SUFFIX.get(dress, '.tif')}"
    write_slide(path, levels, mpp=mpp, dress=dress)
    with openslide.OpenSlide(path) as slide:
        for axis in "xy":
            stated = float(slide.properties[f"openslide.mpp-{axis}"])
            assert stated == pytest.approx(mpp, rel=1e-4)
    assert open_slide(path).info.mpp == pytest.approx((mpp, mpp), rel=1e-4)


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
    [
        ("floor", [(101, 51), (50, 25), (25, 12)]),
        ("ceil", [(101, 51), (51, 26), (26, 13)]),
        ("round", [(101, 51), (51, 26), (25, 13)]),
    ],
)
def test_level_sizes_are_rounded_as_asked(rounding, sizes) -> None:
    assert level_sizes((101, 51), 3, 2.0, rounding) == sizes


@pytest.mark.parametrize("rounding", ["floor", "ceil", "round"])
def test_sizes_that_divide_are_not_rounded(rounding) -> None:
    assert level_sizes((3072, 2048), 3, 3.2, rounding) == [(3072, 2048), (960, 640), (300, 200)]


def _read(path: Path, level: int, size: tuple[int, int]) -> np.ndarray:
    with openslide.OpenSlide(path) as slide:
        return np.asarray(slide.read_region((0, 0), level, size))


@pytest.mark.parametrize(
    ("photometric", "subsampling", "shared"),
    [*product(["ycbcr"], ["420", "422", "444"], [False, True]), *product(["rgb"], ["444"], [0, 1])],
)
@pytest.mark.parametrize("tile", [240, 256, 512])
def test_every_way_to_store_jpeg_reads_back_as_the_source(
    tmp_path: Path, levels, tile, photometric, subsampling, shared
) -> None:
    path = tmp_path / "x.svs"
    write_slide(
        path,
        levels,
        mpp=MPP,
        dress="aperio",
        tile=tile,
        photometric=photometric,
        subsampling=subsampling,
        shared_tables=bool(shared),
    )
    for k, level in enumerate(levels):
        read = _read(path, k, level.shape[1::-1])
        assert (read[..., 3] == 255).all()
        assert psnr(read[..., :3], level) > 35
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages.first
        assert (page.tilewidth, page.tilelength) == (tile, tile)
        assert page.photometric.name == {"ycbcr": "YCBCR", "rgb": "RGB"}[photometric]
        assert page.subsampling == {"420": (2, 2), "422": (2, 1), "444": (1, 1)}[subsampling]
        stream = tiff.filehandle.read_array("u1", page.databytecounts[0], page.dataoffsets[0])
        assert (b"\xff\xdb" in stream.tobytes()) is not bool(shared)
        assert (page.jpegtables is not None) is bool(shared)
        # Another decoder than OpenSlide's agrees on the colour space.
        assert psnr(page.asarray(), levels[0]) > 38


@pytest.mark.parametrize("dress", ["aperio", "philips", "leica", "trestle", "ome"])
def test_lossless_is_lossless_in_every_dress(tmp_path: Path, levels, dress) -> None:
    path = tmp_path / f"x{SUFFIX.get(dress, '.tif')}"
    write_slide(path, levels, mpp=MPP, dress=dress, lossless=True)
    seen = levels[:1] if dress == "ome" else levels
    for k, level in enumerate(seen):
        np.testing.assert_array_equal(_read(path, k, level.shape[1::-1])[..., :3], level)


@pytest.mark.parametrize("lossless", [True, False])
@pytest.mark.parametrize("dress", ["generic", "philips"])
def test_missing_tiles_are_transparent(tmp_path: Path, levels, dress, lossless) -> None:
    path = tmp_path / "x.tif"
    missing = [(0, 0), (0, 5), (1, 3)]  # level 0 has 4 x 3 tiles, level 1 has 2 x 2
    write_slide(path, levels, mpp=MPP, dress=dress, lossless=lossless, missing=missing)
    alpha = _read(path, 0, (1000, 700))[..., 3] > 0
    expected = np.ones((700, 1000), bool)
    expected[:256, :256] = expected[256:512, 256:512] = False
    np.testing.assert_array_equal(alpha, expected)
    alpha = _read(path, 1, (500, 350))[..., 3] > 0
    expected = np.ones((350, 500), bool)
    expected[256:, 256:] = False
    np.testing.assert_array_equal(alpha, expected)
    with tifffile.TiffFile(path) as tiff:
        counts = np.array(tiff.pages.first.databytecounts)
    assert np.flatnonzero(counts == 0).tolist() == [0, 5]


@pytest.mark.parametrize("big", [False, True])
def test_bigtiff_is_written_when_asked(tmp_path: Path, levels, big) -> None:
    write_slide(tmp_path / "x.svs", levels, mpp=MPP, dress="aperio", bigtiff=big)
    with tifffile.TiffFile(tmp_path / "x.svs") as tiff:
        assert tiff.is_bigtiff is big
    assert psnr(_read(tmp_path / "x.svs", 0, (1000, 700))[..., :3], levels[0]) > 38


def test_an_ome_pyramid_keeps_its_levels_below_the_first_page(tmp_path: Path, levels) -> None:
    write_slide(tmp_path / "x.ome.tif", levels, mpp=(0.25, 0.26), dress="ome")
    with tifffile.TiffFile(tmp_path / "x.ome.tif") as tiff:
        assert tiff.is_ome
        assert len(tiff.pages) == 1
        assert [p.shape for p in tiff.series[0].levels] == [a.shape for a in levels]
    info = open_slide(tmp_path / "x.ome.tif").info
    assert (info.mpp, info.mpp_source) == ((0.25, 0.26), "ome-xml")


@pytest.mark.parametrize("dress", ["generic", "philips", "leica"])
def test_x_and_y_may_differ_in_resolution(tmp_path: Path, levels, dress) -> None:
    path = tmp_path / f"x{SUFFIX.get(dress, '.tif')}"
    write_slide(path, levels, mpp=(0.25, 0.26), dress=dress)
    with openslide.OpenSlide(path) as slide:
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.25, rel=1e-4)
        assert float(slide.properties["openslide.mpp-y"]) == pytest.approx(0.26, rel=1e-4)


def test_a_leica_scan_may_lie_anywhere_on_its_glass(tmp_path: Path, levels) -> None:
    write_slide(tmp_path / "x.scn", levels, mpp=0.25, dress="leica", offset0=(640, 480))
    with openslide.OpenSlide(tmp_path / "x.scn") as slide:
        bounds = [slide.properties[f"openslide.bounds-{k}"] for k in ("x", "y", "width", "height")]
        assert [int(v) for v in bounds] == [640, 480, 1000, 700]
        read = np.asarray(slide.read_region((640, 480), 0, (1000, 700)))
        assert psnr(read[..., :3], levels[0]) > 38
        assert np.asarray(slide.read_region((0, 0), 0, (640, 480)))[..., 3].max() == 0


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"tile": 250}, "multiples of 16"),
        ({"photometric": "rgb", "subsampling": "420"}, "chroma"),
        ({"missing": [(3, 0)]}, "no level 3"),
        ({"missing": [(0, 12)]}, "no tile 12"),
        ({"offset0": (1, 0)}, "offset0"),
    ],
)
def test_contradictions_are_refused(tmp_path: Path, levels, wrong, word) -> None:
    with pytest.raises(ConfigError, match=word):
        write_slide(tmp_path / "x.tif", levels, mpp=MPP, **wrong)
    assert not list(tmp_path.iterdir())
