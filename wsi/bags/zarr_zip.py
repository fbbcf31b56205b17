"""Bags as Zarr v3, one zip file per slide, every chunk with a checksum."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec
from zarr.storage import ZipStore

from wsi.bags.bag import SCHEMA, Bag, Json
from wsi.bags.base import BagStore
from wsi.bags.layout import StoredBag, arrays_of, datasets
from wsi.bags.sidecar import BagInfo
from wsi.errors import BagCorruptError

CHUNK_ROWS = 1024


class ZarrStore(BagStore):
    """One `<id>.zarr.zip` per slide, of the same names and attributes as the HDF5 bags."""

    format = "zarr"
    suffix = ".zarr.zip"

    def _write_file(self, path: Path, bag: Bag, attributes: Json) -> None:
        with ZipStore(path, mode="w") as store:
            # All attributes at once: a zip member cannot be rewritten.
            group = zarr.create_group(store, attributes={"schema_version": SCHEMA, **attributes})
            # A chunk that got lost then reads as NaN, which no bag holds, rather than as zeros.
            for name, data in arrays_of(bag).items():
                _write_array(group, name, data, fill=0 if data.dtype.kind == "i" else np.nan)

    def _read_file(self, path: Path, info: BagInfo, rows: np.ndarray | slice) -> StoredBag:
        try:
            with ZipStore(path, mode="r") as store:
                group = zarr.open_group(store, mode="r")
                # All are looked at before any is read.
                found = {name: _array(group, name, *s) for name, s in datasets(info).items()}
                arrays = {name: _take(array, rows) for name, array in found.items()}
                return StoredBag(arrays, group.attrs["slide_id"], group.attrs["key"])
        except (OSError, KeyError, ValueError, TypeError, zipfile.BadZipFile) as error:
            raise BagCorruptError(
                f"{path}: not a readable bag ({error}) — run `wsi bags verify {path.parent}`"
            ) from error


def _write_array(group: zarr.Group, name: str, data: np.ndarray, fill: float) -> None:
    array = group.create_array(
        name,
        shape=data.shape,
        dtype=data.dtype,
        chunks=(min(CHUNK_ROWS, len(data)), *data.shape[1:]),
        filters=None,
        compressors=[Crc32cCodec()],
        fill_value=fill,
        config={"write_empty_chunks": True},
    )
    # One chunk at a time: when the disk fills, no write in the background makes the file anew.
    for start in range(0, len(data), CHUNK_ROWS):
        array[start : start + CHUNK_ROWS] = data[start : start + CHUNK_ROWS]


def _array(group: zarr.Group, name: str, shape: tuple[int, ...], dtype: str) -> zarr.Array[Any]:
    array = group[name]
    if not isinstance(array, zarr.Array):
        raise ValueError(f"{name} is not an array")
    if (array.shape, array.dtype) != (shape, np.dtype(dtype)):
        raise ValueError(f"{name} is {array.shape} {array.dtype}, not {shape} {dtype}")
    return array


def _take(array: zarr.Array[Any], rows: np.ndarray | slice) -> np.ndarray:
    return np.asarray(array[...] if isinstance(rows, slice) else array.oindex[rows])
