"""The same bags in another file format."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from wsi.bags.bag import Provenance
from wsi.bags.base import BagStore
from wsi.bags.open import create_store
from wsi.bags.sidecar import BagInfo
from wsi.errors import BagCorruptError


def convert(source: BagStore, target: Path | str, fmt: str) -> Iterator[str]:
    """Yield the ids of `source` as they stand in `target` as `fmt`, empty slides included.

    Features, coordinates, tissue, scores, provenance and key stay equal. Those already there and
    sound are left as they are.

    Raises:
        BagCorruptError: a source bag is damaged; it is not copied.
        BagMismatchError: `target` holds bags of another format.
    """
    store = create_store(target, fmt)
    for info in source.infos():
        if not (store.holds(info.slide_id, info.key) and not store.verify(info.slide_id)):
            _copy(source, store, info)
        yield info.slide_id


def _copy(source: BagStore, store: BagStore, info: BagInfo) -> None:
    findings = source.verify(info.slide_id)
    if findings:
        raise BagCorruptError(findings[0].message)
    copy_bag(source, store, info)


def copy_bag(
    source: BagStore,
    store: BagStore,
    info: BagInfo,
    *,
    slide_id: str | None = None,
    provenance: Provenance | None = None,
) -> None:
    """Put a bag, or an empty slide, into another store, or back under another name.

    Args:
        slide_id: the name it gets; its own when not given.
        provenance: what it is said to be made from; as it is when not given.
    """
    slide_id, made = slide_id or info.slide_id, provenance or info.provenance
    if info.status == "empty":
        store.write_empty(
            slide_id,
            made,
            reason=info.reason or "",
            counts=info.counts,
            timings=info.timings,
            bad_tiles=info.bad_tiles,
        )
        return
    store.put(
        replace(source.read(info.slide_id), slide_id=slide_id, provenance=made),
        counts=info.counts,
        timings=info.timings,
        versions=info.versions,
        max_rel_error=info.max_rel_error,
        bad_tiles=info.bad_tiles,
    )
