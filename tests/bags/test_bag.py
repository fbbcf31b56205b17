"""Bags as values, and the keys that say what they were made from."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from wsi.bags import Bag, Provenance
from wsi.errors import BagError, CohortError

PARTS: dict[str, Any] = {
    "slide": {"fingerprint": "s1", "mpp": (0.25, 0.25)},
    "tiling": {"settings": {"mpp": 0.5, "tile_px": 256}, "resolved": {"level": 0}},
    "encoder": {"name": "texture-v1", "fingerprint": "e1"},
    "tissue": {"settings": {"method": "od_otsu"}, "found": {"threshold": 0.1}},
    "precision": "float16",
}


def made(**changes: Any) -> Provenance:
    return Provenance(**(PARTS | changes))


def values(n: int = 4, dim: int = 3) -> dict[str, Any]:
    return {
        "slide_id": "a",
        "features": np.ones((n, dim), np.float16),
        "xy0": np.zeros((n, 2), np.int32),
        "tissue": np.ones(n, np.float16),
        "provenance": made(),
    }


@pytest.mark.parametrize(
    "changes",
    [
        {"tiling": {"settings": {"mpp": 0.5, "tile_px": 512}}},
        {"tissue": {"settings": {"method": "hsv"}}},
        {"encoder": {"name": "texture-v1", "fingerprint": "e2"}},
        {"precision": "float32"},
        {"quality": {"settings": {"max_blur": 0.5}}},
        {"pixels": {"settings": {"srgb": True}}},
        {"pixels": {"settings": {"stain": {"name": "macenko"}}}},
    ],
)
def test_a_changed_setting_changes_both_keys(changes):
    assert made(**changes).key != made().key
    assert made(**changes).recipe_key != made().recipe_key


@pytest.mark.parametrize(
    "changes",
    [
        {"slide": PARTS["slide"] | {"fingerprint": "s2"}},
        {"slide": PARTS["slide"] | {"mpp": (0.5, 0.5)}},
        {"tissue": PARTS["tissue"] | {"mask": "an edited mask's hash"}},
    ],
)
def test_what_is_of_one_slide_changes_its_key_only(changes):
    assert made(**changes).key != made().key
    assert made(**changes).recipe_key == made().recipe_key


@pytest.mark.parametrize(
    "changes",
    [
        {"slide": PARTS["slide"] | {"vendor": "aperio"}},
        {"tiling": PARTS["tiling"] | {"resolved": {"level": 3}}},
        {"tiling": {"settings": {"tile_px": 256, "mpp": 0.5}}},
        {"encoder": {"fingerprint": "e1"}},
        {"tissue": {"settings": {"method": "od_otsu"}, "found": {"threshold": 0.3}}},
        {"quality": {"settings": {}, "fold": 0.1}},
        {"pixels": {"settings": {}}},
        {"pixels": {"fitted": {"colour": "converted"}}},
    ],
)
def test_what_the_features_do_not_depend_on_changes_no_key(changes):
    assert (made(**changes).key, made(**changes).recipe_key) == (made().key, made().recipe_key)


@pytest.mark.parametrize(
    "changes",
    [
        {"slide": {}},
        {"slide": {"fingerprint": ""}},
        {"tiling": {"mpp": 0.5}},
        {"tissue": {"method": "od_otsu"}},
        {"encoder": {"name": "x"}},
        {"encoder": {"fingerprint": "e1", "mean": np.float32(0.5)}},
        {"slide": {"fingerprint": "s1", "mpp": float("nan")}},
        {"precision": "float64"},
        {"slide": "s1"},
    ],
)
def test_provenance_without_its_parts_is_refused(changes):
    with pytest.raises(BagError, match="provenance"):
        made(**changes)


def test_provenance_does_not_follow_later_changes_of_its_source():
    slide = {"fingerprint": "s1"}
    provenance = made(slide=slide)
    key = provenance.key
    slide["fingerprint"] = "s2"
    assert provenance.key == key


@pytest.mark.parametrize(
    "changes",
    [
        {"features": np.ones((4, 3), np.float32)},
        {"features": np.ones(4, np.float16)},
        {"features": np.ones((0, 3), np.float16)},
        {"xy0": np.zeros((4, 2), np.int64)},
        {"xy0": np.zeros((3, 2), np.int32)},
        {"tissue": np.ones(4, np.float32)},
        {"tissue": np.full(4, np.nan, np.float16)},
        {"tissue": np.full(4, 1.5, np.float16)},
        {"quality": {"blur": np.zeros(4, np.float16)}},
        {"quality": dict.fromkeys(("blur", "pen", "fold"), np.zeros(4))},
        {"quality": dict.fromkeys(("blur", "pen", "fold"), np.full(4, 2, np.float16))},
    ],
)
def test_a_malformed_bag_is_refused(changes):
    with pytest.raises(BagError, match="a"):
        Bag(**(values() | changes))


def test_an_empty_bag_is_refused():
    with pytest.raises(BagError, match="write_empty"):
        Bag(**values(n=0))


def test_an_unusable_id_is_refused():
    with pytest.raises(CohortError):
        Bag(**(values() | {"slide_id": "../x"}))


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
def test_rows_that_are_not_finite_are_counted_and_named(dtype, value):
    features = np.full((20_000, 3), np.finfo(dtype).max, dtype)
    features[1::2] = np.finfo(dtype).min
    bag = values(20_000) | {"features": features, "provenance": made(precision=dtype)}
    Bag(**bag)
    features[[9000, 15_000], 1] = value
    with pytest.raises(BagError, match=r"2 rows .* \(rows 9000, 15000\)"):
        Bag(**bag)
