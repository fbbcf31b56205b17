"""Encoders at work on the tiles that readers hand over, on threads beside the reading."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi.encoders import Encoder
from wsi.extract import encode

_DEVICE_BATCH = 256  # tiles of any slides together; a device is idle between small batches
_NAME = "encoding"
_END_S = 3.0  # after which a run that was stopped waits no longer for the batch in hand
_DEVICE_THREADS = 2  # one puts tiles together while the device works for the other


@dataclass(eq=False)
class Encoded:
    """Tiles of one slide with their features.

    Attributes:
        tag: whatever the caller wants to know them by.
        tiles: uint8 (k, h, w, 3).
        by: numbers of the encoders to use.
        features: (k, D) by number of the encoder, when done.
        seconds: that encoding took.
        error: why there are no features.
    """

    tag: Any
    tiles: NDArray[np.uint8]
    by: tuple[int, ...]
    features: dict[int, NDArray[np.float32]] = field(default_factory=dict)
    seconds: float = 0.0
    error: BaseException | None = None


class Encoding:
    """Threads that encode what is put in; a context manager.

    On a CPU each piece is a batch, so that a slide's features do not depend, to the last bit, on
    what else was encoded. On a device pieces of several slides share a batch, so that it never
    waits; when its memory runs out, batches become half as large.

    Args:
        encoders: those that pieces name by number.
        threads: that encode side by side on a CPU.
    """

    def __init__(self, encoders: Sequence[Encoder], device: str, threads: int) -> None:
        self._encoders = encoders
        self._on_device = device != "cpu"
        self.batch = _DEVICE_BATCH if self._on_device else 1
        self.halved = 0
        self._pending: list[Encoded] = []
        self._todo: queue.SimpleQueue[list[Encoded] | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[Encoded] = queue.SimpleQueue()
        self._copied: queue.SimpleQueue[Encoded] = queue.SimpleQueue()
        self._given = self._taken = 0
        self._counting = threading.Lock()
        self._awake, self._bell = os.pipe()
        os.set_blocking(self._awake, False)
        os.set_blocking(self._bell, False)
        n = _DEVICE_THREADS if self._on_device else threads
        self._threads = [
            threading.Thread(target=self._work, name=_NAME, daemon=True)
            for _ in range(n if encoders else 0)
        ]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Encoding:
        return self

    def __exit__(self, *exc: object) -> None:
        stopped = exc[0] is not None
        while stopped and not self._todo.empty():  # nobody wants it any more
            with contextlib.suppress(queue.Empty):
                self._todo.get_nowait()
        for _ in self._threads:
            self._todo.put(None)
        # Nobody waits for a large batch on a slow CPU; see `is_encoding`.
        until = time.monotonic() + _END_S
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()) if stopped else None)
        if not any(thread.is_alive() for thread in self._threads):
            os.close(self._awake)
            os.close(self._bell)

    @property
    def ready(self) -> int:
        """Return a descriptor that can be read when something is done."""
        return self._awake

    def put(self, piece: Encoded) -> None:
        """Encode a piece as soon as its batch is full; pieces of a batch share their encoders."""
        if self._pending and self._pending[0].by != piece.by:
            self.flush()
        self._pending.append(piece)
        if sum(len(piece.tiles) for piece in self._pending) >= self.batch:
            self.flush()

    def flush(self) -> None:
        """Encode what waits for its batch to be full."""
        if self._pending:
            self._given += 1
            self._todo.put(self._pending)
            self._pending = []

    @property
    def is_idle(self) -> bool:
        """Return whether a thread has nothing to do."""
        return self._given - self._taken < len(self._threads)

    def done(self) -> list[Encoded]:
        """Return what was encoded since the last call."""
        with contextlib.suppress(BlockingIOError):  # taken already by an earlier call
            os.read(self._awake, 1 << 16)
        return _taken(self._done)

    def copied(self) -> list[Encoded]:
        """Return pieces whose `tiles` nobody looks at any more, since the last call."""
        return _taken(self._copied)

    def _work(self) -> None:
        import torch

        if not self._on_device:
            torch.set_num_threads(1)  # of this thread; the others are beside it
        memory = _Memory(self._on_device)
        while (pieces := self._todo.get()) is not None:
            before = time.perf_counter()
            try:
                self._encode(pieces, memory)
            except BaseException as error:  # told in the caller's thread
                for piece in pieces:
                    piece.error = error
            share = (time.perf_counter() - before) / sum(len(piece.tiles) for piece in pieces)
            with self._counting:
                self._taken += 1
            for piece in pieces:
                piece.seconds = share * len(piece.tiles)
                self._copied.put(piece)
                self._done.put(piece)
            self._ring()

    def _encode(self, pieces: list[Encoded], memory: _Memory) -> None:
        if self._on_device:
            tiles = memory.together([piece.tiles for piece in pieces])
            for piece in pieces:
                self._copied.put(piece)
            self._ring()
        else:
            (tiles,) = (piece.tiles for piece in pieces)
        cuts = np.cumsum([len(piece.tiles) for piece in pieces])[:-1]
        for k in pieces[0].by:
            encoder = self._encoders[k]
            most = len(tiles) if self._on_device else encoder.default_batch
            parts = [tiles[start : start + most] for start in range(0, len(tiles), most)]
            features = np.concatenate([self._halving(encoder, part) for part in parts])
            for piece, own in zip(pieces, np.split(features, cuts), strict=True):
                piece.features[k] = own

    def _halving(self, encoder: Encoder, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return features; where the device has too little memory, in smaller and smaller parts."""
        import torch

        try:
            return encode(encoder, tiles)
        except torch.OutOfMemoryError:
            half = len(tiles) // 2
            if not half:
                raise
        torch.cuda.empty_cache()
        self.batch, self.halved = max(1, min(self.batch, half)), self.halved + 1
        parts = [self._halving(encoder, part) for part in (tiles[:half], tiles[half:])]
        return np.concatenate(parts)

    def _ring(self) -> None:
        with contextlib.suppress(BlockingIOError):  # full: it rings already
            os.write(self._bell, b"x")


class _Memory:
    """Where a thread puts the tiles of a batch together: from pinned memory they travel faster."""

    def __init__(self, is_used: bool) -> None:
        import torch

        self._is_pinned = is_used and torch.cuda.is_available()
        self._tensor = torch.empty(0, dtype=torch.uint8)

    def together(self, parts: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
        """Return all tiles of `parts` in one array, which the next call uses again."""
        import torch

        n, shape = sum(map(len, parts)), parts[0].shape[1:]
        size = n * int(np.prod(shape))
        if len(self._tensor) < size:
            self._tensor = torch.empty(size, dtype=torch.uint8, pin_memory=self._is_pinned)
        tiles = self._tensor.numpy()[:size].reshape(n, *shape)
        np.concatenate(parts, out=tiles)
        return tiles


def _taken(found: queue.SimpleQueue[Encoded]) -> list[Encoded]:
    taken: list[Encoded] = []
    while not found.empty():
        taken.append(found.get())
    return taken


def is_encoding() -> bool:
    """Return whether a thread is still at a batch that nobody wants any more.

    The interpreter cannot end beside it: torch's own threads then abort the process.
    """
    return any(thread.name == _NAME for thread in threading.enumerate())
