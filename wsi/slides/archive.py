"""Which files of a folder are slides, and what each is called."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from wsi.errors import ConfigError
from wsi.slides.parts import MULTIFILE_SUFFIXES, parts_of

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
HIDDEN = "hidden"
_OUTPUT_TABLE = "slides.csv"  # beside one of the logs, it marks outputs of ours
_OUTPUT_LOGS = frozenset(["log", "run.jsonl"])
_OUTPUT_FOLDERS = frozenset(["bags", "tiles", "tissue", "thumbnails"])


@dataclass(frozen=True)
class SlideFile:
    """A slide's id and file, and what the user's table says of it.

    Attributes:
        mpp: um per level-0 pixel from the table, or None.
        site: from the table, or the first folder below the root; empty where there is none.
        tissue: tissue settings of this slide alone, as text by name.
    """

    slide_id: str
    path: Path
    mpp: float | None = None
    site: str = ""
    tissue: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Archive:
    """What a search has found.

    Attributes:
        slides: in order of id.
        ignored: how many files are no slides, by suffix, `hidden` for those that begin with a dot.
        closed: folders that may not be read.
    """

    slides: tuple[SlideFile, ...]
    ignored: Mapping[str, int]
    closed: tuple[Path, ...]


def find_slides(roots: Iterable[Path]) -> list[SlideFile]:
    """Return the slides below folders and the files named, in order of id; see `search_archive`."""
    return list(search_archive(roots).slides)


def search_archive(roots: Iterable[Path]) -> Archive:
    """Return the slides below folders and the files named, and what was passed over.

    An id is the path below its root without extension; files of one folder with the same stem
    keep their extensions; a DICOM series is one slide, named after its lowest file. Linked folders
    are searched; what `wsi preprocess` has written is not.

    Raises:
        ConfigError: a root does not exist, or two roots give the same id.
    """
    found: list[SlideFile] = []
    ignored: Counter[str] = Counter()
    closed: list[Path] = []
    for root in roots:
        if root.is_dir():
            found += _below(root, ignored, closed)
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
    slides = tuple(sorted(found, key=lambda slide: slide.slide_id))
    return Archive(slides, {word: n for word, n in ignored.most_common() if n}, tuple(closed))


def _below(root: Path, ignored: Counter[str], closed: list[Path]) -> list[SlideFile]:
    relative = {
        path: path.relative_to(root)
        for folder, names in _folders(root, ignored, closed)
        for path in _slides_among(folder, names, ignored)
    }
    stems = Counter(r.with_suffix("") for r in relative.values())
    return [
        SlideFile(
            (r.with_suffix("") if stems[r.with_suffix("")] == 1 else r).as_posix(),
            path,
            site=r.parts[0] if len(r.parts) > 1 else "",
        )
        for path, r in relative.items()
    ]


def _folders(
    root: Path, ignored: Counter[str], closed: list[Path]
) -> Iterator[tuple[Path, list[str]]]:
    """Yield every folder to look into with the names of its files, in order."""

    def cannot_read(error: OSError) -> None:
        closed.append(Path(error.filename))

    for folder, folders, names in os.walk(root, onerror=cannot_read, followlinks=True):
        ignored[HIDDEN] += sum(name.startswith(".") for name in (*folders, *names))
        names = sorted(name for name in names if not name.startswith("."))
        data = {Path(name).stem for name in names if name.lower().endswith(".mrxs")}
        if _OUTPUT_TABLE in names and _OUTPUT_LOGS & {*names, *folders}:
            data |= _OUTPUT_FOLDERS
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".")
            and name not in data
            and not _leads_back(root, Path(folder), name)
        )
        yield Path(folder), names


def _leads_back(root: Path, folder: Path, name: str) -> bool:
    """Return whether a folder is a link to one of those on the way to it, or above them."""
    if not (folder / name).is_symlink():
        return False
    target = (folder / name).resolve()
    way = [folder, *(p for p in folder.parents if p.is_relative_to(root))]
    return any(p.resolve().is_relative_to(target) for p in way)


def _slides_among(folder: Path, names: Iterable[str], ignored: Counter[str]) -> list[Path]:
    suffixes = SLIDE_SUFFIXES | IMAGE_SUFFIXES
    paths = []
    for path in (folder / name for name in names):
        if path.suffix.lower() in suffixes:
            paths.append(path)
        else:
            ignored[path.suffix.lower() or "no suffix"] += 1
    if any(path.suffix.lower() in MULTIFILE_SUFFIXES for path in paths):
        return _one_per_slide(paths)
    return paths


def _one_per_slide(paths: list[Path]) -> list[Path]:
    """Return one path for each slide: the lowest of a DICOM series, no pictures of an index."""
    kept, others = [], set()
    for path in paths:
        try:
            parts = parts_of(path) if path.suffix.lower() in MULTIFILE_SUFFIXES else (path,)
        except OSError:
            parts = (path,)  # whoever opens it says what is wrong
        if path == parts[0]:
            kept.append(path)
            others |= set(parts[1:])
    return [path for path in kept if path not in others]
