"""Putting damaged and unfinished files out of the way, without deleting any."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import TYPE_CHECKING

from wsi.bags.sidecar import CORRUPT, SUFFIX
from wsi.files import TEMPORARY_PREFIX

if TYPE_CHECKING:
    from wsi.bags.base import BagStore
    from wsi.bags.verify import Finding


def set_aside(store: BagStore, finding: Finding, *, dry_run: bool = False) -> list[str]:
    """Move the files of a finding to the folder `corrupt` of a store, and return their names.

    An earlier file of the same name there is kept: the new one gets a number. The sidecar goes
    first, since a bag exists when its sidecar does. What is being written is left alone, and so
    are stale bags: they are sound, and preprocess replaces them.
    """
    if finding.state == "stale":
        return []
    moved = []
    for name in sorted(finding.files, key=lambda name: not name.endswith(SUFFIX)):
        path = store.root / name
        if not os.path.lexists(path) or _is_being_written(store, finding, path):
            continue
        if not dry_run:
            target = _free(store.root / CORRUPT / name)
            target.parent.mkdir(exist_ok=True)
            path.rename(target)
        moved.append(name)
    return moved


def _free(path: Path) -> Path:
    """Return `path`, or it with a number where it is taken."""
    numbered = (path.with_name(f"{path.name}.{k}") for k in itertools.count(1))
    return next(p for p in itertools.chain([path], numbered) if not os.path.lexists(p))


def _is_being_written(store: BagStore, finding: Finding, path: Path) -> bool:
    if finding.state == "orphan":  # its sidecar may have come since
        return path.with_name(path.name.removesuffix(store.suffix) + SUFFIX).exists()
    if finding.state != "temp":
        return False
    writer = path.name.removeprefix(TEMPORARY_PREFIX).split("-")[0]
    try:
        return path.resolve() in [link.resolve() for link in Path("/proc", writer, "fd").iterdir()]
    except OSError:  # the process ended, is someone else's, or this system has no such list
        return False
