"""Bags of several slides laid together."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from wsi.bags import joined
from wsi.data import ArrayBag


def bag(xy0: Any, seed: int = 0, **parts: Any) -> ArrayBag:
    xy0 = np.array(xy0, np.int32)
    return ArrayBag(np.random.default_rng(seed).normal(size=(len(xy0), 3)), xy0, **parts)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([1, 300, 200_000]))
def test_slides_keep_their_shape_and_never_meet(seed: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    slides = [rng.integers(0, size, (rng.integers(1, 12), 2)) for _ in range(rng.integers(2, 5))]
    bags = [bag(xy0) for xy0 in slides]
    found = np.split(joined(bags).xy0, np.cumsum([len(xy0) for xy0 in slides])[:-1])
    for moved, one in zip(found, bags):
        np.testing.assert_array_equal(np.ptp(moved - one.xy0, axis=0), 0)
        np.testing.assert_array_equal(moved[:, 1], one.xy0[:, 1])
    spans = [(part[:, 0].min(), part[:, 0].max()) for part in found]
    widest = max(high - low for low, high in spans)
    for (_, end), (start, _) in pairwise(spans):
        assert start - end > widest
    for one, other in pairwise(found):
        assert cdist(one, other).min() > widest


def test_tiles_stand_in_order_of_slides() -> None:
    first, second = bag([(0, 0), (1, 0)]), bag([(0, 0)], 1)
    found = joined([first, second])
    np.testing.assert_array_equal(found.features, [*first.features, *second.features])
    assert found.tissue is None
    assert found.quality is None


def test_tissue_and_scores_are_kept_where_all_slides_have_them() -> None:
    def scored(n: int, **parts: Any) -> ArrayBag:
        return bag([(k, 0) for k in range(n)], **parts)

    known = [
        scored(n, tissue=np.full(n, n / 4), quality={"blur": np.full(n, n / 8)}) for n in (1, 2)
    ]
    found = joined(known)
    assert found.tissue is not None
    assert found.quality is not None
    assert found.tissue.tolist() == [0.25, 0.5, 0.5]
    assert found.quality["blur"].tolist() == [0.125, 0.25, 0.25]
    some = joined([known[0], scored(1)])
    assert some.tissue is None
    assert some.quality is None
