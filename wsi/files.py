"""Atomic publication, fingerprints and safe names: how the toolkit touches the disk."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import os
import secrets
import unicodedata
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wsi.errors import CohortError, ResourceError

_SAFE = "-_. ()+,="  # beside letters and digits; everything else is percent-encoded
_MAX_NAME_BYTES = 180  # leaves room for suffixes under the usual limit of 255
_SAMPLES = 5
_SAMPLE_BYTES = 64 * 1024
TEMPORARY_PREFIX = ".tmp-"


def _usual_mode() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


_MODE = _usual_mode()


@contextlib.contextmanager
def publish(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it becomes `path` in one step.

    The file is flushed to disk before the rename and the folder after it, so a reader sees the
    whole file or none. On any error the temporary file is removed.

    Raises:
        ResourceError: the disk is full or a quota is reached.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    try:
        yield temporary
        with temporary.open("rb+") as handle:
            os.fsync(handle.fileno())
        # Some writers make private files; what is published is for whoever may read the folder.
        temporary.chmod(_MODE)
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceError(
                f"no space left for {path.name} in {path.parent} — free space and rerun, "
                "nothing that was finished is lost"
            ) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def temporary_beside(path: Path) -> Path:
    """Return a name beside `path` that no other process uses, on this machine or another."""
    # Machines that share a folder give the same process numbers.
    return path.with_name(f"{TEMPORARY_PREFIX}{os.getpid()}-{secrets.token_hex(4)}-{path.name}")


def publish_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` atomically."""
    with publish(path) as temporary:
        temporary.write_bytes(data)


def publish_json(path: Path, value: Any) -> None:
    """Write `value` as JSON to `path` atomically; NaN and infinity are refused."""
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    publish_bytes(path, text.encode() + b"\n")


def sync_folder(folder: Path) -> None:
    """Flush the names in `folder` to disk, where its file system can."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems cannot flush a folder; the rename itself has happened.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EACCES):
            raise
    finally:
        os.close(descriptor)


def sha256_file(path: Path) -> str:
    """Return the hex SHA-256 of a file's content."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def sha256_bytes(data: bytes) -> str:
    """Return the hex SHA-256 of `data`."""
    return hashlib.sha256(data).hexdigest()


def sha256_json(value: Any) -> str:
    """Return the hex SHA-256 of a JSON value, independent of key order and spacing."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def sampled_fingerprint(path: Path) -> str:
    """Return a fingerprint of a large file from its size and five samples of 64 KiB.

    Cheap enough for every slide of an archive; it notices a replaced file, not every flipped bit.
    A folder-like slide (MRXS, a DICOM series) is represented by the file that was opened.
    """
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as handle:
        for k in range(_SAMPLES):
            handle.seek(max(0, (size - _SAMPLE_BYTES) * k // (_SAMPLES - 1)))
            digest.update(handle.read(_SAMPLE_BYTES))
    return digest.hexdigest()


@functools.lru_cache(maxsize=1 << 16)
def file_name_of(slide_id: str) -> str:
    """Return the flat, portable file name (without suffix) of a slide id.

    Everything but ASCII letters, digits and a few marks is percent-encoded, so distinct ids give
    distinct names: `site-a/x` -> `site-a%2Fx`. A name too long for a file system is shortened
    with a hash; the true id is kept inside the bag.

    Raises:
        CohortError: the id is empty, or could only be meant to leave its folder.
    """
    check_slide_id(slide_id)
    name = "".join(
        c if c.isascii() and (c.isalnum() or c in _SAFE) else _percent(c) for c in slide_id
    )
    if name.startswith("."):
        name = "%2E" + name[1:]
    if len(name) > _MAX_NAME_BYTES:
        digest = hashlib.sha256(slide_id.encode()).hexdigest()[:16]
        name = f"{name[: _MAX_NAME_BYTES - 17]}~{digest}"
    return name


def check_slide_id(slide_id: str) -> None:
    """Raise CohortError unless `slide_id` is usable as an id."""
    parts = slide_id.replace("\\", "/").split("/")
    if not slide_id.strip() or "\0" in slide_id or slide_id.startswith("/") or ".." in parts:
        raise CohortError(
            f"slide id {slide_id!r} is not usable — give a name without '..' or a leading '/'"
        )
    if any(unicodedata.category(c) in ("Cc", "Cs") for c in slide_id):
        raise CohortError(
            f"slide id {slide_id!r} has control characters or bytes that are no text — "
            "rename the file, or give a slide_id in the table"
        )


def _percent(character: str) -> str:
    return urllib.parse.quote(character, safe="")
