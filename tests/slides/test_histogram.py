"""Um per pixel by site, in bins counted by hand."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from wsi.slides import SlideInfo
from wsi.slides.histogram import mpp_bins


def slide(
    slide_id: str, mpp: float | tuple[float, float] | None, vendor: str = "aperio"
) -> SlideInfo:
    both = (mpp, mpp) if isinstance(mpp, float) else mpp
    return SlideInfo(
        slide_id=slide_id,
        path=Path(f"{slide_id}.svs"),
        vendor=vendor,
        size0=(10, 10),
        mpp=both,
        mpp_source="openslide" if both else "none",
        mpp_state="ok" if both else "no-mpp",
        level_sizes=((10, 10),),
        downsamples=((1.0, 1.0),),
        bounds0=(0, 0, 10, 10),
        background=(255, 255, 255),
        fingerprint="",
    )


def test_bins_follow_the_values_and_not_a_grid() -> None:
    values = [0.2425, 0.2427, 0.2268, 0.2266, 0.2425]
    bins = mpp_bins(("a", slide(f"s{k}", value)) for k, value in enumerate(values))
    assert [(b.mpp, b.slide_ids) for b in bins] == [
        (0.2267, ("s2", "s3")),
        (0.2425, ("s0", "s1", "s4")),
    ]


def test_a_bin_ends_2_percent_above_its_smallest_value() -> None:
    bins = mpp_bins(("", slide(f"s{k}", v)) for k, v in enumerate([0.5, 0.5099, 0.5101, 0.52]))
    assert [b.slide_ids for b in bins] == [("s0", "s1"), ("s2", "s3")]


def test_a_bin_of_different_values_is_shown_as_their_range() -> None:
    values = [0.5, 0.499, 0.25, 0.25]
    bins = mpp_bins(("", slide(f"s{k}", value)) for k, value in enumerate(values))
    assert [(b.low, b.high, b.text) for b in bins] == [
        (0.25, 0.25, "0.25"),
        (0.499, 0.5, "0.499-0.5"),
    ]
    assert mpp_bins([("", slide("bare", None))])[0].text == "none"


def test_sites_are_apart_and_slides_without_resolution_last() -> None:
    bins = mpp_bins(
        [
            ("b", slide("b1", 0.25, "philips")),
            ("a", slide("a1", None)),
            ("a", slide("a2", (0.25, 0.35), "leica")),
            ("a", slide("a3", 0.3)),
        ]
    )
    assert [(b.site, b.mpp, b.slide_ids) for b in bins] == [
        ("a", 0.3, ("a2", "a3")),
        ("a", None, ("a1",)),
        ("b", 0.25, ("b1",)),
    ]
    assert bins[0].vendors == {"leica": 1, "aperio": 1}
    assert bins[1].sources == {"none": 1}


def test_few_of_many_are_outlying() -> None:
    usual = [("a", slide(f"s{k:02}", 0.2425)) for k in range(48)]
    odd = [("a", slide(f"x{k}", 0.2268)) for k in range(2)]
    assert [(b.mpp, b.outlying) for b in mpp_bins(usual + odd)] == [(0.2268, True), (0.2425, False)]
    more = [("a", slide(f"x{k}", 0.2268)) for k in range(3)]
    assert not any(b.outlying for b in mpp_bins(usual + more))


def test_a_site_of_a_few_slides_has_no_outliers() -> None:
    eight = [("a", slide(f"s{k}", 0.25)) for k in range(8)]
    assert not any(b.outlying for b in mpp_bins([*eight, ("a", slide("x", 0.5))]))
    nine = [*eight, ("a", slide("s8", 0.25))]
    assert [b.slide_ids for b in mpp_bins([*nine, ("a", slide("x", 0.5))]) if b.outlying] == [
        ("x",)
    ]


@given(st.lists(st.floats(0.05, 20), max_size=40))
def test_every_slide_is_in_one_narrow_bin(values: list[float]) -> None:
    by_id = {f"s{k:03}": value for k, value in enumerate(values)}
    bins = mpp_bins(("", slide(slide_id, value)) for slide_id, value in by_id.items())
    assert sorted(i for b in bins for i in b.slide_ids) == sorted(by_id)
    edges = [sorted(by_id[i] for i in b.slide_ids) for b in bins]
    assert all(e[-1] <= e[0] * 1.02 * (1 + 1e-12) for e in edges)
    # No two neighbours would fit into one bin, so that there are as few as can be.
    assert all(f[0] > e[0] * 1.02 * (1 - 1e-12) for e, f in pairwise(edges))
