"""The fits of a study: made once each, by any number of processes that share an output folder."""

from __future__ import annotations

import json
import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipelines.console import Console, Tracker
from pipelines.fits import Parts, as_csv, fitted, probability_table, reader
from pipelines.live import history_lines
from pipelines.study.plan import CellId, Plan
from pipelines.validation import validation_figures
from pipelines.workers import processes, why_broken
from wsi.bags import open_store
from wsi.claims import Claim, Claims
from wsi.errors import TrainingError
from wsi.files import publish_bytes, publish_json

DONE = "done.json"
PREDICTIONS = "predictions.csv"
_HISTORY = "metrics.jsonl"
_MODEL = "model.safetensors"
_LOOK_S = 0.3  # how often others' cells are looked at

Summary = dict[str, Any]
"""What done.json says of a fit: key, monitor, nll, macro_f1, best_epoch, seconds, or failed."""


def summary_of(plan: Plan, cell: CellId) -> Summary | None:
    """Return what a finished fit says of itself; None where there is none of these settings."""
    try:
        found = json.loads((plan.folder(cell) / DONE).read_text(encoding="utf-8"))
        whole = found["failed"] or (plan.folder(cell) / PREDICTIONS).is_file()
        return found if whole and found["key"] == plan.key(cell) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def summaries(plan: Plan, cells: Sequence[CellId]) -> dict[CellId, Summary]:
    """Return what the finished ones of `cells` say of themselves."""
    found = ((cell, summary_of(plan, cell)) for cell in cells)
    return {cell: summary for cell, summary in found if summary is not None}


# -- one fit ---------------------------------------------------------------------------------------


@dataclass
class Bench:
    """A process that fits: bags are read once, and kept."""

    plan: Plan

    @cached_property
    def _read(self) -> Any:
        import torch

        torch.set_num_threads(1)  # the same sums whoever fits, and cores are shared by processes
        return reader(open_store(self.plan.bags), self.plan.bag_ids, self.plan.packed)

    def fit(self, cell: CellId, *, keep: bool = True) -> Summary:
        """Fit one cell, write its folder, `done.json` last, and return what that says.

        A fit that diverges is a finding about its rate, and is written down like any other.
        """
        started = time.perf_counter()
        plan, folder = self.plan, self.plan.folder(cell)
        summary: Summary = {"key": plan.key(cell), "failed": None}
        try:
            made = self._made(cell)
        except TrainingError as error:
            summary["failed"] = str(error)
        else:
            summary |= made.summary
            if keep:
                self._write(folder, made)
        summary["seconds"] = round(time.perf_counter() - started, 4)
        if keep:
            publish_json(folder / DONE, summary)
        return summary

    def _made(self, cell: CellId) -> _Made:
        from wsi.training.predict import predict

        plan, config, fold = self.plan, self.plan.config(cell), self.plan.fold(cell)
        learnt = {slide_id: plan.labels[slide_id] for slide_id in (*fold.train, *fold.val)}
        parts = Parts.of(fold, learnt, self._read, config)
        model, result = fitted(config, parts, plan.dim, cell.seed, plan.device)
        classes = config.data.classes or ()
        val, test = (predict(model, part, plan.device) for part in (parts.val, parts.test) if part)
        y = np.array([learnt[slide_id] for slide_id in val.slide_ids])
        summary = {
            "best_epoch": result.best_epoch,
            "predicts_prior": model.objective.predicts_prior,
            **validation_figures(config.fit.monitor, y, val.probabilities),
            "fit_seconds": round(sum(row["seconds"] for row in result.history), 4),
        }
        tables = {"val": probability_table(val, classes), "test": probability_table(test, classes)}
        table = pd.concat([t.assign(part=part) for part, t in tables.items()], ignore_index=True)
        history = history_lines(result.history)
        return _Made(summary, table, history, model, result, config.fit.monitor)

    def _write(self, folder: Path, made: _Made) -> None:
        publish_bytes(folder / _HISTORY, made.history)
        publish_bytes(folder / PREDICTIONS, as_csv(made.table))
        if self.plan.keep_models:
            from wsi.training import save
            from wsi.training.checkpoint import Origin

            result, monitor = made.result, made.monitor
            origin = Origin(self.plan.recipe_key, result.best_epoch, monitor, result.monitor)
            save(folder / _MODEL, made.model, origin)


@dataclass(frozen=True)
class _Made:
    summary: Summary
    table: pd.DataFrame
    history: bytes
    model: Any
    result: Any
    monitor: str


# -- processes -------------------------------------------------------------------------------------

_bench: Bench | None = None


def _begin(plan: Plan) -> None:
    """Prepare a process: import what fits need."""
    global _bench
    _bench = Bench(plan)
    if plan.device == "cpu":
        # Every step of an optimiser asks for accelerators, which takes a tenth of a small fit.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    import wsi.training.loop  # noqa: F401  # paid for once, not by the first fit


def _fit(cell: CellId) -> Summary:
    if _bench is None:
        raise RuntimeError("the process was not prepared")
    return _bench.fit(cell)


class _Here:
    """Fits in this process, behind the face of a pool."""

    def __init__(self, plan: Plan) -> None:
        self._bench = Bench(plan)

    def submit(self, _: Any, cell: CellId) -> Future[Summary]:
        future: Future[Summary] = Future()
        future.set_result(self._bench.fit(cell))
        return future


@contextmanager
def benches(plan: Plan, jobs: int) -> Iterator[ProcessPoolExecutor | _Here]:
    """Yield what fits cells: this process, or a pool of `jobs`, each of one thread."""
    if jobs <= 1:
        yield _Here(plan)
        return
    with processes(jobs, _begin, (plan,)) as pool:
        yield pool


# -- sharing ---------------------------------------------------------------------------------------


@dataclass
class Sharing:
    """The cells of a stage, claimed one by one, so that no two processes fit the same.

    Attributes:
        made: how many this command has fitted.
    """

    plan: Plan
    claims: Claims
    pool: ProcessPoolExecutor | _Here
    jobs: int
    console: Console
    made: int = 0
    _at_work: dict[Future[Summary], tuple[CellId, Claim]] = field(default_factory=dict)

    def complete(self, cells: Sequence[CellId], what: str) -> dict[CellId, Summary]:
        """Return what all `cells` say of themselves, once each has been fitted by somebody.

        Raises:
            WsiError: a process was killed, or ended by itself.
        """
        found = summaries(self.plan, cells)
        todo = deque(cell for cell in cells if cell not in found)
        if found:
            self.console.say(f"{what}: {len(found)} of {len(cells)} fits are done already")
        others: deque[CellId] = deque()
        with self.console.progress(what, len(todo)) as track:
            while todo or others or self._at_work:
                self._give(todo, others, found, track)
                if self._at_work:
                    self._take(found, track)
                elif others and not todo:
                    time.sleep(_LOOK_S)
                    todo, others = others, deque()
        return found

    def _give(
        self,
        todo: deque[CellId],
        others: deque[CellId],
        found: dict[CellId, Summary],
        track: Tracker,
    ) -> None:
        """Keep every process busy, and one cell waiting, as far as cells can be claimed."""
        most = self.jobs + (self.jobs > 1)
        while todo and len(self._at_work) < most:
            cell = todo.popleft()
            claim = None if self._is_found(cell, found, track) else self.claims.take(cell.name)
            if cell in found:
                continue
            if claim is None:
                others.append(cell)
            elif self._is_found(cell, found, track):  # done by who held it before
                claim.release()
            else:
                self._at_work[self.pool.submit(_fit, cell)] = (cell, claim)

    def _is_found(self, cell: CellId, found: dict[CellId, Summary], track: Tracker) -> bool:
        summary = summary_of(self.plan, cell)
        if summary is None:
            return False
        found[cell] = summary
        track.advance(1, "")
        return True

    def _take(self, found: dict[CellId, Summary], track: Tracker) -> None:
        done, _ = wait(self._at_work, return_when=FIRST_COMPLETED)
        for future in done:
            cell, claim = self._at_work.pop(future)
            try:
                found[cell] = future.result()
            except BrokenProcessPool:
                raise why_broken(self.pool, "a fitting process", "finished fits are kept") from None
            finally:
                claim.release()
            self.made += 1
            track.advance(1, "")
            self._tell(cell, found[cell])

    def _tell(self, cell: CellId, summary: Summary) -> None:
        if summary["failed"]:
            self.console.detail(f"{cell.name}: failed: {summary['failed']}")
        else:
            self.console.detail(f"{cell.name}: validation {summary['monitor']:.3f}")
