"""What is wrong with a folder of bags: every byte read once, on several threads."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from wsi.bags.sidecar import SUFFIX, BagInfo, sidecar_path, sidecar_paths
from wsi.errors import BagCorruptError
from wsi.files import TEMPORARY_PREFIX, sampled_fingerprint, sha256_file

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
        files: names of the files in the folder that are no good, whether there or not.
    """

    name: str
    state: State
    message: str
    files: tuple[str, ...] = ()


def find_damage(
    store: BagStore, slide_ids: Iterable[str] | None, quick: bool, looked: Callable[[], None]
) -> Iterator[Finding]:
    """Yield what is wrong with the bags of `slide_ids`, or with all bags and files of a store."""
    check = _Check(store, quick, looked)
    if slide_ids is None:
        yield from check.each(sidecar_paths(store.root))
        yield from _strays(store)
    else:
        yield from check.each([sidecar_path(store.root, slide_id) for slide_id in slide_ids])


class _Check:
    def __init__(self, store: BagStore, quick: bool, looked: Callable[[], None]) -> None:
        self.store = store
        self.quick = quick
        self.looked = looked

    def each(self, sidecars: list[Path]) -> Iterator[Finding]:
        threads = min(_THREADS, os.cpu_count() or 1, len(sidecars))
        if self.quick or threads < 2:  # reading sidecars is work of the interpreter itself
            yield from self._wrong(map(self.bag, sidecars))
            return
        pool = ThreadPoolExecutor(threads)
        try:
            yield from self._wrong(pool.map(self.bag, sidecars))
        finally:
            pool.shutdown(cancel_futures=True)

    def _wrong(self, found: Iterable[Finding | None]) -> Iterator[Finding]:
        for finding in found:
            self.looked()
            if finding is not None:
                yield finding

    def bag(self, sidecar: Path) -> Finding | None:
        """Return what is wrong with one sidecar or its bag."""
        try:
            info = self.store._read_info(sidecar)
        except FileNotFoundError:
            message = f"{sidecar}: no sidecar — rerun preprocess"
            return Finding(sidecar.name, "missing", message)
        except BagCorruptError as error:
            files = (sidecar.name, sidecar.name.removesuffix(SUFFIX) + self.store.suffix)
            return Finding(sidecar.name, "corrupt", str(error), files)
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


def find_stale(store: BagStore, slides: Mapping[str, Path]) -> Iterator[Finding]:
    """Yield the bags whose slide was replaced, and the slides without a bag.

    The fingerprint is taken anew, from the whole file where the sidecar has its SHA-256.

    Args:
        slides: file of each slide, by id.
    """
    infos = {info.slide_id: info for info in store.infos()}
    with ThreadPoolExecutor(_THREADS) as pool:
        now = pool.map(lambda slide_id: _fingerprint(infos.get(slide_id), slides[slide_id]), slides)
        for (slide_id, path), found in zip(slides.items(), now, strict=True):
            if slide_id not in infos:
                message = f"{slide_id}: no valid bag in {store.root} — rerun preprocess"
                yield Finding(slide_id, "missing", message)
            elif found != _stored(infos[slide_id]):
                how = "is gone" if found is None else "is another file than its bag was made from"
                message = f"{slide_id}: {path.name} {how} — rerun preprocess"
                yield Finding(slide_id, "stale", message, _files(store, slide_id))


def _files(store: BagStore, slide_id: str) -> tuple[str, str]:
    return store._path(slide_id).name, sidecar_path(store.root, slide_id).name


def _stored(info: BagInfo) -> str:
    slide = info.provenance.slide
    return str(slide.get("sha256") or slide["fingerprint"])


def _fingerprint(info: BagInfo | None, path: Path) -> str | None:
    if info is None:
        return None
    try:
        whole = info.provenance.slide.get("sha256")
        return sha256_file(path) if whole else sampled_fingerprint(path)
    except OSError:
        return None
