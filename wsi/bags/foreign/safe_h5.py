"""HDF5 files of unknown origin: looked at as a whole before any array is allocated."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from h5py import h5o  # pyright: ignore[reportAttributeAccessIssue]

from wsi.errors import ForeignBagError, UnsafeFileError, WsiError

_MOST_OBJECTS = 10_000
_MOST_ATTRIBUTE_BYTES = 1 << 16
_KNOWN_FILTERS = {
    h5py.h5z.FILTER_DEFLATE: True,
    h5py.h5z.FILTER_SHUFFLE: False,
    h5py.h5z.FILTER_FLETCHER32: False,
    h5py.h5z.FILTER_LZF: True,
}
"""Filters that are part of the library, and whether they compress; others load plugins."""

_DEFLATE_AT_MOST = 1032  # what zlib's format can reach
_FEATURES_AT_MOST = 20  # no features shrink to less than a twentieth, but bombs do
_SMALL_BYTES = 64 << 20


@contextmanager
def open_h5(path: Path) -> Iterator[h5py.File]:
    """Yield the open file after every link and dataset in it was found to be inside it.

    Raises:
        UnsafeFileError: there are links to elsewhere, external storage or virtual datasets.
        ForeignBagError: it is no readable HDF5 file, or reading fails in the block.
    """
    with readable(path), held_h5(path) as file:
        yield file


def held_h5(path: Path) -> h5py.File:
    """Return the file as `open_h5` does, for blocks that also do other things than read it."""
    with readable(path):
        # Locks fail on many network file systems, and nothing is written.
        file = h5py.File(path, "r", locking=False)
        try:
            _check_objects(path, file)
        except BaseException:
            file.close()
            raise
        return file


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn what the library raises over a damaged file into ForeignBagError."""
    if not path.is_file():  # opening a pipe would wait for ever
        raise ForeignBagError(f"{path.name}: not a file — check the archive", "missing-file")
    try:
        yield
    except (OSError, RuntimeError, LookupError, ValueError, TypeError) as error:
        if isinstance(error, WsiError):
            raise
        first_line = str(error).partition("\n")[0]
        raise ForeignBagError(
            f"{path.name}: not a readable HDF5 file ({first_line}) — copy it again from its source"
        ) from error


def dataset(file: h5py.File, name: str, ndim: int, kinds: str = "f") -> h5py.Dataset:
    """Return a dataset whose every value is held by the file.

    Args:
        name: of the dataset, below the root.
        ndim: number of its axes.
        kinds: which kinds of numbers it may hold, as numpy's letters.

    Raises:
        UnsafeFileError: it claims more than the file can hold, or holds objects.
        ForeignBagError: there is none, or it is of another shape or type.
    """
    path = Path(file.filename)
    data: Any = file.get(name)
    if not isinstance(data, h5py.Dataset):
        held = ", ".join(sorted(file)[:8]) or "nothing"
        raise ForeignBagError(
            f"{path.name}: no dataset '{name}', it holds {held} — check --from and the encoder",
            "no-dataset",
        )
    kind = _numbers(path, data).kind
    if kind not in kinds or data.ndim != ndim:
        raise ForeignBagError(
            f"{path.name}: {name} is {data.shape} {data.dtype}, not {ndim} axes of numbers of "
            f"kind '{kinds}' — check --from",
            "wrong-type",
        )
    _check_held(path, data)
    return data


def attributes(item: h5py.HLObject) -> dict[str, Any]:
    """Return the small plain attributes of a group or dataset; whatever else there is, is not read.

    Text comes as str, numbers as Python's, arrays of them as lists.
    """
    found = {}
    for name in item.attrs:
        kind = item.attrs.get_id(name)
        text = h5py.check_string_dtype(kind.dtype) is not None
        small = kind.get_storage_size() <= _MOST_ATTRIBUTE_BYTES
        if small and (text or kind.dtype.kind in "biufS"):
            found[name] = _plain(item.attrs[name])
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return [_plain(each) for each in value.tolist()]
    if isinstance(value, np.generic):
        value = value.item()
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _check_objects(path: Path, file: h5py.File) -> None:
    """Look at every link and dataset, opening none that leads out of the file."""
    waiting: list[h5py.Group] = [file]
    seen: set[int] = set()
    while waiting:
        group = waiting.pop()
        for name in map(str, group):
            _check_link(path, group, name)
            item: Any = group[name]
            address = h5o.get_info(item.id).addr
            if address in seen:
                continue
            seen.add(address)
            if len(seen) > _MOST_OBJECTS:
                raise _unsafe(path, f"more than {_MOST_OBJECTS} objects", "too-many-objects")
            if isinstance(item, h5py.Group):
                waiting.append(item)
            elif isinstance(item, h5py.Dataset):
                _check_storage(path, item)


def _check_link(path: Path, group: h5py.Group, name: str) -> None:
    try:
        link = group.get(name, getlink=True)
    except TypeError:
        link = None
    if isinstance(link, h5py.ExternalLink):
        raise _unsafe(path, f"'{name}' is a link to another file", "external-link")
    if isinstance(link, h5py.SoftLink):
        raise _unsafe(path, f"'{name}' is a soft link", "soft-link")
    if not isinstance(link, h5py.HardLink):
        raise _unsafe(path, f"'{name}' is a link of an unknown kind", "unknown-link")


def _check_storage(path: Path, data: h5py.Dataset) -> None:
    # By the creation list: asking a virtual dataset for its shape may open its sources.
    plan = data.id.get_create_plist()
    if plan.get_layout() == h5py.h5d.VIRTUAL:
        raise _unsafe(path, f"{data.name} is a virtual dataset", "virtual-dataset")
    if plan.get_external_count():
        raise _unsafe(path, f"{data.name} is stored in another file", "external-storage")


def _numbers(path: Path, data: h5py.Dataset) -> np.dtype:
    try:
        dtype = data.dtype
    except TypeError:
        dtype = np.dtype(object)
    if dtype.kind == "O":
        raise _unsafe(path, f"{data.name} holds objects, not numbers", "object-type")
    return dtype


def _check_held(path: Path, data: h5py.Dataset) -> None:
    claimed = math.prod(data.shape) * data.dtype.itemsize
    if not claimed:
        return
    size, plan = path.stat().st_size, data.id.get_create_plist()
    most = _most_per_byte(path, data, claimed)
    if claimed > most * size:
        raise _too_large(path, data, claimed, size)
    if plan.get_layout() == h5py.h5d.CHUNKED:
        _check_chunks(path, data, size, most)
    elif plan.get_layout() == h5py.h5d.CONTIGUOUS:
        offset = data.id.get_offset()
        if offset is None:
            raise _never_written(path, f"{data.name} was never written")
        if offset + claimed > size:
            raise _too_large(path, data, claimed, size)


def _most_per_byte(path: Path, data: h5py.Dataset, claimed: int) -> int:
    """Return how many bytes of a dataset one byte of the file may stand for."""
    plan = data.id.get_create_plist()
    filters = [plan.get_filter(k)[0] for k in range(plan.get_nfilters())]
    unknown = [number for number in filters if number not in _KNOWN_FILTERS]
    if unknown:
        raise _unsafe(path, f"{data.name} needs the plugin of filter {unknown[0]}", "filter")
    if not any(_KNOWN_FILTERS[number] for number in filters):
        return 1
    return _DEFLATE_AT_MOST if claimed <= _SMALL_BYTES else _FEATURES_AT_MOST


def _check_chunks(path: Path, data: h5py.Dataset, size: int, most: int) -> None:
    """Refuse chunks that are absent (they would read as zeros), cut off or lie on each other."""
    chunks = data.chunks or data.shape
    expected = math.prod(-(-n // c) for n, c in zip(data.shape, chunks, strict=True))
    chunk_bytes = math.prod(chunks) * data.dtype.itemsize
    stored: list[int] = []
    bad: list[int] = []

    def look(chunk: Any) -> None:
        stored.append(chunk.size)
        # A chunk may reach beyond the data, and that part compresses to nothing.
        short = (
            most == 1 and chunk.size < chunk_bytes
        ) or chunk_bytes > _DEFLATE_AT_MOST * chunk.size
        if short or chunk.byte_offset + chunk.size > size:
            bad.append(chunk.size)

    data.id.chunk_iter(look)
    if bad or sum(stored) > size:
        raise _too_large(path, data, math.prod(data.shape) * data.dtype.itemsize, size)
    if len(stored) != expected:
        what = f"{len(stored)} of {expected} pieces of {data.name} were written"
        raise _never_written(path, what)


def _never_written(path: Path, what: str) -> ForeignBagError:
    return ForeignBagError(
        f"{path.name}: {what}, what is absent would read as zeros — make the file again", "short"
    )


def _too_large(path: Path, data: h5py.Dataset, claimed: int, size: int) -> UnsafeFileError:
    what = f"{data.name} claims {claimed:,} bytes, which a file of {size:,} bytes cannot hold"
    return _unsafe(path, what, "size-claim")


def _unsafe(path: Path, what: str, reason: str) -> UnsafeFileError:
    return UnsafeFileError(f"{path.name}: {what} — refused; make the file again", reason)
