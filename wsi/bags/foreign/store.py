"""Bags left where another tool wrote them: here lie only sidecars that point there."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

import wsi
from wsi.bags.bag import Bag, Json, Provenance
from wsi.bags.base import BagStore, Finding, _row_numbers
from wsi.bags.foreign.archive import Place
from wsi.bags.foreign.arrays import level0, opened
from wsi.bags.layout import bag_of
from wsi.bags.places import Found
from wsi.bags.sidecar import (
    BagInfo,
    read_sidecar,
    sidecar_path,
    sidecar_paths,
    write_sidecar,
)
from wsi.bags.writer import DROPPED
from wsi.errors import BagCorruptError, BagError, BagMissingError, ForeignBagError
from wsi.files import sampled_fingerprint, sha256_file

NON_FINITE = f"{DROPPED}non-finite"
"""Count of rows that were left out for their values."""


class ForeignStore(BagStore):
    """Sidecars of bags in another tool's files, which are read and never written.

    `read` compares size and, where the time of change differs, five samples of a file with what
    was imported; `verify` compares every byte.
    """

    format = "foreign"
    suffix = ".foreign"  # no file has it: all that lies here are sidecars

    def link(
        self,
        slide_id: str,
        shape: tuple[int, int],
        made: Provenance,
        root: Path,
        left_out: Sequence[int] = (),
    ) -> BagInfo:
        """Publish the sidecar of a bag whose files `made.slide["source"]` names.

        Args:
            shape: (N, D) without the rows left out.
            root: the archive, which the source's file names are below.
            left_out: rows of the file that are no rows of the bag.
        """
        source = made.slide["source"]
        info = BagInfo(
            slide_id=slide_id,
            status="done",
            format=self.format,
            file=(root.resolve() / source["file"]).as_posix(),
            n=shape[0],
            dim=shape[1],
            dtype=made.precision,
            bytes=source["bytes"],
            sha256=source["sha256"],
            key=made.key,
            recipe_key=made.recipe_key,
            provenance=made,
            counts={"planned": shape[0] + len(left_out)}
            | ({NON_FINITE: len(left_out)} if left_out else {}),
            versions={
                "wsi": wsi.__version__,
                "python": platform.python_version(),
                "h5py": h5py.__version__,
            },
        )
        write_sidecar(self.root, info)
        return info

    def read(self, slide_id: str, rows: np.ndarray | slice | None = None) -> Bag:
        """Return the bag of `slide_id`, or some of its rows, as `BagStore.read` does."""
        info = self.info(slide_id)
        if info.status == "empty":
            raise BagMissingError(f"slide {slide_id} is empty ({info.reason}) — leave it out")
        problem = self._size_problem(info)
        if problem is not None:
            raise self._corrupt(info, problem)
        return self._bag(info, _row_numbers(info, rows))

    def verify_all(
        self,
        slide_ids: Iterable[str] | None = None,
        *,
        quick: bool = False,
        looked: Callable[[], None] = lambda: None,
    ) -> Iterator[Finding]:
        """Yield what is wrong with the bags, in the order of their names.

        Args:
            slide_ids: only look at these; else at all sidecars and files of the folder.
            quick: look at sizes, and at samples where the time of change differs.
            looked: called after each bag.
        """
        chosen = None if slide_ids is None else [sidecar_path(self.root, s) for s in slide_ids]
        for path in sidecar_paths(self.root) if chosen is None else chosen:
            finding = self._damage(path, quick)
            looked()
            if finding is not None:
                yield finding
        for path in self.stray() if chosen is None else ():
            message = f"{path}: unfinished — remove it and import again"
            yield Finding(path.name, "temp", message)

    def put(self, bag: Bag, **more: Any) -> BagInfo:
        """Refuse: these folders hold no bags of their own."""
        raise BagError(
            f"{self.root}: holds pointers to another tool's files and takes no bags — give another "
            "folder, or copy these with `wsi bags convert --to h5`"
        )

    def _write_file(self, path: Path, bag: Bag, attributes: Json) -> None:
        raise BagError(f"{path}: nothing is written here — give another folder")

    def _look(self, path: Path, info: BagInfo) -> Found:
        raise BagError(f"{path}: there is no such file — read the bag by its id")

    def _read_info(self, path: Path) -> BagInfo:
        info = read_sidecar(path)
        named = info.provenance.slide.get("source", {}).get("file", "")
        whole = info.file is None or (named and info.file.endswith(f"/{named}"))
        if info.format != self.format or (info.file is None) != (info.n == 0) or not whole:
            raise BagCorruptError(
                f"{path}: names {info.format} file {info.file} where a {self.format} one belongs "
                "— keep one format per folder"
            )
        return info

    def _size_problem(self, info: BagInfo) -> str | None:
        if info.status == "empty":
            return None
        return next((problem for f, r in _files(info) if (problem := _changed(f, r))), None)

    def _damage(self, sidecar: Path, quick: bool) -> Finding | None:
        """Return what is wrong with one sidecar or the files it points at."""
        try:
            info = self._read_info(sidecar)
        except FileNotFoundError:
            return Finding(sidecar.name, "missing", f"{sidecar}: no sidecar — import it again")
        except BagCorruptError as error:
            return Finding(sidecar.name, "corrupt", str(error))
        if info.status == "empty":
            return None
        gone = [path for path, _ in _files(info) if not path.is_file()]
        if gone:
            message = f"{gone[0]}: the file of slide {info.slide_id} is gone — import it again"
            return Finding(info.slide_id, "missing", message)
        try:
            self._check(info, quick)
        except BagCorruptError as error:
            return Finding(info.slide_id, "corrupt", str(error))
        return None

    def _check(self, info: BagInfo, quick: bool) -> None:
        problem = self._size_problem(info)
        if problem is not None:
            raise self._corrupt(info, problem)
        if quick:
            return
        for path, record in _files(info):
            if sha256_file(path) != record["sha256"]:
                raise self._corrupt(info, f"{path.name} is not what was imported")
        self._bag(info, slice(None))

    def _bag(self, info: BagInfo, rows: np.ndarray | slice) -> Bag:
        try:
            # The files do not say whose they are: their hashes in the sidecar do.
            return bag_of(info, _arrays(info, rows))
        except BagError as error:
            raise self._corrupt(info, str(error)) from error

    def _corrupt(self, info: BagInfo, problem: str) -> BagCorruptError:
        return BagCorruptError(
            f"{_files(info)[0][0]}: {problem} — run `wsi bags import` again for slide "
            f"{info.slide_id}"
        )


def _files(info: BagInfo) -> list[tuple[Path, Json]]:
    """Return the files of a bag with what is recorded of each, the features' first."""
    source = info.provenance.slide["source"]
    # The root stands in `file` alone: what is copied from here later holds no paths.
    root, coords = Path(str(info.file).removesuffix(source["file"])), source["coords"]
    own = [(root / coords["file"], coords)] if "file" in coords else []
    return [(root / source["file"], source), *own]


def _changed(path: Path, record: Json) -> str | None:
    try:
        stat = path.stat()
    except FileNotFoundError:
        return f"{path.name} is gone"
    if stat.st_size != record["bytes"]:
        return f"{path.name} has {stat.st_size} bytes where {record['bytes']} were imported"
    if stat.st_mtime_ns != record["mtime_ns"] and sampled_fingerprint(path) != record["sampled"]:
        return f"{path.name} is not what was imported"
    return None


def _arrays(info: BagInfo, rows: np.ndarray | slice) -> dict[str, np.ndarray]:
    source = info.provenance.slide["source"]
    files = _files(info)
    coords = Place(files[-1][0], source["coords"]["dataset"])
    wanted = _rows_of_file(info, rows)
    with opened(Place(files[0][0], source["dataset"])) as take:
        features = take(wanted)
    with opened(coords, "iuf") as take:
        raw = take(wanted)
    if (features.dtype.name, features.shape[1:]) != (info.dtype, (info.dim,)):
        raise ForeignBagError(f"{files[0][0].name}: features are {features.shape} {features.dtype}")
    if isinstance(rows, slice) and len(features) != info.n:
        raise ForeignBagError(f"{files[0][0].name}: {len(features)} rows, not {info.n}")
    mpp0 = info.provenance.slide["mpp"] if source["coords"]["unit"] == "um" else None
    tissue = np.ones(len(features), np.float16)
    return {
        "features": features,
        "coords": level0(info.slide_id, raw, mpp0),
        "tissue": tissue,
    }


def _rows_of_file(info: BagInfo, rows: np.ndarray | slice) -> np.ndarray | slice:
    left_out = info.provenance.slide["source"].get("left_out", [])
    if not left_out:
        return rows
    return np.delete(np.arange(info.n + len(left_out)), left_out)[rows]
