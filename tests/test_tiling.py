"""The grid against brute force, with properties for any slide."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi.errors import MissingMppError, NeedsUpsamplingError
from wsi.slides import SlideInfo
from wsi.slides.base import own_ratios
from wsi.tiling import all_corners, make_grid
from wsi.tissue.mask import TissueMask


def info(
    size0: tuple[int, int] = (2048, 2048),
    mpp: tuple[float, float] | None = (0.5, 0.5),
    bounds0: tuple[int, int, int, int] | None = None,
    levels: tuple[tuple[int, int], ...] = (),
) -> SlideInfo:
    return SlideInfo(
        slide_id="x",
        path=Path("x.svs"),
        vendor="made",
        size0=size0,
        mpp=mpp,
        mpp_source="made",
        mpp_state="ok" if mpp else "no-mpp",
        level_sizes=(size0, *levels),
        downsamples=own_ratios(size0, (size0, *levels)),
        bounds0=bounds0 or (0, 0, *size0),
        background=(255, 255, 255),
        fingerprint="f" * 64,
    )


def everywhere(xy0: np.ndarray, size0: tuple[float, float]) -> np.ndarray:
    return np.ones(len(xy0), np.float32)


mpps = st.sampled_from([0.2265, 0.243, 0.25, 0.2522, 0.35, 0.5, 0.5015, 1.0])
targets = st.sampled_from([0.5, 1.0, 2.0])


@given(
    w=st.integers(1, 20_000),
    h=st.integers(1, 20_000),
    x=st.integers(0, 5000),
    y=st.integers(0, 5000),
    mpp_x=mpps,
    mpp_y=mpps,
    target=targets,
    tile_px=st.sampled_from([128, 224, 256, 512]),
    stride=st.sampled_from([None, 64.0, 100.0, 300.5]),
)
def test_the_grid_covers_the_bounds_and_nothing_else(
    w, h, x, y, mpp_x, mpp_y, target, tile_px, stride
) -> None:
    slide = info((w + x + 7, h + y + 9), (mpp_x, mpp_y), (x, y, w, h))
    grid = make_grid(
        slide, everywhere, tile_px=tile_px, mpp=target, stride_um=stride, max_upsampling=2.1
    )
    edge = tile_px * target / mpp_x, tile_px * target / mpp_y
    assert grid.size0 == pytest.approx(edge)
    xy = grid.xy0.astype(np.int64)
    assert len(grid) == grid.considered
    assert len({tuple(p) for p in xy.tolist()}) == len(xy)
    if len(xy):
        assert xy.min(0).tolist() == [x, y] == xy[0].tolist()  # anchored at the bounds
        assert (xy + edge <= np.add((x, y), (w, h)) * (1 + 1e-6)).all()
        order = np.lexsort((xy[:, 0], xy[:, 1]))
        np.testing.assert_array_equal(order, np.arange(len(xy)))  # row by row
    # Counted in exact arithmetic, one tile after the other.
    counts = []
    for extent, size, mpp in [(w, edge[0], mpp_x), (h, edge[1], mpp_y)]:
        step = Fraction(size if stride is None else stride / mpp)
        n, k = 0, Fraction(0)
        while k + Fraction(size) <= extent * Fraction(1000001, 1000000):
            n, k = n + 1, k + step
        counts.append(n)
    assert abs(len(xy) - counts[0] * counts[1]) == 0


def test_tiles_at_the_slides_own_resolution() -> None:
    grid = make_grid(info(), everywhere, tile_px=512, mpp=0.5)
    expected = [(x, y) for y in range(0, 2048, 512) for x in range(0, 2048, 512)]
    assert [tuple(p) for p in grid.xy0.tolist()] == expected
    assert (grid.size0, grid.level, grid.upsampling) == ((512, 512), 0, 1.0)
    assert len(make_grid(info((2047, 2048)), everywhere, tile_px=512, mpp=0.5)) == 12


def test_a_resolution_with_a_fraction_loses_no_tile_to_rounding() -> None:
    # 0.2522 um/px is not a binary fraction; 4 tiles of 512 px still fill 2048 px exactly.
    assert len(make_grid(info(mpp=(0.2522, 0.2522)), everywhere, tile_px=512, mpp=0.2522)) == 16


def test_corners_stay_within_a_pixel_of_the_exact_grid() -> None:
    size = 256 * 0.5 / 0.2265  # 565.12 px
    xy = all_corners((0, 0, 100_000, 600), (size, size), (size, size))
    exact = np.arange(len(xy)) * size
    assert (xy[:, 0] <= exact + 1e-6).all()
    assert (exact - xy[:, 0] < 1).all()  # errors do not add up over 176 tiles


def test_a_stride_overlaps_tiles_by_the_rest() -> None:
    grid = make_grid(info(), everywhere, tile_px=256, mpp=0.5, stride_um=64)
    steps = np.unique(np.diff(np.unique(grid.xy0[:, 0])))
    assert steps.tolist() == [128]
    assert len(grid) == 15 * 15


@pytest.mark.parametrize("least", [0.0, 0.05, 0.5, 1.0])
def test_tiles_are_kept_from_the_least_tissue_on(least: float) -> None:
    def share(xy0: np.ndarray, size0: tuple[float, float]) -> np.ndarray:
        return (xy0[:, 0] / 1536).astype(np.float32)

    grid = make_grid(info(), share, tile_px=512, mpp=0.5, min_tissue=least)
    columns = [x for x in (0, 512, 1024, 1536) if x / 1536 >= least]
    assert sorted(set(grid.xy0[:, 0].tolist())) == columns
    np.testing.assert_allclose(grid.tissue, grid.xy0[:, 0] / 1536, rtol=1e-6)
    assert grid.considered == 16


def test_a_slide_smaller_than_a_tile_has_none() -> None:
    grid = make_grid(info((300, 5000)), everywhere, tile_px=512, mpp=0.5)
    assert (len(grid), grid.considered) == (0, 0)
    assert grid.xy0.shape == (0, 2)


@pytest.mark.parametrize(
    ("mpp", "target", "level"),
    [(0.25, 0.25, 0), (0.25, 0.5, 1), (0.25, 0.499, 0), (0.25, 1.0, 2), (0.25, 8.0, 3)],
)
def test_tiles_are_read_from_the_coarsest_level_that_is_fine_enough(mpp, target, level) -> None:
    slide = info((8191, 8191), (mpp, mpp), levels=((4096, 4096), (2048, 2048), (1024, 1024)))
    grid = make_grid(slide, everywhere, tile_px=128, mpp=target)
    assert grid.level == level
    assert slide.downsamples[grid.level][0] <= target / mpp * 1.001
    coarser = [d for d, _ in slide.downsamples if d > slide.downsamples[grid.level][0]]
    assert all(d > target / mpp for d in coarser)


def test_a_scanner_a_little_coarser_is_upsampled_and_says_so() -> None:
    grid = make_grid(info(mpp=(0.5015, 0.5015)), everywhere, tile_px=256, mpp=0.5)
    assert grid.upsampling == pytest.approx(1.003)
    assert grid.level == 0


def test_much_coarser_is_an_error_with_what_to_do() -> None:
    with pytest.raises(NeedsUpsamplingError, match=r"x\.svs has 0\.5 um/px.*max_upsampling=2"):
        make_grid(info(), everywhere, tile_px=256, mpp=0.25)
    with pytest.raises(NeedsUpsamplingError):  # the coarser axis decides
        make_grid(info(mpp=(0.25, 0.5)), everywhere, tile_px=256, mpp=0.25)


def test_without_a_resolution_there_is_no_grid() -> None:
    with pytest.raises(MissingMppError, match=r"x\.svs"):
        make_grid(info(mpp=None), everywhere, tile_px=256, mpp=0.5)


@given(st.integers(1, 400), st.floats(1, 90), st.floats(1, 50))
def test_the_number_of_tiles_is_that_of_counting(extent: int, size: float, step: float) -> None:
    xy = all_corners((0, 0, extent, 1000), (size, 1000), (step, 1000))
    n = 0
    while n * step + size <= extent * (1 + 1e-6):
        n += 1
    assert len(xy) == n
    assert all(x == math.floor(k * step + 1e-6) for k, (x, _) in enumerate(xy.tolist()))


def _mask(height: int, width: int, origin0: tuple[int, int] = (0, 0)) -> TissueMask:
    """An empty mask of 10 level-0 pixels per mask pixel."""
    return TissueMask(np.zeros((height, width), bool), (10.0, 10.0), origin0, "drawn")


def test_tissue_beyond_the_last_whole_tile_is_told() -> None:
    # 250 x 130 px in tiles of 100: two tiles; a strip of 50 px on the right, one of 30 below.
    mask = _mask(13, 25)
    mask.mask[2:5, 3:11] = True  # 24 mask pixels, all in tiles
    mask.mask[0:4, 18:22] = True  # 16, of which 2 columns of 4 lie in the strip on the right: 8
    mask.mask[9:13, 0:2] = True  # 8, of which 3 rows of 2 lie in the strip below: 6
    mask.mask[11:13, 23:25] = True  # 4, all in the corner of both strips
    slide = info((250, 130), bounds0=(0, 0, 250, 130))
    grid = make_grid(slide, mask.fraction, tile_px=100, mpp=0.5)
    assert grid.considered == 2
    assert grid.edge_tissue == pytest.approx((8 + 6 + 4) / (24 + 16 + 8 + 4))


def test_edge_tissue_counts_from_the_corner_of_the_bounds() -> None:
    mask = _mask(10, 15, origin0=(700, 300))
    mask.mask[:, 9:11] = True  # half inside the one tile of 100 px, half beyond it
    slide = info((4000, 3000), bounds0=(700, 300, 150, 100))
    grid = make_grid(slide, mask.fraction, tile_px=100, mpp=0.5)
    assert (len(grid), grid.edge_tissue) == (1, pytest.approx(0.5))


@pytest.mark.parametrize(
    ("size0", "share", "told"), [((200, 300), 1.0, 0.0), ((50, 50), 1.0, 1.0), ((50, 50), 0.0, 0.0)]
)
def test_edge_tissue_of_a_grid_that_fits_and_of_none(size0, share: float, told: float) -> None:
    def even(xy0: np.ndarray, size0: tuple[float, float]) -> np.ndarray:
        return np.full(len(xy0), share, np.float32)

    grid = make_grid(info(size0), even, tile_px=100, mpp=0.5)
    assert grid.edge_tissue == told
