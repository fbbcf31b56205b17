"""Lesion recall against areas counted by hand and pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from shapely import MultiPolygon, Point, box

from wsi.annotations import Region
from wsi.lesions import lesions_of, recall_of

TILES = np.asarray([[0, 0], [100, 0], [0, 100]])  # an L of three tiles of 100 x 100
SIZE = (100.0, 100.0)


def region(name: str, *parts) -> Region:
    return Region(name, MultiPolygon(parts))


@pytest.mark.parametrize(
    ("shape", "covered", "state"),
    [
        (box(10, 10, 90, 90), 1.0, "covered"),
        (box(50, 50, 150, 150), 0.75, "covered"),  # three quarters in the L
        (box(150, 0, 250, 100), 0.5, "covered"),
        (box(160, 0, 260, 100), 0.4, "partly"),
        (box(100, 100, 200, 200), 0.0, "missed"),  # touches two tiles along an edge
        (box(900, 900, 950, 950), 0.0, "missed"),
    ],
)
def test_rectangles_of_known_overlap(shape, covered: float, state: str) -> None:
    (found,) = lesions_of("s", [region("x", shape)], TILES, SIZE, (0.5, 0.25))
    assert found.covered == pytest.approx(covered, abs=1e-12)
    assert found.state == state
    assert found.area_mm2 == pytest.approx(shape.area * 0.5 * 0.25 / 1e6)
    assert found.centroid0 == (shape.centroid.x, shape.centroid.y)


def test_tiles_that_overlap_count_once() -> None:
    tiles = np.asarray([[0, 0], [50, 0], [0, 0]])
    (found,) = lesions_of("s", [region("x", box(0, 0, 200, 100))], tiles, SIZE, None)
    assert (found.covered, found.area_mm2) == (0.75, None)


def test_round_lesions_pixel_by_pixel() -> None:
    rng = np.random.default_rng(0)
    tiles = rng.integers(0, 400, (12, 2))
    discs = [Point(*rng.uniform(50, 450, 2)).buffer(r) for r in (12, 40, 90)]
    y, x = np.mgrid[0:550:0.5, 0:550:0.5] + 0.25
    kept = np.zeros(x.shape, bool)
    for left, top in tiles:
        kept |= (x >= left) & (x < left + 80.5) & (y >= top) & (y < top + 60)
    regions = [region(str(k), disc) for k, disc in enumerate(discs)]
    for found, disc in zip(lesions_of("s", regions, tiles, (80.5, 60.0), None), discs, strict=True):
        inside = shapely.contains_xy(disc, x, y)
        assert found.covered == pytest.approx(kept[inside].mean(), abs=0.01)


def test_a_lesion_of_several_pieces_is_one_with_a_share() -> None:
    both = region("x", box(0, 0, 10, 10), box(500, 500, 510, 510))
    (found,) = lesions_of("s", [both], TILES, SIZE, None)
    assert (found.covered, found.state) == (0.5, "covered")


def test_the_recall_counts_lesions_and_area() -> None:
    regions = [
        region("whole", box(0, 0, 100, 100)),  # 10,000, all of it
        region("bit", box(160, 0, 260, 100)),  # 10,000, 40 %
        region("lost", box(500, 500, 600, 700)),  # 20,000, nothing
    ]
    found = lesions_of("s", regions, TILES, SIZE, (1.0, 1.0))
    found += lesions_of("untiled", regions, None, SIZE, (1.0, 1.0))
    recall = recall_of(found)
    assert (recall.lesions, recall.covered, recall.partly, recall.missed) == (3, 1, 1, 1)
    assert recall.no_tiles == 3
    assert recall.touched == pytest.approx(2 / 3)
    assert recall.area == pytest.approx(14_000 / 40_000)
    assert {x.state for x in found if x.slide_id == "untiled"} == {"no-tiles"}


def test_areas_are_weighed_in_mm2_over_slides_of_different_resolution() -> None:
    fine = lesions_of("a", [region("x", box(0, 0, 100, 100))], TILES, SIZE, (0.25, 0.25))
    coarse = lesions_of("b", [region("y", box(500, 0, 600, 100))], TILES, SIZE, (0.5, 0.5))
    assert recall_of(fine + coarse).area == pytest.approx(1 / 5)


def test_without_tiles_or_lesions_there_is_no_share() -> None:
    (found,) = lesions_of("s", [region("x", box(0, 0, 9, 9))], np.zeros((0, 2), int), SIZE, None)
    assert (found.covered, found.state) == (0.0, "missed")  # tiled, and nothing kept
    assert recall_of([]).touched is None
    assert recall_of([]).area is None
