"""Smoothing by the tiles that exist, against sums written out."""

from __future__ import annotations

import numpy as np
import pytest

from wsi.explain import smooth

SIZE0 = (100.0, 50.0)


def ragged(n=60, seed=0):
    """Return corners of a part of a grid, as tissue leaves it."""
    rng = np.random.default_rng(seed)
    cells = np.argwhere(np.ones((12, 10), bool))[rng.permutation(120)[:n]]
    return cells[:, ::-1] * np.array([100, 50])


def test_an_even_map_stays_even_up_to_the_edge_of_the_tissue():
    xy0 = ragged()
    np.testing.assert_allclose(smooth(np.full(60, 2.5), xy0, SIZE0, 1.3), 2.5, rtol=1e-12)


def test_values_are_means_over_tiles_that_exist():
    xy0, values = ragged(), np.random.default_rng(1).normal(size=60)
    expected = []
    for x, y in xy0:
        total = weights = 0.0
        for (u, v), value in zip(xy0, values, strict=True):
            squared = ((x - u) / 100) ** 2 + ((y - v) / 50) ** 2
            if squared <= (3 * 1.3) ** 2:
                weight = np.exp(-0.5 * squared / 1.3**2)
                total, weights = total + weight * value, weights + weight
        expected.append(total / weights)
    np.testing.assert_allclose(smooth(values, xy0, SIZE0, 1.3), expected, rtol=1e-10)


def test_no_smoothing_changes_nothing():
    values = np.random.default_rng(1).normal(size=60)
    np.testing.assert_array_equal(smooth(values, ragged(), SIZE0, 0.0), values)


def test_a_tile_far_from_all_others_keeps_its_value():
    xy0 = np.array([[0, 0], [100, 0], [10_000, 0]])
    assert smooth(np.array([1.0, 3.0, 7.0]), xy0, SIZE0, 1.0)[2] == pytest.approx(7.0)
