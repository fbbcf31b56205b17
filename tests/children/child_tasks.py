"""What tests have child processes do; a module of its own, as a child imports its tasks."""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import time
from pathlib import Path
from typing import Any

from wsi.supervision import Channel


def look_and_die_of_b(todo: tuple[Any, ...], *spec: Any) -> Any:
    """Look at a slide as the survey does; one named `b.tif` ends the process."""
    from pipelines.survey import survey_one  # most tasks need no libraries, and start at once

    _, file, stamp = todo
    if file.path.name == "b.tif":
        os._exit(139)
    return survey_one(file, *spec, stamp)


def add(channel: Channel, one: int, two: int) -> int:
    return one + two


def pid(channel: Channel) -> int:
    return os.getpid()


def double(item: int, more: int = 0) -> int:
    return 2 * item + more


def double_or_die(item: int) -> int:
    if item % 5 == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return 2 * item


def segfault(channel: Channel) -> None:
    """Read where nothing is."""
    ctypes.string_at(0)


def leave(channel: Channel, code: int) -> None:
    os._exit(code)


def fail(channel: Channel) -> None:
    raise ValueError("the cat sat\non the mat")


def unpicklable(channel: Channel) -> Any:
    return lambda: 0


def hang(channel: Channel) -> None:
    """Say who it is, then nothing."""
    channel.send(os.getpid())
    time.sleep(600)


def whisper(channel: Channel, words: int, seconds: float) -> str:
    """Say a word now and then, for longer in all than silence is borne."""
    for k in range(words):
        channel.send(k)
        time.sleep(seconds)
    return "all said"


def allocate(channel: Channel, size: int) -> int:
    """Map memory without touching it."""
    return len(mmap.mmap(-1, size))


def fill(channel: Channel, pieces: int, value: int) -> int:
    """Fill one piece of shared memory after the other, each with the next number."""
    for k in range(pieces):
        memory = channel.slot()
        memory[:] = value + k
        channel.send_slot(k)
    return pieces


def ask_for_memory(channel: Channel) -> int:
    return len(channel.slot())


def wait_for(channel: Channel, path: Path) -> bool:
    """Say who it is, and end when a file appears."""
    channel.send(os.getpid())
    while not path.exists():
        time.sleep(0.01)
    return True
