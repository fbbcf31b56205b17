"""Folders of bags: what every store promises, whatever the file format."""

from __future__ import annotations

import platform
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

import wsi
from wsi.bags.bag import Bag, Json, Provenance
from wsi.bags.layout import StoredBag
from wsi.bags.sidecar import (
    SUFFIX,
    BagInfo,
    read_sidecar,
    sidecar_path,
    sidecar_paths,
    write_sidecar,
)
from wsi.bags.writer import BagWriter
from wsi.errors import BagCorruptError, BagError, BagMissingError
from wsi.files import TEMPORARY_PREFIX, file_name_of, publish, sha256_file

Counts = Mapping[str, int]
Timings = Mapping[str, float]
Versions = Mapping[str, str]


@dataclass(frozen=True)
class Finding:
    """One thing wrong with a folder of bags.

    `name` is the slide id where the sidecar gives one, else the file name. `state` is `corrupt`,
    `missing` (a sidecar whose bag is gone), `temporary` or `orphan` (a bag without sidecar).
    """

    name: str
    state: Literal["corrupt", "missing", "temporary", "orphan"]
    message: str


class BagStore(ABC):
    """A folder with one bag file and one sidecar per slide.

    A bag exists when its sidecar does: the sidecar is published last and removed first. A backend
    names its `format` and `suffix`, writes a closed file and reads one; all else is here.
    """

    format: ClassVar[str]
    suffix: ClassVar[str]

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)

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
        info = self.info(slide_id)
        if info.status == "empty":
            raise BagMissingError(f"slide {slide_id} is empty ({info.reason}) — leave it out")
        problem = self._size_problem(info)
        if problem is not None:
            raise self._corrupt(info, problem)
        return self._read_checked(info, _row_numbers(info, rows))

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
        return self._verify_sidecar(sidecar_path(self.root, slide_id))

    def verify_all(self) -> Iterator[Finding]:
        """Yield what is wrong with any bag or file of the folder."""
        for path in sidecar_paths(self.root):
            yield from self._verify_sidecar(path)
        for path in self.stray():
            temporary = path.name.startswith(TEMPORARY_PREFIX)
            state, what = ("temporary", "unfinished") if temporary else ("orphan", "no sidecar")
            yield Finding(path.name, state, f"{path}: {what} — remove it and rerun preprocess")

    def stray(self) -> list[Path]:
        """Return unfinished files and bag files without a sidecar of their own, sorted."""
        if not self.root.is_dir():
            return []
        names = {path.name for path in self.root.iterdir()}
        return [self.root / name for name in sorted(names) if self._is_stray(name, names)]

    def _is_stray(self, name: str, names: set[str]) -> bool:
        if name.startswith(TEMPORARY_PREFIX):
            return True
        return name.endswith(self.suffix) and name.removesuffix(self.suffix) + SUFFIX not in names

    def _verify_sidecar(self, path: Path) -> list[Finding]:
        try:
            info = self._read_info(path)
        except FileNotFoundError:
            return [Finding(path.name, "missing", f"{path}: no sidecar — rerun preprocess")]
        except BagCorruptError as error:
            return [Finding(path.name, "corrupt", str(error))]
        return [] if info.status == "empty" else self._verify_file(info)

    def _verify_file(self, info: BagInfo) -> list[Finding]:
        path = self._path(info.slide_id)
        if not path.is_file():
            message = f"{path}: the bag file is gone — rerun preprocess"
            return [Finding(info.slide_id, "missing", message)]
        problem = self._content_problem(info, path)
        try:
            if problem is not None:
                raise self._corrupt(info, problem)
            self._read_checked(info, slice(None))
        except BagCorruptError as error:
            return [Finding(info.slide_id, "corrupt", str(error))]
        return []

    def _content_problem(self, info: BagInfo, path: Path) -> str | None:
        digest = sha256_file(path)
        if digest == info.sha256:
            return None
        for other in self.infos():
            if other.sha256 == digest:
                return f"it is the bag of slide {other.slide_id}"
        return self._size_problem(info) or "its content is not what was written"

    # -- inside -------------------------------------------------------------------------------

    @abstractmethod
    def _write_file(self, path: Path, bag: Bag, attributes: Json) -> None:
        """Write `bag` with JSON `attributes` to `path` and close it."""

    @abstractmethod
    def _read_file(self, path: Path, info: BagInfo, rows: np.ndarray | slice) -> StoredBag:
        """Return the arrays at `path` and whose they are.

        Raises BagCorruptError when names, shapes or types differ from `info`, before reading.
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

    def _read_checked(self, info: BagInfo, rows: np.ndarray | slice) -> Bag:
        stored = self._read_file(self._path(info.slide_id), info, rows)
        if (stored.slide_id, stored.key) != (info.slide_id, info.key):
            whose = f"it is the bag of slide {stored.slide_id}, key {stored.key}"
            raise self._corrupt(info, whose)
        try:
            return stored.bag(info)
        except BagCorruptError:
            raise
        except BagError as error:
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


def _row_numbers(info: BagInfo, rows: np.ndarray | slice | None) -> np.ndarray | slice:
    if rows is None:
        return slice(None)
    if isinstance(rows, slice):
        rows = np.arange(*rows.indices(info.n))
    numbers = np.asarray(rows)
    if numbers.ndim != 1 or numbers.dtype.kind not in "iu":
        raise BagError(f"bag {info.slide_id}: rows must be a list of whole numbers")
    if not numbers.size or numbers.min() < 0 or numbers.max() >= info.n:
        raise BagError(f"bag {info.slide_id}: rows must lie in 0..{info.n - 1}, one at least")
    return numbers
