"""MLflow: one run; figures are named fold0-seed0/val_loss and so on.

Where to is MLflow's own business: MLFLOW_TRACKING_URI, and MLFLOW_EXPERIMENT_NAME (`wsi`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow.entities import Metric, Param  # pyright: ignore[reportMissingImports]
from mlflow.tracking import MlflowClient  # pyright: ignore[reportMissingImports]

_LONGEST = 500  # characters of a parameter that every server takes
_EXPERIMENT = "wsi"


class MLflow:
    """Logs parameters, the figures of epochs and the scores."""

    def __init__(self) -> None:
        self._client = MlflowClient()
        self._run = ""

    def begin(self, run: str, config: Mapping[str, Any], known: str | None) -> str:
        """Open a new run, or the known one again where it is still there."""
        if known is not None and self._opened(known):
            return known
        made = self._client.create_run(self._experiment(), run_name=run)
        self._run = made.info.run_id
        params = [Param(key, str(value)[:_LONGEST]) for key, value in config.items()]
        self._client.log_batch(self._run, params=params)
        return self._run

    def epoch(self, fold: int, seed: int, row: Mapping[str, float]) -> None:
        """Log all figures of one epoch in one request."""
        now, step = int(time.time() * 1000), int(row["epoch"])
        figures = {k: v for k, v in row.items() if k != "epoch"}
        self._client.log_batch(
            self._run,
            [Metric(f"fold{fold}-seed{seed}/{k}", v, now, step) for k, v in figures.items()],
        )

    def end(self, metrics: Mapping[str, float] | None) -> None:
        """Log the scores and say how the run ended."""
        now = int(time.time() * 1000)
        scores = [Metric(f"test/{name}", value, now, 0) for name, value in (metrics or {}).items()]
        self._client.log_batch(self._run, scores)
        self._client.set_terminated(self._run, "KILLED" if metrics is None else "FINISHED")

    def _opened(self, known: str) -> bool:
        from mlflow.exceptions import MlflowException  # pyright: ignore[reportMissingImports]

        try:
            self._client.update_run(known, "RUNNING")
        except MlflowException:
            return False
        self._run = known
        return True

    def _experiment(self) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", _EXPERIMENT)
        found = self._client.get_experiment_by_name(name)
        return found.experiment_id if found else self._client.create_experiment(name)


def make(root: Path) -> MLflow:
    """Return the tracker of a run folder."""
    return MLflow()
