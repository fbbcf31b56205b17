"""The logs of an output folder: one per process, since appending to one file is not safe."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wsi.files import inside
from wsi.processes import current_process

FOLDER = "log"


def process_log(out: Path) -> Path:
    """Return where this process keeps its log below `out`; `.jsonl` beside it is for machines.

    Raises:
        ConfigError: a link leads the folder of logs out of `out`.
    """
    process = current_process()
    inside(out, out / FOLDER)
    return out / FOLDER / f"{process.host}-{process.pid}-{process.started}.log"


def events(out: Path) -> Iterator[dict[str, Any]]:
    """Yield all that any process has logged for machines, in order of time.

    A line that was cut off when its process was killed is passed over.
    """
    lines = [line for path in sorted((out / FOLDER).glob("*.jsonl")) for line in _lines(path)]
    yield from sorted(lines, key=lambda entry: str(entry.get("time", "")))


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict):
            yield {**entry, "process": path.stem}
