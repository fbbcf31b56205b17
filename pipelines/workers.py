"""Processes that work side by side, and where they compute."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any

from wsi.errors import ResourceError, TrainingError, WsiError
from wsi.specs import LimitsSpec
from wsi.supervision import Crew, Limits
from wsi.training.devices import check_device as check_device

_END_S = 2.0  # for so long processes are waited for that are told to end
_MOST_THREADS = 8  # more feed no encoder faster
_NETWORK_BYTES = 24 << 30  # of address space; torch and its libraries map that much, and use little


class Pool(ProcessPoolExecutor):
    """A pool that knows the processes it has started."""

    def __init__(
        self, n: int, start: Callable[..., None] | None, args: tuple[Any, ...] = ()
    ) -> None:
        context: Any = _Remembering()
        super().__init__(n, context, _start, (start, args))
        self.started = context.started


def why_broken(pool: object, process: str, kept: str) -> WsiError:
    """Return the error of a pool that lost a process, by how that ended.

    Args:
        pool: of `processes`.
        process: what to call it: `a training process`.
        kept: what a rerun need not do again: `finished epochs are kept`.
    """
    started = pool.started if isinstance(pool, Pool) else []
    deadline = time.monotonic() + _END_S
    while any(one.exitcode is None for one in started) and time.monotonic() < deadline:
        time.sleep(0.01)  # the pool ends the others just now
    # Those that were well were ended by the pool.
    codes = {one.exitcode for one in started} - {None, 0, -signal.SIGTERM}
    if codes and -signal.SIGKILL not in codes:
        code = min(codes)
        how = f"ended by itself with code {code}; what it said stands above"
        if code < 0:
            how = f"crashed ({signal.Signals(-code).name})"
        return TrainingError(f"{process} {how} — mend that and rerun; {kept}")
    return ResourceError(
        f"{process} was killed, most often for want of memory — rerun with fewer --jobs; {kept}"
    )


class _Remembering:
    """The way of starting fresh processes, keeping those it started."""

    def __init__(self) -> None:
        self._spawn = multiprocessing.get_context("spawn")
        self.started: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._spawn, name)

    def Process(self, *args: Any, **named: Any) -> Any:  # noqa: N802 - the executor's name for it
        child = self._spawn.Process(*args, **named)
        self.started.append(child)
        return child


@contextmanager
def processes(
    n: int, start: Callable[..., None] | None = None, args: tuple[Any, ...] = ()
) -> Iterator[Pool]:
    """Yield a pool of `n` fresh processes that ends at once when its user fails or is interrupted.

    They end with this process, too, however that ends.

    Args:
        start: called with `args` in each process first.
    """
    others = set(multiprocessing.active_children())
    with Pool(n, start, args) as pool:
        try:
            yield pool
        except BaseException:
            # Leaving the pool waits for what runs and for all that was submitted: hours.
            for child in set(multiprocessing.active_children()) - others:
                child.terminate()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


_crew: Crew | None = None  # kept from one part of a command to the next


def readers(jobs: int, config: LimitsSpec, network: bool = False) -> Crew:
    """Return the children that open slides, `jobs` of them at most; they are kept warm.

    Args:
        network: whether a network of torch finds tissue, for which far more memory is mapped.
    """
    global _crew
    more = _NETWORK_BYTES if network else 0
    limits = Limits(config.silence_s, round(config.memory_gb * 1e9) + more)
    if _crew is not None and _crew.limits != limits:
        _crew.close()
        _crew = None
    if _crew is None:
        _crew = Crew(jobs, limits)
        atexit.register(_crew.close)
    _crew.size = jobs
    return _crew


def dismiss() -> None:
    """End the children that open slides, whatever they do."""
    if _crew is not None:
        _crew.close()


def _start(start: Callable[..., None] | None, args: tuple[Any, ...]) -> None:
    # Ctrl-C reaches every process of a terminal; only the first one should answer.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    if start is not None:
        start(*args)


def _end_with(parent: Any) -> None:
    parent.join()
    os._exit(1)


@contextmanager
def threads_of_torch(n: int | None) -> Iterator[None]:
    """Let torch compute on `n` threads inside, as many as before where None, and then as before.

    Sums come out differently in the last bits on another number of threads.
    """
    import torch

    before = torch.get_num_threads()
    if n is not None:
        torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def cores_shared(threads: int) -> int:
    """Return how many processes of so many threads the cores are enough for."""
    return max(1, _cores() // threads)


def reading_threads(jobs: int) -> int:
    """Return the threads each of `jobs` processes may decode slides with: the cores, shared."""
    return max(1, min(_MOST_THREADS, _cores() // jobs))


def encoding_threads() -> int:
    """Return the threads that encode on a CPU: as many as there are cores."""
    return _cores()


def _cores() -> int:
    """Return the cores this process may use, which on a cluster are fewer than there are."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # only Linux tells
        return os.cpu_count() or 1
