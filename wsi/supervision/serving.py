"""The child's side: doing one task after the other, until the parent is gone."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
import traceback
from collections import deque
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi.supervision.memory import mapped

MEMORY = "decoder-oom"
BUG = "bug"
_PR_SET_PDEATHSIG = 1


class Channel:
    """How a task in a child speaks to the parent."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._memory: NDArray[np.uint8] | None = None
        self._free: deque[int] = deque()

    def send(self, message: Any) -> None:
        """Tell the parent something; anything that can be pickled."""
        self._pipe.send(("said", message, None))

    def slot(self) -> NDArray[np.uint8]:
        """Return the next free piece of shared memory (bytes,); waits until there is one."""
        if self._memory is None:
            raise RuntimeError("no shared memory was set up for this task")
        while not self._free:
            self._heard(self._pipe.recv())
        return self._memory[self._free[0]]

    def send_slot(self, message: Any) -> None:
        """Tell the parent something about the piece that `slot` gave."""
        self._pipe.send(("said", message, self._free.popleft()))

    def _heard(self, word: tuple[Any, ...]) -> None:
        if word[0] == "free":
            self._free.append(word[1])
        elif word[0] == "memory":
            _, slots, size = word
            self._memory = mapped(recv_handle(self._pipe), slots, size)
            self._free = deque(range(slots))

    def next_task(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """Wait for a task; meanwhile memory is set up, or given back that an earlier one filled."""
        while (word := self._pipe.recv())[0] != "task":
            self._heard(word)
        return word[1], word[2]


def serve(descriptor: int, parent: int, memory_bytes: int | None) -> None:
    """Do tasks until the parent is gone: the whole life of a child."""
    pipe = Connection(descriptor)
    _die_with(parent)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the parent decides, and ends its children
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    channel = Channel(pipe)
    limited = False
    while True:
        try:
            call, args = channel.next_task()
            pipe.send(("begun", None, None))  # libraries are imported: now its silence counts
        except (EOFError, OSError):
            return
        if memory_bytes is not None and not limited:
            _limit_memory(memory_bytes)  # after the first task's libraries are there
            limited = True
        try:
            answer = ("ended", call(channel, *args), None)
        except MemoryError:
            answer = ("lost", (MEMORY, "it needs more memory than one slide may take"), None)
        except Exception as error:  # the boundary that keeps one slide apart from the others
            answer = _bug(error)
        try:
            _answer(pipe, answer)
        except (BrokenPipeError, ConnectionResetError):
            return


def _answer(pipe: Connection, answer: tuple[Any, ...]) -> None:
    try:
        pipe.send(answer)
    except (BrokenPipeError, ConnectionResetError):
        raise
    except Exception as error:  # what a task returned cannot travel: its bug, not the child's end
        pipe.send(_bug(error))


def _bug(error: Exception) -> tuple[Any, ...]:
    line = f"{type(error).__name__}: {error}".splitlines()[0]
    return "lost", (BUG, line, traceback.format_exc()), None


def _limit_memory(more_bytes: int) -> None:
    """Allow so much address space beyond what is taken now; what asks for more gets an error."""
    try:
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except OSError:
        return  # only Linux tells, and only there the limit is sure to work
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = taken + more_bytes
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


def _die_with(parent: int) -> None:
    """End this process when its parent ends, however that happens."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before that was set
        os._exit(1)
