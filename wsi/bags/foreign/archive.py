"""What is known of a slide in another tool's archive before its arrays are read."""

from __future__ import annotations

import csv
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from wsi.errors import ConfigError, ForeignBagError
from wsi.registry import suggest

Json = dict[str, Any]
IDS_FILE = "slide_ids.csv"
"""Table that an export leaves beside its files: `name` of each file and its `slide_id`."""


@dataclass(frozen=True)
class Given:
    """What the user says of an archive that does not say it itself.

    Args:
        encoder: name of the encoder, or which of several an archive holds.
        mpp: um per level-0 pixel of slides that are not at hand.
        tile_px: edge of the tiles in pixels as the encoder's tool read them.
        tile_mpp: um per pixel of these tiles; `mpp` when not given, as for tiles of level 0.
    """

    encoder: str | None = None
    mpp: float | None = None
    tile_px: int | None = None
    tile_mpp: float | None = None


@dataclass(frozen=True)
class Place:
    """Where an array lies: a dataset of an HDF5 file, or the tensor of a .pt file."""

    path: Path
    name: str = ""


@dataclass(frozen=True)
class ForeignTiling:
    """How an archive says that a slide was tiled.

    Attributes:
        tile_px: edge of a tile as its tool read it; None where nothing says how it was tiled.
        size0: edge of a tile in level-0 pixels; None where only micrometres are known.
        mpp: um per tile pixel as declared, by which slides are compared; None where unknown.
        overlap_px: of neighbouring tiles.
        details: more of what the tool recorded and all slides must share.
    """

    tile_px: int | None
    size0: float | None
    mpp: float | None
    overlap_px: float = 0.0
    details: Json = field(default_factory=dict)


@dataclass(frozen=True)
class Entry:
    """One slide of an archive, its files found safe and of matching shapes.

    Attributes:
        slide_id: path below the archive's folder of features, without suffix.
        features: (N, D) float16 or float32, as `dtype` says.
        coords: (N, 2 or more); x and y come first.
        unit: of the coordinates: level-0 pixels or micrometres.
        encoder: as the archive or the user names it; empty where neither does.
        recorded: of the encoder, for the record: versions, hashes.
        slide_size0: level-0 size (w, h) of the slide where the archive has it.
        mpp0: um per level-0 pixel where the archive has it.
    """

    slide_id: str
    layout: str
    features: Place
    coords: Place
    unit: Literal["px0", "um"]
    n: int
    dim: int
    dtype: Literal["float16", "float32"]
    encoder: str
    tiling: ForeignTiling
    recorded: Json = field(default_factory=dict)
    slide_size0: tuple[int, int] | None = None
    mpp0: float | None = None


class Layout(ABC):
    """An archive of one tool: which files are slides, and what each says of itself.

    A layout names its `name`, lists `files` and reads the facts of one in `entry`.

    Args:
        root: the archive, as its tool wrote it.
        given: what the archive does not say.

    Raises:
        ConfigError: there is no such archive, or it holds several and none was chosen.
    """

    name: ClassVar[str]

    def __init__(self, root: Path, given: Given | None = None) -> None:
        self.root = root
        self.given = given or Given()
        self.names = _exported_names(root)

    @abstractmethod
    def files(self) -> list[Path]:
        """Return the files of features, one per slide, sorted."""

    @abstractmethod
    def entry(self, path: Path) -> Entry:
        """Return what is known of the slide of one of `files`.

        Raises:
            UnsafeFileError: a file is refused as a whole.
            ForeignBagError: a file is damaged, or lacks what a bag needs.
        """

    def passed_over(self) -> Iterator[str]:
        """Yield what of the archive is not read, in words."""
        yield from ()

    def slide_id(self, path: Path, below: Path) -> str:
        """Return the id of the slide of a file: its path without suffix, or as exported."""
        name = path.relative_to(below).with_suffix("").as_posix()
        return self.names.get(name, name)


def visible(paths: Iterable[Path]) -> list[Path]:
    """Return paths sorted, without those that begin with a dot: what a system or a run left."""
    return sorted(path for path in paths if not path.name.startswith("."))


def folder_of(root: Path, pattern: str, given: str | None, what: str) -> Path:
    """Return the one folder of a pattern in `root` or one below, or that of the encoder given.

    Args:
        pattern: with one `*`, which stands for the encoder's name.

    Raises:
        ConfigError: there is none, or there are several and none was chosen.
    """
    head, _, tail = pattern.partition("*")
    if root.name.startswith(head) and root.name.endswith(tail) and root.is_dir():
        return root
    found = visible(p for p in [*root.glob(pattern), *root.glob(f"*/{pattern}")] if p.is_dir())
    names = [p.name.removeprefix(head).removesuffix(tail) for p in found]
    if given is not None and found:
        chosen = [p for p, name in zip(found, names, strict=True) if name == given]
        if not chosen:
            raise ConfigError(
                f"{root}: no features of encoder '{given}'{suggest(given, names)} — it has "
                f"{', '.join(dict.fromkeys(names))}"
            )
        found = chosen
    if not found:
        raise ConfigError(f"{root}: no folder {pattern} — give the folder that {what} wrote")
    if len(found) > 1:
        listed = ", ".join(p.relative_to(root).as_posix() for p in found)
        raise ConfigError(f"{root}: holds {listed} — give one of these, or --encoder")
    return found[0]


def real_type(path: Path, dtype: str) -> Literal["float16", "float32"]:
    """Return a type that bags hold, or refuse: wider numbers are never narrowed unasked."""
    if dtype == "float16":
        return "float16"
    if dtype == "float32":
        return "float32"
    raise ForeignBagError(
        f"{path.name}: features are {dtype}, bags hold float16 or float32 — write them again as "
        "float32",
        "wrong-type",
    )


def check_lengths(path: Path, n: int, coords: int) -> None:
    """Raise unless there are as many coordinates as rows of features."""
    if n != coords:
        raise ForeignBagError(
            f"{path.name}: {n} rows of features and {coords} coordinates — make the file again",
            "length-mismatch",
        )


def check_planned(path: Path, n: int, planned: int, plan: Path) -> None:
    """Raise unless there are as many rows as the file of coordinates has tiles."""
    if n != planned:
        raise ForeignBagError(
            f"{path.name}: {n} rows of features for {planned} tiles in {plan.parent.name}/"
            f"{plan.name} — embed the slide again",
            "short" if n < planned else "length-mismatch",
        )


def number(values: Mapping[str, Any], name: str) -> float | None:
    """Return an attribute as a number above 0, or None where it is absent or no such number."""
    value = values.get(name)
    try:
        found = float(value)  # pyright: ignore[reportArgumentType]
    except (TypeError, ValueError):
        return None  # such as the word None, which TRIDENT stores
    return found if 0 < found < float("inf") else None


def pair(values: Mapping[str, Any], names: tuple[str, str]) -> tuple[int, int] | None:
    """Return two attributes as a size (w, h), or None."""
    w, h = (number(values, name) for name in names)
    return (int(w), int(h)) if w and h else None


def _exported_names(root: Path) -> dict[str, str]:
    """Return the slide ids of file names that an export of ours had to change."""
    for table in (root / IDS_FILE, root.parent / IDS_FILE):
        if table.is_file():
            with table.open(encoding="utf-8", newline="") as handle:
                rows = list(csv.DictReader(handle))
            return {row["name"]: row["slide_id"] for row in rows if "name" in row}
    return {}
