"""Arrays read from where they lie, and what is remembered of a file that stays as it was."""

from __future__ import annotations

import os
import time
from io import FileIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi.bags import remembered
from wsi.bags.places import Plain
from wsi.bags.remembered import Remembered, signature
from wsi.errors import BagError


@pytest.fixture(scope="module")
def scattered(tmp_path_factory) -> tuple[Path, np.ndarray, Plain]:
    """An array whose pieces of 700 rows lie apart and in another order, the last not full."""
    array = np.random.default_rng(0).normal(size=(5000, 37)).astype(np.float16)
    path = tmp_path_factory.mktemp("places") / "file"
    offsets = [0] * 8
    with path.open("wb") as file:
        for piece in (3, 0, 7, 1, 2, 6, 5, 4):
            file.write(b"between" * piece)
            offsets[piece] = file.tell()
            file.write(array[700 * piece : 700 * (piece + 1)].tobytes())
    return path, array, Plain(array.shape, array.dtype, tuple(offsets), 700)


@given(st.data())
def test_any_rows_of_pieces_are_the_rows_of_the_array(scattered, data):
    path, array, place = scattered
    bound = st.integers(0, len(array))
    start, stop = sorted((data.draw(bound), data.draw(bound)))
    rows = np.array(data.draw(st.lists(st.integers(0, len(array) - 1), min_size=1)))
    with FileIO(path) as file:
        np.testing.assert_array_equal(place.take(file, slice(start, stop)), array[start:stop])
        np.testing.assert_array_equal(place.take(file, rows), array[rows])


def test_a_file_that_ends_early_is_an_error_and_no_array_of_leftovers(scattered, tmp_path):
    path, _, place = scattered
    cut = tmp_path / "cut"
    cut.write_bytes(path.read_bytes()[:-1])
    with FileIO(cut) as file, pytest.raises(BagError, match="ends early"):
        place.take(file, slice(0, 5000))


def settle(path: Path) -> None:
    hour_ago = time.time() - 3600
    os.utime(path, (hour_ago, hour_ago))


@pytest.fixture
def file(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(remembered, "_SETTLED_NS", 0)  # utime cannot set back the time of change
    path = tmp_path / "file"
    path.write_bytes(b"sound")
    settle(path)
    time.sleep(0.02)
    return path


def test_a_file_left_alone_is_remembered(file):
    known: Remembered[str] = Remembered()
    known.keep("a", "found", signature(file))
    assert known.get("a", file) == "found"
    assert known.get("b", file) is None


def overwritten(path: Path) -> None:
    path.write_bytes(b"other")
    settle(path)  # of the same size and time; only the time of change tells


def replaced(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(b"other")
    settle(other)
    other.replace(path)


@pytest.mark.parametrize("change", [overwritten, replaced, Path.unlink])
def test_a_file_that_changed_is_not(file, change):
    known: Remembered[str] = Remembered()
    known.keep("a", "found", signature(file))
    change(file)
    assert known.get("a", file) is None


@pytest.mark.parametrize(
    ("changed", "now", "settled"),
    [(5.25, 5.3, False), (5.25, 5.4, True), (5.0, 7.9, False), (5.0, 8.1, True), (9.5, 5.0, False)],
)
def test_a_clock_of_whole_seconds_is_trusted_later(monkeypatch, changed, now, settled):
    monkeypatch.setattr(remembered.time, "time_ns", lambda: int(now * 1e9))
    assert remembered._is_settled(int(changed * 1e9)) is settled


def test_what_changed_just_now_is_not_remembered(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"young")
    known: Remembered[str] = Remembered()
    known.keep("a", "found", signature(path))
    assert known.get("a", path) is None
