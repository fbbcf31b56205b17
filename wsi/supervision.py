"""Child processes for work that may crash, hang or eat all memory: one of them dies, not the run.

Native decoders of slides do all three. A child does one task at a time and lives on for the next;
one that dies, or says nothing for too long, is replaced, and the task it had is given back with a
reason. Pixels come from a child through memory that both see, so nothing large is copied or
pickled.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import mmap
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe, wait
from multiprocessing.reduction import recv_handle, send_handle
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")

CRASH = "decoder-crash"
KILLED = "decoder-killed"
TIMEOUT = "decoder-timeout"
MEMORY = "decoder-oom"
BUG = "bug"

_PR_SET_PDEATHSIG = 1
_START_S = 60.0  # a child may need so much longer for its first words: it imports libraries
_AWAY_S = 5.0  # without a look at its children a parent was suspended, or busy
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
    child: _Child | None = None


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
            self._memory = _mapped(recv_handle(self._pipe), slots, size)
            self._free = deque(range(slots))

    def _next_task(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """Wait for a task; meanwhile memory is set up, or given back that an earlier one filled."""
        while (word := self._pipe.recv())[0] != "task":
            self._heard(word)
        return word[1], word[2]


class Crew:
    """Child processes that do tasks side by side.

    Use from one thread. Children start when they are needed first, up to `size`.

    Args:
        size: how many at most.
        limits: what each may take.
    """

    def __init__(self, size: int = 1, limits: Limits | None = None) -> None:
        self.size = size
        self.limits = limits or Limits()
        self._children: list[_Child] = []
        self._slot_bytes = 0
        self._looked = 0.0
        self.started = 0

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def idle(self) -> int:
        """Return how many more tasks would start at once."""
        return self.size - sum(child.key is not None for child in self._children)

    @property
    def busy(self) -> int:
        """Return how many tasks are being done."""
        return sum(child.key is not None for child in self._children)

    @property
    def blocked(self) -> bool:
        """Return whether every task waits for shared memory that the caller holds."""
        return all(child.is_blocked for child in self._children if child.key is not None)

    def share(self, slot_bytes: int) -> None:
        """Set the size of the pieces of memory that children share with this process."""
        self._slot_bytes = slot_bytes

    def give(self, key: Any, call: Callable[..., Any], *args: Any) -> None:
        """Start `call(channel, *args)` in an idle child; `key` names the task in its events."""
        child = next((c for c in self._children if c.key is None and c.is_alive), None)
        if child is None:
            # One that died at work stays until its death was heard, or its task would be lost.
            self._children = [c for c in self._children if c.key is not None or c.is_alive]
            child = _Child(self.limits)
            self.started += 1
            self._children.append(child)
        child.give(key, call, args, self._slot_bytes)

    def free(self, said: Said) -> None:
        """Give the shared memory of a message back to its child, whatever that does by now."""
        if said.child is not None:
            said.child.free(said)

    def drop(self, key: Any) -> None:
        """End the child that does a task; the task has no further events."""
        for child in self._children:
            if child.key == key and child.key is not None:
                child.end()

    def events(self, timeout_s: float, *more: Any) -> Iterator[Event]:
        """Yield what there is to hear within `timeout_s`, at least once what is there already.

        Args:
            more: further connections or descriptors that end the waiting when they can be read.
        """
        working = [child for child in self._children if child.key is not None]
        now = self._excused(working, self._looked)
        due = min((child.deadline for child in working), default=now + timeout_s)
        pause = max(0.0, min(timeout_s, due - now))
        pipes = {child.pipe: child for child in working}
        ready = wait([*pipes, *more], pause)
        now = self._looked = self._excused(working, now + pause)
        # Told now: while the caller is busy with what it hears, nobody listens to the others.
        silent = [c for c in working if now > c.deadline and not c.has_spoken]
        for pipe in ready:
            if pipe in pipes:
                yield from pipes[pipe].hear()  # pyright: ignore[reportArgumentType]
        for child in silent:
            if child.key is not None:
                yield child.hung()

    def _excused(self, working: Iterable[_Child], expected: float) -> float:
        """Return the time; late, by suspension or other work, nobody could be heard till now."""
        now = time.monotonic()
        if now - expected > _AWAY_S:
            for child in working:
                child.excuse(now)
        return now

    def each(
        self, call: Callable[..., Any], items: Iterable[T], *args: Any
    ) -> Iterator[tuple[T, Any | Lost]]:
        """Yield every item with what `call(item, *args)` returned in a child, as they come.

        In place of a result stands a `Lost`: the item made its child crash, hang or run out of
        memory.
        """
        todo = enumerate(items)
        doing: dict[int, T] = {}
        try:
            while True:
                for number, item in itertools.islice(todo, self.idle):
                    doing[number] = item
                    self.give(number, _plain, call, item, args)
                if not doing:
                    return
                for event in self.events(1.0):
                    if isinstance(event, Said):
                        continue
                    result = event.value if isinstance(event, Ended) else event
                    yield doing.pop(event.key), result
        finally:
            for number in doing:
                self.drop(number)

    def pids(self) -> list[int]:
        """Return the process ids of the children that live."""
        return [child.process.pid or 0 for child in self._children if child.is_alive]

    def close(self) -> None:
        """End all children at once, whatever they do."""
        for child in self._children:
            child.end()
        self._children = []


class _Child:
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
        start += f"sys.path[:] = {sys.path!r}; from wsi.supervision import serve; "
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
        descriptor = _anonymous_file(self.limits.slots * size)
        self._held.clear()
        try:
            self._memory = _mapped(os.dup(descriptor), self.limits.slots, size)
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


def _plain(channel: Channel, call: Callable[..., Any], item: Any, args: tuple[Any, ...]) -> Any:
    return call(item, *args)


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
            call, args = channel._next_task()
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
            line = f"{type(error).__name__}: {error}".splitlines()[0]
            answer = ("lost", (BUG, line, traceback.format_exc()), None)
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
        line = f"{type(error).__name__}: {error}".splitlines()[0]
        pipe.send(("lost", (BUG, line, traceback.format_exc()), None))


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


def _anonymous_file(size: int) -> int:
    """Return a descriptor of memory without a name: nothing is left of it, however a run ends."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("wsi", os.MFD_CLOEXEC)
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, size)
    return descriptor


def _mapped(descriptor: int, slots: int, size: int) -> NDArray[np.uint8]:
    """Return the memory behind a descriptor, which is closed, as uint8 (slots, size)."""
    try:
        memory = mmap.mmap(descriptor, slots * size)
    finally:
        os.close(descriptor)
    return np.frombuffer(memory, np.uint8).reshape(slots, size)
