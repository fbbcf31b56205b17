"""A packed cohort: all bags of a folder in a few flat files, mapped into memory for training.

    packed/
      features.npy   (sum N, D) float16 or float32
      coords.npy     (sum N, 2) int32, level-0 pixels
      tissue.npy, blur.npy, pen.npy, fold.npy    (sum N,) float16
      index.json     which rows are which bag's, and of which bag file they are a copy

A copy for speed, made by `pack`; the bags remain the truth. It holds while its index agrees with
the sidecars of the bags.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

from wsi.bags.places import Rows
from wsi.bags.sidecar import BagInfo, unsealed
from wsi.errors import BagCorruptError, BagMismatchError, BagMissingError
from wsi.findings import few

SCHEMA = "wsi-packed/1"
INDEX = "index.json"
_FIRST = ("features", "coords", "tissue")
_BLOCK_ROWS = 8192
_THREADS = 8


@dataclass(frozen=True)
class Entry:
    """One bag's rows in the files.

    Args:
        start, n: rows start to start + n.
        sha256: of the bag file they were copied from.
        crc32c: of the rows of each file.
        scores: whether the bag has scores; its rows of the score files are NaN where not.
    """

    start: int
    n: int
    sha256: str
    crc32c: Mapping[str, int]
    scores: bool


@dataclass(frozen=True)
class PackedBag:
    """One bag as training sees it: maps of features (N, D), xy0 (N, 2), tissue and scores (N,)."""

    features: np.ndarray
    xy0: np.ndarray
    tissue: np.ndarray
    quality: Mapping[str, np.ndarray] | None


class PackedCohort:
    """The bags of a packed folder; `read` is a reader for `wsi.data`.

    Attributes:
        whole: whether it was made of all bags of a folder, rather than of chosen ones.

    Raises:
        BagMissingError: there is no packed cohort at `root`.
        BagCorruptError: its index is damaged, or a file is not as the index says.
    """

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)
        index = _index(self.root / INDEX)
        try:
            self.recipe_key = str(index["recipe_key"])
            self.whole = bool(index["whole"])
            self.entries = {str(i): Entry(**entry) for i, entry in index["bags"].items()}
            self._shapes = {str(k): (tuple(s), str(d)) for k, (s, d) in index["files"].items()}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise _corrupt(self.root, f"its index is not one ({error})") from error

    def ids(self) -> list[str]:
        """Return the ids of all bags, sorted."""
        return sorted(self.entries)

    def read(self, slide_id: str, rows: Rows | None = None) -> PackedBag:
        """Return the bag of `slide_id`, as maps, or a copy of some of its rows.

        Raises:
            BagMissingError: it is not among them.
        """
        entry = self.entries.get(slide_id)
        if entry is None:
            raise BagMissingError(f"{self.root}: no bag of slide {slide_id} — run `wsi bags pack`")
        part = slice(entry.start, entry.start + entry.n)
        taken = {name: values[part] for name, values in self._maps.items()}
        if rows is not None:
            taken = {name: values[rows] for name, values in taken.items()}
        features, xy0, tissue = (taken.pop(name) for name in _FIRST)
        return PackedBag(features, xy0, tissue, taken if entry.scores else None)

    def check(self, infos: Iterable[BagInfo]) -> None:
        """Compare with the sidecars of the bags; cheap, as no bag is opened.

        Raises:
            BagMismatchError: bags were changed, added or removed since; the message names them.
        """
        done = {info.slide_id: info.sha256 for info in infos if info.status == "done"}
        packed = {slide_id: entry.sha256 for slide_id, entry in self.entries.items()}
        changed = [i for i, sha256 in packed.items() if i in done and done[i] != sha256]
        added = [i for i in done if i not in packed] if self.whole else []
        removed = [i for i in packed if i not in done]
        differences = {"changed": changed, "added": added, "removed": removed}
        listed = [
            f"{len(ids)} {how} ({few(sorted(ids))})" for how, ids in differences.items() if ids
        ]
        if listed:
            raise BagMismatchError(
                f"{self.root}: bags differ from those packed: {', '.join(listed)} — "
                "run `wsi bags pack` again"
            )

    def damaged(self, slide_ids: Collection[str] | None = None) -> Iterator[str]:
        """Yield the ids of bags whose rows are not what was written, every byte considered."""
        ids = self.ids() if slide_ids is None else list(slide_ids)
        _ = self._maps  # opened once, before several threads do
        with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
            for slide_id, sound in zip(ids, pool.map(self._is_sound, ids), strict=True):
                if not sound:
                    yield slide_id

    def _is_sound(self, slide_id: str) -> bool:
        entry = self.entries[slide_id]
        return all(
            self._checksum(values, entry) == entry.crc32c.get(name)
            for name, values in self._maps.items()
        )

    def _checksum(self, values: np.ndarray, entry: Entry) -> int:
        crc32c, stop = 0, entry.start + entry.n
        for start in range(entry.start, stop, _BLOCK_ROWS):
            crc32c = extended(crc32c, values[start : min(start + _BLOCK_ROWS, stop)])
        return crc32c

    @cached_property
    def _maps(self) -> dict[str, np.ndarray]:
        return {name: self._map(name, *shape) for name, shape in self._shapes.items()}

    def _map(self, name: str, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        path = self.root / f"{name}.npy"
        try:
            values = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise _corrupt(self.root, f"{path.name} cannot be read ({error})") from error
        if (values.shape, values.dtype) != (shape, np.dtype(dtype)):
            raise _corrupt(self.root, f"{path.name} is {values.shape} {values.dtype}")
        return values.view(np.ndarray)  # slices of plain arrays cost a tenth of those of maps


def extended(crc32c: int, rows: np.ndarray) -> int:
    """Return the checksum of what `crc32c` is the checksum of, followed by `rows`."""
    return google_crc32c.extend(crc32c, rows.reshape(-1).view(np.uint8))  # pyright: ignore[reportArgumentType]


def _index(path: Path) -> dict[str, Any]:
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise BagMissingError(f"{path.parent}: no packed cohort — run `wsi bags pack`") from None
    index = unsealed(data)
    if index is None or index.get("schema") != SCHEMA:
        raise _corrupt(path.parent, "its index was changed after it was written")
    return index


def _corrupt(root: Path, problem: str) -> BagCorruptError:
    return BagCorruptError(f"{root}: {problem} — run `wsi bags pack` again")
