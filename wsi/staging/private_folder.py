"""A folder that belongs to living processes, and is collected once they are dead."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from wsi.errors import ConfigError

_PREFIX = ".wsi-stage-"  # hidden, so that no search for slides looks into it
_LOCK = ".lock"
_OTHER_HOST_S = 7 * 24 * 3600.0  # where locks do not reach from host to host, only age tells
_UNLOCKABLE = (errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS, errno.EINVAL)


class PrivateFolder:
    """A new folder of our own below `parent`, with a locked file beside it.

    The kernel holds the lock as long as a process lives that was given `lock_fd`, however it
    ends, and process ids that come back or are counted anew in a container do not matter.

    Raises:
        ConfigError: nothing can be written below `parent`.
    """

    def __init__(self, parent: Path) -> None:
        try:
            parent.mkdir(parents=True, exist_ok=True)
            collect(parent)
            lock_path, self.lock_fd = _new_lock(parent.absolute())
            self.path = lock_path.with_suffix("")
            self.path.mkdir(mode=0o700)  # slides are no one else's business
        except OSError as error:
            raise ConfigError(
                f"{parent}: no copies of slides can be written there ({error.strerror}) — "
                "give a folder on a local disk that you may write to"
            ) from error

    def remove(self) -> None:
        """Remove the folder and let its lock go."""
        remove(self.path)
        os.close(self.lock_fd)


def remove(folder: Path) -> None:
    """Remove a private folder, then its lock file: whoever is cut off leaves both."""
    shutil.rmtree(folder, ignore_errors=True)
    if not folder.exists():
        folder.with_name(folder.name + _LOCK).unlink(missing_ok=True)


def collect(parent: Path) -> None:
    """Remove the private folders below `parent` whose processes are dead.

    Those of other hosts stay for a week, since not every shared file system shows their locks.
    """
    for lock_path in sorted(parent.glob(f"{_PREFIX}*{_LOCK}")):
        with _lock_of_the_dead(lock_path) as dead:
            if dead:
                remove(lock_path.with_suffix(""))


@contextlib.contextmanager
def _lock_of_the_dead(lock_path: Path) -> Iterator[bool]:
    """Hold the lock of a folder, and yield whether its processes are dead."""
    try:
        descriptor = os.open(lock_path, os.O_RDWR | os.O_NOFOLLOW)
    except OSError:  # of another user, or just collected by someone else
        yield False
        return
    try:
        yield _is_dead(lock_path, descriptor)
    finally:
        os.close(descriptor)


def _is_dead(lock_path: Path, descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    ours = lock_path.name.startswith(_host_prefix())
    return ours or time.time() - os.fstat(descriptor).st_mtime > _OTHER_HOST_S


def _host_prefix() -> str:
    return f"{_PREFIX}{quote(socket.gethostname(), safe='')}-pid"


def _new_lock(parent: Path) -> tuple[Path, int]:
    """Return a new lock file and the descriptor that holds it."""
    while True:
        path = parent / f"{_host_prefix()}{os.getpid()}-{secrets.token_hex(4)}{_LOCK}"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists():  # else someone collected it before it was locked
                return path, descriptor
        except BlockingIOError:
            pass
        except OSError as error:
            if error.errno in _UNLOCKABLE:  # then no one can take it for dead either
                return path, descriptor
            raise
        os.close(descriptor)
