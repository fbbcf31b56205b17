"""`quarantine.csv`: which slides could not be used, why, and how often that was tried."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path

from wsi.errors import ConfigError
from wsi.files import publish_bytes


@dataclass(frozen=True)
class Entry:
    """One quarantined slide.

    Attributes:
        reason: short code, stable for scripts: `no-mpp`, `decode-error`, ...
        fingerprint: of the slide file when it failed, empty where it could not be opened.
        bad_tiles: how many tiles could not be decoded, as far as was read, where that is why.
    """

    slide_id: str
    path: str
    reason: str
    message: str
    attempts: int
    first_time: str
    last_time: str
    fingerprint: str = ""
    bad_tiles: int = 0


def read_quarantine(path: Path) -> dict[str, Entry]:
    """Return the entries of an earlier run by slide id; none when there was no run."""
    if not path.is_file():
        return {}
    try:
        with path.open(encoding="utf-8", newline="") as handle:
            reader = csv.DictReader(handle)
            if {*(reader.fieldnames or ()), "bad_tiles"} != {f.name for f in fields(Entry)}:
                raise ValueError("other columns")
            entries = [_entry(row) for row in reader]
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise ConfigError(
            f"{path} is no table of quarantined slides ({error}) — remove it and rerun"
        ) from None
    return {entry.slide_id: entry for entry in entries}


def _entry(row: dict[str, str]) -> Entry:
    numbers = {name: int(row.pop(name)) for name in ("attempts", "bad_tiles") if name in row}
    return Entry(**numbers, **row)  # pyright: ignore[reportArgumentType]


def write_quarantine(path: Path, entries: Mapping[str, Entry]) -> None:
    """Write all entries, sorted by slide id."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [f.name for f in fields(Entry)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(entries[slide_id]) for slide_id in sorted(entries))
    publish_bytes(path, text.getvalue().encode())


def failed(
    before: Entry | None,
    slide_id: str,
    path: str,
    reason: str,
    message: str,
    fingerprint: str,
    bad_tiles: int = 0,
) -> Entry:
    """Return the entry of one more failed attempt."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    if before is None or before.fingerprint != fingerprint:
        return Entry(slide_id, path, reason, message, 1, now, now, fingerprint, bad_tiles)
    return replace(
        before,
        reason=reason,
        message=message,
        attempts=before.attempts + 1,
        last_time=now,
        bad_tiles=bad_tiles,
    )
