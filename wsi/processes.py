"""Which process made a file, and whether it is gone: what claims and leftovers are judged by."""

from __future__ import annotations

import functools
import hashlib
import os
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

_HUNDREDTHS = 100


@dataclass(frozen=True)
class Process:
    """A process of some machine, told apart from all others there ever were.

    Attributes:
        host: name of the machine.
        boot_id: of the machine's run; another one after every restart.
        namespace: in which its pid counts; each container of a machine has one of its own.
        pid: its number there.
        started: hundredths of a second from the machine's start to its own. A date would not do:
            it moves when the machine's clock is set.
    """

    host: str
    boot_id: str
    namespace: str
    pid: int
    started: int

    @property
    def place(self) -> str:
        """A short word for where its pid counts: host, run and namespace."""
        text = f"{self.host}\n{self.boot_id}\n{self.namespace}"
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def is_gone(self) -> bool:
        """Return whether it has surely ended; False for what cannot be told from here."""
        return self.place == current_process().place and has_ended(self.pid, self.started)


def current_process() -> Process:
    """Return the process this is."""
    return _current(os.getpid())


@functools.cache
def _current(pid: int) -> Process:
    return Process(
        host=os.uname().nodename,
        boot_id=_boot_id(),
        namespace=_namespace(),
        pid=pid,
        started=_started(psutil.Process(pid)),
    )


os.register_at_fork(after_in_child=_current.cache_clear)


def has_ended(pid: int, started: int) -> bool:
    """Return whether no process of this machine has number `pid` and that start.

    A killed process that its parent has not buried yet has ended; a suspended one has not.
    """
    if not _exists(pid):
        return True
    try:
        process = psutil.Process(pid)
        dead = process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
        return dead or _started(process) != started
    except psutil.ZombieProcess:
        return True
    except psutil.Error:
        # It ended just now, or is another user's where the machine hides those.
        return not _exists(pid)


def uptime() -> float:
    """Return the seconds since this machine started, sleep included."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True  # another user's
    return True


def _started(process: psutil.Process) -> int:
    # Both dates come from one clock, so that setting it cancels out.
    return round((process.create_time() - psutil.boot_time()) * _HUNDREDTHS)


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return str(round(psutil.boot_time()))


def _namespace() -> str:
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""
