"""Bags as HDF5: contiguous and uncompressed, under the names that CLAM-style loaders read."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import h5py
import numpy as np

from wsi.bags.bag import SCHEMA, Bag, Json, blocks
from wsi.bags.base import BagStore
from wsi.bags.layout import arrays_of, datasets
from wsi.bags.places import Found, Plain
from wsi.bags.sidecar import BagInfo
from wsi.errors import BagCorruptError, ResourceError

_METADATA_BYTES = 1 << 20


class H5Store(BagStore):
    """One `<id>.h5` per slide: `features`, `coords`, `tissue`, scores, JSON root attributes."""

    format = "h5"
    suffix = ".h5"

    def _write_file(self, path: Path, bag: Bag, attributes: Json) -> None:
        arrays = arrays_of(bag)
        check_space(path, sum(array.nbytes for array in arrays.values()))
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
                for _, block in blocks(array):
                    file.write(np.ascontiguousarray(block).data)

    def _look(self, path: Path, info: BagInfo) -> Found:
        try:
            # A published bag never changes, and locks fail on many network file systems.
            with h5py.File(path, "r", locking=False) as file:
                size = path.stat().st_size
                places = {k: _place(file, k, size, *s) for k, s in datasets(info).items()}
                return Found(places, file.attrs["slide_id"], file.attrs["key"])
        except (OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
            raise BagCorruptError(
                f"{path}: not a readable bag ({error}) — run `wsi bags verify {path.parent}`"
            ) from error


def _reserve(file: h5py.File, name: str, array: np.ndarray) -> int:
    """Create a contiguous dataset without writing it, and return its offset in the file."""
    layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    layout.set_layout(h5py.h5d.CONTIGUOUS)
    layout.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    layout.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    layout.set_obj_track_times(False)  # the same slide gives the same bytes, whenever it is made
    space = h5py.h5s.create_simple(array.shape)
    kind = h5py.h5t.py_create(array.dtype, logical=True)
    return h5py.h5d.create(file.id, name.encode(), kind, space, layout).get_offset()


def _place(file: h5py.File, name: str, size: int, shape: tuple[int, ...], dtype: str) -> Plain:
    """Return where a dataset's bytes lie; only plain data inside this very file is accepted."""
    # The inner interface of h5py, as the outer takes three times as long.
    hard = h5py.h5l.TYPE_HARD  # pyright: ignore[reportAttributeAccessIssue]
    if file.id.links.get_info(name.encode()).type != hard:
        raise ValueError(f"{name} is a link that leads elsewhere")
    data = h5py.h5o.open(file.id, name.encode())  # pyright: ignore[reportAttributeAccessIssue]
    if not isinstance(data, h5py.h5d.DatasetID):
        raise ValueError(f"{name} is not a dataset")
    created = data.get_create_plist()
    if created.get_layout() != h5py.h5d.CONTIGUOUS or created.get_external_count():
        raise ValueError(f"{name} is virtual, external, chunked or compressed")
    if (data.shape, data.dtype) != (shape, np.dtype(dtype)):
        raise ValueError(f"{name} is {data.shape} {data.dtype}, not {shape} {dtype}")
    offset = data.get_offset()
    if offset is None or offset + math.prod(shape) * data.dtype.itemsize > size:
        raise ValueError(f"{name} claims more than the file holds")
    return Plain(shape, data.dtype, (offset,), shape[0])


def check_space(path: Path, needed: int) -> None:
    """Raise ResourceError unless the disk of `path` has room for `needed` bytes, and to spare."""
    free, needed = shutil.disk_usage(path.parent).free, needed + _METADATA_BYTES
    if free < needed:
        raise ResourceError(
            f"{path.parent}: {needed / 1e6:.1f} MB needed for a bag, {free / 1e6:.1f} MB free — "
            "free space and rerun, nothing that was finished is lost"
        )
