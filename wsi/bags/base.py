"""Folders of bags: what every store promises, whatever the file format."""

from __future__ import annotations

import os
import platform
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from io import FileIO
from pathlib import Path
from typing import ClassVar

import numpy as np

import wsi
from wsi.bags.bag import Bag, Json, Provenance
from wsi.bags.layout import bag_of
from wsi.bags.places import Found, Rows
from wsi.bags.remembered import Remembered, signature
from wsi.bags.sidecar import (
    SUFFIX,
    BagInfo,
    read_sidecar,
    sidecar_path,
    sidecar_paths,
    write_sidecar,
)
from wsi.bags.verify import Finding, find_damage
from wsi.bags.writer import BagWriter
from wsi.errors import BagCorruptError, BagError, BagMissingError
from wsi.files import TEMPORARY_PREFIX, file_name_of, publish, sha256_file

Counts = Mapping[str, int]
Timings = Mapping[str, float]
Versions = Mapping[str, str]


class BagStore(ABC):
    """A folder with one bag file and one sidecar per slide.

    A bag exists when its sidecar does: the sidecar is published last and removed first. A backend
    names its `format` and `suffix`, writes a closed file and reads one; all else is here.
    """

    format: ClassVar[str]
    suffix: ClassVar[str]

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)
        self._remembered: Remembered[tuple[BagInfo, Found]] = Remembered()

    # -- reading ------------------------------------------------------------------------------

    def ids(self) -> list[str]:
        """Return the ids of all bags that are done, sorted; empty slides are not among them."""
        return sorted(info.slide_id for info in self.infos() if info.status == "done")

    def infos(self) -> list[BagInfo]:
        """Return all valid sidecars, done and empty, sorted by id.

        A damaged sidecar is left out, as its bag does not exist for readers; `verify_all` names it.
        """
        infos = (self._valid_info(path) for path in sidecar_paths(self.root))
        return sorted((i for i in infos if i is not None), key=lambda info: info.slide_id)

    def info(self, slide_id: str) -> BagInfo:
        """Return the sidecar of `slide_id`.

        Raises:
            BagMissingError: it has none, or a damaged one.
        """
        path = sidecar_path(self.root, slide_id)
        try:
            return self._read_info(path)
        except FileNotFoundError:
            raise BagMissingError(
                f"{self.root}: no bag of slide {slide_id} — run `wsi preprocess` for it, or see "
                f"`wsi bags ls {self.root}` for the ids that exist"
            ) from None
        except BagCorruptError as error:
            raise BagMissingError(f"no valid bag of slide {slide_id}: {error}") from error

    def holds(self, slide_id: str, key: str) -> bool:
        """Return whether `slide_id` needs no work: done or empty with this key, bag in place."""
        return self.held(slide_id, key) is not None

    def held(self, slide_id: str, key: str) -> BagInfo | None:
        """Return the sidecar of a slide that needs no work, see `holds`; None where it does."""
        info = self._valid_info(sidecar_path(self.root, slide_id))
        whole = info is not None and info.key == key and self._size_problem(info) is None
        return info if whole else None

    def read(self, slide_id: str, rows: np.ndarray | slice | None = None) -> Bag:
        """Return the bag of `slide_id`, or some of its rows in the order given.

        Size, shapes, types and identity are checked; `verify` also checks every byte.

        Args:
            slide_id: the slide's id.
            rows: whole numbers in [0, N), or a slice.

        Raises:
            BagMissingError: there is no such bag, or the slide is empty.
            BagCorruptError: the file contradicts its sidecar.
            BagError: `rows` are not rows of this bag.
        """
        info, found = self._known(slide_id)
        return self._taken(info, found, _row_numbers(info, rows))

    # -- writing ------------------------------------------------------------------------------

    def writer(self, slide_id: str, n: int, dim: int, provenance: Provenance) -> BagWriter:
        """Return a context manager that takes the `n` rows of width `dim` in pieces."""
        return BagWriter(self, slide_id, n, dim, provenance)

    def put(
        self,
        bag: Bag,
        *,
        counts: Counts | None = None,
        timings: Timings | None = None,
        versions: Versions | None = None,
        max_rel_error: float | None = None,
        bad_tiles: Sequence[Json] = (),
    ) -> BagInfo:
        """Store a whole bag and return its sidecar; a bag of the same id is replaced."""
        versions = _versions() | dict(versions or {})
        path = self._path(bag.slide_id)
        # The old sidecar goes first: it must never stand beside the new file.
        sidecar_path(self.root, bag.slide_id).unlink(missing_ok=True)
        with publish(path) as temporary:
            self._write_file(temporary, bag, {**_attributes(bag), "versions": versions})
            size, digest = temporary.stat().st_size, sha256_file(temporary)
        info = BagInfo(
            slide_id=bag.slide_id,
            status="done",
            format=self.format,
            file=path.name,
            n=len(bag),
            dim=bag.features.shape[1],
            dtype=bag.features.dtype.name,
            bytes=size,
            sha256=digest,
            key=bag.provenance.key,
            recipe_key=bag.provenance.recipe_key,
            provenance=bag.provenance,
            counts={"planned": len(bag)} | dict(counts or {}),
            max_rel_error=max_rel_error,
            timings=dict(timings or {}),
            versions=versions,
            scores=list(bag.quality or ()),
            bad_tiles=list(bad_tiles),
        )
        write_sidecar(self.root, info)
        return info

    def write_empty(
        self,
        slide_id: str,
        provenance: Provenance,
        *,
        reason: str,
        counts: Counts | None = None,
        timings: Timings | None = None,
        bad_tiles: Sequence[Json] = (),
    ) -> BagInfo:
        """Record that `slide_id` was looked at and has no tiles, and return its sidecar."""
        self.remove(slide_id)
        info = BagInfo(
            slide_id=slide_id,
            status="empty",
            format=self.format,
            file=None,
            n=0,
            dim=0,
            dtype=provenance.precision,
            bytes=0,
            sha256=None,
            key=provenance.key,
            recipe_key=provenance.recipe_key,
            provenance=provenance,
            counts=dict(counts or {}),
            reason=reason,
            timings=dict(timings or {}),
            versions=_versions(),
            bad_tiles=list(bad_tiles),
        )
        write_sidecar(self.root, info)
        return info

    def remove(self, slide_id: str) -> None:
        """Remove the sidecar and the bag of `slide_id`, if there."""
        sidecar_path(self.root, slide_id).unlink(missing_ok=True)
        self._path(slide_id).unlink(missing_ok=True)

    # -- checking -----------------------------------------------------------------------------

    def verify(self, slide_id: str) -> list[Finding]:
        """Return what is wrong with the bag of `slide_id`, every byte considered; [] if sound."""
        return list(self.verify_all([slide_id]))

    def verify_all(
        self,
        slide_ids: Iterable[str] | None = None,
        *,
        quick: bool = False,
        looked: Callable[[], None] = lambda: None,
    ) -> Iterator[Finding]:
        """Yield what is wrong with bags, on several threads, in the order of their names.

        Args:
            slide_ids: only look at these; else at all bags and files of the folder.
            quick: look at sidecars and sizes, at no content.
            looked: called after each bag.
        """
        return find_damage(self, slide_ids, quick, looked)

    def stray(self) -> list[Path]:
        """Return unfinished files and bag files without a sidecar of their own, sorted."""
        if not self.root.is_dir():
            return []
        names = set(os.listdir(self.root))  # noqa: PTH208, as in sidecar_paths
        return [self.root / name for name in sorted(names) if self._is_stray(name, names)]

    def _is_stray(self, name: str, names: set[str]) -> bool:
        if name.startswith(TEMPORARY_PREFIX):
            return True
        return name.endswith(self.suffix) and name.removesuffix(self.suffix) + SUFFIX not in names

    # -- inside -------------------------------------------------------------------------------

    @abstractmethod
    def _write_file(self, path: Path, bag: Bag, attributes: Json) -> None:
        """Write `bag` with JSON `attributes` to `path` and close it."""

    @abstractmethod
    def _look(self, path: Path, info: BagInfo) -> Found:
        """Return where the datasets lie in the file at `path`, and whose it says it is.

        Raises BagCorruptError when names, shapes or types differ from `info`; reads no features.
        """

    def _path(self, slide_id: str) -> Path:
        return self.root / f"{file_name_of(slide_id)}{self.suffix}"

    def _read_info(self, path: Path) -> BagInfo:
        info = read_sidecar(path)
        expected = self._path(info.slide_id).name if info.status == "done" else None
        if info.format != self.format or info.file != expected:
            raise BagCorruptError(
                f"{path}: names {info.format} file {info.file} where {self.format} {expected} "
                "belongs — keep one format per folder"
            )
        return info

    def _valid_info(self, path: Path) -> BagInfo | None:
        try:
            return self._read_info(path)
        except (BagCorruptError, FileNotFoundError):
            return None

    def _size_problem(self, info: BagInfo) -> str | None:
        if info.status == "empty":
            return None
        try:
            size = self._path(info.slide_id).stat().st_size
        except FileNotFoundError:
            return "the file is gone"
        return None if size == info.bytes else f"{size} bytes where {info.bytes} were written"

    def _known(self, slide_id: str) -> tuple[BagInfo, Found]:
        """Return sidecar and places of a bag; reading it again looks no more at either."""
        paths = sidecar_path(self.root, slide_id), self._path(slide_id)
        known = self._remembered.get(slide_id, *paths)
        if known is None:
            before = signature(*paths)
            known = self._looked_up(slide_id)
            self._remembered.keep(slide_id, known, before)
        return known

    def _looked_up(self, slide_id: str) -> tuple[BagInfo, Found]:
        info = self.info(slide_id)
        if info.status == "empty":
            raise BagMissingError(f"slide {slide_id} is empty ({info.reason}) — leave it out")
        problem = self._size_problem(info)
        if problem is not None:
            raise self._corrupt(info, problem)
        return info, self._look_checked(info)

    def _look_checked(self, info: BagInfo) -> Found:
        found = self._look(self._path(info.slide_id), info)
        if (found.slide_id, found.key) != (info.slide_id, info.key):
            whose = f"it is the bag of slide {found.slide_id}, key {found.key}"
            raise self._corrupt(info, whose)
        return found

    def _taken(self, info: BagInfo, found: Found, rows: Rows) -> Bag:
        try:
            with FileIO(self._path(info.slide_id)) as file:
                arrays = {name: place.take(file, rows) for name, place in found.places.items()}
            return bag_of(info, arrays)
        except BagCorruptError:
            raise
        except (BagError, OSError) as error:
            raise self._corrupt(info, str(error)) from error

    def _corrupt(self, info: BagInfo, problem: str) -> BagCorruptError:
        return BagCorruptError(
            f"{self._path(info.slide_id)}: {problem} — remove the bag of slide {info.slide_id} "
            "and rerun preprocess"
        )


def _attributes(bag: Bag) -> Json:
    """Return what a bag file says of itself, so that a swapped file is noticed."""
    made = bag.provenance.to_json()
    return {"slide_id": bag.slide_id, "key": bag.provenance.key, **made}


def _versions() -> dict[str, str]:
    return {"wsi": wsi.__version__, "python": platform.python_version(), "numpy": np.__version__}


def _row_numbers(info: BagInfo, rows: Rows | None) -> Rows:
    if rows is None:
        return slice(None)
    if isinstance(rows, slice):
        start, stop, step = rows.indices(info.n)
        if step == 1 and start < stop:
            return slice(start, stop)
        rows = np.arange(start, stop, step)
    numbers = np.asarray(rows)
    if numbers.ndim != 1 or numbers.dtype.kind not in "iu":
        raise BagError(f"bag {info.slide_id}: rows must be a list of whole numbers")
    if not numbers.size or numbers.min() < 0 or numbers.max() >= info.n:
        raise BagError(f"bag {info.slide_id}: rows must lie in 0..{info.n - 1}, one at least")
    return numbers
