"""One fit of a trial, in this process or in one of a pool; bags are read once and kept."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipelines.cells import Cell, finished, train_cell
from pipelines.fits import reader
from pipelines.workers import processes
from wsi.bags import open_store
from wsi.errors import ConfigError, TrainingError

Figures = dict[str, Any]
"""Of one fit: failed; monitor, nll, macro_f1 on validation; best_epoch, seconds."""

_readers: dict[Path, Callable[[str], Any]] = {}


def fit(cell: Cell) -> Figures:
    """Train one fold and seed of a trial, unless that was done, and return its figures.

    Values that diverge, or that do not go together, are a finding about them.
    """
    started = time.perf_counter()
    done = finished(cell)
    seconds = _epoch_seconds(cell.folder) if done else None
    if done is None or "validation" not in done:
        try:
            done = train_cell(cell, read=_reader(cell))
        except (TrainingError, ConfigError) as error:
            return {"failed": str(error), "seconds": _since(started)}
        seconds = _since(started)
    figures = done["validation"] | {"best_epoch": done["best_epoch"], "seconds": seconds}
    if figures["monitor"] is None:
        watched = cell.config.fit.monitor
        return figures | {"failed": f"validation {watched} is undefined in fold {cell.fold.name}"}
    return figures | {"failed": None}


def _reader(cell: Cell) -> Callable[[str], Any]:
    if cell.bags not in _readers:
        _readers[cell.bags] = reader(open_store(cell.bags), cell.bag_ids, cell.packed)
    return _readers[cell.bags]


def _since(started: float) -> float:
    return round(time.perf_counter() - started, 4)


def _epoch_seconds(folder: Path) -> float:
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return round(sum(json.loads(line)["seconds"] for line in lines), 4)


class _Here:
    """Fits in this process, behind the face of a pool."""

    def submit(self, _: Any, cell: Cell) -> Future[Figures]:
        future: Future[Figures] = Future()
        future.set_result(fit(cell))
        return future


Pool = ProcessPoolExecutor | _Here


@contextmanager
def benches(jobs: int, device: str) -> Iterator[Pool]:
    """Yield what fits: this process, or a pool of `jobs`, each of one thread."""
    _readers.clear()
    if jobs <= 1:
        yield _Here()
        return
    with processes(jobs, _begin, (device,)) as pool:
        yield pool


def _begin(device: str) -> None:
    if device == "cpu":
        # Every step of an optimiser asks for accelerators, which takes a tenth of a small fit.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    import wsi.training.loop  # noqa: F401  # paid for once, not by the first fit
