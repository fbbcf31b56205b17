"""All folds and seeds of a run, side by side, with one progress over their epochs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import psutil

from pipelines.cells import Cell, finished, tidy, train_cell
from pipelines.console import Console, counted
from pipelines.fits import CACHE_BYTES, Material
from pipelines.watch import OnRow, Watch
from pipelines.workers import cores_shared, processes, why_broken
from wsi.bags.packing import packed_bytes
from wsi.specs import Config
from wsi.splits import Splits

_LOOK_S = 0.5  # how often the files of other processes are looked at
_PROCESS_BYTES = 700 << 20  # of memory, of a process that has loaded torch
_QUICK_S = 20.0  # work of less is done before further processes have started
_BAG_S, _NUMBER_S = 5e-3, 1e-7  # about what a step takes for each bag, and each number in it

Summary = dict[str, Any]


def jobs_for(config: Config, splits: Splits, material: Material, threads: int, device: str) -> int:
    """Return how many processes to train in: as many as cores, fits and memory are enough for.

    One on an accelerator, whose memory they would share, and for what takes but seconds.
    """
    fits = len(splits.folds) * len(config.fit.seeds)
    if device != "cpu":
        return 1
    infos = [material.store.info(bag_id) for bag_id in material.bag_ids.values()]
    size = packed_bytes(infos)
    numbers = sum(info.n for info in infos) * material.dim
    epochs = fits * config.fit.epochs
    if epochs * (len(infos) * _BAG_S + numbers * _NUMBER_S) < _QUICK_S:
        return 1
    # A packed cohort is mapped, and lies in memory once for all.
    each = _PROCESS_BYTES + (0 if material.packed else min(size, CACHE_BYTES))
    room = int(0.8 * psutil.virtual_memory().available // each)
    return max(1, min(cores_shared(threads), fits, room))


def train_cells(cells: Sequence[Cell], jobs: int, console: Console, on_row: OnRow) -> None:
    """Train every cell that is not done, `jobs` at a time.

    Args:
        on_row: told of every new epoch of a cell.
    """
    todo = [cell for cell in cells if finished(cell) is None]
    for cell in cells:
        tidy(cell, done=cell not in todo)
    if len(todo) < len(cells):
        console.say(f"{len(cells) - len(todo)} of {len(cells)} fits are done already")
    watch = Watch(todo, on_row)
    if watch.goes_on:
        console.say(f"{counted(watch.goes_on, 'fit')} may go on where it was ended")
    with console.progress("epochs", watch.left) as watch.track:
        for cell, summary in _results(todo, jobs, watch.poll):
            watch.ended(cell.name)
            _tell(cell, summary, console)


def _tell(cell: Cell, summary: Summary, console: Console) -> None:
    value = summary["monitor"]
    shown = "no validation part" if value is None else f"{value:.3f}"
    console.detail(
        f"{cell.name}: epoch {summary['best_epoch']}, validation {cell.config.fit.monitor} "
        f"{shown}, decided by {summary['rule']}"
    )
    for warning in summary["warnings"]:
        console.warn(f"{cell.name}: {warning}")


def _results(
    todo: Sequence[Cell], jobs: int, look: Callable[[], None]
) -> Iterator[tuple[Cell, Summary]]:
    if jobs <= 1 or len(todo) <= 1:
        yield from ((cell, train_cell(cell, look)) for cell in todo)
        return
    with processes(min(jobs, len(todo))) as pool:
        running = {pool.submit(train_cell, cell): cell for cell in todo}
        while running:
            done, _ = wait(running, _LOOK_S, FIRST_COMPLETED)
            look()
            for future in done:
                cell = running.pop(future)
                try:
                    yield cell, future.result()
                except BrokenProcessPool:
                    raise why_broken(
                        pool, "a training process", "finished epochs are kept"
                    ) from None
