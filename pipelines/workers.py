"""Processes that work side by side, and where they compute."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any

from wsi.specs import LimitsSpec
from wsi.supervision import Crew, Limits
from wsi.training.devices import check_device as check_device

_MOST_THREADS = 8  # more feed no encoder faster
_NETWORK_BYTES = 24 << 30  # of address space; torch and its libraries map that much, and use little


@contextmanager
def processes(
    n: int, start: Callable[..., None] | None = None, args: tuple[Any, ...] = ()
) -> Iterator[ProcessPoolExecutor]:
    """Yield a pool of `n` fresh processes that ends at once when its user fails or is interrupted.

    They end with this process, too, however that ends.

    Args:
        start: called with `args` in each process first.
    """
    context = multiprocessing.get_context("spawn")
    others = set(multiprocessing.active_children())
    with ProcessPoolExecutor(n, context, _start, (start, args)) as pool:
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
