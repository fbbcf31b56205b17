"""What a folder of features really holds: fields of view, rows that are no features, mixtures."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi.bags.base import BagStore
from wsi.bags.foreign.archive import Entry, Layout
from wsi.bags.foreign.arrays import level0, opened, pieces
from wsi.bags.foreign.provenance import Mpp, Slides, mpp0_of, slide_of, tile_size0
from wsi.bags.sidecar import BagInfo
from wsi.errors import BagError, ForeignBagError, UnsafeFileError
from wsi.findings import Finding, few

if TYPE_CHECKING:
    from wsi.slides import SlideInfo

FOV_TOLERANCE = 0.02
"""Share by which a tile may be larger or smaller than declared without being told."""


@dataclass(frozen=True)
class Audited:
    """One slide's features, every value looked at.

    Attributes:
        encoder: name, or fingerprint where there is one.
        tiling: what all slides should share, in words.
        declared_um: edge of a tile in um as the tiling was asked for; None where unknown.
        true_um: edge of a tile in um by the slide's own resolution; None where unknown.
        zero, nonfinite: rows of features that are all zero, or not finite.
        duplicates: rows whose corner stands in an earlier row.
        outside: rows whose corner lies outside the slide; None where its size is unknown.
    """

    slide_id: str
    n: int
    dim: int
    encoder: str
    tiling: str
    declared_um: float | None
    true_um: float | None
    zero: int
    nonfinite: int
    duplicates: int
    outside: int | None


def audit_archive(archive: Layout, slides: Slides) -> Iterator[Audited | Finding]:
    """Yield the facts of every slide of an archive, or why it cannot be read."""
    for path in archive.files():
        try:
            entry = archive.entry(path)
            yield _of_entry(entry, slide_of(slides, entry.slide_id), archive)
        except (UnsafeFileError, ForeignBagError) as error:
            yield Finding("error", error.reason, str(error), (path.stem,))
        except OSError as error:
            message = f"{path.name}: {error.strerror} — check the file and its permissions"
            yield Finding("error", "io-error", message, (path.stem,))


def audit_store(store: BagStore, slides: Slides) -> Iterator[Audited | Finding]:
    """Yield the facts of every bag of a folder, and what is wrong with its files."""
    for found in store.verify_all():
        severity = "error" if found.state in ("corrupt", "missing") else "warning"
        yield Finding(severity, found.state, found.message, (found.name,))
    for info in store.infos():
        if info.status == "empty":
            message = f"{info.slide_id}: no tiles ({info.reason})"
            yield Finding("info", "empty", message, (info.slide_id,))
            continue
        try:
            yield _of_bag(store, info, slide_of(slides, info.slide_id))
        except BagError:
            continue  # named by verify above


def _of_entry(entry: Entry, slide: SlideInfo | None, archive: Layout) -> Audited:
    mpp0, tiling = mpp0_of(entry, slide, archive.given), entry.tiling
    zero = nonfinite = 0
    with opened(entry.features) as take:
        for piece in pieces(entry.n, 4 * entry.dim):
            rows = take(piece)
            zero += _zero(rows)
            nonfinite += _nonfinite(rows)
    with opened(entry.coords, "iuf") as take:
        raw = take(slice(None))
    in_um = entry.unit == "um"
    known = not in_um or mpp0 is not None
    xy0 = level0(entry.slide_id, raw, mpp0 if in_um else None) if known else None
    size0 = slide.size0 if slide is not None else entry.slide_size0
    shared = {"tile_px": tiling.tile_px, "mpp": tiling.mpp, **tiling.details}
    return Audited(
        slide_id=entry.slide_id,
        n=entry.n,
        dim=entry.dim,
        encoder=entry.encoder,
        tiling=_words(shared),
        declared_um=_product(tiling.mpp, tiling.tile_px),
        true_um=_true_um(tile_size0(entry, mpp0), mpp0),
        zero=zero,
        nonfinite=nonfinite,
        duplicates=_duplicates(raw[:, :2]),
        outside=None if xy0 is None or size0 is None else _outside(xy0, size0),
    )


def _of_bag(store: BagStore, info: BagInfo, slide: SlideInfo | None) -> Audited:
    bag, made = store.read(info.slide_id), info.provenance
    settings = made.tiling["settings"]
    mpp0 = slide.mpp if slide is not None and slide.mpp else made.slide.get("mpp")
    size0 = slide.size0 if slide is not None else made.slide.get("size0")
    return Audited(
        slide_id=info.slide_id,
        n=info.n,
        dim=info.dim,
        encoder=f"{made.encoder.get('name', '')} {str(made.encoder['fingerprint'])[:24]}".strip(),
        tiling=_words(settings),
        declared_um=_product(settings.get("mpp"), settings.get("tile_px")),
        true_um=_true_um((made.tiling.get("resolved") or {}).get("size0"), mpp0),
        zero=_zero(bag.features),
        nonfinite=_nonfinite(bag.features),
        duplicates=_duplicates(bag.xy0),
        outside=None if size0 is None else _outside(bag.xy0, size0),
    )


# -- over all slides -----------------------------------------------------------------------------


def summed_up(found: Iterable[Audited | Finding]) -> list[Finding]:
    """Return all findings: those of files, and what the slides' facts show taken together."""
    found = list(found)
    facts = [item for item in found if isinstance(item, Audited)]
    findings = [item for item in found if isinstance(item, Finding)]
    findings += _mixtures(facts)
    findings += _fields_of_view(facts)
    findings += _rows(facts)
    order = ("error", "warning", "info")
    return sorted(findings, key=lambda finding: order.index(finding.severity))


def _mixtures(facts: Sequence[Audited]) -> Iterator[Finding]:
    kinds = {"encoders": "encoder", "widths": "dim", "tilings": "tiling"}
    for what, name in kinds.items():
        groups: dict[Any, list[str]] = defaultdict(list)
        for each in facts:
            groups[getattr(each, name)].append(each.slide_id)
        if len(groups) > 1:
            ranked = sorted(groups.items(), key=lambda group: -len(group[1]))
            counts = ", ".join(f"{len(ids)} with {key}" for key, ids in ranked)
            fewer = tuple(slide_id for _, ids in ranked[1:] for slide_id in ids)
            message = f"mixed {what}: {counts} — keep one kind, the fewer are {few(fewer)}"
            yield Finding("error", f"mixed-{what}", message, fewer)


def _fields_of_view(facts: Sequence[Audited]) -> Iterator[Finding]:
    unknown = tuple(each.slide_id for each in facts if each.true_um is None)
    if unknown:
        yield Finding(
            "info",
            "no-mpp",
            f"{_slides(unknown)} tiled at a field of view that is not known — give the slides by "
            "--slides, or --mpp",
            unknown,
        )
    by_declared: dict[float | None, list[Audited]] = defaultdict(list)
    for each in facts:
        if each.true_um is not None:
            by_declared[each.declared_um].append(each)
    for declared, group in by_declared.items():
        yield from _against(declared, group)


def _against(declared: float | None, group: list[Audited]) -> Iterator[Finding]:
    widths = {each.slide_id: each.true_um or 0.0 for each in group}
    if declared is None:
        reference, instead = float(np.median([*widths.values()])), "and not all alike"
    else:
        reference, instead = declared, f"instead of {declared:.4g}"
    off = {s: um for s, um in widths.items() if abs(um / reference - 1) > FOV_TOLERANCE}
    if off:
        ids = tuple(off) if declared is not None else tuple(widths)
        span = off if declared is not None else widths
        yield Finding(
            "warning",
            "field-of-view",
            f"{_slides(ids)} tiled at {_span(span.values())} um {instead}: {few(ids)} — embed them "
            "again, or keep scanners apart in the analysis",
            ids,
        )
    right = tuple(s for s in widths if s not in off)
    if right and (declared is not None or not off):
        message = f"{_slides(right)} tiled at {_span(widths[s] for s in right)} um"
        yield Finding("info", "field-of-view", message)


def _rows(facts: Sequence[Audited]) -> Iterator[Finding]:
    for each in facts:
        at = f"{each.slide_id}: "
        of = (each.slide_id,)
        if each.nonfinite:
            message = f"{at}{each.nonfinite} of {each.n} rows are not finite — embed it again"
            yield Finding("error", "non-finite", message, of)
        if each.zero:
            message = f"{at}{each.zero} of {each.n} rows are all zero — they were never embedded"
            yield Finding("error" if each.zero == each.n else "warning", "zero-rows", message, of)
        if each.duplicates:
            message = f"{at}{each.duplicates} of {each.n} corners stand twice"
            yield Finding("warning", "duplicate-coordinates", message, of)
        if each.outside:
            message = (
                f"{at}{each.outside} of {each.n} corners lie outside the slide — coordinates of "
                "another slide, level or unit"
            )
            yield Finding("error", "outside-slide", message, of)


def _slides(ids: Sequence[str]) -> str:
    return f"{len(ids)} slide{' was' if len(ids) == 1 else 's were'}"


def _span(values: Iterable[float]) -> str:
    found = sorted(values)
    low, high = f"{found[0]:.4g}", f"{found[-1]:.4g}"
    return low if low == high else f"{low}-{high}"


def _words(settings: dict[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in settings.items() if value is not None)


def _product(mpp: float | None, tile_px: float | None) -> float | None:
    return None if mpp is None or tile_px is None else mpp * tile_px


def _true_um(size0: Sequence[float] | None, mpp0: Mpp | None) -> float | None:
    if size0 is None or mpp0 is None:
        return None
    return (size0[0] * mpp0[0] + size0[1] * mpp0[1]) / 2


def _zero(features: np.ndarray) -> int:
    return int(np.count_nonzero(~features.any(axis=1)))


def _nonfinite(features: np.ndarray) -> int:
    return int(np.count_nonzero(~np.isfinite(features).all(axis=1)))


def _duplicates(corners: np.ndarray) -> int:
    return len(corners) - len(np.unique(corners, axis=0))


def _outside(xy0: np.ndarray, size0: Sequence[float]) -> int:
    return int(np.count_nonzero(((xy0 < 0) | (xy0 >= np.asarray(size0))).any(axis=1)))
