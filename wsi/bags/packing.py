"""Makes a packed cohort of a folder of bags."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict
from io import BufferedWriter
from pathlib import Path

import numpy as np

from wsi.bags.bag import Bag
from wsi.bags.base import BagStore
from wsi.bags.layout import arrays_of
from wsi.bags.packed import INDEX, SCHEMA, Entry, PackedCohort, extended
from wsi.bags.scores import SCORES
from wsi.bags.select import check_uniform
from wsi.bags.sidecar import PACKED, BagInfo, sealed
from wsi.errors import BagCorruptError, BagError, BagMissingError, ConfigError, ResourceError
from wsi.files import disk_errors, sync_folder, temporary_beside

Shapes = dict[str, tuple[tuple[int, ...], str]]

_BLOCK_BYTES = 1 << 24  # of features held at a time
_MARGIN_BYTES = 1 << 20


def packed_folder(store: BagStore) -> Path:
    """Return where the packed cohort of a folder of bags lies unless told otherwise."""
    return store.root / PACKED


def packable(store: BagStore, slide_ids: Collection[str] | None = None) -> list[BagInfo]:
    """Return the bags to pack, of one recipe: those of `slide_ids`, or all that are done.

    Raises:
        BagMissingError: there are none.
        BagMismatchError: they are of different recipes.
    """
    infos = [info for info in store.infos() if info.status == "done"]
    if slide_ids is not None:
        infos = [info for info in infos if info.slide_id in slide_ids]
    if not infos:
        raise BagMissingError(f"{store.root}: no bag to pack — run `wsi preprocess` first")
    check_uniform(infos)
    return infos


def packed_bytes(infos: Sequence[BagInfo]) -> int:
    """Return how much space a packed cohort of these bags takes, but for its index."""
    shapes = _shapes(infos).values()
    return sum(int(np.prod(shape)) * np.dtype(dtype).itemsize for shape, dtype in shapes)


def is_current(out: Path, infos: Sequence[BagInfo], *, whole: bool) -> bool:
    """Return whether a sound packed cohort of just these bags lies at `out`."""
    try:
        packed = PackedCohort(out)
        packed.check(infos)
        same = packed.whole == whole and set(packed.entries) == {i.slide_id for i in infos}
        return same and not list(packed.damaged())
    except BagError:
        return False


def pack(store: BagStore, out: Path, infos: Sequence[BagInfo], *, whole: bool) -> Iterator[str]:
    """Copy bags to a packed cohort at `out`, yielding each id when its rows are written.

    Every bag is checked byte by byte first. The cohort appears at once, when the last row is on
    disk, in place of an earlier one; memory stays flat.

    Args:
        infos: see `packable`.
        whole: these are all bags of the store, so that one added later shows.

    Raises:
        BagCorruptError: a bag is damaged.
        ConfigError: something else lies at `out`.
        ResourceError: the disk is full, or closed to writing.
    """
    _refuse_others(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    _check_space(out.parent, packed_bytes(infos))
    temporary = temporary_beside(out)
    try:
        with disk_errors(out):
            temporary.mkdir()
            yield from _write(store, temporary, infos, whole)
            _exchange(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write(store: BagStore, folder: Path, infos: Sequence[BagInfo], whole: bool) -> Iterator[str]:
    shapes = _shapes(infos)
    entries: dict[str, Entry] = {}
    start = 0
    with contextlib.ExitStack() as stack:
        files = {name: stack.enter_context(_begin(folder, name, *s)) for name, s in shapes.items()}
        for info in infos:
            entries[info.slide_id] = _copy(store, info, files, start)
            start += info.n
            yield info.slide_id
    index = {
        "schema": SCHEMA,
        "recipe_key": infos[0].recipe_key,
        "whole": whole,
        "files": shapes,
        "bags": {slide_id: asdict(entry) for slide_id, entry in entries.items()},
    }
    (folder / INDEX).write_bytes(sealed(index))
    for path in folder.iterdir():
        with path.open("rb+") as file:
            os.fsync(file.fileno())


def _shapes(infos: Sequence[BagInfo]) -> Shapes:
    """Return shape and type of each file."""
    n = sum(info.n for info in infos)
    shapes: Shapes = {
        "features": ((n, infos[0].dim), infos[0].dtype),
        "coords": ((n, 2), "int32"),
        "tissue": ((n,), "float16"),
    }
    scored = any(info.scores for info in infos)
    return shapes | (dict.fromkeys(SCORES, ((n,), "float16")) if scored else {})


@contextlib.contextmanager
def _begin(folder: Path, name: str, shape: tuple[int, ...], dtype: str) -> Iterator[BufferedWriter]:
    with (folder / f"{name}.npy").open("wb") as file:
        about = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, about)
        yield file


def _copy(store: BagStore, info: BagInfo, files: Mapping[str, BufferedWriter], start: int) -> Entry:
    findings = store.verify(info.slide_id)
    if findings:
        raise BagCorruptError(findings[0].message)
    rows = max(1, _BLOCK_BYTES // (info.dim * np.dtype(info.dtype).itemsize))
    checksums = dict.fromkeys(files, 0)
    for first in range(0, info.n, rows):
        bag = store.read(info.slide_id, slice(first, min(first + rows, info.n)))
        for name, values in _stored(bag, files).items():
            files[name].write(values.data)
            checksums[name] = extended(checksums[name], values)
    if store.info(info.slide_id).sha256 != info.sha256:
        raise BagError(f"bag {info.slide_id} was replaced while being packed — pack again")
    return Entry(start, info.n, str(info.sha256), checksums, bool(info.scores))


def _stored(bag: Bag, files: Collection[str]) -> dict[str, np.ndarray]:
    arrays = arrays_of(bag)
    absent = np.full(len(bag), np.nan, np.float16)
    return {name: arrays.get(name, absent) for name in files}


def _exchange(temporary: Path, out: Path) -> None:
    """Put `temporary` in the place of `out`; a reader that has the earlier one open keeps it."""
    earlier = temporary_beside(out)
    if out.exists():
        out.rename(earlier)
    temporary.rename(out)
    sync_folder(out.parent)
    shutil.rmtree(earlier, ignore_errors=True)


def _refuse_others(out: Path) -> None:
    if not out.exists():
        return
    names = {path.name for path in out.iterdir()} if out.is_dir() else {out.name}
    if not all(name == INDEX or name.endswith(".npy") for name in names):
        raise ConfigError(f"{out}: is no packed cohort — give another --out")


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed + _MARGIN_BYTES:
        raise ResourceError(
            f"{needed / 1e9:.3g} GB needed to pack, {free / 1e9:.3g} GB free in {folder} — free "
            "space, or give --out on another disk; nothing was lost"
        )
