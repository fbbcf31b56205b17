"""The drawn overlay: outlines, tiles and scale bar where geometry says they are."""

from __future__ import annotations

import numpy as np
import pytest

from wsi.report.overlay import (
    LEFT_OUT_COLOR,
    TILE_COLOR,
    TISSUE_COLOR,
    bar_length_mm,
    draw_overlay,
    sharp_thumbnail,
)
from wsi.slides import Thumbnail, open_slide
from wsi.slides.dress import write_slide
from wsi.tiling import TileGrid
from wsi.tissue import TissueMask

GREY = 200


def plain(w: int, h: int, scale: float, origin0: tuple[int, int] = (0, 0)) -> Thumbnail:
    pixels = np.full((h, w, 3), GREY, np.uint8)
    return Thumbnail(pixels, np.ones((h, w), bool), (scale, scale), origin0)


def mask_of(thumbnail: Thumbnail, box: tuple[int, int, int, int] | None = None) -> TissueMask:
    mask = np.zeros(thumbnail.pixels.shape[:2], bool)
    if box is not None:
        left, top, right, bottom = box
        mask[top:bottom, left:right] = True
    return TissueMask(mask, thumbnail.scale, thumbnail.origin0, "by hand")


def grid_of(corners: list[tuple[int, int]], edge: float) -> TileGrid:
    xy0 = np.asarray(corners, np.int32).reshape(-1, 2)
    share = np.ones(len(xy0), np.float32)
    return TileGrid(xy0, share, 256, 0.5, (edge, edge), 0, 1.0, 99)


def near(picture: np.ndarray, color: tuple[int, int, int]) -> np.ndarray:
    return np.abs(picture.astype(int) - color).max(axis=2) < 45


def test_kept_tiles_keep_their_colours_and_all_else_is_dimmed() -> None:
    # 500 x 250 px of 40 level-0 pixels from (1000, 2000): drawn 1000 x 500 at 20 each.
    thumbnail = plain(500, 250, 40.0, (1000, 2000))
    grid = grid_of([(1000 + 4000, 2000 + 2000), (1000 + 6000, 2000 + 2000)], 2000.0)
    picture = draw_overlay(thumbnail, mask_of(thumbnail), grid)
    assert picture.shape == (500, 1000, 3)
    untouched = (picture == GREY).all(axis=2)
    expected = np.zeros((500, 1000), bool)
    expected[100:200, 200:400] = True  # two tiles of 100 px side by side
    inner = np.zeros_like(expected)
    inner[103:197, 203:297] = inner[103:197, 303:397] = True
    assert untouched[inner].all()
    assert not untouched[~expected].any()
    far = np.ones_like(expected)
    far[95:205, 195:405] = False
    assert (picture[far] == round(0.8 * GREY)).all()
    edge = near(picture, TILE_COLOR)
    assert edge[150, 197:203].any()
    assert edge[150, 397:403].any()
    assert edge[97:103, 300].any()
    assert not edge[far].any()


@pytest.mark.parametrize("edge", [3.9, 55.7, 61.3])
def test_neighbours_with_rounded_corners_leave_no_seam(edge: float) -> None:
    thumbnail = plain(1000, 1000, edge / 8.37)
    steps = [int(k * edge) for k in range(100)]
    grid = grid_of([(x, y) for y in steps for x in steps], edge)
    picture = draw_overlay(thumbnail, mask_of(thumbnail), grid)
    end = int((steps[-1] + edge) / edge * 8.37) - 3
    assert (picture[3:end, 3:end] == GREY).all()


def test_tiles_too_small_for_edges_are_edged_together() -> None:
    thumbnail = plain(1000, 1000, 10.0)
    grid = grid_of([(x, y) for y in range(2000, 4000, 40) for x in range(2000, 4000, 40)], 40.0)
    picture = draw_overlay(thumbnail, mask_of(thumbnail), grid)
    assert (picture[205:395, 205:395] == GREY).all()
    assert near(picture, TILE_COLOR)[300, 197:203].any()


def test_tiles_that_were_left_out_are_crossed_and_dimmed() -> None:
    thumbnail = plain(1000, 1000, 10.0)
    grid = grid_of([(2000, 2000), (6000, 2000)], 2000.0)
    left_out = np.array([False, True])
    picture = draw_overlay(thumbnail, mask_of(thumbnail), grid, left_out)
    crossed = near(picture, LEFT_OUT_COLOR)
    assert crossed[299:302, 699:702].any()  # where the diagonals meet
    assert crossed[249:252, 649:652].any()
    assert not crossed[:, :500].any()
    assert (picture[240:260, 690:710] == round(0.8 * GREY)).all()
    assert (picture[240:260, 290:310] == GREY).all()


def test_without_a_grid_nothing_is_dimmed_and_without_tissue_nothing_drawn() -> None:
    thumbnail = plain(1000, 500, 10.0)
    assert (draw_overlay(thumbnail, mask_of(thumbnail)) == GREY).all()


def test_the_outline_runs_along_the_mask_at_any_scale_of_the_picture() -> None:
    picture = draw_overlay(
        plain(800, 400, 5.0),  # the mask is coarser than the picture shown
        mask_of(plain(100, 50, 40.0), (20, 10, 60, 40)),
    )
    y, x = np.nonzero(near(picture, TISSUE_COLOR))
    assert (x.min(), x.max(), y.min(), y.max()) == pytest.approx((200, 600, 100, 400), abs=3)
    inside = (x > 205) & (x < 595) & (y > 105) & (y < 395)
    assert not inside.any()


@pytest.mark.parametrize(
    ("width_mm", "bar"),
    [(4.0, 1.0), (7.9, 1.0), (8.0, 2.0), (19.9, 2.0), (20.0, 5.0), (0.5, 0.1), (60.0, 10.0)],
)
def test_a_scale_bar_is_at_most_a_quarter_of_the_picture(width_mm: float, bar: float) -> None:
    assert bar_length_mm(width_mm) == pytest.approx(bar)


def test_the_scale_bar_is_as_long_as_it_says() -> None:
    # 1000 px of 20 level-0 px of 0.5 um are 10 mm: the bar says 2 mm and has 200 px.
    picture = draw_overlay(plain(1000, 600, 20.0), mask_of(plain(1000, 600, 20.0)), mpp=(0.5, 0.5))
    dark = (picture < 60).all(axis=2)
    assert dark[587].sum() == 200
    assert not dark[:520].any()
    without = draw_overlay(plain(1000, 600, 20.0), mask_of(plain(1000, 600, 20.0)))
    assert not (without < 60).any()


def test_small_slides_are_drawn_sharper_than_their_mask(tmp_path) -> None:
    stripes = np.zeros((512, 1024, 3), np.uint8)
    stripes[:, ::8] = stripes[:, 1::8] = stripes[:, 2::8] = stripes[:, 3::8] = 255
    write_slide(tmp_path / "s.tif", [stripes], mpp=0.5)
    with open_slide(tmp_path / "s.tif") as slide:
        coarse = slide.thumbnail(16.0)
        sharp = sharp_thumbnail(slide, coarse)
        assert max(sharp.pixels.shape[:2]) >= 1000
        assert sharp.pixels.std() > 2 * coarse.pixels.std()
        assert sharp_thumbnail(slide, sharp) is sharp
