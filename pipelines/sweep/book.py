"""The trials of a sweep, in a journal file that any number of processes write to.

Optuna keeps the journal and draws the values. Who works on a trial is told by claims, so that a
trial whose process was killed is taken up by the next one that looks for work.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState

from pipelines.sweep.space import Dimension, Scalar, Space, grid
from wsi.claims import Claim, Claims
from wsi.errors import ConfigError
from wsi.files import disk_errors
from wsi.specs import SweepSpec

NAME = "sweep"
JOURNAL = "sweep.journal"
REASON = "reason"
FITS = "fits"
_WAIT_S = 0.05
_STARTUP_TRIALS = 5  # before which none is pruned
_UNSTARTED = "stopped before it had values"

End = Literal["complete", "pruned", "failed"]
_STATES = {
    "complete": TrialState.COMPLETE,
    "pruned": TrialState.PRUNED,
    "failed": TrialState.FAIL,
}
_WORDS = {state: word for word, state in _STATES.items()} | {TrialState.RUNNING: "running"}


@dataclass(frozen=True)
class Taken:
    """A trial to be worked on, new or taken up."""

    number: int
    drawn: dict[str, Scalar]
    claim: Claim
    is_new: bool


class Book:
    """The trials of a sweep.

    Args:
        folder: where the journal lies.
        lower: whether a smaller validation figure is better.
        claims: of the folder of the sweep.
    """

    def __init__(
        self, folder: Path, spec: SweepSpec, space: Space, *, lower: bool, claims: Claims
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._spec = spec
        self._space = space
        self._claims = claims
        self._distributions = {one.key: distribution(one) for one in space}
        path = (folder / JOURNAL).resolve()
        with disk_errors(path), self._alone():
            self._storage = open_journal(path)
            self._study = optuna.create_study(
                storage=self._storage,
                study_name=NAME,
                direction="minimize" if lower else "maximize",
                load_if_exists=True,
                pruner=optuna.pruners.MedianPruner(n_startup_trials=_STARTUP_TRIALS),
            )
        self._id = self._storage.get_study_id_from_name(NAME)

    def trials(self) -> list[FrozenTrial]:
        """Return all trials that have values, as the journal has them now."""
        found = self._study.get_trials(deepcopy=False)
        return [trial for trial in found if self._has_values(trial)]

    def take(self, wanted: int) -> Taken | None:
        """Return a trial whose process has ended, or else a new one; None when all are taken.

        Args:
            wanted: how many trials there shall be.
        """
        with self._alone():
            trials = self._study.get_trials(deepcopy=False)
            for trial in trials:
                if trial.state is TrialState.RUNNING:
                    claim = self._claims.take(name_of(trial.number))
                    if claim is None:
                        continue
                    if self._has_values(trial):
                        return Taken(trial.number, dict(trial.params), claim, is_new=False)
                    self.end(trial.number, "failed", None, {REASON: _UNSTARTED})
                    claim.release()
            known = [trial for trial in trials if self._has_values(trial)]
            sampler = None if len(known) >= wanted else self._sampler(len(trials), known)
            return None if sampler is None else self._new(sampler)

    def _new(self, sampler: optuna.samplers.BaseSampler) -> Taken:
        self._study.sampler = sampler
        trial = self._study.ask(self._distributions)
        claim = self._claims.take(name_of(trial.number))
        if claim is None:  # nobody else looks for one while we are alone
            raise ConfigError(
                f"another process works on {name_of(trial.number)} of a journal that is gone — "
                "end it, or give another --out"
            )
        return Taken(trial.number, dict(trial.params), claim, is_new=True)

    def record(self, number: int, key: str, value: Any) -> None:
        """Write down something about a trial."""
        self._storage.set_trial_user_attr(self._trial_id(number), key, value)

    def fits(self, number: int) -> dict[str, Any]:
        """Return what was recorded of the fits of a trial, by fold and seed."""
        return dict(self._frozen(number).user_attrs.get(FITS, {}))

    def is_hopeless(self, number: int, step: int, value: float) -> bool:
        """Record the figure of the first `step` folds; return whether the trial should stop."""
        if step not in self._frozen(number).intermediate_values:
            self._storage.set_trial_intermediate_value(self._trial_id(number), step, value)
        return self._study.pruner.prune(self._study, self._frozen(number))

    def end(self, number: int, state: End, value: float | None, facts: Mapping[str, Any]) -> None:
        """Write down how a trial ended; a trial that another process has ended stays as it is."""
        with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
            for key, fact in facts.items():
                self.record(number, key, fact)
            self._study.tell(
                number,
                value if state == "complete" else None,
                state=_STATES[state],
                skip_if_finished=True,
            )

    def _sampler(
        self, number: int, known: Sequence[FrozenTrial]
    ) -> optuna.samplers.BaseSampler | None:
        """Return what draws the next trial; None when the grid is exhausted.

        A fresh one each time, seeded by the number of the trial: a rerun, or another machine,
        goes on where this process would have, and never draws the same again.
        """
        if self._spec.sampler == "grid":
            tried = [trial.params for trial in known]
            left = next((values for values in grid(self._space) if values not in tried), None)
            return None if left is None else _Given(left)
        seed = int(np.random.SeedSequence([self._spec.seed, number]).generate_state(1)[0])
        if self._spec.sampler == "random":
            return optuna.samplers.RandomSampler(seed)
        return optuna.samplers.TPESampler(seed=seed)

    def _has_values(self, trial: FrozenTrial) -> bool:
        return set(trial.params) == set(self._distributions)

    def _frozen(self, number: int) -> FrozenTrial:
        return self._storage.get_trial(self._trial_id(number))

    def _trial_id(self, number: int) -> int:
        return self._storage.get_trial_id_from_study_id_trial_number(self._id, number)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Wait until no other process takes a trial."""
        claim = self._claims.take(NAME)
        while claim is None:
            time.sleep(_WAIT_S)
            claim = self._claims.take(NAME)
        try:
            yield
        finally:
            claim.release()


class _Given(optuna.samplers.BaseSampler):
    """Draws what it was given."""

    def __init__(self, values: Mapping[str, Scalar]) -> None:
        self._values = values

    def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(self, study: Any, trial: Any, search_space: Any) -> dict[str, Any]:
        return {}

    def sample_independent(
        self, study: Any, trial: Any, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._values[param_name]


def name_of(number: int) -> str:
    """Return the name of a trial, which is also that of its folder."""
    return f"trial-{number:04d}"


def word_of(trial: FrozenTrial) -> str:
    """Return what became of a trial: complete, pruned, failed or running."""
    return _WORDS[trial.state]


def distribution(one: Dimension) -> BaseDistribution:
    """Return a dimension as Optuna has it."""
    if one.range is None:
        return CategoricalDistribution(list(one.choices))
    low, high, log, step = one.range.low, one.range.high, one.range.log, one.range.step
    if one.range.int:
        return IntDistribution(round(low), round(high), log=log, step=round(step or 1))
    return FloatDistribution(low, high, log=log, step=step)


def open_journal(path: Path) -> JournalStorage:
    """Return the journal at `path`, made when there is none.

    A last line that a machine wrote when it lost its power is cut off: it never happened.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = JournalFileOpenLock(str(path))
    backend = JournalFileBackend(str(path), lock)
    lock.acquire()
    try:
        data = path.read_bytes()
        if not data.endswith(b"\n") and data:
            with path.open("rb+") as handle:
                handle.truncate(data.rfind(b"\n") + 1)
    finally:
        lock.release()
    return JournalStorage(backend)
