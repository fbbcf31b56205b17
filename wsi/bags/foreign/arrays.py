"""Rows of an archive's arrays, as bags hold them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import h5py
import numpy as np

from wsi.bags.foreign.archive import Entry, Place
from wsi.bags.foreign.safe_h5 import dataset, held_h5, readable
from wsi.bags.foreign.safe_pt import read_tensor
from wsi.errors import ForeignBagError

PIECE_BYTES = 8 << 20
_WIDEST = {"f": "float64", "i": "int64", "u": "int64"}

Rows = np.ndarray | slice


class Taker(Protocol):
    """Gives rows (k, D) of an array that stays on disk, in the order asked for."""

    def __call__(self, rows: Rows) -> np.ndarray: ...


@contextmanager
def opened(place: Place, kinds: str = "f") -> Iterator[Taker]:
    """Yield what reads rows of the array at `place`.

    Raises:
        UnsafeFileError, ForeignBagError: as for `open_h5`, `dataset` and `read_tensor`.
    """
    if place.path.suffix == ".pt":
        tensor = read_tensor(place.path)
        yield lambda rows: np.array(tensor[rows])
        return
    with held_h5(place.path) as file:
        with readable(place.path):
            data = dataset(file, place.name, 2, kinds)

        def take(rows: Rows) -> np.ndarray:
            with readable(place.path):
                return _taken(data, rows)

        yield take


def _taken(data: h5py.Dataset, rows: Rows) -> np.ndarray:
    if isinstance(rows, slice):
        return data[rows]
    # The library takes growing numbers only, each of them once.
    wanted, back = np.unique(rows, return_inverse=True)
    return data[wanted][back]


def pieces(n: int, row_bytes: int) -> Iterator[slice]:
    """Yield slices that cover `n` rows, of about PIECE_BYTES each."""
    step = max(1, PIECE_BYTES // max(1, row_bytes))
    for start in range(0, n, step):
        yield slice(start, min(n, start + step))


def level0(entry_name: str, raw: np.ndarray, mpp0: tuple[float, float] | None) -> np.ndarray:
    """Return corners (k, 2) in whole level-0 pixels.

    Args:
        raw: (k, 2 or more) in level-0 pixels, or in micrometres where `mpp0` is given.
        mpp0: um per level-0 pixel by which to divide.

    Raises:
        ForeignBagError: corners in pixels are no whole numbers, or beyond what a slide can have.
    """
    xy = raw[:, :2].astype(_WIDEST[raw.dtype.kind])
    if mpp0 is not None:
        xy = np.rint(xy / np.asarray(mpp0))
    limits = np.iinfo(np.int32)
    bad = ~np.isfinite(xy) | (xy != np.floor(xy)) | (xy < limits.min) | (xy > limits.max)
    if bad.any():
        row = int(np.flatnonzero(bad.any(axis=1))[0])
        raise ForeignBagError(
            f"{entry_name}: the coordinates of row {row} are {raw[row, :2].tolist()}, no corner of "
            "a tile — make the file again",
            "bad-coordinates",
        )
    return xy.astype(np.int32)


def nonfinite_rows(entry: Entry) -> list[int]:
    """Return the rows of features with NaN or infinite values; every value is looked at."""
    found: list[int] = []
    with opened(entry.features) as take:
        for piece in pieces(entry.n, 4 * entry.dim):
            bad = ~np.isfinite(take(piece)).all(axis=1)
            found += (piece.start + np.flatnonzero(bad)).tolist()
    return found
