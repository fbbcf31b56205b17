"""What the program says: people on stderr, results on stdout, a log for later."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console as RichConsole
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from wsi.findings import counted as counted

_PULSE_S = 15.0  # where there is no terminal, progress is a line now and then


@dataclass
class Console:
    """Talks to people (stderr) and scripts (stdout).

    Attributes:
        json: print one JSON document on stdout in place of tables.
        quiet: say only what went wrong.
        hushed: only keep the log; for work that is part of something larger.
        log: file that keeps every line said, with times; `.jsonl` beside it has them for machines.
    """

    json: bool = False
    quiet: bool = False
    verbose: bool = False
    hushed: bool = False
    log: Path | None = None
    _people: RichConsole = field(
        default_factory=lambda: RichConsole(stderr=True, highlight=False, soft_wrap=True)
    )

    def say(self, text: str) -> None:
        """Say something to people, unless they asked for quiet."""
        self._keep("info", text)
        if not (self.quiet or self.hushed):
            self._people.print(text, markup=False)

    def warn(self, text: str) -> None:
        """Say something that must not be missed."""
        self._keep("warning", text)
        if not self.hushed:
            self._people.print(f"warning: {text}", style="yellow", markup=False)

    def detail(self, text: str) -> None:
        """Say something only the curious want to read."""
        self._keep("detail", text)
        if self.verbose and not (self.quiet or self.hushed):
            self._people.print(text, style="dim", markup=False)

    def event(self, kind: str, **facts: Any) -> None:
        """Keep something for machines in the log: what happened, to which slide."""
        self._write({"level": "event", "event": kind, **facts})

    def result(self, value: Any) -> None:
        """Print a JSON document on stdout when asked for JSON."""
        if self.json and not self.hushed:
            print(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False, default=str))

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[Any]], title: str = "") -> None:
        """Print a table on stdout, unless JSON was asked for.

        On a terminal it is drawn; into a pipe go tab-separated lines that scripts can cut.
        """
        if self.json or self.hushed:
            return
        if not sys.stdout.isatty():
            print("\t".join(columns))
            for row in rows:
                print("\t".join(str(cell) for cell in row))
            return
        table = Table(*columns, title=title or None, title_justify="left")
        for row in rows:
            table.add_row(*(str(cell) for cell in row))
        RichConsole(highlight=False).print(table)

    @contextmanager
    def progress(self, what: str, total: int) -> Iterator[Tracker]:
        """Track `total` steps with a bar and an ETA; a line now and then where no terminal is."""
        if self._people.is_terminal and not (self.quiet or self.hushed):
            with _bar(self._people) as bar:
                task, pace = bar.add_task(what, total=total, left=""), Pace(total)

                def update(n: int, text: str, total: int | None) -> None:
                    pace.step(n, total)
                    bar.update(
                        task, advance=n, description=text or what, total=total, left=pace.left
                    )

                yield Tracker(update)
        else:
            yield Tracker(_Pulse(self, what, total))

    def failed(self, code: str, text: str) -> None:
        """Keep an error in the log; the command line itself prints it."""
        if self.log is not None and self.log.is_file():  # else nothing has begun
            self._keep("error", f"[{code}] {text}")

    def _keep(self, level: str, text: str) -> None:
        if self.log is None:
            return
        self.log.parent.mkdir(parents=True, exist_ok=True)
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        line = _without_home(text if level in ("info", "detail") else f"{level}: {text}")
        with self.log.open("a", encoding="utf-8") as handle:
            handle.write(f"{now} {line}\n")
        self._write({"level": level, "text": text})

    def _write(self, entry: dict[str, Any]) -> None:
        if self.log is None:
            return
        self.log.parent.mkdir(parents=True, exist_ok=True)
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        line = json.dumps({"time": now, **entry}, ensure_ascii=False, default=str)
        with self.log.with_suffix(".jsonl").open("a", encoding="utf-8") as handle:
            handle.write(_without_home(line) + "\n")


def _without_home(line: str) -> str:
    """Return a line for logs, which travel: whose machine it was is nobody's business."""
    home = str(Path.home())
    return line.replace(home + os.sep, f"~{os.sep}") if home != os.sep else line


def _bar(console: RichConsole) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
        console=console,
        transient=True,
    )


class Tracker:
    """Counts steps of long work."""

    def __init__(self, update: Any) -> None:
        self._update = update

    def advance(self, n: int = 1, text: str = "") -> None:
        """Count `n` more steps, optionally renaming what is being done."""
        self._update(n, text, None)

    def expect(self, total: int) -> None:
        """Correct the number of steps there will be."""
        self._update(0, "", total)


class Pace:
    """How long the rest of long work takes, by the mean pace since its first step was done.

    What comes before the first step, such as loading libraries, is no part of the pace.
    """

    def __init__(self, total: int) -> None:
        self.done, self.total = 0, total
        self._first: tuple[int, float] | None = None

    def step(self, n: int, total: int | None) -> None:
        """Count `n` more steps, of `total` when that was corrected."""
        self.done += n
        self.total = self.total if total is None else total
        if self._first is None and self.done:
            self._first = self.done, time.monotonic()

    @property
    def left(self) -> str:
        """Return `about 12 min left`; nothing while there is no telling."""
        if self._first is None or self.done <= self._first[0] or self.done >= self.total:
            return ""
        each = (time.monotonic() - self._first[1]) / (self.done - self._first[0])
        return f"about {_spoken(each * (self.total - self.done))} left"


def _spoken(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


class _Pulse:
    def __init__(self, console: Console, what: str, total: int) -> None:
        self._console, self._what, self._pace = console, what, Pace(total)
        self._last = time.monotonic()

    def __call__(self, n: int, text: str, total: int | None) -> None:
        pace = self._pace
        pace.step(n, total)
        now = time.monotonic()
        if now - self._last >= _PULSE_S and pace.done:
            self._last = now
            words = f"{text or self._what}: {pace.done}/{pace.total}"
            self._console.say(f"{words}, {pace.left}" if pace.left else words)
