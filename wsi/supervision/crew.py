"""Children that do tasks side by side, and are replaced when they die."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import wait
from typing import Any, TypeVar

from wsi.supervision.child import Child, Ended, Event, Limits, Lost, Said
from wsi.supervision.serving import Channel

T = TypeVar("T")

_AWAY_S = 5.0  # without a look at its children a parent was suspended, or busy


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
        self._children: list[Child] = []
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
            child = Child(self.limits)
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

    def _excused(self, working: Iterable[Child], expected: float) -> float:
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


def _plain(channel: Channel, call: Callable[..., Any], item: Any, args: tuple[Any, ...]) -> Any:
    return call(item, *args)
