"""Slides that could not be used: why, and how often that was tried.

One small file per slide below OUT/quarantine is the truth, so that any number of processes may
write; `OUT/quarantine.csv` is made from them, for people.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path

from wsi.files import TEMPORARY_PREFIX, file_name_of, publish_bytes, publish_json


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


class Quarantine:
    """The quarantined slides of an output folder."""

    def __init__(self, out: Path) -> None:
        self._folder = out / "quarantine"
        self.csv = out / "quarantine.csv"

    def entries(self) -> dict[str, Entry]:
        """Return all entries by slide id; one that is damaged is left out, its slide tried anew."""
        paths = sorted(self._folder.glob("*.json")) if self._folder.is_dir() else []
        found = [_read(p) for p in paths if not p.name.startswith(TEMPORARY_PREFIX)]
        return {entry.slide_id: entry for entry in found if entry}

    def entry(self, slide_id: str) -> Entry | None:
        """Return the entry of a slide, None when it has none."""
        return _read(self._path(slide_id))

    def put(self, entry: Entry) -> None:
        """Record that a slide cannot be used."""
        publish_json(self._path(entry.slide_id), asdict(entry))

    def remove(self, slide_id: str) -> None:
        """Forget an entry: the slide was used after all."""
        self._path(slide_id).unlink(missing_ok=True)

    def write_csv(self) -> None:
        """Write the table of all entries, sorted by slide id."""
        entries = self.entries()
        if entries or self.csv.exists():
            publish_bytes(self.csv, _table(entries))

    def _path(self, slide_id: str) -> Path:
        return self._folder / f"{file_name_of(slide_id)}.json"


def _read(path: Path) -> Entry | None:
    try:
        return Entry(**json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def _table(entries: Mapping[str, Entry]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, [f.name for f in fields(Entry)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(entries[slide_id]) for slide_id in sorted(entries))
    return text.getvalue().encode()


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
