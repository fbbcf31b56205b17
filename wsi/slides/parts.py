"""Which files make one slide, and whether they are what they were when last looked at."""

from __future__ import annotations

import warnings
from collections import defaultdict
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

MULTIFILE_SUFFIXES = frozenset([".mrxs", ".vms", ".vmu", ".dcm"])
_WHOLE_SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"  # VL Whole Slide Microscopy Image Storage
_INDEX_BYTES = 1 << 20  # a Hamamatsu index is a few KiB of text


@dataclass(frozen=True)
class FileStamp:
    """Size and time of change of a slide, all of its files taken together.

    Attributes:
        size_bytes: sum over the files.
        mtime_ns: of the file that changed last.
    """

    size_bytes: int
    mtime_ns: int


def stamp_of(path: Path) -> FileStamp | None:
    """Return the stamp of the slide at `path`, or None where it is not there or may not be seen."""
    try:
        stats = [part.stat() for part in parts_of(path)]
    except OSError:
        return None
    return FileStamp(sum(s.st_size for s in stats), max(s.st_mtime_ns for s in stats))


def parts_of(path: Path) -> tuple[Path, ...]:
    """Return the file itself, and the others that belong to the same slide.

    An MRXS file has a folder of the same name, a Hamamatsu index names its pictures, and a DICOM
    slide is a series of files in one folder.

    Raises:
        OSError: one of them cannot be looked at.
    """
    suffix = path.suffix.lower()
    if suffix == ".mrxs":
        folder = path.with_suffix("")
        return (path, *sorted(folder.iterdir())) if folder.is_dir() else (path,)
    if suffix in (".vms", ".vmu"):
        return (path, *named_in_index(path))
    if suffix == ".dcm":
        return dicom_series(path.parent).get(path, (path,))
    return (path,)


def named_in_index(path: Path) -> tuple[Path, ...]:
    """Return the files beside a Hamamatsu .vms or .vmu file that it names."""
    with path.open("rb") as handle:
        text = handle.read(_INDEX_BYTES).decode("utf-8", "replace")
    words = {line.partition("=")[2].strip() for line in text.splitlines()}
    return tuple(p for p in sorted(path.parent.iterdir()) if p.name in words and p != path)


def dicom_series(folder: Path) -> dict[Path, tuple[Path, ...]]:
    """Return all files of its series, lowest name first, for every DICOM file of a folder."""
    return _dicom_series(folder, folder.stat().st_mtime_ns)


@lru_cache(maxsize=4096)
def _dicom_series(folder: Path, changed_ns: int) -> dict[Path, tuple[Path, ...]]:
    # Every header is read, so once for a folder as it stands, not once for each of its slides.
    groups: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() == ".dcm" and not path.name.startswith("."):
            groups[_series(path) or path.name].append(path)
    return {path: tuple(group) for group in groups.values() for path in group}


def _series(path: Path) -> str | None:
    return _dicom_value(path, "SeriesInstanceUID")


def is_other_dicom(path: Path) -> bool:
    """Return whether a file is sound DICOM of something else than a whole slide."""
    with path.open("rb") as handle:
        if handle.read(132)[128:] != b"DICM":
            return False
    return _dicom_value(path, "SOPClassUID") not in (None, _WHOLE_SLIDE)


def _dicom_value(path: Path, keyword: str) -> str | None:
    """Return a value of a DICOM header; None where there is none, or it cannot be read."""
    import pydicom  # only folders with DICOM pay for it

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they quote the header, which may name a patient
            header = pydicom.dcmread(path, specific_tags=[keyword], stop_before_pixels=True)
            return str(header.get(keyword, "")) or None
    except Exception:  # a damaged header raises whatever its bytes lead to
        return None
