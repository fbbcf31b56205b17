"""What has become of the slides of a run: done, empty, quarantined, or in progress elsewhere."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.colour import Colours
from pipelines.console import Console, counted
from pipelines.quarantine import Entry, Quarantine, failed
from pipelines.redraw import Done
from pipelines.slides_csv import Surveyed
from pipelines.slidework import Outcome
from pipelines.tilecounts import bad_line, fates
from wsi.bags import BagInfo
from wsi.errors import ConfigError, NeedsUpsamplingError
from wsi.findings import few

_TABLE_S = 5.0  # how often quarantine.csv is written while slides come in
_DAMAGED = ("damaged-profile", "not-an-rgb-profile")
STAGES = ("locate", "hash", "read", "decode", "resize", "colour", "score", "encode", "write")
"""What time is spent on, in the order a slide goes through it."""


class Account:
    """Counts slides by state, says what must be said of each, and keeps the quarantine.

    Attributes:
        before: entries of earlier runs, by slide id.
        entries: those of this run's slides that hold now.
        kept: slides whose bags were there already.
    """

    def __init__(self, found: Sequence[Surveyed], quarantine: Quarantine, console: Console) -> None:
        self.quarantine = quarantine
        self.before = quarantine.entries()
        self.entries: dict[str, Entry] = {}
        self.states: dict[str, str] = {}
        self.elsewhere = 0
        self.tiles: Counter[str] = Counter()
        self.colours = Colours()
        self.kept: list[Done] = []
        self.spent: dict[str, float] = dict.fromkeys(STAGES, 0.0)
        self._found = found
        self._console = console
        self._written = 0.0

    def count(self, state: str) -> int:
        """Return how many slides are in a state."""
        return sum(each == state for each in self.states.values())

    def keep(self, item: Surveyed, info: BagInfo) -> None:
        """Count a slide that was done before, or by another process."""
        slide_id = item.file.slide_id
        self.kept.append((item, info))
        self._used(slide_id, info.status)
        self.tiles.update(fates(info))
        if info.bad_tiles:
            self._console.warn(bad_line(info))
        self.colours.add(info.provenance.pixels.get("fitted", {}).get("colour", ""))

    def keep_drawn(self, slide_id: str, tiles: int | None, share: float) -> None:
        """Count a slide whose tissue or tiles were found before; bags were not asked for."""
        self._used(slide_id, "empty" if tiles == 0 or share == 0 else "done")
        self.tiles.update({"tiles": tiles or 0})

    def keep_quarantined(self, entry: Entry) -> None:
        """Count a slide that failed before and is not tried again."""
        self.states[entry.slide_id] = "quarantined"
        self.entries[entry.slide_id] = entry

    def add(self, item: Surveyed, outcome: Outcome, *, is_ours: bool = True) -> None:
        """Count a slide that this run has worked on, and say what a person should know.

        Args:
            is_ours: False for a slide that another process has taken over meanwhile: what went
                wrong here says nothing about it.
        """
        slide_id = item.file.slide_id
        self._say(outcome)
        for name in STAGES:
            self.spent[name] += outcome.spent.get(name, 0.0)
        if outcome.state in ("done", "empty"):
            self._used(slide_id, outcome.state)
            self.tiles.update(outcome.fates)
            self.colours.add(outcome.colour)
        elif is_ours:
            self.fail(item, outcome.state, outcome.message, outcome.bad_tiles)
        else:
            self.elsewhere += 1
        self._write_table()

    def fail(self, item: Surveyed, reason: str, message: str, bad_tiles: int = 0) -> None:
        """Quarantine a slide."""
        slide_id = item.file.slide_id
        fingerprint = item.info.fingerprint if item.info else ""
        before = self.quarantine.entry(slide_id)
        entry = failed(
            before, slide_id, item.file.path.name, reason, message, fingerprint, bad_tiles
        )
        self.quarantine.put(entry)
        self.keep_quarantined(entry)

    def refuse(self, item: Surveyed) -> None:
        """Quarantine a slide for what the survey found; the same finding is no further attempt."""
        before = self.before.get(item.file.slide_id)
        if before is not None and before.reason == item.status:
            self.keep_quarantined(before)
        else:
            self.fail(item, item.status, item.reason)

    def close(self) -> None:
        """Write the table of quarantined slides."""
        self.quarantine.write_csv()

    def _used(self, slide_id: str, state: str) -> None:
        self.states[slide_id] = state
        if slide_id in self.before or slide_id in self.entries:
            self.quarantine.remove(slide_id)  # a success is never overridden by a failure
            self.entries.pop(slide_id, None)

    def _write_table(self) -> None:
        if time.monotonic() - self._written > _TABLE_S:
            self.close()
            self._written = time.monotonic()

    def _say(self, outcome: Outcome) -> None:
        slide_id, state, console = outcome.slide_id, outcome.state, self._console
        facts = {"tiles": outcome.tiles, "message": outcome.message, "trace": outcome.trace}
        seconds = {name: round(s, 3) for name, s in outcome.spent.items()}
        said = {key: value for key, value in facts.items() if value}
        console.event("slide", slide_id=slide_id, state=state, seconds=seconds, **said)
        if outcome.warning:
            console.warn(outcome.warning)
        if outcome.colour in _DAMAGED:
            console.warn(
                f"{slide_id}: {outcome.colour}: its tiles are left as scanned — "
                "copy it again from its source, or have its profile mended"
            )
        if state == "empty":
            console.warn(f"{slide_id} is empty: {outcome.message}")
        elif state == "done":
            console.detail(f"{slide_id}: {state}, {counted(outcome.tiles, 'tile')}")
        elif state != NeedsUpsamplingError.reason:  # the survey has named these
            console.warn(f"{slide_id}: {state}: {outcome.message}")

    def line(self) -> str:
        """Return the account of all slides; the parts add up to the whole."""
        parts = [f"{self.count(state)} {state}" for state in ("done", "empty", "quarantined")]
        if self.elsewhere:
            parts.append(f"{self.elsewhere} in progress elsewhere")
        return f"{counted(len(self._found), 'slide')}: {', '.join(parts)}"

    def time_line(self, seconds: float) -> str:
        """Return where the time went, in seconds of all readers and encoders together."""
        parts = [f"{name} {self.spent[name]:.1f}" for name in STAGES if self.spent[name] >= 0.05]
        return f"{seconds:.1f} s; seconds at work: {', '.join(parts)}" if parts else ""

    def result(self) -> dict[str, Any]:
        """Return the account for machines."""
        counts = {state: self.count(state) for state in ("done", "empty", "quarantined")}
        return {"total": len(self._found), **counts, "in_progress_elsewhere": self.elsewhere}


def allowed_quarantined(text: str, total: int) -> int:
    """Return how many quarantined slides `N` or `P%` allow.

    Raises:
        ConfigError: it is neither.
    """
    try:
        if text.endswith("%"):
            return int(float(text[:-1]) / 100 * total)
        return int(text)
    except ValueError:
        raise ConfigError(f"--allow-quarantined {text}: give a number, or a share as 5%") from None


def reasons_line(entries: Mapping[str, Entry]) -> str:
    """Return the quarantined slides by reason, a few of each named."""
    by_reason: dict[str, list[str]] = {}
    for entry in entries.values():
        by_reason.setdefault(entry.reason, []).append(entry.slide_id)
    parts = [f"{len(ids)} {reason} ({few(ids)})" for reason, ids in sorted(by_reason.items())]
    return "; ".join(parts)
