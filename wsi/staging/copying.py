"""Copying one slide with all of its files: whole or not at all, within a given room."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

from wsi.files import TEMPORARY_PREFIX
from wsi.slides.parts import parts_of

BLOCK_BYTES = 4096  # what the smallest file or folder takes on most disks
_CHUNK_BYTES = 4 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT)

Stamps = dict[Path, tuple[int, int, int]]


class NoRoomError(Exception):
    """The slide needs more than the room given, or than the disk has."""

    def __init__(self, bytes_needed: int) -> None:
        super().__init__(bytes_needed)
        self.bytes_needed = bytes_needed


class NotCopiedError(Exception):
    """The slide cannot be copied; the message says why."""


def copy_slide(source: Path, folder: Path, room_bytes: int, tick: Callable[[], None]) -> int:
    """Copy the slide at `source` into the new folder `folder`, and return what it takes on disk.

    Names, places relative to each other and times of change are kept. The folder appears when
    all is in it, so it is whole or not there.

    Args:
        source: the file by which the slide is opened.
        folder: does not exist yet; the folder above it does.
        room_bytes: what the copy may take on disk at most, at any moment.
        tick: called every few megabytes; what it raises ends the copy.

    Raises:
        NoRoomError: it does not fit into the room or on the disk.
        NotCopiedError: a file cannot be read, or changes all the time.
    """
    temporary = folder.with_name(TEMPORARY_PREFIX + folder.name)
    try:
        for _ in range(2):
            stamps = _stamps(source)
            needed = _bytes_on_disk(stamps, source.parent)
            if needed > min(room_bytes, shutil.disk_usage(folder.parent).free):
                raise NoRoomError(needed)
            _copy_parts(stamps, source.parent, temporary, tick, needed)
            if _stamps(source) == stamps:
                temporary.rename(folder)
                return needed
            shutil.rmtree(temporary)
        raise NotCopiedError("it changed while it was copied")
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _stamps(source: Path) -> Stamps:
    """Return size, time of change and inode of every file of a slide."""
    stamps = {}
    try:
        for part in parts_of(source):
            found = part.stat()
            if not stat.S_ISREG(found.st_mode):
                raise NotCopiedError(f"{part.name} is not a file")
            stamps[part] = (found.st_size, found.st_mtime_ns, found.st_ino)
    except OSError as error:
        raise NotCopiedError(f"{source.name} cannot be read ({error.strerror})") from error
    return stamps


def _bytes_on_disk(stamps: Stamps, base: Path) -> int:
    folders = {part.parent for part in stamps} | {base}
    return BLOCK_BYTES * (
        len(folders) + sum(-(-size // BLOCK_BYTES) for size, *_ in stamps.values())
    )


def _copy_parts(
    stamps: Stamps, base: Path, target: Path, tick: Callable[[], None], needed: int
) -> None:
    target.mkdir()
    for part, (size, mtime_ns, _) in stamps.items():
        copy = target / part.relative_to(base)
        try:
            copy.parent.mkdir(exist_ok=True)
            _copy_file(part, copy, size, tick)
            os.utime(copy, ns=(mtime_ns, mtime_ns))
        except OSError as error:
            if error.errno in _FULL:
                raise NoRoomError(needed) from error
            raise NotCopiedError(f"{part.name} cannot be copied ({error.strerror})") from error


def _copy_file(source: Path, copy: Path, size: int, tick: Callable[[], None]) -> None:
    """Copy `size` bytes and no more: a file that grows must not outgrow its room."""
    buffer = memoryview(bytearray(max(1, min(size, _CHUNK_BYTES))))
    with source.open("rb", buffering=0) as reader, copy.open("xb", buffering=0) as writer:
        while size > 0:
            tick()
            n = reader.readinto(buffer[: min(size, _CHUNK_BYTES)])
            if not n:
                return  # cut short; its stamp tells
            written = 0
            while written < n:
                written += writer.write(buffer[written:n])
            size -= n
