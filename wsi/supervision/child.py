"""One child process as its parent sees it, and what there is to hear of it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Pipe
from multiprocessing.reduction import send_handle
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi.supervision.memory import anonymous_file, mapped
from wsi.supervision.serving import MEMORY

CRASH = "decoder-crash"
KILLED = "decoder-killed"
TIMEOUT = "decoder-timeout"

_START_S = 60.0  # a child may need so much longer for its first words: it imports libraries
_END_S = 5.0  # after which a killed child is left to the system
# Children stand side by side; libraries that start threads of their own would fight for cores.
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


@dataclass(frozen=True)
class Limits:
    """What a child may take.

    Attributes:
        silence_s: seconds without a word before it counts as hanging.
        memory_bytes: address space beyond what a child has at its start; None for no limit.
        slots: pieces of shared memory a child may fill ahead.
    """

    silence_s: float = 300.0
    memory_bytes: int | None = None
    slots: int = 4


@dataclass(frozen=True)
class Said:
    """A task has a message; `pixels` is its piece of shared memory, to be given back by `free`."""

    key: Any
    message: Any
    slot: int | None = None
    pixels: NDArray[np.uint8] | None = None
    child: Child | None = None


@dataclass(frozen=True)
class Ended:
    """A task is done and returned `value`."""

    key: Any
    value: Any


@dataclass(frozen=True)
class Lost:
    """A task is not done: its child died, hung or failed.

    Attributes:
        reason: `decoder-crash`, `decoder-killed`, `decoder-timeout`, `decoder-oom`, or `bug` for
            an error that nobody foresaw.
        message: one line without what to do next.
        trace: of such an error.
    """

    key: Any
    reason: str
    message: str
    trace: str = ""


Event = Said | Ended | Lost


class Child:
    """One child process as its parent sees it."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.key: Any = None
        self._memory: NDArray[np.uint8] | None = None
        self._held: set[int] = set()
        self.pipe, theirs = Pipe()
        # Not by multiprocessing: that runs the caller's main module again in every child.
        # Ctrl-C reaches every process of a terminal, also one that is still starting.
        start = "import signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); "
        start += f"sys.path[:] = {sys.path!r}; from wsi.supervision.serving import serve; "
        start += f"serve({theirs.fileno()}, {os.getpid()}, {limits.memory_bytes})"
        self.process = subprocess.Popen(
            [sys.executable, "-c", start],
            stdin=subprocess.DEVNULL,
            pass_fds=(theirs.fileno(),),
            env=_ONE_THREAD | dict(os.environ),
        )
        theirs.close()
        self._heard = time.monotonic() + _START_S

    @property
    def is_alive(self) -> bool:
        return self.process.poll() is None

    @property
    def has_spoken(self) -> bool:
        """Return whether there is something to hear, its end included."""
        return self.pipe.poll()

    @property
    def is_blocked(self) -> bool:
        return len(self._held) == self.limits.slots

    @property
    def deadline(self) -> float:
        """Return when it counts as hanging; a child that waits for the caller never does."""
        return float("inf") if self.is_blocked else self._heard + self.limits.silence_s

    def excuse(self, now: float) -> None:
        """Let its silence count from now on."""
        self._heard = max(self._heard, now)

    def give(self, key: Any, call: Callable[..., Any], args: tuple[Any, ...], size: int) -> None:
        self.key = key
        self._heard = max(self._heard, time.monotonic())
        try:
            if size and (self._memory is None or self._memory.shape[1] != size):
                self._share(size)
            self.pipe.send(("task", call, args))
        except (BrokenPipeError, ConnectionResetError):
            pass  # it died while it was idle; the next event says so

    def _share(self, size: int) -> None:
        descriptor = anonymous_file(self.limits.slots * size)
        self._held.clear()
        try:
            self._memory = mapped(os.dup(descriptor), self.limits.slots, size)
            self.pipe.send(("memory", self.limits.slots, size))
            send_handle(self.pipe, descriptor, self.process.pid)
        finally:
            os.close(descriptor)

    def free(self, said: Said) -> None:
        mine = self._memory is not None and np.shares_memory(said.pixels, self._memory)
        if said.slot not in self._held or not mine:
            return  # of a child that ended, or of memory of another size
        self._held.discard(said.slot)
        self._heard = time.monotonic()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the next event says so
            self.pipe.send(("free", said.slot))

    def hear(self) -> Iterator[Event]:
        """Yield what it has said; at its death, why."""
        try:
            while self.key is not None and self.pipe.poll():
                word, value, slot = self.pipe.recv()
                self._heard = time.monotonic()
                if word != "begun":
                    yield self._event(word, value, slot)
        except (EOFError, ConnectionResetError, OSError):
            yield self._died()

    def _event(self, word: str, value: Any, slot: int | None) -> Event:
        key = self.key
        if word == "said":
            if slot is None or self._memory is None:
                return Said(key, value)
            self._held.add(slot)
            return Said(key, value, slot, self._memory[slot], self)
        self.key = None
        if word == "ended":
            return Ended(key, value)
        if value[0] == MEMORY:
            self.end()  # what is left of it may have no memory for the next task
        return Lost(key, *value)

    def _died(self) -> Lost:
        key = self.key
        try:
            code = self.process.wait(_END_S)
        except subprocess.TimeoutExpired:  # it closed its pipe, and lives
            code = 0
        self.end()
        if code >= 0:
            return Lost(key, CRASH, f"its decoder ended by itself with code {code}")
        if -code == signal.SIGKILL:
            return Lost(key, KILLED, "its decoder was killed from outside, or for its memory")
        return Lost(key, CRASH, f"its decoder crashed ({_signal_name(-code)})")

    def hung(self) -> Lost:
        """End it, as it has said nothing for too long."""
        key = self.key
        self.end()
        seconds = self.limits.silence_s
        return Lost(key, TIMEOUT, f"its decoder said nothing for {seconds:g} s")

    def end(self) -> None:
        self.key = None
        self.process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):  # stuck in the kernel: on a dead disk
            self.process.wait(_END_S)
        self.pipe.close()
        self._memory = None


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # those for real time have numbers only
        return f"signal {number}"
