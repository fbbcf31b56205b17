"""How far all fits of a run are: epochs done and to come, counted from the files of the fits.

Fits run in this process or in others; either way their rows are read from `metrics.jsonl`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from pipelines.console import Tracker
from pipelines.live import METRICS, Tail


class Watched(Protocol):
    """A fit to watch."""

    @property
    def name(self) -> str: ...
    @property
    def folder(self) -> Path: ...
    @property
    def epochs(self) -> int: ...


OnRow = Callable[[Any, Mapping[str, Any]], None]
"""Told of every new row of a fit."""


class Watch:
    """Counts the epochs of several fits.

    Fits that go on are counted from where they are. A fit that stops early takes what it leaves
    out off the rest, and those to come are expected to be as long as those that are done.

    Args:
        fits: all that are to be done.
        on_row: called with each row that comes.
    """

    def __init__(self, fits: Sequence[Watched], on_row: OnRow) -> None:
        self._epochs = {fit.name: fit.epochs for fit in fits}
        self._fits = {fit.name: fit for fit in fits}
        self._tails = {fit.name: Tail(fit.folder / METRICS) for fit in fits}
        self._seen = {name: self._rows_now(name) for name in self._fits}
        self._given = sum(self._seen.values())
        self._lengths: list[int] = []
        self._on_row = on_row
        self.track: Tracker | None = None

    @property
    def left(self) -> int:
        """Return the epochs to come, as far as one can tell."""
        return sum(max(0, self._expected(name) - self._seen[name]) for name in self._tails)

    @property
    def goes_on(self) -> int:
        """Return how many fits had begun before."""
        return sum(seen > 0 for seen in self._seen.values())

    def poll(self) -> None:
        """Look for new rows of all fits that are not done."""
        for name in list(self._tails):
            self._look(name)

    def ended(self, name: str) -> None:
        """Count the last rows of a fit that is done."""
        self._look(name)
        del self._tails[name]
        self._lengths.append(self._seen[name])
        self._correct()

    def _look(self, name: str) -> None:
        for row in self._tails[name].rows():
            if row["epoch"] >= self._seen[name]:  # else it is done again, after a kill
                self._seen[name] = row["epoch"] + 1
                self._on_row(self._fits[name], row)
                if self.track is not None:
                    self.track.advance(1, f"{name}, epoch {row['epoch']}")

    def _correct(self) -> None:
        if self.track is not None:
            done = sum(self._seen.values()) - self._given
            self.track.expect(done + self.left)

    def _expected(self, name: str) -> int:
        """Return how long a fit will be: the mean of those done, unless it is longer already."""
        if not self._lengths:
            return self._epochs[name]
        mean = round(sum(self._lengths) / len(self._lengths))
        return mean if mean > self._seen[name] else self._epochs[name]

    def _rows_now(self, name: str) -> int:
        return sum(1 for _ in self._tails[name].rows())
