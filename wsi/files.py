"""Atomic publication, leftovers, fingerprints, safe names: how the toolkit touches the disk."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import itertools
import json
import os
import re
import unicodedata
import urllib.parse
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from wsi.errors import CohortError, ConfigError, ReadOnlyError, ResourceError
from wsi.processes import current_process, has_ended

_SAFE = "-_. ()+,="  # beside letters and digits; everything else is percent-encoded
_MAX_NAME_BYTES = 180  # leaves room for suffixes under the usual limit of 255
_LONGEST_NAME_BYTES = 255
_SAMPLES = 5
_SAMPLE_BYTES = 64 * 1024
TEMPORARY_PREFIX = ".tmp-"
_TEMPORARY_TTL_S = 3600.0  # publishing takes seconds, on a slow network perhaps minutes
_TEMPORARY = re.compile(rf"{re.escape(TEMPORARY_PREFIX)}([0-9a-f]{{12}})-(\d{{1,9}})-(\d+)-\d+-")
_numbers = itertools.count()
# Names that Windows, and so a share of it, keeps for devices, whatever suffix follows.
_DEVICE = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(?=\.|$)", re.IGNORECASE)


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
        ReadOnlyError: the folder may not be written to.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = temporary_beside(path)
        try:
            yield temporary
            with temporary.open("rb+") as handle:
                os.fsync(handle.fileno())
            # Some writers make private files; what is published is for whoever may read the folder.
            with contextlib.suppress(PermissionError):  # some shares know no modes
                temporary.chmod(_MODE)
            temporary.replace(path)
            sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full disk, or a folder closed to writing, into an error that says what to do.

    Args:
        path: what is being written; refusals of files elsewhere stay what they are.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceError(
                f"no space left for {path.name} in {path.parent} — free space and rerun, "
                "nothing that was finished is lost"
            ) from error
        refused = error.errno in (errno.EROFS, errno.EACCES, errno.EPERM)
        if refused and _is_about(error, path.parent):
            raise ReadOnlyError(
                f"{path.parent} may not be written to ({error.strerror}) — give another folder, "
                "or have it opened for writing"
            ) from error
        raise


def _is_about(error: OSError, folder: Path) -> bool:
    if not isinstance(error.filename, str):
        return True
    named = Path(error.filename)
    return folder in (named, named.parent) or named in folder.parents


def temporary_beside(path: Path) -> Path:
    """Return a path in the folder of `path` that no other call, process or machine returns.

    Its name tells `collect_temporaries` whose it is, and ends as the name of `path` does.
    """
    me = current_process()
    start = f"{TEMPORARY_PREFIX}{me.place}-{me.pid}-{me.started}-{next(_numbers)}-"
    end = path.name.encode()[-(_LONGEST_NAME_BYTES - len(start)) :].decode(errors="ignore")
    return path.with_name(start + end)


def collect_temporaries(folder: Path) -> list[Path]:
    """Remove what ended processes left unfinished in `folder`, and return what was removed.

    Those of a process of this machine go as soon as it has ended; those of other machines,
    whose processes cannot be seen from here, an hour after they were last written to, by the
    clock of the file server.
    """
    if not folder.is_dir():
        return []
    found = [path for path in folder.glob(f"{TEMPORARY_PREFIX}*") if path.is_file()]
    return sorted(path for path in _left_behind(folder, found) if _removed(path))


def _left_behind(folder: Path, found: Iterable[Path]) -> Iterator[Path]:
    here = current_process().place
    foreign = []
    for path in found:
        place, pid, started = _maker(path.name)
        if place != here:
            foreign.append(path)
        elif has_ended(pid, started):
            yield path
    if foreign:
        now = server_time(folder)
        for path in foreign:
            with contextlib.suppress(FileNotFoundError):
                if now - path.stat().st_mtime > _TEMPORARY_TTL_S:
                    yield path


def _maker(name: str) -> tuple[str, int, int]:
    match = _TEMPORARY.match(name)
    return (match[1], int(match[2]), int(match[3])) if match else ("", 0, 0)


def _removed(path: Path) -> bool:
    try:
        path.unlink()
    except FileNotFoundError:  # another process collects, too
        return False
    return True


def server_time(folder: Path) -> float:
    """Return the time by the clock that dates the files of `folder`, in seconds since the epoch.

    On a network file system that is the server's clock: this machine's may be hours off.
    """
    probe = temporary_beside(folder / "clock")
    try:
        probe.write_bytes(b"?")
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


def check_writable(folder: Path) -> None:
    """Create `folder` where it is absent, and publish and remove a small file there.

    Raises:
        ReadOnlyError: it may not be written to.
        ResourceError: there is no space even for that.
        ConfigError: it is a file, or lies below one.
    """
    probe = temporary_beside(folder / "probe")
    try:
        publish_bytes(probe, b"?" * 4096)
        with disk_errors(probe):
            probe.unlink()
    except (FileExistsError, NotADirectoryError):
        raise ConfigError(f"{folder} is not a folder — give another place to write to") from None


def inside(root: Path, path: Path) -> Path:
    """Return `path` with links resolved, which must lie below `root`, itself resolved.

    Raises:
        ConfigError: a link or `..` leads out of `root`.
    """
    true_root, true_path = root.resolve(), path.resolve()
    if not true_path.is_relative_to(true_root):
        raise ConfigError(
            f"{path} leads out of {root}, to {true_path} — remove the link, or give the folder "
            "it leads to as the place to write to"
        )
    return true_path


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
    distinct names: `site-a/x` -> `site-a%2Fx`. So is the first letter of a name that Windows
    keeps for devices: `con` -> `%63on`. A name too long for a file system is shortened with a
    hash; the true id is kept inside the bag. Names may differ by case alone: see
    `check_case_twins`.

    Raises:
        CohortError: the id is empty, or could only be meant to leave its folder.
    """
    check_slide_id(slide_id)
    name = "".join(
        c if c.isascii() and (c.isalnum() or c in _SAFE) else _percent(c) for c in slide_id
    )
    if name.startswith("."):
        name = "%2E" + name[1:]
    if _DEVICE.match(name):
        name = f"%{ord(name[0]):02X}{name[1:]}"
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


def check_case_twins(folder: Path, slide_ids: Iterable[str]) -> None:
    """Raise CohortError when ids differ by case alone and `folder` does not tell case apart.

    Linux's own file systems do tell `A` from `a`; shares and memory sticks often do not, and one
    slide's files would replace the other's.
    """
    twins = defaultdict(set)
    for slide_id in slide_ids:
        twins[file_name_of(slide_id).lower()].add(slide_id)
    alike = [" and ".join(sorted(ids)) for ids in twins.values() if len(ids) > 1]
    if alike and not _tells_case_apart(folder):
        raise CohortError(
            f"{folder} does not tell upper from lower case, and these slides differ by case "
            f"alone: {'; '.join(sorted(alike))} — give another folder, or rename one of each"
        )


def _tells_case_apart(folder: Path) -> bool:
    probe = temporary_beside(folder / "case")
    with disk_errors(probe):
        try:
            probe.touch()
            return not probe.with_name(probe.name.upper()).exists()
        finally:
            probe.unlink(missing_ok=True)


def _percent(character: str) -> str:
    return urllib.parse.quote(character, safe="")
