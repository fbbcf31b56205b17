"""Bags as Zarr v3, one zip file per slide, every chunk with a checksum."""

from __future__ import annotations

import json
import math
import struct
import zipfile
from io import FileIO
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

from wsi.bags.bag import SCHEMA, Bag, Json, blocks
from wsi.bags.base import BagStore
from wsi.bags.layout import arrays_of, datasets
from wsi.bags.places import Found, Plain, Rows, read_at
from wsi.bags.sidecar import BagInfo
from wsi.errors import BagCorruptError

CHUNK_ROWS = 1024
_CODECS = ("bytes", "crc32c")
_CHECKSUM_BYTES = 4
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # of a zip member: signature, lengths of name and extra

_LOCAL_DATE, _CENTRAL_DATE = 10, 12  # bytes into the header of a member, and into its entry
_CENTRAL_BYTES = 46  # of an entry without name, extra field and comment
_FIRST_DATE = struct.pack("<HH", 0, 0x21)  # midnight of 1 January 1980


class ZarrStore(BagStore):
    """One `<id>.zarr.zip` per slide, of the same names and attributes as the HDF5 bags.

    Chunks are neither compressed nor, in the zip, deflated: like the HDF5 bags they are read from
    where they lie, which takes a small part of the time zarr takes; zarr writes them.
    """

    format = "zarr"
    suffix = ".zarr.zip"

    def _write_file(self, path: Path, bag: Bag, attributes: Json) -> None:
        import zarr
        from zarr.storage import ZipStore

        with ZipStore(path, mode="w") as store:
            # All attributes at once: a zip member cannot be rewritten.
            group = zarr.create_group(store, attributes={"schema_version": SCHEMA, **attributes})
            # A chunk that got lost then reads as NaN, which no bag holds, rather than as zeros.
            for name, data in arrays_of(bag).items():
                _write_array(group, name, data, fill=0 if data.dtype.kind == "i" else np.nan)
        _without_dates(path)

    def _look(self, path: Path, info: BagInfo) -> Found:
        try:
            with zipfile.ZipFile(path) as archive, FileIO(path) as file:
                places = {k: _place(archive, file, k, *s) for k, s in datasets(info).items()}
                attributes = _metadata(archive, "zarr.json")["attributes"]
                return Found(places, attributes["slide_id"], attributes["key"])
        except (OSError, KeyError, ValueError, TypeError, struct.error, *_OF_ZIP) as error:
            raise BagCorruptError(
                f"{path}: not a readable bag ({error}) — run `wsi bags verify {path.parent}`"
            ) from error


_OF_ZIP = (zipfile.BadZipFile, NotImplementedError, RuntimeError, RecursionError)


def _without_dates(path: Path) -> None:
    """Set all dates in a zip to the first that it can hold, so that equal bags are equal bytes."""
    with zipfile.ZipFile(path) as archive:
        members, entry = archive.infolist(), archive.start_dir
    with path.open("rb+") as file:
        for member in members:
            for place in (member.header_offset + _LOCAL_DATE, entry + _CENTRAL_DATE):
                file.seek(place)
                file.write(_FIRST_DATE)
            name = member.orig_filename.encode()
            entry += _CENTRAL_BYTES + len(name) + len(member.extra) + len(member.comment)


class _Checked:
    """Chunks whose checksums are looked at before anything is taken from them, once each."""

    def __init__(self, plain: Plain) -> None:
        self._plain = plain
        self._sound: set[int] = set()

    def take(self, file: FileIO, rows: Rows) -> np.ndarray:
        for chunk in self._plain.pieces(rows) - self._sound:
            size = self._plain.piece_rows * self._plain.row_bytes
            data = read_at(file, self._plain.offsets[chunk], size + _CHECKSUM_BYTES)
            if google_crc32c.value(data[:size]) != int(data[size:].view("<u4")[0]):
                raise BagCorruptError(
                    f"{file.name}: the checksum of a chunk does not match — remove the bag and "
                    "rerun preprocess"
                )
            self._sound.add(chunk)
        return self._plain.take(file, rows)


def _write_array(group: Any, name: str, data: np.ndarray, fill: float) -> None:
    from zarr.codecs import Crc32cCodec

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
    for start, block in blocks(data, CHUNK_ROWS):
        array[start : start + CHUNK_ROWS] = block


def _metadata(archive: zipfile.ZipFile, name: str) -> Json:
    content = json.loads(archive.read(name))
    if not isinstance(content, dict):
        raise ValueError(f"{name} is no object")
    return content


def _place(
    archive: zipfile.ZipFile, file: FileIO, name: str, shape: tuple[int, ...], dtype: str
) -> _Checked:
    """Return where the chunks of an array lie.

    Source: Zarr core specification 3.0, array metadata and the regular chunk grid.
    """
    about = _metadata(archive, f"{name}/zarr.json")
    if about["node_type"] != "array" or (tuple(about["shape"]), about["data_type"]) != (
        shape,
        dtype,
    ):
        raise ValueError(f"{name} is {about.get('shape')} {about.get('data_type')}")
    rows, *rest = about["chunk_grid"]["configuration"]["chunk_shape"]
    codecs = tuple(codec["name"] for codec in about["codecs"])
    endian = about["codecs"][0].get("configuration", {}).get("endian")
    if tuple(rest) != shape[1:] or codecs != _CODECS or endian != "little" or rows < 1:
        raise ValueError(f"{name} is stored in chunks of another kind")
    size = rows * math.prod(rest) * np.dtype(dtype).itemsize + _CHECKSUM_BYTES
    chunks = (
        f"{name}/c/{'/'.join([str(k), *('0' for _ in rest)])}" for k in range(-(-shape[0] // rows))
    )
    offsets = tuple(_offset(archive, file, chunk, size) for chunk in chunks)
    return _Checked(Plain(shape, np.dtype(dtype), offsets, rows))


def _offset(archive: zipfile.ZipFile, file: FileIO, name: str, size: int) -> int:
    """Return where the content of a zip member begins, which must be stored as it is."""
    member = archive.getinfo(name)
    if member.compress_type != zipfile.ZIP_STORED or member.file_size != size:
        raise ValueError(f"{name} is deflated, or of another size")
    file.seek(member.header_offset)
    signature, name_bytes, extra = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
    if signature != b"PK\3\4":
        raise ValueError(f"{name} is not where the archive says")
    return member.header_offset + _LOCAL_HEADER.size + name_bytes + extra
