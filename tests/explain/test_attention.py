"""Attention: taken without labels, ranked, and drawn where the tiles lie."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import pytest
import torch
from shapely.geometry import MultiPolygon, Polygon, box

from wsi.bags import TileFilter
from wsi.data import ArrayBag
from wsi.errors import ExplainError
from wsi.explain import Attention, attention_of, draw_attention, top_tiles
from wsi.slides import Thumbnail
from wsi.specs import Config
from wsi.training.model import build

FOOT_PX = 40


def model_of(aggregator="abmil", **params):
    config = Config.model_validate({"aggregator": {"name": aggregator, "hidden": 8, **params}})
    return build(config, 5, ["x", "y", "z"], [2, 2, 2])


def bag_of(n, seed=0, tissue=None):
    rng = np.random.default_rng(seed)
    xy0 = np.stack([np.arange(n) * 100, np.zeros(n)], axis=1).astype(np.int32)
    return ArrayBag(rng.normal(size=(n, 5)).astype(np.float32), xy0, tissue)


def thumbnail_of(h=150, w=200, scale=(10.0, 10.0), origin0=(0, 0)):
    return Thumbnail(np.full((h, w, 3), 200, np.uint8), np.ones((h, w), bool), scale, origin0)


def grid_of(weight, size0=(100, 100), columns=20, origin0=(0, 0)):
    k = np.arange(len(weight))
    xy0 = np.stack([k % columns, k // columns], axis=1) * np.asarray(size0) + origin0
    return Attention("s", xy0, size0, np.asarray(weight, float))


def peaked(n, at):
    weight = np.full(n, 0.5 / (n - 1))
    weight[at] = 0.5
    return weight


def luminance(picture):
    return cv2.cvtColor(picture[:-FOOT_PX], cv2.COLOR_RGB2LAB)[..., 0]


# -- from a model ----------------------------------------------------------------------------


def test_attention_is_the_softmax_of_the_scores_averaged_over_heads():
    model, bag = model_of(heads=2, gated=True), bag_of(7)
    (found,) = attention_of(model, {"s": bag}.__getitem__, ["s"], size0=(100, 100))
    with torch.no_grad():
        scores = model.aggregator.attention(model.aggregator.embed(torch.from_numpy(bag.features)))
    expected = torch.softmax(scores.double(), dim=0).mean(1).numpy()
    np.testing.assert_allclose(found.weight, expected, rtol=1e-5)
    np.testing.assert_array_equal(found.xy0, bag.xy0)


def test_slides_come_in_the_order_asked_for():
    bags = {"a": bag_of(3, 1), "b": bag_of(9, 2)}
    found = attention_of(model_of(), bags.__getitem__, ["b", "a"], size0=(100, 100))
    assert [(a.slide_id, len(a.weight)) for a in found] == [("b", 9), ("a", 3)]


def test_tiles_with_too_little_tissue_are_left_out():
    tissue = np.array([0.9, 0.1, 0.8, 0.2])
    bag = bag_of(4, tissue=tissue)
    (found,) = attention_of(
        model_of(), {"s": bag}.__getitem__, ["s"], tiles=TileFilter(0.5), size0=(100, 100)
    )
    np.testing.assert_array_equal(found.xy0, bag.xy0[[0, 2]])
    assert found.weight.sum() == pytest.approx(1)


@pytest.mark.parametrize("aggregator", ["mean", "max"])
def test_an_aggregator_without_attention_is_an_error(aggregator):
    with pytest.raises(ExplainError, match=f"'{aggregator}'"):
        attention_of(model_of(aggregator), {"s": bag_of(4)}.__getitem__, ["s"], size0=(1, 1))


@dataclass(frozen=True)
class Made:
    tiling: dict


@dataclass(frozen=True)
class WithProvenance(ArrayBag):
    provenance: Made = Made({})


def test_the_bag_tells_how_large_its_tiles_are():
    plain = bag_of(4)
    made = Made({"settings": {}, "resolved": {"size0": [64.5, 32.25]}})
    bag = WithProvenance(plain.features, plain.xy0, provenance=made)
    (found,) = attention_of(model_of(), {"s": bag}.__getitem__, ["s"])
    assert found.size0 == (64.5, 32.25)


@pytest.mark.parametrize("bag", [bag_of(4), WithProvenance(bag_of(4).features, bag_of(4).xy0)])
def test_tiles_of_unknown_size_are_an_error(bag):
    with pytest.raises(ExplainError, match="give size0"):
        attention_of(model_of(), {"s": bag}.__getitem__, ["s"])


def test_a_bag_without_coordinates_is_an_error():
    bag = ArrayBag(bag_of(4).features)
    with pytest.raises(ExplainError, match="no coordinates"):
        attention_of(model_of(), {"s": bag}.__getitem__, ["s"], size0=(1, 1))


@pytest.mark.parametrize(
    ("xy0", "weight"),
    [
        (np.zeros((2, 2), int), np.array([0.5, 0.6])),
        (np.zeros((2, 2), int), np.array([1.5, -0.5])),
        (np.zeros((2, 2), int), np.array([np.nan, 1.0])),
        (np.zeros((3, 2), int), np.array([0.5, 0.5])),
        (np.zeros((0, 2), int), np.array([])),
    ],
)
def test_what_is_no_attention_is_refused(xy0, weight):
    with pytest.raises(ExplainError):
        Attention("s", xy0, (10, 10), weight)


def test_top_tiles_are_the_largest_ties_in_row_order():
    attention = grid_of([0.1, 0.3, 0.05, 0.3, 0.25])
    assert top_tiles(attention, 4).tolist() == [1, 3, 4, 0]
    assert len(top_tiles(attention, 99)) == 5


# -- drawn -----------------------------------------------------------------------------------


def test_the_brightest_tile_is_where_the_weight_is():
    # 200 x 150 px of 10 level-0 px drawn 3.5 times as large: a tile of 100 is 35 px.
    attention = grid_of(peaked(300, at=20 * 4 + 13))
    bright = luminance(draw_attention(thumbnail_of(), attention, mpp=(0.5, 0.5), edge_px=700))
    top, left = 4 * 35, 13 * 35
    inside = bright[top : top + 35, left : left + 35]
    outside = bright.copy()
    outside[top : top + 35, left : left + 35] = 0
    assert inside.min() > outside.max()


def test_the_origin_of_the_thumbnail_is_taken_off():
    origin0 = (5000, 7000)
    weight = peaked(300, at=47)
    here = draw_attention(thumbnail_of(), grid_of(weight), mpp=(0.5, 0.5))
    there = draw_attention(
        thumbnail_of(origin0=origin0), grid_of(weight, origin0=origin0), mpp=(0.5, 0.5)
    )
    np.testing.assert_array_equal(here, there)


def test_colour_lies_on_tiles_only():
    attention = grid_of([1.0], origin0=(500, 300))
    picture = draw_attention(thumbnail_of(), attention, mpp=(0.5, 0.5), edge_px=700)
    coloured = np.ptp(picture[:-FOOT_PX].astype(int), axis=2) > 0
    expected = np.zeros_like(coloured)
    expected[105:140, 175:210] = True  # level-0 (500, 300) and 100 px, at 3.5 px per 10
    np.testing.assert_array_equal(coloured, expected)


def test_attention_is_relative_to_the_slides_largest():
    one = draw_attention(thumbnail_of(), grid_of([0.25] * 4), mpp=(0.5, 0.5))
    other = draw_attention(thumbnail_of(), grid_of([0.2] * 4 + [0.1, 0.1]), mpp=(0.5, 0.5))
    np.testing.assert_array_equal(one[10:25, 5:135], other[10:25, 5:135])


def test_permuting_overlapping_tiles_gives_the_same_picture():
    rng = np.random.default_rng(3)
    weight = rng.dirichlet(np.ones(60))
    xy0 = rng.integers(0, 1400, (60, 2))
    order = rng.permutation(60)
    pictures = [
        draw_attention(thumbnail_of(), Attention("s", xy0[k], (150, 150), weight[k]), mpp=(1, 1))
        for k in (np.arange(60), order)
    ]
    np.testing.assert_array_equal(*pictures)


def test_tiles_beyond_the_thumbnail_do_not_wrap_around():
    xy0 = np.array([[-400, -400], [2500, 100], [0, 0]])
    attention = Attention("s", xy0, (100, 100), np.ones(3) / 3)
    picture = draw_attention(thumbnail_of(), attention, mpp=(0.5, 0.5))[:-FOOT_PX]
    coloured = np.ptp(picture.astype(int), axis=2) > 0
    assert coloured[:35, :35].all()
    assert coloured.sum() == 35 * 35


def test_tiles_of_another_slide_are_an_error():
    attention = grid_of([0.5, 0.5], origin0=(90_000, 90_000))
    with pytest.raises(ExplainError, match="no tile lies on the thumbnail"):
        draw_attention(thumbnail_of(), attention, mpp=(0.5, 0.5))


@pytest.mark.parametrize(
    ("um_per_level0_px", "expected_mm"), [(0.25, 0.1), (0.5, 0.2), (1.0, 0.5), (10.0, 5.0)]
)
def test_the_scale_bar_is_as_long_as_it_says(um_per_level0_px, expected_mm):
    # 2000 level-0 px over 700 px; a quarter of the width holds the expected length.
    mpp = (um_per_level0_px, um_per_level0_px)
    picture = draw_attention(thumbnail_of(), grid_of([1.0]), mpp=mpp, edge_px=700)
    dark = (picture[-FOOT_PX:, :300] < 60).all(axis=2)
    longest = dark.sum(axis=1).max()
    um_per_px = 2000 * um_per_level0_px / 700
    assert longest == pytest.approx(expected_mm * 1000 / um_per_px, abs=1)
    assert longest <= 700 / 4


def test_pixels_are_square_on_a_slide_whose_are_not():
    picture = draw_attention(thumbnail_of(), grid_of([1.0]), mpp=(0.5, 0.25), edge_px=700)
    assert picture.shape == (round(700 * 150 * 0.25 / (200 * 0.5)) + FOOT_PX, 700, 3)


def test_outlines_are_dashed_where_they_lie():
    attention = grid_of(np.full(300, 1 / 300))
    hole = Polygon(box(400, 400, 1200, 1000).exterior, [box(600, 600, 800, 800).exterior.coords])
    shapes = [MultiPolygon([hole]), box(1500, 100, 1700, 300)]
    plain = draw_attention(thumbnail_of(), attention, mpp=(0.5, 0.5))
    drawn = draw_attention(thumbnail_of(), attention, shapes, mpp=(0.5, 0.5))
    changed = (plain != drawn).any(axis=2)
    zoom = 0.35
    near = np.zeros(changed.shape, np.uint8)
    for ring in (hole.exterior, *hole.interiors, shapes[1].exterior):
        points = np.rint(np.asarray(ring.coords) * zoom).astype(np.int32)
        cv2.polylines(near, [points], True, 1, 1)
    # Every change is within 4 px of an outline, and every outline is changed throughout.
    assert not (changed & (cv2.dilate(near, np.ones((9, 9), np.uint8)) == 0)).any()
    assert changed[near == 1].mean() > 0.99
    on_line = drawn[near == 1]
    assert 0.4 < (on_line < 100).all(axis=1).mean() < 0.9  # dashes
    assert (on_line > 200).all(axis=1).any()  # and gaps


@pytest.mark.parametrize("times", [1, 2])
def test_a_narrow_slide_keeps_its_foot(times):
    narrow, wide = (
        draw_attention(
            thumbnail_of(h=700, w=w), grid_of([1.0]), mpp=(0.5, 0.5), edge_px=700, foot_times=times
        )
        for w in (40, 600)
    )
    assert narrow.shape[0] == 700 + FOOT_PX * times
    # All of the key is there: as many inked pixels as on a wide slide, from the right edge on.
    key = [(p[-FOOT_PX * times :, -175 * times :] < 128).all(axis=2).sum() for p in (narrow, wide)]
    assert key[0] == key[1] > 100 * times
