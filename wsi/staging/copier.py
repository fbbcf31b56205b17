"""The process that copies slides, and that cleans up when its parent is gone.

It runs apart so that nothing that happens to the parent, not even a kill, leaves copies behind.
Parent and copier exchange JSON over a socket, one copy at a time:

    parent: {"do": "copy", "key": 7, "source": "/archive/a.svs", "room": 1000000}
            {"do": "cancel", "key": 7}
    copier: {"what": "busy"}                                    now and then
            {"what": "copied", "key": 7, "bytes": 12345}
            {"what": "no-room", "key": 7, "bytes": 12345}
            {"what": "failed", "key": 7, "why": "..."}
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from wsi.staging.private_folder import PrivateFolder, remove

_PROGRAM = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from wsi.staging.copier import serve
serve(*sys.argv[2:])
"""
_LOOK_S = 1.0  # how often the copier looks after its parent, and says that it is alive


class Copier:
    """The parent's end of a copier that has just been started."""

    def __init__(self, folder: PrivateFolder) -> None:
        self._connection, theirs = Pipe()
        handles = (theirs.fileno(), folder.lock_fd)
        words = [json.dumps(sys.path), *map(str, handles), str(folder.path), str(os.getpid())]
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", _PROGRAM, *words],
            pass_fds=handles,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # what is sent to the parent's group is not meant for it
        )
        theirs.close()

    def send(self, **message: Any) -> None:
        """Send a message; a copier that is dead is found out by `receive`."""
        with contextlib.suppress(OSError):
            self._connection.send_bytes(json.dumps(message).encode())

    def receive(self, timeout_s: float) -> dict[str, Any] | None:
        """Return the next message, or None where none comes in time.

        Raises:
            EOFError: the copier is dead.
        """
        try:
            if not self._connection.poll(timeout_s):
                return None
            return json.loads(self._connection.recv_bytes())
        except OSError as error:
            raise EOFError from error

    def end(self, patience_s: float) -> int | None:
        """Let the copier remove its folder and exit, or kill it; return its exit code."""
        self.send(do="end")
        try:
            return self.process.wait(patience_s)
        except subprocess.TimeoutExpired:
            return self.kill()

    def kill(self) -> int | None:
        """Kill the copier; return its exit code, or None where a dead disk holds it."""
        self.process.kill()
        try:
            return self.process.wait(1.0)
        except subprocess.TimeoutExpired:
            return None

    def forget(self) -> None:
        """Close the connection."""
        self._connection.close()


def serve(descriptor: str, lock_fd: str, folder: str, parent_pid: str) -> None:
    """Copy what the parent asks for until it says that it is done, or is no more."""
    for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(one, signal.SIG_IGN)  # schedulers send them to all; the parent decides
    connection = Connection(int(descriptor))
    copies = _Copies(connection, Path(folder), int(lock_fd))
    threading.Thread(target=copies.work, daemon=True).start()
    try:
        # A child that the parent forked may hold the socket open: so its pid is looked at, too.
        while os.getppid() == int(parent_pid):
            if connection.poll(_LOOK_S):
                message = json.loads(connection.recv_bytes())
                if message["do"] == "end":
                    break
                copies.take(message)
    except (EOFError, OSError):
        pass
    copies.stop()
    remove(Path(folder))
    os._exit(0)  # a thread may hang on a dead disk


class _CancelledError(Exception):
    """The copy in progress is not wanted any more."""


class _Copies:
    """The copies asked for, made one after the other on a thread of their own."""

    def __init__(self, connection: Connection, folder: Path, lock_fd: int) -> None:
        self._connection = connection
        self._folder = folder
        self._lock_fd = lock_fd
        self._asked: SimpleQueue[Mapping[str, Any]] = SimpleQueue()
        self._cancelled: set[int] = set()
        self._stopped = False
        self._idle = threading.Event()
        self._said_s = 0.0

    def take(self, message: Mapping[str, Any]) -> None:
        """Take a message of the parent."""
        if message["do"] == "cancel":
            self._cancelled.add(message["key"])
        else:
            self._asked.put(message)

    def work(self) -> None:
        """Make copies for ever."""
        while True:
            self._idle.set()
            message = self._asked.get()
            self._idle.clear()
            with contextlib.suppress(OSError):
                os.utime(self._lock_fd)  # tells other hosts, and those who clean up by age
            self._say(key=message["key"], **self._outcome(message))

    def stop(self) -> None:
        """End the copy in progress; one that hangs on a dead disk is not waited for."""
        self._stopped = True
        self._idle.wait(_LOOK_S)

    def _outcome(self, message: Mapping[str, Any]) -> dict[str, Any]:
        # Here, not above: the parent starts this module and needs none of the slides' libraries.
        from wsi.staging.copying import NoRoomError, NotCopiedError, copy_slide

        key = message["key"]
        try:
            n = copy_slide(
                Path(message["source"]),
                self._folder / str(key),
                message["room"],
                lambda: self._tick(key),
            )
        except NoRoomError as error:
            return {"what": "no-room", "bytes": error.bytes_needed}
        except (NotCopiedError, _CancelledError) as error:
            return {"what": "failed", "why": str(error)}
        except Exception as error:  # whatever one slide does, the next ones are copied
            return {"what": "failed", "why": f"{type(error).__name__}: {error}"}
        return {"what": "copied", "bytes": n}

    def _tick(self, key: int) -> None:
        if self._stopped or key in self._cancelled:
            raise _CancelledError("not wanted any more")
        if time.monotonic() - self._said_s > _LOOK_S:
            self._say(what="busy")

    def _say(self, **message: Any) -> None:
        self._said_s = time.monotonic()
        try:
            self._connection.send_bytes(json.dumps(message).encode())
        except OSError:  # the parent is gone; the main thread sees it, too
            self._stopped = True
