"""Which tiles show a lesion, and how well a map tells them apart."""

from __future__ import annotations

import numpy as np
import pytest
from shapely.geometry import box

from wsi.explain import lesion_tiles, share_in, tile_auroc

XY0 = np.array([[0, 0], [100, 0], [200, 0], [300, 0]])
SIZE0 = (100.0, 100.0)


def test_shares_are_areas():
    lesion = [box(50, 0, 225, 100), box(150, 0, 225, 100)]  # they overlap
    np.testing.assert_allclose(share_in(XY0, SIZE0, lesion), [0.5, 1, 0.25, 0])


def test_a_tile_counts_from_half_and_one_that_is_grazed_does_not():
    assert lesion_tiles(XY0, SIZE0, [box(49, 0, 249, 100)]).tolist() == [True, True, False, False]


def test_a_lesion_smaller_than_a_tile_counts_where_half_of_it_lies():
    small = box(290, 40, 330, 60)  # a quarter in the third tile, the rest in the fourth
    assert lesion_tiles(XY0, SIZE0, [small]).tolist() == [False, False, False, True]


def test_the_auroc_is_the_share_of_pairs_in_the_right_order():
    positive = np.array([True, False, True, False, False])
    values = np.array([0.9, 0.1, 0.4, 0.4, 0.8])
    pairs = [
        1.0 if p > q else 0.5 if p == q else 0.0
        for p in values[positive]
        for q in values[~positive]
    ]
    assert tile_auroc(values, positive) == pytest.approx(np.mean(pairs))


@pytest.mark.parametrize("value", [True, False])
def test_without_tiles_of_both_kinds_there_is_none(value):
    assert tile_auroc(np.arange(3.0), np.full(3, value)) is None


def test_no_regions_cover_nothing():
    np.testing.assert_array_equal(share_in(XY0, SIZE0, []), 0)
    assert not lesion_tiles(XY0, SIZE0, []).any()
