"""`metrics.jsonl` while a fit runs: written row by row, and read by whoever wants to watch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from wsi.files import disk_errors, publish_bytes

METRICS = "metrics.jsonl"

Row = dict[str, Any]


def history_lines(history: Iterable[Mapping[str, Any]]) -> bytes:
    """Return the rows of a history, one JSON object a line."""
    return "".join(json.dumps(row, allow_nan=False) + "\n" for row in history).encode()


class LiveRows:
    """Appends the rows of a fit as they come; a row is there as a whole line, or not yet."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._begun = False

    def add(self, row: Mapping[str, Any]) -> None:
        """Append a row; before the first one, drop what an ended fit wrote beyond it."""
        if not self._begun:
            kept = [old for old in Tail(self._path).rows() if old["epoch"] < row["epoch"]]
            publish_bytes(self._path, history_lines(kept))
            self._begun = True
        with disk_errors(self._path), self._path.open("ab", buffering=0) as file:
            file.write(history_lines([row]))


class Tail:
    """Reads the rows of a growing file, each once; begins anew when the file was replaced."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file, self._read = 0, 0

    def rows(self) -> Iterator[Row]:
        """Yield the rows that were not read before; a line that is still being written waits."""
        try:
            with self._path.open("rb") as handle:
                yield from self._new(handle)
        except FileNotFoundError:
            return

    def _new(self, handle: Any) -> Iterator[Row]:
        number = self._path.stat().st_ino
        if number != self._file or self._path.stat().st_size < self._read:
            self._file, self._read = number, 0
        handle.seek(self._read)
        for line in handle:
            if not line.endswith(b"\n"):
                return
            try:
                row = json.loads(line)
            except ValueError:
                return  # cut off as its writer was killed; no row follows it
            self._read += len(line)
            yield row
