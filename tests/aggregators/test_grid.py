"""The tiles' grid against grids laid by hand, and its convolution against torch's on an image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import conv2d

from wsi.aggregators.grid import (
    GridConvolution,
    curve_rank,
    neighbours,
    sincos,
    tile_cells,
    tile_positions,
    tile_step,
)
from wsi.tiling import all_corners


def some_cells(side, share, seed=0):
    y, x = np.nonzero(np.random.default_rng(seed).random((side, side)) < share)
    return np.stack([x, y], axis=1)


@pytest.mark.parametrize("step", [(256.0, 256.0), (458.752, 458.752), (512.4, 507.9)])
@pytest.mark.parametrize("share", [1.0, 0.4])
def test_cells_are_those_of_the_grid_the_tiles_were_cut_from(step, share):
    corners = all_corners((1000, 77, 200_000, 30_000), step, step).astype(float)
    nx = len(np.unique(corners[:, 0]))
    index = np.stack([np.arange(len(corners)) % nx, np.arange(len(corners)) // nx], axis=1)
    kept = np.random.default_rng(0).random(len(corners)) < share
    kept[0] = True
    np.testing.assert_allclose(tile_step(corners[kept]), step, atol=0.05)
    assert np.array_equal(tile_cells(corners[kept]), index[kept])


def test_fragments_with_grids_of_their_own_keep_the_step():
    one = some_cells(12, 0.8) * 256.0
    other = some_cells(9, 0.8, seed=1) * 256.0 + (5000 + 101, 37)
    np.testing.assert_array_equal(tile_step(np.concatenate([one, other])), 256)


@pytest.mark.parametrize("seed", range(20))
def test_a_random_draw_of_the_tiles_tells_the_same_step(seed):
    drawn = np.random.default_rng(seed).permutation(some_cells(100, 1.0))[:600]
    np.testing.assert_array_equal(tile_step(drawn * 256.0), 256)


def test_overlapping_tiles_count_by_their_stride():
    assert tile_step(some_cells(10, 1.0) * 128.0).tolist() == [128, 128]


@pytest.mark.parametrize(
    ("corners", "step"),
    [
        ([[7, 9]], [1, 1]),
        ([[0, 0], [256, 256]], [256, 256]),
        ([[0, 0], [0, 256]], [256, 256]),
        ([[5, 5], [5, 5]], [1, 1]),
    ],
)
def test_few_tiles_have_a_step_too(corners, step):
    assert tile_step(np.array(corners, float)).tolist() == step
    assert np.isfinite(tile_positions(np.array(corners, float))).all()


@settings(max_examples=40, deadline=None)
@given(
    cells=st.sets(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=30),
    radius=st.integers(0, 3),
)
def test_neighbours_are_found_by_looking(cells, radius):
    ordered = list(cells)
    place = {cell: i for i, cell in enumerate(ordered)}
    span = range(-radius, radius + 1)
    expected = [
        [place.get((x + dx, y + dy), len(ordered)) for dy in span for dx in span]
        for x, y in ordered
    ]
    assert neighbours(np.array(ordered), radius).tolist() == expected


def test_ranks_along_the_curve_interleave_the_bits_of_x_and_y():
    cells = some_cells(20, 0.5)
    keys = [
        int("".join(b for pair in zip(f"{y:08b}", f"{x:08b}", strict=True) for b in pair), 2)
        for x, y in cells
    ]
    assert curve_rank(cells).tolist() == np.argsort(np.argsort(keys)).tolist()


def on_image(convolution, x, cells, side):
    """Return the sum of torch's convolutions on the dense image, read at the cells."""
    image = x.new_zeros(side, side, x.shape[1]).index_put(
        (torch.from_numpy(cells[:, 1]), torch.from_numpy(cells[:, 0])), x
    )
    planes, total = image.permute(2, 0, 1)[None], 0
    for kernel in convolution.kernels:
        size = int(np.sqrt(len(kernel)))
        weight = kernel.T.reshape(-1, 1, size, size)
        total = total + conv2d(planes, weight, padding=size // 2, groups=x.shape[1])
    total = total[0].permute(1, 2, 0) + convolution.bias
    return total[cells[:, 1], cells[:, 0]]


@pytest.mark.parametrize("share", [1.0, 0.3])
def test_the_convolution_and_its_gradients_are_torchs_on_the_dense_grid(share, monkeypatch):
    monkeypatch.setattr("wsi.aggregators.grid._CHUNK", 4 * 50)  # several blocks of rows
    torch.manual_seed(0)
    convolution = GridConvolution(4, (7, 5, 3)).double()
    torch.nn.init.normal_(convolution.bias)
    cells = some_cells(13, share)
    x = torch.randn(len(cells), 4, dtype=torch.float64, requires_grad=True)
    near = torch.from_numpy(neighbours(cells, 3))
    got, expected = convolution(x, near), on_image(convolution, x, cells, 13)
    torch.testing.assert_close(got, expected, atol=1e-12, rtol=0)
    wanted = [x, *convolution.parameters()]
    toward = torch.randn_like(got)
    for ours, theirs in zip(
        torch.autograd.grad((got * toward).sum(), wanted),
        torch.autograd.grad((expected * toward).sum(), wanted),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-11, rtol=0)


def test_the_convolution_in_half_precision_is_near():
    torch.manual_seed(0)
    convolution, cells = GridConvolution(4, (3,)), some_cells(9, 0.7)
    x, near = torch.randn(len(cells), 4), torch.from_numpy(neighbours(cells, 1))
    half = convolution(x.bfloat16(), near)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), convolution(x, near), atol=0.03, rtol=0.03)


def test_waves_are_the_formula_of_the_paper_in_x_and_in_y():
    positions = [np.array([[0.0, 0.0], [3.5, -2.0]]), np.array([[100.0, 7.0]])]
    got = sincos(positions, 8).numpy()
    assert got.shape == (3, 8)
    for row, (x, y) in zip(got, np.concatenate(positions), strict=True):
        f0, f1 = 1.0, 10_000 ** (-4 / 8)
        waves = [
            *(np.sin(x * f0), np.sin(x * f1), np.cos(x * f0), np.cos(x * f1)),
            *(np.sin(y * f0), np.sin(y * f1), np.cos(y * f0), np.cos(y * f1)),
        ]
        np.testing.assert_allclose(row, waves, atol=1e-6)


def test_positions_are_those_of_any_scanner():
    cells = some_cells(15, 0.5).astype(float)
    first = tile_positions(cells * 256)
    np.testing.assert_allclose(tile_positions(cells * 1024 + (40_000, 9)), first, atol=1e-12)
    np.testing.assert_allclose(np.diff(first, axis=0), np.diff(cells, axis=0), atol=1e-12)
    np.testing.assert_allclose(first.max(0), -first.min(0))
