"""Where the arrays of a bag lie in its file, and reading them from there without a library."""

from __future__ import annotations

import math
import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from io import FileIO
from typing import Protocol

import numpy as np

from wsi.errors import BagError

_SMALL_BYTES = 1 << 18  # read whole sooner than mapped

Rows = np.ndarray | slice
"""Row numbers (k,) in [0, N), or a slice of step 1."""


class Place(Protocol):
    """Where one array lies."""

    def take(self, file: FileIO, rows: Rows) -> np.ndarray:
        """Return `rows` of the array from the open bag file, in the order given."""
        ...


@dataclass(frozen=True)
class Found:
    """What a look into a bag file gives before any features are read.

    Args:
        places: of every dataset, by name.
        slide_id, key: whose bag the file says it is.
    """

    places: Mapping[str, Place]
    slide_id: object
    key: object


@dataclass(frozen=True)
class Plain:
    """An array that lies uncompressed in the file, in one piece or in pieces of equally many rows.

    Args:
        shape: (N, ...).
        dtype: of this machine's byte order.
        offsets: where each piece begins, in bytes.
        piece_rows: rows of each piece, of which the last may hold fewer.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    offsets: tuple[int, ...]
    piece_rows: int

    @property
    def row_bytes(self) -> int:
        """Return the size of one row."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    def take(self, file: FileIO, rows: Rows) -> np.ndarray:
        """Return `rows`: a slice is read into place, single rows are gathered from a map.

        Raises:
            BagError: the file ends before.
        """
        if isinstance(rows, slice):
            start, stop, _ = rows.indices(self.shape[0])
            return self._between(file, start, stop)
        if self.shape[0] * self.row_bytes <= _SMALL_BYTES:
            return self._between(file, 0, self.shape[0])[rows]
        return self._gathered(file, rows)

    def pieces(self, rows: Rows) -> set[int]:
        """Return the numbers of the pieces that `rows` lie in."""
        if isinstance(rows, slice):
            start, stop, _ = rows.indices(self.shape[0])
            return set(range(start // self.piece_rows, -(-stop // self.piece_rows)))
        return set((rows // self.piece_rows).tolist())

    def _between(self, file: FileIO, start: int, stop: int) -> np.ndarray:
        array = np.empty((stop - start, *self.shape[1:]), self.dtype)
        size = self.piece_rows
        for piece in self.pieces(slice(start, stop)):
            first, last = max(start, piece * size), min(stop, (piece + 1) * size)
            offset = self.offsets[piece] + (first - piece * size) * self.row_bytes
            _fill(array[first - start : last - start], file, offset)
        return array

    def _gathered(self, file: FileIO, rows: np.ndarray) -> np.ndarray:
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            if len(self.offsets) == 1:
                return self._piece(mapped, 0)[rows]
            array = np.empty((len(rows), *self.shape[1:]), self.dtype)
            piece_of = rows // self.piece_rows
            for piece in self.pieces(rows):
                wanted = piece_of == piece
                array[wanted] = self._piece(mapped, piece)[rows[wanted] - piece * self.piece_rows]
            return array

    def _piece(self, mapped: mmap.mmap, piece: int) -> np.ndarray:
        n = min(self.piece_rows, self.shape[0] - piece * self.piece_rows)
        count = n * math.prod(self.shape[1:])
        flat = np.frombuffer(mapped, self.dtype, count, self.offsets[piece])
        return flat.reshape(n, *self.shape[1:])


def read_at(file: FileIO, offset: int, size: int) -> np.ndarray:
    """Return `size` bytes (uint8) of an open file.

    Raises:
        BagError: the file ends before.
    """
    data = np.empty(size, np.uint8)
    _fill(data, file, offset)
    return data


def _fill(array: np.ndarray, file: FileIO, offset: int) -> None:
    file.seek(offset)
    left = array.reshape(-1).view(np.uint8).data
    while left:
        n = file.readinto(left)  # at most 2 GiB at a time
        if not n:
            raise BagError(f"{file.name} ends early")
        left = left[n:]
