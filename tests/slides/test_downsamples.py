"""Scales of levels: against brute force, what headers say, and a real slide's own pixels."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import openslide
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st

from wsi.slides import open_slide
from wsi.slides.downsamples import dropped_factor, true_downsamples, true_sizes
from wsi.slides.leica import scn_areas

SPACING = "philips.PIIM_PIXEL_DATA_REPRESENTATION_SEQUENCE[{}].DICOM_PIXEL_SPACING"


@given(
    w0=st.integers(300, 200_000),
    h0=st.integers(300, 200_000),
    factor=st.sampled_from([2, 3, 4, 8, 16, 32, 64]),
    grown=st.tuples(st.integers(0, 1), st.integers(0, 1)),
)
def test_a_dropped_remainder_is_found_as_by_trying_every_factor(w0, h0, factor, grown) -> None:
    size = w0 // factor + grown[0], h0 // factor + grown[1]
    fit = [f for f in range(2, 130) if (w0 // f, h0 // f) == size]
    halved = [f for f in fit if f in (2, 4, 8, 16, 32, 64, 128)]
    expected = fit if len(fit) == 1 else halved
    assert dropped_factor((w0, h0), size) == (expected[0] if len(expected) == 1 else None)


def test_vendors_of_whom_nothing_is_known_keep_the_ratio_of_each_axis() -> None:
    sizes = [(3071, 2303), (1535, 1151)]
    mean = (3071 / 1535 + 2303 / 1151) / 2
    for vendor in ("generic-tiff", "trestle", "hamamatsu"):
        scales = true_downsamples(vendor, sizes, (1.0, mean), {})
        assert scales == ((1, 1), (3071 / 1535, 2303 / 1151))
    assert true_downsamples("aperio", sizes, (1.0, mean), {}) == ((1, 1), (2, 2))
    # A figure of the format's own, not the mean of the axes, holds for both.
    assert true_downsamples("dicom", sizes, (1.0, 2.0), {}) == ((1, 1), (2, 2))


@pytest.mark.parametrize(
    ("spacing", "reported", "scale"),
    [
        ('"0.000454545" "0.000453781"', 2.0, (2.0, 2.0)),  # printed digits, not a scale of 1.99999
        ('"0.000727274" "0.000726051"', 3.0, (3.2, 3.2)),
        ("", 2.0, (2.0, 2.0)),
        ('"zero"', 2.0, (2.0, 2.0)),
        ('"0" "0.0"', 2.0, (2.0, 2.0)),
    ],
)
def test_philips_spacing_is_a_scale_on_each_axis(spacing, reported, scale) -> None:
    stated = {SPACING.format(0): '"0.000227273" "0.000226891"', SPACING.format(1): spacing}
    scales = true_downsamples("philips", [(3072, 2304), (960, 720)], (1.0, reported), stated)
    assert scales[1] == pytest.approx(scale, rel=1e-5)


def test_a_level_is_no_larger_than_its_scale_leaves_room_for() -> None:
    sizes = [(1535, 1151), (511, 383), (1, 1)]
    assert true_sizes(sizes, ((1, 1), (3.2, 3.2), (4000.0, 4000.0))) == (
        (1535, 1151),
        (479, 359),
        (1, 1),
    )


def test_an_aperio_scanner_drops_the_remainder(shared_data: Path) -> None:
    """Registered by phase correlation: level 1 of a real slide against its reduced level 0."""
    path, edge = shared_data / "slides" / "TCGA-CR-7395-01A-01-TS1.svs", 512
    with openslide.OpenSlide(path) as handle:
        (w0, h0), (w, h) = handle.level_dimensions
        assert (w0, h0, w, h) == (4443, 3567, 2221, 1783)
        x, y = w - edge, h - edge
        # Whole levels, from their corner: OpenSlide's rounding of positions plays no part.
        coarse = np.asarray(handle.read_region((0, 0), 1, (w, h)))[y:, x:, :3]
        fine = np.asarray(handle.read_region((2 * x, 2 * y), 0, (2 * edge, 2 * edge)))[..., :3]
    (dx, dy), likeness = _shift(fine, coarse)
    assert likeness > 0.9
    # What stands at pixel (x, y) of level 1 stands at (2x, 2y) of level 0 ...
    assert 2 * np.hypot(dx, dy) < 0.1
    # ... and that is where we look for it; the ratio of the sizes lies 0.9 px further.
    with open_slide(path, mpp=0.5) as slide:
        assert np.multiply(slide.info.downsamples[1], (x, y)) == pytest.approx((2 * x, 2 * y))


def _shift(fine: np.ndarray, coarse: np.ndarray) -> tuple[tuple[float, float], float]:
    size = coarse.shape[1], coarse.shape[0]
    reduced = cv2.resize(fine, size, interpolation=cv2.INTER_AREA)
    grey = [cv2.cvtColor(a, cv2.COLOR_RGB2GRAY).astype(np.float32) for a in (reduced, coarse)]
    window = cv2.createHanningWindow(size, cv2.CV_32F)
    return cv2.phaseCorrelate(grey[0] - grey[0].mean(), grey[1] - grey[1].mean(), window)


SCN = (
    '<scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01"><collection sizeX="900000" '
    'sizeY="800000"><image><pixels><dimension sizeX="90" sizeY="80" ifd="0"/></pixels><view '
    'sizeX="900000" sizeY="800000" offsetX="0" offsetY="0"/>{light}</image>{scans}</collection>'
    "</scn>"
)
SCAN = (
    "<image><pixels>"
    '<dimension sizeX="400" sizeY="300" ifd="2" z="0"/><dimension sizeX="801" sizeY="603" ifd="1"'
    ' z="0"/><dimension sizeX="801" sizeY="603" ifd="3" z="1"/></pixels>'
    '<view sizeX="400500" sizeY="301500" offsetX="{x}" offsetY="{y}"/>{light}</image>'
)
LIGHT = (
    "<scanSettings><illuminationSettings><illuminationSource>{}</illuminationSource>"
    "</illuminationSettings></scanSettings>"
)


def _scn(path: Path, text: str) -> Path:
    tifffile.imwrite(path, np.zeros((16, 16), np.uint8), description=text, metadata=None)
    return path


def test_leica_scans_are_told_from_macro_fluorescence_and_other_planes(tmp_path: Path) -> None:
    bright = LIGHT.format("brightfield")
    scans = (
        SCAN.format(x=10_250, y=20_000, light=bright)
        + SCAN.format(x=500_000, y=1_000, light=bright)
        + SCAN.format(x=1, y=1, light=LIGHT.format("fluorescence"))
    )
    one, other = scn_areas(_scn(tmp_path / "a.scn", SCN.format(light=bright, scans=scans)))
    assert one.sizes == other.sizes == ((801, 603), (400, 300))
    assert one.ifds == (1, 2)
    assert one.downsamples[1] == (801 / 400, 603 / 300)
    # 500 nm a pixel, 1001.25 on level 1: cut to whole pixels.
    assert one.origins == ((20, 40), (10, 19))
    assert other.origins == ((1000, 2), (499, 0))
    assert one.distance(0, (30, 50, 10, 10)) == 0
    assert other.distance(0, (30, 50, 10, 10)) == 1000 - 35
    # A place between pixels of a level is asked for so that OpenSlide cuts to a whole one.
    for pixel in range(-3, 400):
        (x, _), (start, _) = one.request(1, (pixel, 30), 2.0007)
        index = int(x / 2.0007 - 10)
        assert start == pytest.approx(index + 20 / (801 / 400))
        assert abs(start - pixel) <= 0.5


@pytest.mark.parametrize("text", ["<scn", "<scn/>", "plain", SCN.format(light="", scans="")])
def test_an_unknown_description_is_no_scan(tmp_path: Path, text: str) -> None:
    assert scn_areas(_scn(tmp_path / "a.scn", text)) == ()
