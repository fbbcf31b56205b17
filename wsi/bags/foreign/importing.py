"""Another tool's archive to bags, copied or left in place; what is refused is named."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from wsi.bags.bag import Provenance
from wsi.bags.base import BagStore
from wsi.bags.foreign.archive import Entry, Layout
from wsi.bags.foreign.arrays import level0, nonfinite_rows, opened, pieces
from wsi.bags.foreign.provenance import VERIFIED, Slides, declared, same_files, slide_of, source_of
from wsi.bags.foreign.store import NON_FINITE, ForeignStore
from wsi.errors import (
    BagError,
    BagMissingError,
    CohortError,
    ForeignBagError,
    UnsafeFileError,
)
from wsi.findings import few

if TYPE_CHECKING:
    from wsi.slides import SlideInfo


@dataclass(frozen=True)
class Outcome:
    """What became of one slide of an archive.

    Attributes:
        slide_id: its id; the file's stem where the file gives none.
        status: `imported`, `kept` from an earlier import, `empty` or `refused`.
        code, reason, message: why it was refused, as in errors.
        left_out: rows that were not finite.
        tiles, dim, dtype: of the features in the archive, where they could be read.
    """

    slide_id: str
    status: Literal["imported", "kept", "empty", "refused"]
    code: str = ""
    reason: str = ""
    message: str = ""
    left_out: int = 0
    tiles: int = 0
    dim: int = 0
    dtype: str = ""


def import_archive(
    archive: Layout, store: BagStore, slides: Slides | None = None, *, allow_nonfinite: bool = False
) -> Iterator[Outcome]:
    """Yield what becomes of each slide of an archive, as its bag is stored.

    A ForeignStore takes pointers, any other store copies in the precision of the source. A slide
    that was imported before and has not changed is kept.

    Args:
        slides: the slides at hand by id: their resolution and fingerprint enter the bags.
        allow_nonfinite: leave out and count rows with NaN or infinity, where they are refused else.

    Raises:
        ConfigError: the archive lacks what was not given.
        ResourceError: the disk is full.
    """
    store.root.mkdir(parents=True, exist_ok=True)

    def work(path: Path) -> Outcome:
        return _imported(archive, path, store, slides or {}, allow_nonfinite)

    yield from _outcomes(archive, work)


def preview(archive: Layout, slides: Slides | None = None) -> Iterator[Outcome]:
    """Yield what an import would make of each slide as far as its files' heads tell."""

    def work(path: Path) -> Outcome:
        entry = archive.entry(path)
        declared(entry, slide_of(slides or {}, entry.slide_id), archive.given, {})
        status = "imported" if entry.n else "empty"
        return Outcome(entry.slide_id, status, tiles=entry.n, dtype=entry.dtype, dim=entry.dim)

    yield from _outcomes(archive, work)


def _outcomes(archive: Layout, work: Callable[[Path], Outcome]) -> Iterator[Outcome]:
    """Yield what `work` makes of each file; the trouble of a slide is that slide's."""
    for path in archive.files():
        try:
            yield work(path)
        except (UnsafeFileError, ForeignBagError) as error:
            yield Outcome(path.stem, "refused", error.code, error.reason, str(error))
        except (BagError, CohortError) as error:
            yield Outcome(path.stem, "refused", error.code, "not-a-bag", str(error))
        except OSError as error:
            if error.filename != str(path):  # not of this slide: the disk is full, or read-only
                raise
            message = f"{path.name}: {error.strerror} — check the file and its permissions"
            yield Outcome(path.stem, "refused", "IO", "io-error", message)


def _imported(
    archive: Layout, path: Path, store: BagStore, slides: Slides, allow_nonfinite: bool
) -> Outcome:
    entry = archive.entry(path)
    slide = slide_of(slides, entry.slide_id)
    seen = Outcome(entry.slide_id, "imported", tiles=entry.n, dim=entry.dim, dtype=entry.dtype)
    if _holds(store, entry, archive, slide):
        return replace(seen, status="kept")
    source = source_of(entry, archive.root)
    bad = nonfinite_rows(entry)
    if bad and not allow_nonfinite:
        raise ForeignBagError(
            f"{path.name}: {len(bad)} of {entry.n} rows have NaN or infinite features (rows "
            f"{few(map(str, bad))}) — embed the slide again, or leave them out with "
            "--allow-nonfinite",
            "non-finite",
        )
    if bad:
        source["left_out"] = bad
    made = declared(entry, slide, archive.given, source)
    if len(bad) == entry.n:
        reason = "no-tiles" if not entry.n else "all-dropped"
        counts = {"planned": entry.n, NON_FINITE: len(bad)}
        store.write_empty(entry.slide_id, made, reason=reason, counts=counts)
        return replace(seen, status="empty", reason=reason, left_out=len(bad))
    if isinstance(store, ForeignStore):
        _check_corners(entry, made)
        store.link(entry.slide_id, (entry.n - len(bad), entry.dim), made, archive.root, bad)
    else:
        _copy(entry, store, made, bad)
    return replace(seen, left_out=len(bad))


def _holds(store: BagStore, entry: Entry, archive: Layout, slide: SlideInfo | None) -> bool:
    """Return whether the bag is there, made from the same files under the same facts."""
    try:
        info = store.info(entry.slide_id)
    except BagMissingError:
        return False
    was = info.provenance
    source = was.slide.get("source", {})
    if source.get("layout") != entry.layout or not same_files(source, entry, archive.root):
        return False
    now = declared(entry, slide, archive.given, source)
    # What was verified since has another key, and stays verified while the slide is the same.
    verified = was.encoder.get("state") == VERIFIED and was.encoder.get("declared") == now.encoder
    same_slide = all(was.slide.get(k) == now.slide.get(k) for k in ("fingerprint", "mpp"))
    return store.holds(entry.slide_id, info.key if verified and same_slide else now.key)


def _copy(entry: Entry, store: BagStore, made: Provenance, left_out: list[int]) -> None:
    keep = np.ones(entry.n, bool)
    keep[left_out] = False
    with (
        store.writer(entry.slide_id, entry.n, entry.dim, made) as writer,
        opened(entry.features) as features,
        opened(entry.coords, "iuf") as coords,
    ):
        if left_out:
            writer.leave_out(len(left_out), NON_FINITE)
        for piece in pieces(entry.n, 4 * entry.dim):
            rows = keep[piece]
            corners = level0(entry.slide_id, coords(piece), _pixel_um(entry, made))
            tissue = np.ones(int(rows.sum()), np.float16)
            writer.append(features(piece)[rows], corners[rows], tissue)


def _check_corners(entry: Entry, made: Provenance) -> None:
    with opened(entry.coords, "iuf") as coords:
        level0(entry.slide_id, coords(slice(None)), _pixel_um(entry, made))


def _pixel_um(entry: Entry, made: Provenance) -> tuple[float, float] | None:
    return tuple(made.slide["mpp"]) if entry.unit == "um" else None
