"""Which tiles limits leave out."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from wsi.bags import TileFilter, beyond
from wsi.errors import BagError

HALF = np.float16


def quality(**values: list[float]) -> dict[str, np.ndarray]:
    given = {"blur": [0.0] * 5, "pen": [0.0] * 5, "fold": [0.0] * 5} | values
    return {name: np.asarray(row, HALF) for name, row in given.items()}


def test_a_tile_at_its_limit_stays() -> None:
    scores = quality(blur=[0.1, 0.29, 0.3, 0.31, 1.0])
    assert beyond(scores, {"blur": 0.3})["blur"].tolist() == [False, False, False, True, True]


def test_a_tile_with_two_faults_counts_once() -> None:
    scores = quality(blur=[0.9, 0.9, 0, 0, 0], pen=[0.9, 0, 0.9, 0, 0], fold=[1, 1, 1, 1, 0])
    out = beyond(scores, {"blur": 0.5, "pen": 0.5, "fold": 0.5})
    assert {name: mask.tolist() for name, mask in out.items()} == {
        "blur": [True, True, False, False, False],
        "pen": [False, False, True, False, False],
        "fold": [False, False, False, True, False],
    }


def test_too_little_tissue_is_the_first_reason() -> None:
    bag = SimpleNamespace(
        tissue=np.asarray([0.1, 0.9, 0.9, 0.4, 0.5]), quality=quality(pen=[1, 1, 0, 0, 0])
    )
    out = TileFilter(0.5, {"pen": 0.2}).left_out("a", bag)
    assert {name: mask.tolist() for name, mask in out.items()} == {
        "tissue": [True, False, False, True, False],
        "pen": [False, True, False, False, False],
    }


def test_without_limits_nothing_is_needed_and_nothing_left_out() -> None:
    assert TileFilter().left_out("a", SimpleNamespace(tissue=None, quality=None)) == {}
    assert not TileFilter()
    assert TileFilter(limits={"blur": 1.0})


@pytest.mark.parametrize(
    ("filter_", "said"),
    [
        (TileFilter(min_tissue=0.5), "no tissue fractions.*data.min_tissue=0"),
        (TileFilter(limits={"blur": 0.5}), "no scores of tiles.*data.max_blur=0.5.*--redo"),
    ],
)
def test_what_a_bag_lacks_is_said_with_the_remedy(filter_: TileFilter, said: str) -> None:
    with pytest.raises(BagError, match=f"site/x: .*{said}"):
        filter_.left_out("site/x", SimpleNamespace(tissue=None, quality=None))
