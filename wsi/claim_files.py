"""The files by which processes tell each other what they work on: made, read and removed safely."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from wsi.files import temporary_beside
from wsi.processes import Process, current_process

_NO_HARD_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS)
_LONGEST_BYTES = 64 * 1024  # far more than a claim has
_TEXTS = ("host", "boot_id", "namespace")
_NUMBERS = ("pid", "started")


@dataclass(frozen=True)
class Record:
    """A claim's file as it was read: two are equal when it was neither replaced nor renewed.

    Attributes:
        content: what it holds; no two claims hold the same.
        mtime_ns: when it was last renewed, by the clock of the file server.
    """

    content: bytes
    mtime_ns: int

    @property
    def process(self) -> Process | None:
        """Whose claim it is, or None where that cannot be read."""
        texts = [self._fields.get(key) for key in _TEXTS]
        numbers = [self._fields.get(key) for key in _NUMBERS]
        sound = all(isinstance(text, str) for text in texts)
        if not sound or not all(type(n) is int and 0 < n < 2**63 for n in numbers):
            return None
        return Process(*texts, *numbers)  # pyright: ignore[reportArgumentType]

    @property
    def name(self) -> str | None:
        """What is claimed, or None where that cannot be read."""
        name = self._fields.get("name")
        return name if isinstance(name, str) else None

    @property
    def since(self) -> datetime:
        """When it was claimed, by the clock of who did; else when it was last renewed."""
        with contextlib.suppress(TypeError, ValueError):
            moment = datetime.fromisoformat(self._fields.get("time"))  # pyright: ignore[reportArgumentType]
            if moment.tzinfo is not None:
                return moment
        return datetime.fromtimestamp(self.mtime_ns / 1e9, UTC)

    @cached_property
    def _fields(self) -> dict[str, Any]:
        try:
            fields = json.loads(self.content)
        except (ValueError, RecursionError):
            return {}
        return fields if isinstance(fields, dict) else {}


def render(name: str) -> bytes:
    """Return what this process writes to claim `name`: who it is, and a token never used twice."""
    fields = {
        "name": name,
        **asdict(current_process()),
        "token": secrets.token_hex(16),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return json.dumps(fields, indent=1, ensure_ascii=False).encode() + b"\n"


def create(path: Path, content: bytes) -> bool:
    """Make `path` with `content` in one step, and return whether it was not there before."""
    private = temporary_beside(path)
    try:
        private.write_bytes(content)
        return _link(private, path)
    finally:
        private.unlink(missing_ok=True)


def _link(private: Path, path: Path) -> bool:
    """Give the file `private` the name `path` too, and return whether that was free."""
    try:
        path.hardlink_to(private)
    except FileExistsError:
        # A network file system may make the link, lose the answer, and be asked again.
        return private.stat().st_nlink > 1
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        return _create_exclusively(path, private.read_bytes())
    return True


def _create_exclusively(path: Path, content: bytes) -> bool:
    try:
        handle = path.open("xb")
    except FileExistsError:
        return False
    try:
        with handle:
            handle.write(content)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return True


def withdraw(path: Path, content: bytes) -> None:
    """Remove the file at `path` if it has this `content`, which no two claims share."""
    if (seen := read(path)) is None or seen.content != content:
        return
    private = temporary_beside(path)
    try:
        path.rename(private)
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        path.unlink(missing_ok=True)  # the folder has no room for another name
        return
    try:
        if (seen := read(private)) is not None and seen.content != content:
            _link(private, path)  # another's, made since: put back
    finally:
        private.unlink(missing_ok=True)


def read(path: Path) -> Record | None:
    """Return the file at `path`; opening it makes a network file system look anew."""
    try:
        with path.open("rb") as handle:
            return Record(handle.read(_LONGEST_BYTES), os.fstat(handle.fileno()).st_mtime_ns)
    except PermissionError:  # another user's: only its date tells of it
        return Record(b"", path.stat().st_mtime_ns)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ESTALE):
            return None
        raise
