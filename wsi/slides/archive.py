"""Which files of a folder are slides, and what each is called."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from wsi.errors import ConfigError

SLIDE_SUFFIXES = frozenset(
    [
        ".svs",
        ".tif",
        ".tiff",
        ".ndpi",
        ".vms",
        ".vmu",
        ".scn",
        ".mrxs",
        ".bif",
        ".svslide",
        ".dcm",
        ".czi",
    ]
)
IMAGE_SUFFIXES = frozenset([".png", ".jpg", ".jpeg", ".bmp"])


@dataclass(frozen=True)
class SlideFile:
    """A slide's id and file, and what the user's table says of its resolution."""

    slide_id: str
    path: Path
    mpp: float | None = None


def find_slides(roots: Iterable[Path]) -> list[SlideFile]:
    """Return the slides below folders and the files named, in order of id.

    An id is the path below its root without extension; files of one folder with the same stem
    keep their extensions; a DICOM series is one slide, named after its lowest file.

    Raises:
        ConfigError: a root does not exist, or two roots give the same id.
    """
    found: list[SlideFile] = []
    for root in roots:
        if root.is_dir():
            found += _below(root)
        elif root.is_file():
            found.append(SlideFile(root.stem, root))
        else:
            raise ConfigError(f"{root}: no such file or folder — check the path")
    twins = [slide_id for slide_id, n in Counter(s.slide_id for s in found).items() if n > 1]
    if twins:
        raise ConfigError(
            f"{len(twins)} slide ids occur in several of the paths given, e.g. '{twins[0]}' — "
            "give their common parent folder instead"
        )
    return sorted(found, key=lambda slide: slide.slide_id)


def _below(root: Path) -> list[SlideFile]:
    suffixes = SLIDE_SUFFIXES | IMAGE_SUFFIXES
    paths = [p for p in sorted(root.rglob("*")) if p.suffix.lower() in suffixes and p.is_file()]
    hidden = [p for p in paths if any(part.startswith(".") for part in p.relative_to(root).parts)]
    paths = _one_per_dicom_series([p for p in paths if p not in set(hidden)])
    relative = {p: p.relative_to(root) for p in paths}
    stems = Counter(r.with_suffix("") for r in relative.values())
    return [
        SlideFile((r.with_suffix("") if stems[r.with_suffix("")] == 1 else r).as_posix(), p)
        for p, r in relative.items()
    ]


def _one_per_dicom_series(paths: list[Path]) -> list[Path]:
    seen: set[tuple[Path, str]] = set()
    kept = []
    for path in paths:
        series = _series(path) if path.suffix.lower() == ".dcm" else None
        if series is None or (path.parent, series) not in seen:
            kept.append(path)
        if series is not None:
            seen.add((path.parent, series))
    return kept


def _series(path: Path) -> str | None:
    import pydicom  # only folders with DICOM pay for it
    from pydicom.errors import InvalidDicomError

    try:
        header = pydicom.dcmread(path, specific_tags=["SeriesInstanceUID"], stop_before_pixels=True)
    except (InvalidDicomError, OSError):
        return None
    return str(header.get("SeriesInstanceUID", "")) or None
