"""Trials at work: fits handed out, results written down, until there are as many as asked for."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field

import numpy as np

from pipelines.cells import Cell
from pipelines.console import Console, counted
from pipelines.sweep.book import FITS, REASON, Book, End, Taken, name_of, word_of
from pipelines.sweep.fitting import Figures, Pool, fit
from pipelines.sweep.folder import SweepDir
from pipelines.sweep.plan import Plan
from pipelines.sweep.space import shown
from pipelines.train import unlabelled_predictions
from pipelines.workers import why_broken
from wsi.claims import Claim
from wsi.errors import ConfigError
from wsi.evaluation import write_predictions

_LOOK_S = 0.3  # how often others' trials are looked at


@dataclass
class Trial:
    """A trial that this process works on.

    Attributes:
        figures: of its fits that are done, by name of their folder.
        ended: whether it is over, though fits of it may still be at work.
    """

    number: int
    claim: Claim
    cells: list[Cell]
    pending: deque[Cell]
    figures: dict[str, Figures]
    ended: bool = False

    @property
    def name(self) -> str:
        """Return the name of its folder."""
        return name_of(self.number)


@dataclass
class Sharing:
    """The trials of a sweep, taken one by one, so that no two processes work on the same.

    Fits of a trial go side by side; the next trial begins when there are more processes.

    Attributes:
        after: called after each fit that was made here, with its seconds and the fits left.
    """

    plan: Plan
    book: Book
    pool: Pool
    jobs: int
    console: Console
    after: Callable[[float, int], None]
    _trials: list[Trial] = field(default_factory=list)
    _at_work: dict[Future[Figures], tuple[Trial, Cell]] = field(default_factory=dict)

    def complete(self) -> None:
        """Work until every trial asked for has ended, here or elsewhere.

        Raises:
            WsiError: a process was killed, or ended by itself.
        """
        over = self._over()
        if over:
            self.console.say(f"{over} of {self.plan.trials} trials are done already")
        with self.console.progress("trials", self.plan.trials - over) as track:
            while over < self.plan.trials or self._at_work:
                self._give()
                if self._at_work:
                    self._take()
                else:
                    time.sleep(_LOOK_S)
                now = self._over()
                track.advance(now - over, "")
                over = now

    def _over(self) -> int:
        """Return how many of the trials that were asked for have ended."""
        asked = self.book.trials()[: self.plan.trials]
        return sum(word_of(trial) != "running" for trial in asked)

    # -- giving -------------------------------------------------------------------------------

    def _give(self) -> None:
        """Keep every process busy, as far as there are fits to be made."""
        while len(self._at_work) < self.jobs:
            found = self._next()
            if found is None:
                return
            trial, cell = found
            self._at_work[self.pool.submit(fit, cell)] = (trial, cell)

    def _next(self) -> tuple[Trial, Cell] | None:
        for trial in self._trials:
            if trial.pending:
                return trial, trial.pending.popleft()
        while taken := self.book.take(self.plan.trials):
            trial = self._begun(taken)
            if trial is not None:
                self._trials.append(trial)
                return trial, trial.pending.popleft()
        return None

    def _begun(self, taken: Taken) -> Trial | None:
        """Return a trial with the fits it lacks; None where its values do not go together."""
        told = ", ".join(f"{key}={shown(value)}" for key, value in taken.drawn.items())
        name = name_of(taken.number)
        self.console.detail(f"{name}: {'' if taken.is_new else 'taken up, '}{told}")
        try:
            config = self.plan.settings(taken.drawn)
        except ConfigError as error:
            self.book.end(taken.number, "failed", None, {REASON: str(error)})
            taken.claim.release()
            return None
        cells = self.plan.cells(taken.number, config)
        # Fits that were done before come back at once from their folders.
        return Trial(taken.number, taken.claim, cells, deque(cells), {})

    # -- taking -------------------------------------------------------------------------------

    def _take(self) -> None:
        done, _ = wait(self._at_work, return_when=FIRST_COMPLETED)
        for future in done:
            trial, cell = self._at_work.pop(future)
            try:
                figures = future.result()
            except BrokenProcessPool:
                raise why_broken(self.pool, "a fitting process", "finished fits are kept") from None
            if not trial.ended:
                self._note(trial, cell, figures)
            self.after(figures["seconds"], self._left())

    def _left(self) -> int:
        """Return the fits still to be made, here or elsewhere."""
        begun = sum(len(trial.figures) for trial in self._trials)
        return (self.plan.trials - self._over()) * self.plan.fits_each - begun

    def _note(self, trial: Trial, cell: Cell, figures: Figures) -> None:
        trial.figures[cell.folder.name] = figures
        if figures["failed"]:
            self._end(trial, "failed", f"{cell.folder.name}: {figures['failed']}")
        elif len(trial.figures) == len(trial.cells):
            self._end(trial, "complete", None)
        elif self.plan.config.sweep.prune and self._is_hopeless(trial):
            n = len(_whole_folds(trial))
            told = f"below the median of other trials after {counted(n, 'fold')}"
            self._end(trial, "pruned", told)

    def _is_hopeless(self, trial: Trial) -> bool:
        """Tell the book of the first folds that are done, and ask whether to go on."""
        folds = _whole_folds(trial)
        return bool(folds) and self.book.is_hopeless(
            trial.number, len(folds), float(np.mean(folds))
        )

    def _end(self, trial: Trial, state: End, reason: str | None) -> None:
        """Write down how a trial ended, unless another process took it over in the meantime."""
        trial.ended = True
        trial.pending.clear()
        self._trials.remove(trial)
        value = None
        if state == "complete":
            value = mean_of(trial.figures)
            run = SweepDir(self.plan.options.out).run(trial.name)
            # Test labels stay away from trials: who sees their figures would choose by them.
            write_predictions(
                unlabelled_predictions(trial.cells, self.plan.material), run.predictions
            )
        facts = {FITS: trial.figures} | ({REASON: reason} if reason else {})
        if trial.claim.is_live():
            self.book.end(trial.number, state, value, facts)
        trial.claim.release()
        shown_value = "" if value is None else f" validation {value:.4f}"
        self.console.detail(f"{trial.name}: {state}{shown_value}{f', {reason}' if reason else ''}")


def mean_of(figures: dict[str, Figures]) -> float:
    """Return the mean validation figure over folds and seeds, in the order of their names."""
    return float(np.mean([figures[name]["monitor"] for name in sorted(figures)]))


def _whole_folds(trial: Trial) -> list[float]:
    """Return the mean over seeds of each of the first folds that are done."""
    folds: list[float] = []
    for index in dict.fromkeys(cell.fold.index for cell in trial.cells):
        names = [cell.folder.name for cell in trial.cells if cell.fold.index == index]
        if any(name not in trial.figures for name in names):
            break
        folds.append(float(np.mean([trial.figures[name]["monitor"] for name in names])))
    return folds
