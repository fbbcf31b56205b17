"""Shapes of a person stand over what a method found, and are kept apart from it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely import MultiPolygon, Polygon, box

from wsi.errors import SlideError
from wsi.slides import open_slide
from wsi.tissue import Edits, TissueMask, edit_path, read_edits, write_edit
from wsi.tissue.edited import filled


def mask_of(shape: tuple[int, int] = (30, 40), fill: bool = False, **more) -> TissueMask:
    return TissueMask(
        np.full(shape, fill), (4.0, 5.0), (100, 200), "od_otsu", {"pen": True}, **more
    )


def centres_inside(area: MultiPolygon, tissue: TissueMask) -> np.ndarray:
    """Return what GEOS says of every pixel's centre, one by one."""
    H, W = tissue.mask.shape
    y, x = np.mgrid[0:H, 0:W] + 0.5
    x0, y0 = x * tissue.scale[0] + tissue.origin0[0], y * tissue.scale[1] + tissue.origin0[1]
    return shapely.contains_xy(area, x0, y0)


corner = st.tuples(
    st.floats(50, 330, allow_nan=False, width=32), st.floats(150, 400, allow_nan=False, width=32)
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(corner, min_size=3, max_size=7), min_size=1, max_size=3))
def test_filling_takes_the_pixels_whose_centre_is_inside(rings) -> None:
    drawn = shapely.union_all([shapely.make_valid(Polygon(ring)) for ring in rings])
    parts = [p for p in shapely.get_parts(drawn) if isinstance(p, Polygon)]
    area, tissue = MultiPolygon(parts), mask_of()
    found, expected = filled(area, tissue), centres_inside(area, tissue)
    H, W = tissue.mask.shape
    y, x = np.mgrid[0:H, 0:W] + 0.5
    points = shapely.points(x * 4.0 + 100, y * 5.0 + 200)
    near = shapely.distance(area.boundary, points) < 1e-6  # on the line, either answer is right
    assert (found == expected)[~near].all()


def test_filling_what_a_mask_outlines_gives_the_mask() -> None:
    rng = np.random.default_rng(0)
    tissue = replace(mask_of(), mask=rng.random((30, 40)) > 0.6)
    np.testing.assert_array_equal(filled(tissue.outlines(), tissue), tissue.mask)


def test_a_hole_and_what_lies_outside_stay_empty() -> None:
    ring = Polygon(box(100, 200, 260, 350).exterior, [box(140, 250, 180, 300).exterior])
    found = filled(MultiPolygon([ring, box(-900, -900, -800, -800)]), mask_of())
    assert found[:, :].sum() == 30 * 40 - 10 * 10
    assert not found[10:20, 10:20].any()


LEFT = MultiPolygon([box(100, 200, 180, 350)])  # the left half of the mask
TOP = MultiPolygon([box(100, 200, 260, 275)])


@pytest.mark.parametrize(
    ("edits", "method", "flags", "rows", "columns"),
    [
        (Edits(), "od_otsu", ("pen",), slice(None), slice(None)),
        (Edits(mask=LEFT), "edited", ("edited",), slice(None), slice(0, 20)),
        (Edits(include=LEFT), "od_otsu", ("pen", "roi"), slice(None), slice(0, 20)),
        (Edits(exclude=LEFT), "od_otsu", ("pen", "roi"), slice(None), slice(20, 40)),
        (Edits(mask=LEFT, include=TOP), "edited", ("edited", "roi"), slice(0, 15), slice(0, 20)),
        (Edits(include=TOP, exclude=LEFT), "od_otsu", ("pen", "roi"), slice(0, 15), slice(20, 40)),
        (Edits(mask=LEFT, exclude=LEFT), "edited", ("edited", "roi", "empty"), slice(0), slice(0)),
    ],
)
def test_edits_replace_and_restrict(edits, method, flags, rows, columns) -> None:
    found = edits.apply(mask_of(fill=True, flags=("pen",)))
    expected = np.zeros((30, 40), bool)
    expected[rows, columns] = True
    np.testing.assert_array_equal(found.mask, expected)
    assert (found.method, found.flags) == (method, flags)


def test_a_drawn_mask_fills_an_empty_one() -> None:
    found = Edits(mask=LEFT).apply(mask_of(flags=("empty",)))
    assert (found.mask.sum(), found.flags) == (600, ("edited",))


def test_the_hash_tells_shapes_apart_not_how_they_are_written() -> None:
    turned = MultiPolygon([Polygon([(180, 350), (100, 350), (100, 200), (180, 200)])])
    assert Edits(mask=LEFT).sha256 == Edits(mask=turned).sha256
    kinds = [Edits(mask=LEFT), Edits(include=LEFT), Edits(exclude=LEFT), Edits(mask=TOP)]
    kinds += [Edits(mask=LEFT, include=TOP), Edits(mask=TOP, include=LEFT)]
    assert len({edits.sha256 for edits in kinds}) == len(kinds)
    assert [bool(e) for e in (Edits(), Edits(exclude=LEFT))] == [False, True]


def test_edits_are_kept_and_read_back(slide_folder: Path, tmp_path: Path) -> None:
    with open_slide(slide_folder / "a.svs", "site/a") as slide:
        info = replace(slide.info, bounds0=(30, 50, 900, 900))
    assert not read_edits(tmp_path, info)
    write_edit(tmp_path, "mask", info, LEFT)
    path = write_edit(tmp_path, "exclude", info, TOP)
    assert path == edit_path(tmp_path, "exclude", "site/a") == tmp_path / "exclude/site%2Fa.geojson"
    assert "[70.0, 150.0]" in path.read_text()  # QuPath counts from the bounds
    found = read_edits(tmp_path, info)
    assert found == Edits(mask=found.mask, exclude=found.exclude)
    assert found.mask is not None
    assert found.mask.equals(LEFT)
    assert found.exclude is not None
    assert found.exclude.equals(TOP)
    path.write_text("{")
    with pytest.raises(SlideError, match=r"site%2Fa\.geojson"):
        read_edits(tmp_path, info)
