"""Experiment trackers beside the run folder: `--track tensorboard`, `mlflow`, `wandb`.

A tracker is a guest. It gets settings, figures of epochs and scores, all of them numbers or
settings: no id of a slide or a patient, no path. It is no part of a run's settings, and a tracker
that fails later on ends the tracking, not the training.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from pipelines.console import Console
from pipelines.live import METRICS, Tail
from pipelines.rundir import RunDir
from wsi.errors import ConfigError, WsiError
from wsi.files import publish_json
from wsi.specs import Config

_RECORD = "tracking.json"
_SENT = ("aggregator", "objective", "fit", "split", "data")
_FIGURES = ("train_loss", "val_loss", "monitor", "lr", "grad_norm", "seconds")

Row = Mapping[str, Any]


class RunTracker(Protocol):
    """What every tracker does; made with the run folder."""

    def begin(self, run: str, config: Mapping[str, Any], known: str | None) -> str:
        """Open the record of a run, and return its id.

        Args:
            run: name of the run.
            config: dotted key to value.
            known: id of the record that an earlier process made of this run.
        """
        ...

    def epoch(self, fold: int, seed: int, row: Mapping[str, float]) -> None:
        """Keep the figures of one epoch, `epoch` among them."""
        ...

    def end(self, metrics: Mapping[str, float] | None) -> None:
        """Keep the scores and close the record; without scores, the run was ended before."""
        ...


@contextmanager
def tracking(
    names: Sequence[str], run_dir: RunDir, config: Config, console: Console
) -> Iterator[Tracking]:
    """Yield what tells the named trackers of a run; they are closed at the end.

    Raises:
        ConfigError: a tracker's package is not installed, or it cannot begin.
    """
    told = Tracking(run_dir, console)
    for name in names:
        told.begin(name, made(name, run_dir.root), config)
    try:
        yield told
    finally:
        told.close()


def made(name: str, root: Path) -> RunTracker:
    """Return the tracker of a name.

    Raises:
        ConfigError: its package is not installed.
    """
    try:
        module = importlib.import_module(f"pipelines.trackers.{name}_tracker")
    except ImportError as error:
        raise ConfigError(
            f"--track {name} needs a package that is not installed ({error.name or error}) — "
            f"pip install 'wsi[{name}]', or leave --track out"
        ) from error
    return module.make(root)


class Tracking:
    """Tells trackers of a run, until they fail."""

    def __init__(self, run_dir: RunDir, console: Console) -> None:
        self._run_dir, self._console = run_dir, console
        self._path = run_dir.root / _RECORD
        self._trackers: dict[str, RunTracker] = {}

    def begin(self, name: str, tracker: RunTracker, config: Config) -> None:
        """Open the record of a tracker, and catch up with what it was not told yet.

        Raises:
            ConfigError: it cannot begin.
        """
        records = self._records()
        known = records.get(name)
        try:
            record = tracker.begin(self._run_dir.root.resolve().name, settings_of(config), known)
        except WsiError:
            raise
        except Exception as error:  # whatever a package, or the server it talks to, may raise
            raise ConfigError(f"--track {name} cannot begin: {_said(error)}") from error
        publish_json(self._path, records | {name: record})
        self._trackers[name] = tracker
        if record != known:
            for fold, seed, row in self._rows_so_far():
                self._tell(name, "epoch", fold, seed, row)

    def on_row(self, cell: Any, row: Row) -> None:
        """Tell of an epoch of a fit."""
        for name in list(self._trackers):
            self._tell(name, "epoch", cell.fold.index, cell.seed, figures_of(row))

    def scored(self, metrics: Mapping[str, Any]) -> None:
        """Tell of the scores: the end of the run."""
        self._end(scores_of(metrics))

    def close(self) -> None:
        """Close records that no score has closed."""
        self._end(None)

    def _end(self, scores: Mapping[str, float] | None) -> None:
        for name in list(self._trackers):
            self._tell(name, "end", scores)
        self._trackers = {}

    def _tell(self, name: str, what: str, *facts: Any) -> None:
        try:
            getattr(self._trackers[name], what)(*facts)
        except Exception as error:  # a server that is gone must not end hours of training
            self._trackers.pop(name)
            self._console.warn(f"--track {name} failed and is left out from here: {_said(error)}")

    def _records(self) -> dict[str, str]:
        try:
            return json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}

    def _rows_so_far(self) -> Iterator[tuple[int, int, dict[str, float]]]:
        for folder in self._run_dir.cells():
            fold, seed = folder.name.removeprefix("fold").split("-seed")
            for row in Tail(folder / METRICS).rows():
                yield int(fold), int(seed), figures_of(row)


def settings_of(config: Config) -> dict[str, Any]:
    """Return the settings of training by dotted key."""
    flat: dict[str, Any] = {}
    for name, value in config.model_dump(mode="json", include=set(_SENT)).items():
        flat |= _flattened(name, value)
    return flat


def _flattened(key: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {key: value}
    flat: dict[str, Any] = {}
    for inner, item in value.items():
        flat |= _flattened(f"{key}.{inner}", item)
    return flat


def figures_of(row: Row) -> dict[str, float]:
    """Return the numbers of an epoch by name: `epoch`, losses, monitor, `figures/accuracy`, ..."""
    known = {name: row[name] for name in _FIGURES if _is_number(row.get(name))}
    return {"epoch": row["epoch"], **known, **_numbers("figures", row.get("figures"))}


def _numbers(name: str, value: Any) -> dict[str, float]:
    if _is_number(value):
        return {name: value}
    items: Any = ()
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    found: dict[str, float] = {}
    for key, item in items:
        found |= _numbers(f"{name}/{key}", item)
    return found


def scores_of(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return the headline values of metrics.json by name; undefined ones are left out."""
    values = {k: v["value"] for k, v in metrics.items() if isinstance(v, Mapping) and "value" in v}
    return {name: value for name, value in values.items() if _is_number(value)}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _said(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
