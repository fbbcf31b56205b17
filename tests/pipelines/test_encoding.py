"""Encoding beside reading: batches, slides that share them, devices out of memory, errors."""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pipelines.encoding import Encoded, Encoding

EDGE = 4


class Means:
    """An encoder of three features, the means of a tile's colours; it notes its batches.

    Args:
        most: tiles it has memory for.
        slow: seconds by the number of tiles.
    """

    default_batch = 64

    def __init__(self, most: int = 10**6, slow: Callable[[int], float] = lambda n: 0.0) -> None:
        self.info = SimpleNamespace(dim=3)
        self.batches: list[int] = []
        self._most = most
        self._slow = slow

    def embed(self, tiles: torch.Tensor) -> torch.Tensor:
        self.batches.append(len(tiles))
        if len(tiles) > self._most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        time.sleep(self._slow(len(tiles)))
        return tiles.float().mean((1, 2))


def piece(tag: object, n: int, by: tuple[int, ...] = (0,)) -> Encoded:
    rng = np.random.default_rng(abs(hash(tag)) % 2**32)
    return Encoded(tag, rng.integers(0, 256, (n, EDGE, EDGE, 3), np.uint8), by)


def expected(piece: Encoded) -> np.ndarray:
    return piece.tiles.astype(np.float64).mean((1, 2))


def all_done(encoding: Encoding, n: int) -> list[Encoded]:
    """Return the next `n` pieces, waiting as the engine waits: on the descriptor alone."""
    found: list[Encoded] = []
    while len(found) < n:
        assert select.select([encoding.ready], [], [], 20)[0], f"{len(found)} of {n} came"
        found += encoding.done()
    return found


def encoding_of(*encoders: object, device: str = "cuda", threads: int = 2) -> Encoding:
    return Encoding(encoders, device, threads)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_piece_gets_its_own_features_whatever_the_order(device: str) -> None:
    slow = Means(slow=lambda n: 0.002 * (n % 5))
    pieces = [piece(k, n) for k, n in enumerate([64, 1, 63, 64, 7, 30, 64, 64, 2, 64] * 3)]
    with encoding_of(slow, device=device, threads=3) as encoding:
        for one in pieces:
            encoding.put(one)
        encoding.flush()
        done = all_done(encoding, len(pieces))
    assert set(done) == set(pieces)
    for one in pieces:
        np.testing.assert_allclose(one.features[0], expected(one), rtol=1e-5)
        assert one.error is None
        assert one.seconds > 0 or device == "cuda"


def test_a_processor_encodes_each_piece_alone() -> None:
    encoder = Means()
    with encoding_of(encoder, device="cpu") as encoding:
        for k, n in enumerate([64, 5, 17]):
            encoding.put(piece(k, n))
        all_done(encoding, 3)
    assert sorted(encoder.batches) == [5, 17, 64]


def test_a_large_encoder_gets_on_a_processor_no_more_tiles_than_suit_it() -> None:
    encoder = Means()
    encoder.default_batch = 8
    with encoding_of(encoder, device="cpu", threads=1) as encoding:
        encoding.put(piece("a", 20))
        (done,) = all_done(encoding, 1)
    assert encoder.batches == [8, 8, 4]
    np.testing.assert_allclose(done.features[0], expected(done), atol=1e-3)


def test_slides_share_the_batches_of_a_device() -> None:
    encoder = Means()
    with encoding_of(encoder) as encoding:
        for k in range(7):
            encoding.put(piece(k, 64))
        all_done(encoding, 4)
        assert encoder.batches == [256]  # the rest waits for a full batch
        assert encoding.is_idle
        encoding.flush()
        all_done(encoding, 3)
    assert encoder.batches == [256, 192]


def test_pieces_for_other_encoders_are_no_part_of_a_batch() -> None:
    one, two = Means(), Means()
    pieces = [piece("a", 10, (0, 1)), piece("b", 20, (1,)), piece("c", 30, (1,))]
    with encoding_of(one, two) as encoding:
        for each in pieces:
            encoding.put(each)
        encoding.flush()
        all_done(encoding, 3)
    assert (one.batches, sorted(two.batches)) == ([10], [10, 50])
    assert [sorted(each.features) for each in pieces] == [[0, 1], [1], [1]]
    for each in pieces:
        np.testing.assert_allclose(each.features[1], expected(each), rtol=1e-5)


def test_a_device_out_of_memory_gets_smaller_batches_and_gives_the_same() -> None:
    encoder = Means(most=100)
    pieces = [piece(k, 64) for k in range(12)]
    with encoding_of(encoder) as encoding:
        for each in pieces[:8]:
            encoding.put(each)
        all_done(encoding, 8)
        assert encoding.batch <= 128
        assert encoding.halved >= 2
        first = len(encoder.batches)
        for each in pieces[8:]:
            encoding.put(each)
        encoding.flush()
        all_done(encoding, 4)
    assert max(encoder.batches[first:]) <= 128
    for each in pieces:
        np.testing.assert_allclose(each.features[0], expected(each), rtol=1e-5)


def test_a_device_without_memory_for_one_tile_says_so() -> None:
    with encoding_of(Means(most=0)) as encoding:
        encoding.put(piece("a", 4))
        encoding.flush()
        (done,) = all_done(encoding, 1)
    assert isinstance(done.error, torch.OutOfMemoryError)
    assert encoding.batch == 1


def test_an_error_of_an_encoder_reaches_the_caller_and_ends_no_thread() -> None:
    class Broken(Means):
        def embed(self, tiles: torch.Tensor) -> torch.Tensor:
            if len(tiles) == 13:
                raise ValueError("thirteen")
            return super().embed(tiles)

    with encoding_of(Broken(), device="cpu", threads=1) as encoding:
        for k, n in enumerate([5, 13, 6]):
            encoding.put(piece(k, n))
        done = {each.tag: each.error for each in all_done(encoding, 3)}
    assert [done[0], str(done[1]), done[2]] == [None, "thirteen", None]


def test_a_piece_taken_before_its_ring_leaves_nothing_to_hear(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A descriptor that stays readable makes the engine spin in place of waiting."""
    ring, rung, late = Encoding._ring, threading.Event(), threading.Event()

    def second_is_late(self: Encoding) -> None:
        if rung.is_set():
            late.wait(20)
        ring(self)
        rung.set()

    monkeypatch.setattr(Encoding, "_ring", second_is_late)
    with encoding_of(Means(), device="cpu", threads=1) as encoding:
        encoding.put(piece("a", 1))
        rung.wait(20)
        encoding.put(piece("b", 1))
        while encoding._done.qsize() < 2:
            time.sleep(0.01)
        assert [each.tag for each in encoding.done()] == ["a", "b"]
        late.set()
        assert select.select([encoding.ready], [], [], 20)[0]
        assert encoding.done() == []
        assert not select.select([encoding.ready], [], [], 0)[0]
        assert encoding.is_idle


def test_work_left_behind_by_an_error_is_not_waited_for() -> None:
    go = threading.Event()
    threads, before = threading.active_count(), time.monotonic()
    encoding = encoding_of(Means(slow=lambda n: 0 * go.wait(20)))
    encoding.put(piece("a", 256))
    encoding.__exit__(KeyError, KeyError(), None)
    assert time.monotonic() - before < 5
    go.set()
    while threading.active_count() > threads:  # they end by themselves
        assert time.monotonic() - before < 20
        time.sleep(0.01)


def test_nothing_is_open_at_the_end() -> None:
    def opened() -> int:
        return len(os.listdir("/proc/self/fd"))  # noqa: PTH208

    before, threads = opened(), threading.active_count()
    with encoding_of(Means()) as encoding:
        encoding.put(piece("a", 256))
        all_done(encoding, 1)
    assert (opened(), threading.active_count()) == (before, threads)


def test_without_encoders_nothing_is_started() -> None:
    with encoding_of() as encoding:
        assert encoding.done() == []
        encoding.flush()
