"""What is wrong with a folder of bags: every byte read once, on several threads."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from wsi.bags.sidecar import BagInfo, sidecar_path, sidecar_paths
from wsi.errors import BagCorruptError
from wsi.files import TEMPORARY_PREFIX, sha256_file

if TYPE_CHECKING:
    from wsi.bags.base import BagStore

State = Literal["corrupt", "missing", "stale", "temp", "orphan"]

_THREADS = 8  # hashing takes a core each, and releases the interpreter
_BLOCK_BYTES = 1 << 24  # of features looked at together: memory stays flat for any bag


@dataclass(frozen=True)
class Finding:
    """One thing wrong with a folder of bags.

    Args:
        name: the slide's id where the sidecar gives one, else the file name.
        state: `corrupt`; `missing` (a sidecar whose bag is gone); `stale` (the slide was replaced);
            `temp` (an unfinished file); `orphan` (a bag without sidecar).
        message: what, which file, what to do next.
        files: names of the files in the folder that are no good.
    """

    name: str
    state: State
    message: str
    files: tuple[str, ...] = ()


def find_damage(
    store: BagStore, slide_ids: Iterable[str] | None = None, *, quick: bool = False
) -> Iterator[Finding]:
    """Yield what is wrong with the bags of `slide_ids`, or with all bags and files of a store."""
    check = _Check(store, quick)
    if slide_ids is None:
        yield from check.each(sidecar_paths(store.root))
        yield from _strays(store)
    else:
        yield from check.each([sidecar_path(store.root, slide_id) for slide_id in slide_ids])


class _Check:
    def __init__(self, store: BagStore, quick: bool) -> None:
        self.store = store
        self.quick = quick

    def each(self, sidecars: list[Path]) -> Iterator[Finding]:
        threads = min(_THREADS, os.cpu_count() or 1, len(sidecars))
        if self.quick or threads < 2:  # reading sidecars is work of the interpreter itself
            yield from (found for path in sidecars if (found := self.bag(path)))
            return
        pool = ThreadPoolExecutor(threads)
        try:
            yield from (found for found in pool.map(self.bag, sidecars) if found)
        finally:
            pool.shutdown(cancel_futures=True)

    def bag(self, sidecar: Path) -> Finding | None:
        """Return what is wrong with one sidecar or its bag."""
        try:
            info = self.store._read_info(sidecar)
        except FileNotFoundError:
            message = f"{sidecar}: no sidecar — rerun preprocess"
            return Finding(sidecar.name, "missing", message)
        except (BagCorruptError, OSError) as error:
            return Finding(sidecar.name, "corrupt", str(error), (sidecar.name,))
        return None if info.status == "empty" else self._file(info, sidecar)

    def _file(self, info: BagInfo, sidecar: Path) -> Finding | None:
        path = self.store._path(info.slide_id)
        if not path.is_file():
            message = f"{path}: the bag file is gone — rerun preprocess"
            return Finding(info.slide_id, "missing", message, (sidecar.name,))
        try:
            self._content(info, path)
        except BagCorruptError as error:
            return Finding(info.slide_id, "corrupt", str(error), (path.name, sidecar.name))
        return None

    def _content(self, info: BagInfo, path: Path) -> None:
        size = self.store._size_problem(info)
        if self.quick:
            if size is not None:
                raise self.store._corrupt(info, size)
            return
        try:
            digest = sha256_file(path)
        except OSError as error:
            raise self.store._corrupt(info, f"cannot be read ({error})") from error
        if digest != info.sha256:
            raise self.store._corrupt(info, self._whose(digest) or size or _CHANGED)
        found = self.store._look_checked(info)
        # What was hashed lies in memory: looking for values that no bag may hold costs little.
        block = max(1024, _BLOCK_BYTES // (4 * info.dim) // 1024 * 1024)
        for start in range(0, info.n, block):
            self.store._taken(info, found, slice(start, min(start + block, info.n)))

    def _whose(self, digest: str) -> str | None:
        slide_id = self._by_digest.get(digest)
        return None if slide_id is None else f"it is the bag of slide {slide_id}"

    @cached_property
    def _by_digest(self) -> dict[str | None, str]:
        return {info.sha256: info.slide_id for info in self.store.infos()}


_CHANGED = "its content is not what was written"


def _strays(store: BagStore) -> Iterator[Finding]:
    for path in store.stray():
        unfinished = path.name.startswith(TEMPORARY_PREFIX)
        state: State = "temp" if unfinished else "orphan"
        what = "unfinished" if unfinished else "no sidecar"
        message = f"{path}: {what} — remove it and rerun preprocess"
        yield Finding(path.name, state, message, (path.name,))
