"""How much of a box is tissue, and the outline of it, against counting."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage
from shapely import contains_xy

from wsi.tissue import TissueMask

FINE = 8  # samples per mask pixel


def mask_of(picture: np.ndarray, scale=(4.0, 4.0), origin0=(0, 0)) -> TissueMask:
    return TissueMask(picture, scale, origin0, "drawn")


def blobs(seed: int, size: tuple[int, int] = (40, 60)) -> np.ndarray:
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=size), 3)
    return noise > noise.std() * 0.2


@given(
    seed=st.integers(0, 20),
    x=st.integers(-40 * FINE, 80 * FINE),
    y=st.integers(-30 * FINE, 60 * FINE),
    w=st.integers(1, 90 * FINE),
    h=st.integers(1, 70 * FINE),
)
def test_the_fraction_of_a_box_is_what_counting_gives(seed, x, y, w, h) -> None:
    picture = blobs(seed)
    # Level-0 pixels are an eighth of a mask pixel, so any whole box can be counted.
    fine = np.kron(picture, np.ones((FINE, FINE), bool))
    H, W = fine.shape
    inside = fine[max(0, y) : max(0, min(H, y + h)), max(0, x) : max(0, min(W, x + w))]
    mask = mask_of(picture, (FINE, FINE), (100, -200))
    fraction = mask.fraction(np.array([[x + 100, y - 200]]), (w, h))
    assert fraction.dtype == np.float32
    assert fraction[0] == pytest.approx(inside.sum() / (w * h), abs=1e-6)


def test_boxes_of_fractional_size_and_unequal_scales_are_exact() -> None:
    picture = np.zeros((10, 10), bool)
    picture[2:5, 3:7] = True
    mask = mask_of(picture, (3.7, 5.3))
    # Tissue spans x 11.1 to 25.9 and y 10.6 to 26.5 in level-0 pixels.
    got = mask.fraction(np.array([[10, 5], [20, 20]]), (12.6, 30.25))
    expected = [(22.6 - 11.1) * (26.5 - 10.6), (25.9 - 20) * (26.5 - 20)]
    np.testing.assert_allclose(got, np.array(expected) / (12.6 * 30.25), rtol=1e-5)


def test_many_boxes_come_back_in_order() -> None:
    picture = blobs(3)
    mask = mask_of(picture, (1.0, 1.0))
    xy = np.array([(x, y) for y in range(40) for x in range(60)])
    np.testing.assert_array_equal(mask.fraction(xy, (1, 1)), picture.ravel().astype(np.float32))
    assert mask.fraction(np.zeros((0, 2), int), (4, 4)).shape == (0,)


@pytest.mark.parametrize("seed", range(5))
def test_outlines_enclose_the_mask(seed: int) -> None:
    picture = blobs(seed, (80, 120))
    mask = mask_of(picture, (4.0, 3.0), (1000, 500))
    outline = mask.outlines()
    assert outline.is_valid
    assert outline.area == pytest.approx(picture.sum() * 12, rel=0.02)
    y, x = np.mgrid[0:80, 0:120]
    covered = contains_xy(outline, (x + 0.5) * 4 + 1000, (y + 0.5) * 3 + 500)
    np.testing.assert_array_equal(covered, picture)


def test_holes_are_holes_and_islands_in_them_are_tissue() -> None:
    picture = np.zeros((30, 30), bool)
    picture[2:28, 2:28] = True
    picture[6:24, 6:24] = False
    picture[12:18, 12:18] = True
    outline = mask_of(picture, (1.0, 1.0)).outlines()
    assert outline.area == pytest.approx(picture.sum())
    assert len(outline.geoms) == 2
    assert sorted(len(part.interiors) for part in outline.geoms) == [0, 1]


@pytest.mark.parametrize("shape", [(1, 1), (1, 6), (6, 1), (2, 2)])
def test_the_thinnest_tissue_has_an_outline(shape: tuple[int, int]) -> None:
    picture = np.zeros((10, 10), bool)
    picture[2 : 2 + shape[0], 2 : 2 + shape[1]] = True
    outline = mask_of(picture, (4.0, 4.0)).outlines()
    assert outline.area == pytest.approx(picture.sum() * 16)


def test_no_tissue_has_no_outline() -> None:
    assert mask_of(np.zeros((10, 10), bool)).outlines().is_empty


def test_tissue_to_the_edge_reaches_the_edge() -> None:
    outline = mask_of(np.ones((10, 20), bool), (4.0, 4.0), (8, 0)).outlines()
    assert outline.bounds == (8, 0, 88, 40)


@pytest.mark.parametrize(
    ("xy0", "size0", "size_px"),
    [
        ((100, -200), (60.0 * FINE, 40.0 * FINE), (60, 40)),
        ((131.0, -177.0), (97.3, 61.9), (64, 48)),
        ((40.0, -260.0), (700.0, 500.0), (33, 21)),  # beyond the mask on every side
    ],
)
def test_the_pixels_of_a_box_are_on_tissue_where_their_centres_are(xy0, size0, size_px) -> None:
    picture = blobs(3)
    mask = mask_of(picture, (FINE, FINE), (100, -200))
    under = mask.under(xy0, size0, size_px)
    assert under.shape == size_px[::-1]
    assert 0 < under.sum() < under.size
    for row in range(size_px[1]):
        for column in range(size_px[0]):
            x = xy0[0] + (column + 0.5) * size0[0] / size_px[0]
            y = xy0[1] + (row + 0.5) * size0[1] / size_px[1]
            i, j = int((y + 200) // FINE), int((x - 100) // FINE)
            known = 0 <= i < picture.shape[0] and 0 <= j < picture.shape[1]
            assert under[row, column] == (known and picture[i, j])
