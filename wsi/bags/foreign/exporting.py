"""Bags written as other tools write theirs, so that their loaders read them."""

from __future__ import annotations

import csv
import glob
import io
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np

from wsi.bags.bag import Bag, Json
from wsi.bags.base import BagStore
from wsi.bags.foreign.archive import IDS_FILE
from wsi.bags.h5 import check_space
from wsi.bags.select import check_uniform
from wsi.bags.sidecar import BagInfo
from wsi.errors import BagCorruptError
from wsi.files import TEMPORARY_PREFIX, file_name_of, publish, publish_bytes
from wsi.registry import Registry

EXPORTS = Registry(
    "layout",
    {
        "clam": "wsi.bags.foreign.clam_export:ClamExport",
        "trident": "wsi.bags.foreign.trident_export:TridentExport",
    },
    "wsi.exports",
)


@dataclass(frozen=True)
class Exported:
    """What became of one slide: its name in the archive, and what could not be written."""

    slide_id: str
    name: str
    status: Literal["written", "kept", "empty"]
    lacking: str = ""


@dataclass(frozen=True)
class Stored:
    """A dataset to be: its values, chunks, whether its rows may grow, and its attributes."""

    data: np.ndarray
    chunks: tuple[int, ...]
    grows: bool = False
    attributes: Json = field(default_factory=dict)


class Export(ABC):
    """Writes bags in the layout of one tool, below `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @abstractmethod
    def write(self, bag: Bag, info: BagInfo, name: str) -> Exported:
        """Write the files of one slide that are not there yet."""


def export_archive(source: BagStore, target: Path | str, layout: str) -> Iterator[Exported]:
    """Yield what becomes of each slide of `source` as it stands in `target`.

    Files that hold just what they should are left as they are. `slide_ids.csv` says which slide
    each name is of: names are percent-encoded where a slide's id is no file name.

    Raises:
        UnknownNameError: there is no such layout.
        BagMismatchError: bags of several recipes cannot stand in one archive.
        BagCorruptError: a bag is damaged; it is not written.
        ResourceError: the disk is full.
    """
    to: Export = EXPORTS.load(layout)(Path(target))
    infos = source.infos()
    check_uniform(infos)
    _write_names(to.root, [info.slide_id for info in infos if info.status == "done"])
    for info in infos:
        name = file_name_of(info.slide_id)
        if info.status == "empty":
            yield Exported(info.slide_id, name, "empty", f"no tiles: {info.reason}")
            continue
        findings = source.verify(info.slide_id)
        if findings:
            raise BagCorruptError(findings[0].message)
        yield to.write(source.read(info.slide_id), info, name)


def write_h5(path: Path, contents: Mapping[str, Stored], attributes: Json | None = None) -> bool:
    """Publish a file of these datasets and return True, or False where it is there already."""
    if _holds(path, contents, attributes or {}):
        return False
    make_room(path, sum(stored.data.nbytes for stored in contents.values()))
    with publish(path) as temporary, h5py.File(temporary, "w") as file:
        file.attrs.update(attributes or {})
        for name, stored in contents.items():
            shape = stored.data.shape
            data = file.create_dataset(
                name,
                data=stored.data,
                chunks=stored.chunks,
                maxshape=(None, *shape[1:]) if stored.grows else None,
            )
            data.attrs.update(stored.attributes)
    return True


def make_room(path: Path, needed: int) -> None:
    """Make the folder of `path`, remove what a killed run left of it, and check for space."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f"{TEMPORARY_PREFIX}*-{glob.escape(path.name)}"):
        left.unlink(missing_ok=True)
    check_space(path, needed)


def _holds(path: Path, contents: Mapping[str, Stored], attributes: Json) -> bool:
    if not path.is_file():
        return False
    try:
        with h5py.File(path, "r", locking=False) as file:
            same = _same(file.attrs, attributes) and set(file) == set(contents)
            return same and all(_equal(file[name], stored) for name, stored in contents.items())
    except (OSError, RuntimeError, KeyError, ValueError):
        return False  # damaged, so it is written again


def _equal(data: Any, stored: Stored) -> bool:
    if (data.shape, data.dtype, data.chunks) != (
        stored.data.shape,
        stored.data.dtype,
        stored.chunks,
    ):
        return False
    return _same(data.attrs, stored.attributes) and np.array_equal(data[...], stored.data)


def _same(found: Mapping[str, Any], wanted: Json) -> bool:
    return set(found) == set(wanted) and all(
        np.array_equal(found[name], value) for name, value in wanted.items()
    )


def _write_names(root: Path, ids: list[str]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["name", "slide_id"])
    writer.writerows([file_name_of(slide_id), slide_id] for slide_id in ids)
    data = text.getvalue().encode()
    path = root / IDS_FILE
    if not path.is_file() or path.read_bytes() != data:
        publish_bytes(path, data)
