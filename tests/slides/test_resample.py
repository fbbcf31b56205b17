"""Resampling against plain supersampling and numpy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi.slides import resample as module
from wsi.slides.resample import axis_weights, resample

FINE = 400  # samples per source pixel


def area_by_sampling(origin: float, scale: float, n_out: int, n_in: int) -> np.ndarray:
    """Return weights (n_out, n_in) by counting sample points that fall into each source pixel."""
    weights = np.zeros((n_out, n_in))
    for i in range(n_out):
        k = round(scale * FINE)
        points = origin + (i + (np.arange(k) + 0.5) / k) * scale
        pixel = np.floor(points).astype(int)
        inside = pixel[(pixel >= 0) & (pixel < n_in)]
        weights[i] = np.bincount(inside, minlength=n_in)
    return weights / np.maximum(weights.sum(1, keepdims=True), 1)


@pytest.mark.parametrize(
    ("origin", "scale"),
    [(0, 1), (0.3, 1), (0, 2), (0.5, 2.5), (1.71, 3.2), (0.01, 1.0001), (-0.6, 1.3), (14, 4.7)],
)
def test_area_weights_are_what_supersampling_counts(origin: float, scale: float) -> None:
    weights = axis_weights(origin, scale, 5, 24)
    np.testing.assert_allclose(weights, area_by_sampling(origin, scale, 5, 24), atol=2 / FINE)


@pytest.mark.parametrize(("origin", "scale"), [(0, 0.5), (0.25, 0.96), (3.7, 0.8), (-0.4, 0.7)])
def test_linear_weights_are_numpys_interpolation(origin: float, scale: float) -> None:
    source = np.random.default_rng(0).normal(size=24)
    centres = origin + (np.arange(9) + 0.5) * scale
    expected = np.interp(centres, np.arange(24) + 0.5, source)
    np.testing.assert_allclose(axis_weights(origin, scale, 9, 24) @ source, expected, atol=1e-5)


@given(st.floats(-3, 30), st.floats(0.3, 9), st.integers(1, 12), st.integers(1, 40))
def test_rows_are_shares_of_the_whole(origin: float, scale: float, n_out: int, n_in: int) -> None:
    weights = axis_weights(origin, scale, n_out, n_in)
    assert weights.shape == (n_out, n_in)
    assert (weights >= 0).all()
    starts = origin + np.arange(n_out) * scale
    touches = (
        (starts < n_in - 1e-3) & (starts + scale > 1e-3) if scale >= 1 else np.full(n_out, True)
    )
    np.testing.assert_allclose(weights.sum(1)[touches], 1, atol=1e-5)


def test_both_axes_go_by_their_own_scale() -> None:
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 256, (37, 53, 4), dtype=np.uint8)
    origin, scale, size = (2.3, 1.4), (3.1, 2.2), (12, 14)
    across = area_by_sampling(origin[0], scale[0], size[0], 53)
    down = area_by_sampling(origin[1], scale[1], size[1], 37)
    expected = np.einsum("yh,xw,hwc->yxc", down, across, pixels.astype(float))
    assert np.abs(resample(pixels, origin, scale, size) - expected).max() < 1.5


@pytest.mark.parametrize("size", [(12, 14), (41, 30), (7, 37), (53, 5)])
@pytest.mark.parametrize("channels", [3, 4])
def test_a_whole_picture_made_smaller_is_the_mean_of_areas(
    size: tuple[int, int], channels: int
) -> None:
    pixels = np.random.default_rng(4).integers(0, 256, (37, 53, channels), dtype=np.uint8)
    scale = 53 / size[0], 37 / size[1]
    across = area_by_sampling(0, scale[0], size[0], 53)
    down = area_by_sampling(0, scale[1], size[1], 37)
    expected = np.einsum("yh,xw,hwc->yxc", down, across, pixels.astype(float))
    assert np.abs(resample(pixels, (0, 0), scale, size) - expected).max() < 1.5


@pytest.mark.parametrize("factor", [1, 2, 3, 5])
@pytest.mark.parametrize("origin", [(0, 0), (3, 7)])
def test_whole_factors_are_block_means(factor: int, origin: tuple[int, int]) -> None:
    rng = np.random.default_rng(2)
    pixels = rng.integers(0, 256, (60, 70, 3), dtype=np.uint8)
    x, y = origin
    block = pixels[y : y + 8 * factor, x : x + 9 * factor]
    expected = block.reshape(8, factor, 9, factor, 3).mean((1, 3))
    result = resample(pixels, origin, (factor, factor), (9, 8))
    assert np.abs(result - expected).max() <= 0.5 + 1e-6


def test_the_shortcut_for_whole_factors_is_the_general_path(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(3)
    pixels = rng.integers(0, 256, (64, 64, 4), dtype=np.uint8)
    cases = [((5, 3), (f, f), (11, 9)) for f in (1, 2, 3, 4)] + [((1, 0), (3, 2), (10, 20))]
    quick = [resample(pixels, *case) for case in cases]
    monkeypatch.setattr(module, "_whole", lambda *args: None)
    for case, fast in zip(cases, quick, strict=True):
        # Ties round differently: half a grey value either way.
        assert np.abs(resample(pixels, *case).astype(int) - fast.astype(int)).max() <= 1


def test_a_result_never_shares_memory_with_its_source() -> None:
    pixels = np.zeros((8, 8, 3), np.uint8)
    result = resample(pixels, (0, 0), (1, 1), (8, 8))
    result[:] = 9
    assert not pixels.any()
