"""`wsi bags import`, and `wsi bags convert` to the layouts of other tools."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.at_hand import slides_at_hand
from pipelines.console import Console, counted
from wsi.bags import BagStore, create_store, open_store
from wsi.bags.foreign import (
    Given,
    Layout,
    Outcome,
    export_archive,
    import_archive,
    open_archive,
    preview,
)
from wsi.bags.open import FOREIGN


@dataclass(frozen=True)
class ImportOptions:
    """What the command line decides of an import."""

    layout: str
    source: Path
    out: Path
    given: Given
    slides: tuple[Path, ...] = ()
    in_place: bool = False
    allow_nonfinite: bool = False
    dry_run: bool = False


def import_bags(options: ImportOptions, console: Console) -> int:
    """Import an archive; 3 when slides were refused."""
    archive = open_archive(options.layout, options.source, options.given)
    slides = slides_at_hand(options.slides, console)
    for line in archive.passed_over():
        console.say(line)
    outcomes: list[Outcome] = []
    work = preview(archive, slides)
    if not options.dry_run:
        store = create_store(options.out, FOREIGN if options.in_place else "h5")
        allow = options.allow_nonfinite
        work = import_archive(archive, store, slides, allow_nonfinite=allow)
    with console.progress("importing", len(archive.files())) as track:
        for outcome in work:
            outcomes.append(outcome)
            track.advance(1, outcome.slide_id)
    _tell(outcomes, options, archive, console)
    return 3 if any(outcome.status == "refused" for outcome in outcomes) else 0


def _tell(
    outcomes: Sequence[Outcome], options: ImportOptions, archive: Layout, console: Console
) -> None:
    refused = [o for o in outcomes if o.status == "refused"]
    if refused:
        rows = ([o.slide_id, o.code, o.reason, o.message] for o in refused)
        console.table(["slide", "code", "rule", "refused because"], rows, "refused")
    done = [o for o in outcomes if o.status in ("imported", "kept")]
    counts = Counter(o.status for o in outcomes)
    console.result(
        {
            **{status: counts[status] for status in ("imported", "kept", "empty")},
            "refused": [
                {"slide_id": o.slide_id, "code": o.code, "rule": o.reason, "message": o.message}
                for o in refused
            ],
            "rows_left_out": sum(o.left_out for o in outcomes),
            "precision": dict(Counter(o.dtype for o in done)),
            "path": str(options.out),
            "in_place": options.in_place,
            "passed_over": list(archive.passed_over()),
            "dry_run": options.dry_run,
        }
    )
    left_out = sum(o.left_out for o in outcomes)
    if left_out:
        console.warn(f"{left_out} rows that were not finite are left out, counted in each bag")
    console.say(_summary(options, done, counts))


def _summary(options: ImportOptions, done: Sequence[Outcome], counts: Counter[str]) -> str:
    tiles = counted(sum(o.tiles for o in done), "tile")
    kinds = " and ".join(sorted({o.dtype for o in done})) or "nothing"
    how = "left in place as" if options.in_place else "kept as"
    verb = "would be imported" if options.dry_run else "imported"
    parts = [f"{counts[s]} {s}" for s in ("kept", "empty", "refused") if counts[s]]
    more = f" ({', '.join(parts)})" if parts else ""
    return (
        f"{counted(counts['imported'], 'slide')} {verb}{more}; {tiles} {how} {kinds}, the encoder "
        f"as declared; {'nothing was written' if options.dry_run else options.out}"
    )


def export_bags(folder: Path, to: str, out: Path, console: Console) -> int:
    """Write bags in the layout of another tool."""
    store = open_store(folder)
    statuses, lacking = Counter[str](), Counter[str]()
    with console.progress("bags", len(store.infos())) as track:
        for outcome in export_archive(store, out, to):
            statuses[outcome.status] += 1
            lacking.update([outcome.lacking] if outcome.lacking else [])
            track.advance(1, outcome.slide_id)
    for what, n in lacking.items():
        console.say(f"{counted(n, 'slide')}: {what}")
    _tell_precision(store, to, console)
    done = statuses["written"] + statuses["kept"]
    console.say(f"{counted(done, 'slide')} in {out}, {statuses['kept']} of them were there already")
    console.result({"bags": done, "path": str(out), "format": to, **statuses})
    return 0


def _tell_precision(store: BagStore, to: str, console: Console) -> None:
    narrow = sum(info.dtype == "float16" for info in store.infos() if info.status == "done")
    if to == "clam" and narrow:
        console.say(f"{counted(narrow, 'bag')} of float16 written as float32: the values are equal")
