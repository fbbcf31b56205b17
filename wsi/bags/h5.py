"""Bags as HDF5: contiguous and uncompressed, under the names that CLAM-style loaders read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from wsi.bags.bag import SCHEMA, Bag, Json
from wsi.bags.base import BagStore
from wsi.bags.layout import StoredBag, arrays_of, datasets
from wsi.bags.sidecar import BagInfo
from wsi.errors import BagCorruptError, ResourceError

_METADATA_BYTES = 1 << 20


class H5Store(BagStore):
    """One `<id>.h5` per slide: `features`, `coords`, `tissue`, scores, JSON root attributes."""

    format = "h5"
    suffix = ".h5"

    def _write_file(self, path: Path, bag: Bag, attributes: Json) -> None:
        arrays = arrays_of(bag)
        _check_space(path, sum(array.nbytes for array in arrays.values()))
        with h5py.File(path, "w") as file:
            file.attrs["schema_version"] = SCHEMA
            for name, value in attributes.items():
                file.attrs[name] = value if isinstance(value, str) else json.dumps(value)
            offsets = {name: _reserve(file, name, array) for name, array in arrays.items()}
        # The library crashes the process at exit when the disk fills under it; plain writes into
        # the reserved places raise an ordinary error instead.
        with path.open("rb+") as file:
            for name, array in arrays.items():
                file.seek(offsets[name])
                file.write(np.ascontiguousarray(array).data)

    def _read_file(self, path: Path, info: BagInfo, rows: np.ndarray | slice) -> StoredBag:
        try:
            # A published bag never changes, and locks fail on many network file systems.
            with h5py.File(path, "r", locking=False) as file:
                places = {
                    name: _place(path, file, name, *shape) for name, shape in datasets(info).items()
                }
                identity = (file.attrs["slide_id"], file.attrs["key"])
        except (OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
            raise BagCorruptError(
                f"{path}: not a readable bag ({error}) — run `wsi bags verify {path.parent}`"
            ) from error
        arrays = {name: _take(path, place, rows) for name, place in places.items()}
        return StoredBag(arrays, *identity)


def _reserve(file: h5py.File, name: str, array: np.ndarray) -> int:
    """Create a contiguous dataset without writing it, and return its offset in the file."""
    layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    layout.set_layout(h5py.h5d.CONTIGUOUS)
    layout.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    layout.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    layout.set_obj_track_times(False)  # the same bag has the same bytes, whenever it is made
    space = h5py.h5s.create_simple(array.shape)
    kind = h5py.h5t.py_create(array.dtype, logical=True)
    return h5py.h5d.create(file.id, name.encode(), kind, space, layout).get_offset()


Place = tuple[int, np.dtype, tuple[int, ...]]


def _place(path: Path, file: h5py.File, name: str, shape: tuple[int, ...], dtype: str) -> Place:
    """Return where a dataset's bytes lie; only plain data inside this very file is accepted."""
    link = file.get(name, getlink=True)
    if not isinstance(link, h5py.HardLink):
        raise ValueError(f"{name} is a link that leads elsewhere")
    data: Any = file[name]
    if not isinstance(data, h5py.Dataset):
        raise ValueError(f"{name} is not a dataset")
    if data.is_virtual or data.external or data.chunks is not None:
        raise ValueError(f"{name} is virtual, external, chunked or compressed")
    if (data.shape, data.dtype) != (shape, np.dtype(dtype)):
        raise ValueError(f"{name} is {data.shape} {data.dtype}, not {shape} {dtype}")
    offset = data.id.get_offset()
    if offset is None or offset + data.nbytes > path.stat().st_size:
        raise ValueError(f"{name} claims more than the file holds")
    return offset, data.dtype, data.shape


def _take(path: Path, place: Place, rows: np.ndarray | slice) -> np.ndarray:
    offset, dtype, shape = place
    if isinstance(rows, slice):
        flat = np.fromfile(path, dtype, count=int(np.prod(shape)), offset=offset)
        return flat.reshape(shape)
    return np.memmap(path, dtype, "r", offset=offset, shape=shape)[rows]


def _check_space(path: Path, needed: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if free < needed + _METADATA_BYTES:
        raise ResourceError(
            f"{path.parent}: {needed / 1e6:.1f} MB needed for a bag, {free / 1e6:.1f} MB free — "
            "free space and rerun, nothing that was finished is lost"
        )
