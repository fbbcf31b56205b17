"""Ending a run at a safe place: the first signal asks, the second does not wait."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stopped(BaseException):
    """A signal asked the run to end; `number` says which."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


_asked: list[int] = []


def terminated(number: int, frame: FrameType | None) -> None:
    """Raise Stopped, as a signal's handler; it is remembered where that is swallowed.

    Libraries that are being imported, and callbacks, let no exception through.
    """
    _asked.append(number)
    raise Stopped(number)


def forget() -> None:
    """Begin a command that nobody has asked to end yet."""
    _asked.clear()


class Stop:
    """Whether the run was asked to end."""

    def __init__(self) -> None:
        self.number: int | None = None

    def check(self) -> None:
        """Raise Stopped when it was."""
        if self.number is not None:
            raise Stopped(self.number)

    def _asked(self, number: int, frame: FrameType | None) -> None:
        if self.number is not None and number == signal.SIGINT:
            raise KeyboardInterrupt  # a second Ctrl-C: whoever presses it means now
        self.number = number


@contextmanager
def stoppable() -> Iterator[Stop]:
    """Let SIGINT and SIGTERM ask for the end of what is inside, in place of ending it anywhere."""
    stop = Stop()
    stop.number = next(iter(_asked), None)
    kept = {n: signal.signal(n, stop._asked) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
