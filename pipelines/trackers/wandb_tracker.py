"""Weights & Biases: one run; WANDB_MODE, WANDB_PROJECT (`wsi`) and the rest are its own.

With WANDB_MODE=offline nothing leaves the machine; `wandb sync` sends it later.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import wandb  # pyright: ignore[reportMissingImports]

_PROJECT = "wsi"


class WeightsAndBiases:
    """Logs settings, the figures of epochs and the scores, and neither output, code nor paths."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._run: Any = None
        self._defined: set[str] = set()

    def begin(self, run: str, config: Mapping[str, Any], known: str | None) -> str:
        """Open a new run, or the known one again."""
        # The command line, which holds paths, would be part of what is said of the machine.
        settings = wandb.Settings(
            console="off", disable_code=True, disable_git=True, x_disable_meta=True, silent=True
        )
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", _PROJECT),
            name=run,
            config=dict(config),
            dir=str(self._root),
            id=known,
            resume="allow",
            settings=settings,
        )
        return str(self._run.id)

    def epoch(self, fold: int, seed: int, row: Mapping[str, float]) -> None:
        """Log the figures of one epoch against the epoch of its own fold and seed."""
        fit = f"fold{fold}-seed{seed}"
        if fit not in self._defined:
            self._run.define_metric(f"{fit}/*", step_metric=f"{fit}/epoch")
            self._defined.add(fit)
        self._run.log({f"{fit}/{name}": value for name, value in row.items()})

    def end(self, metrics: Mapping[str, float] | None) -> None:
        """Keep the scores in the summary and close the run."""
        for name, value in (metrics or {}).items():
            self._run.summary[f"test/{name}"] = value
        self._run.finish(exit_code=1 if metrics is None else 0)


def make(root: Path) -> WeightsAndBiases:
    """Return the tracker of a run folder."""
    return WeightsAndBiases(root)
