"""What was found in files, for as long as the files stay as they were."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Generic, TypeVar

Found = TypeVar("Found")
Signature = tuple[int, ...]

# How long ago a file must have changed: a clock may be too coarse to tell the next change from it.
_SETTLED_NS = 10**8
_SETTLED_COARSE_NS = 3 * 10**9
_COARSE_NS = 10**9


class Remembered(Generic[Found]):
    """Keeps what is known of a file until the file changes.

    A file counts as the same while its inode, size and times of change are; one that changed just
    now is not remembered, as the next change might show the same time.
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
        if before and _is_settled(max(before[2::4] + before[3::4])):
            self._known[name] = (before, found)


def _is_settled(changed_ns: int) -> bool:
    coarse = changed_ns % _COARSE_NS == 0  # this file system knows whole seconds only
    return time.time_ns() - changed_ns > (_SETTLED_COARSE_NS if coarse else _SETTLED_NS)


def signature(*paths: Path) -> Signature:
    """Return what tells a changed file from the same one; () when one is gone."""
    try:
        stats = [os.stat(path) for path in paths]  # noqa: PTH116, half the time of Path.stat
    except OSError:
        return ()
    return tuple(n for s in stats for n in (s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns))
