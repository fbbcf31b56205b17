"""`wsi why`: the whole story of one slide, from what a run has left of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipelines.console import Console
from pipelines.logs import events
from pipelines.overlay import overlay_path, read_overlay
from pipelines.quarantine import Entry, Quarantine
from pipelines.slides_csv import Row, read_slides_csv
from pipelines.tilecounts import bad_line, fates, left_out_words
from wsi.bags import BagInfo, BagStore, open_store
from wsi.claims import Claims
from wsi.errors import BagError, ConfigError
from wsi.findings import few
from wsi.registry import suggest

Told = tuple[str, str]
"""When or where, and what."""


def run(slide_id: str, out: Path, console: Console) -> int:
    """Print what is known of a slide; 3 when it is quarantined or has no bag."""
    rows = {row["slide_id"]: row for row in read_slides_csv(out / "slides.csv")}
    row = rows[_meant(slide_id, list(rows), out)]
    slide_id = row["slide_id"]
    entry = Quarantine(out).entry(slide_id)
    bags = dict(_bags(out, slide_id))
    holders = list(_holders(out, slide_id))
    history = [event for event in events(out) if event.get("slide_id") == slide_id]
    told = [
        *_survey(row),
        *_drawn(out, slide_id),
        *(line for name, info in bags.items() for line in _bag(name, info)),
        *_quarantined(entry),
        *holders,
        *(_event(event) for event in history),
    ]
    state = "quarantined" if entry else "done" if bags else "waiting"
    console.table(["what", slide_id], told)
    console.say(f"{slide_id}: {entry.reason if entry else state}")
    console.result(
        {
            "slide_id": slide_id,
            "state": state,
            "survey": {key: value for key, value in row.items() if value},
            "bags": {name: _facts(info) for name, info in bags.items()},
            "quarantine": vars(entry) if entry else None,
            "in_progress": [text for _, text in holders],
            "history": history,
        }
    )
    return 0 if state == "done" else 3


def _meant(slide_id: str, known: list[str], out: Path) -> str:
    if slide_id in known:
        return slide_id
    same = [name for name in known if name.rpartition("/")[2] == slide_id]
    if len(same) == 1:
        return same[0]
    if same:
        raise ConfigError(f"{slide_id} may be {few(same)} — give the whole id")
    raise ConfigError(
        f"no slide {slide_id} in {out / 'slides.csv'}{suggest(slide_id, known)} — "
        f"it lists {len(known)}; is --out the folder of the run?"
    )


def _survey(row: Row) -> Iterator[Told]:
    size = f"{row['width']} x {row['height']} px, " if row["width"] else ""
    mpp = f"{row['mpp'] or 'no'} um/px ({row['mpp_source'] or 'unknown'}), "
    yield (
        "survey",
        f"{row['status']}: {row['vendor'] or 'no reader'}, {size}{mpp}"
        + (f"read by {row.get('reader') or 'nothing'}"),
    )
    if row["reason"]:
        yield "", row["reason"]


def _drawn(out: Path, slide_id: str) -> Iterator[Told]:
    drawn = read_overlay(out, slide_id)
    if drawn is None:
        return
    tiles = "" if drawn.tiles is None else f", {drawn.tiles} of {drawn.considered} tiles"
    flags = f", {', '.join(drawn.flags)}" if drawn.flags else ""
    yield "tissue", f"{drawn.method}: {drawn.tissue_share:.1%} of the slide{tiles}{flags}"
    yield "", str(overlay_path(out, slide_id))


def _stores(out: Path) -> Iterator[BagStore]:
    folder = out / "bags"
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        try:
            yield open_store(path)
        except BagError:
            continue  # nothing in it yet


def _bags(out: Path, slide_id: str) -> Iterator[tuple[str, BagInfo]]:
    for store in _stores(out):
        try:
            yield store.root.name, store.info(slide_id)
        except BagError:
            continue


def _bag(name: str, info: BagInfo) -> Iterator[Told]:
    left_out = ", ".join(left_out_words(fates(info)))
    what = info.reason or f"{info.n} tiles x {info.dim} {info.dtype}"
    yield f"bag {name}", f"{info.status}: {what}" + (f", {left_out}" if left_out else "")
    if info.bad_tiles:
        yield "", bad_line(info)
    if info.timings:
        yield "", ", ".join(f"{key} {value:g}" for key, value in info.timings.items())


def _quarantined(entry: Entry | None) -> Iterator[Told]:
    if entry is not None:
        tries = f"attempt {entry.attempts}, first {entry.first_time}, last {entry.last_time}"
        yield "quarantined", f"{entry.reason}: {entry.message}"
        yield "", tries


def _holders(out: Path, slide_id: str) -> Iterator[Told]:
    folder = out / "claims"
    if not folder.is_dir():
        return
    with Claims(folder) as claims:
        for name in claims.held():
            holder = claims.holder(name) if name.partition("/")[2] == slide_id else None
            if holder is not None:
                since = f"{holder.since:%Y-%m-%d %H:%M:%S}"
                text = (
                    f"{name.partition('/')[0]}: by {holder.host}, pid {holder.pid}, since {since}"
                )
                yield "in progress", text


def _event(event: dict[str, Any]) -> Told:
    took = f"{event['seconds']['slide']:.1f} s" if event.get("seconds", {}).get("slide") else ""
    parts = [event.get("state", event.get("event", "")), event.get("message", ""), took]
    return str(event["time"]), f"{', '.join(filter(None, parts))} [{event['process']}]"


def _facts(info: BagInfo) -> dict[str, Any]:
    return {
        "status": info.status,
        "tiles": info.n,
        "dim": info.dim,
        "sha256": info.sha256,
        "counts": dict(info.counts),
        "timings": dict(info.timings),
        "reason": info.reason,
    }
