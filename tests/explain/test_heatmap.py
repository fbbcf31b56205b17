"""Maps as pictures: colours where values are, numbers in the key, a bar as long as it says."""

from __future__ import annotations

import numpy as np
import pytest
from shapely.geometry import box

from wsi.errors import ExplainError
from wsi.explain import Legend, draw_gallery, draw_heatmap, strongest
from wsi.explain.heatmap import colours, scale_end
from wsi.explain.lettering import fitted, text_width
from wsi.slides import Thumbnail

LEGEND = Legend("slide ä/1", ("first line", "second line"))


def thumbnail_of(h=150, w=200):
    return Thumbnail(np.full((h, w, 3), 200, np.uint8), np.ones((h, w), bool), (10.0, 10.0))


def drawn(values, xy0, outlines=()):
    return draw_heatmap(
        thumbnail_of(), np.asarray(values, float), np.asarray(xy0), (500, 500), LEGEND, outlines,
        mpp=(0.5, 0.5), edge_px=1000,
    )  # fmt: skip


def tile(picture, x, y):
    """Return the middle of the tile at (x, y) level-0 px: head of 96 px, 12 px of margin."""
    left, top = 12 + x // 2, 96 + y // 2
    return picture[top + 60 : top + 190, left + 60 : left + 190].reshape(-1, 3).mean(axis=0)


def test_orange_speaks_for_the_class_blue_against_it_and_grey_says_nothing():
    picture = drawn([2.0, -2.0, 0.0], [[0, 0], [500, 0], [1000, 0]])
    toward, against, nothing, glass = (tile(picture, x, 0) for x in (0, 500, 1000, 1500))
    assert toward[0] > toward[2] + 50
    assert against[2] > against[0] + 50
    assert np.ptp(nothing) < 3
    assert np.abs(nothing - glass).max() < 15


def test_colours_are_told_apart_without_red_or_green_vision():
    # Machado et al. 2009, severity 1: linear RGB of deuteranopes and protanopes.
    ends = (colours(np.array([-1.0, 1.0])) / 255) ** 2.2
    for matrix in (
        [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
        [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    ):
        seen = np.clip(ends @ np.array(matrix).T, 0, 1) ** (1 / 2.2) * 255
        assert np.linalg.norm(seen[0] - seen[1]) > 90


def test_equal_distance_from_zero_is_about_equally_dark():
    rgb = colours(np.array([-1.0, -0.5, 0.5, 1.0]))
    light = rgb @ [0.299, 0.587, 0.114]
    assert abs(light[0] - light[3]) < 40
    assert abs(light[1] - light[2]) < 40


def test_overlapping_tiles_show_their_mean():
    picture = drawn([2.0, -2.0, 2.0], [[0, 0], [0, 0], [1000, 0]])
    assert np.ptp(tile(picture, 0, 0)) < 3


def test_one_extreme_tile_does_not_pale_the_rest():
    values = np.full(1000, 0.1)
    values[0] = 50.0
    assert scale_end(values) == pytest.approx(0.1)
    assert scale_end(np.array([0.5, -3.0])) == 3.0
    assert scale_end(np.zeros(4)) == 1.0


def test_the_scale_bar_is_as_long_as_it_says():
    picture = drawn([1.0], [[0, 0]])
    # 2000 x 1500 level-0 px of 0.5 um are 1 mm wide, 1000 px: a quarter has room for 0.2 mm.
    row = picture[96 + 750 + 16, 12:1000]
    assert int((row[:400] < 90).all(axis=1).sum()) == 200


def test_annotated_lesions_are_outlined():
    plain, outlined = drawn([1.0], [[0, 0]]), drawn([1.0], [[0, 0]], [box(1000, 500, 1500, 1000)])
    edge = slice(96 + 250 - 4, 96 + 250 + 4), slice(12 + 520, 12 + 730)
    assert plain[edge].min() > 150
    assert outlined[edge].min() < 80


def test_a_map_beside_the_thumbnail_is_an_error():
    with pytest.raises(ExplainError, match="no tile lies on the thumbnail"):
        drawn([1.0], [[90_000, 0]])


def test_long_text_loses_its_middle():
    short = fitted("a-very-long-slide-name-with-its-number-0042", 120, 13)
    assert text_width(short, 13) <= 120
    assert short.startswith("a-")
    assert short.endswith("42")
    assert fitted("short", 120, 13) == "short"


# -- gallery ---------------------------------------------------------------------------------


def test_the_strongest_tiles_do_not_overlap_and_speak_for_the_class():
    xy0 = np.array([[0, 0], [50, 0], [100, 0], [100, 100], [300, 0]])
    values = np.array([5.0, 4.0, 3.0, -1.0, 0.0])
    assert strongest(values, xy0, (100.0, 100.0), 3).tolist() == [0, 2]
    assert strongest(values, xy0, (100.0, 100.0), 1).tolist() == [0]


def test_a_gallery_shows_tiles_in_reading_order():
    tints = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]
    tiles = [(np.full((64, 64, 3), tint, np.uint8), f"s{k}", "+1") for k, tint in enumerate(tints)]
    picture = draw_gallery("class", "note", tiles, columns=2)
    for k, tint in enumerate(tints):
        y, x = 66 + k // 2 * 228 + 88, 12 + k % 2 * 188 + 88
        np.testing.assert_array_equal(picture[y, x], tint)
