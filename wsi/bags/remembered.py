"""What was found in files, for as long as the files stay as they were."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Generic, TypeVar

Found = TypeVar("Found")
Signature = tuple[int, ...]

_SETTLED_NS = 3 * 10**9  # a clock may be too coarse to tell a second change from the one before it


class Remembered(Generic[Found]):
    """Keeps what is known of a file until the file changes.

    A file counts as the same while its inode, size and times of change are; one that changed in
    the last seconds is not remembered, as the next change might show the same time.
    """

    def __init__(self) -> None:
        self._known: dict[str, tuple[Signature, Found]] = {}

    def get(self, name: str, *paths: Path) -> Found | None:
        """Return what is known under `name`, or None when one of `paths` is not as it was."""
        known = self._known.get(name)
        if known is None or known[0] != signature(*paths):
            return None
        return known[1]

    def keep(self, name: str, found: Found, before: Signature) -> None:
        """Remember `found`, read from files that had the signature `before` when reading began."""
        if time.time_ns() - max(before, default=0) > _SETTLED_NS:
            self._known[name] = (before, found)


def signature(*paths: Path) -> Signature:
    """Return what tells a changed file from the same one; () when one is gone."""
    try:
        stats = [os.stat(path) for path in paths]  # noqa: PTH116, half the time of Path.stat
    except OSError:
        return ()
    return tuple(n for s in stats for n in (s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns))
