"""What all trials of a sweep have in common, and the fits of one of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pipelines.config
from pipelines.cells import Cell
from pipelines.fits import Material
from pipelines.sweep.book import name_of
from pipelines.sweep.folder import SweepDir
from pipelines.sweep.space import Scalar, Space, grid, trial_config
from pipelines.train import Options, cell_of
from wsi.errors import CohortError, ConfigError
from wsi.specs import Config
from wsi.splits import Splits, write_splits

DEFAULT_TRIALS = 30


@dataclass(frozen=True)
class Plan:
    """A sweep: its settings, what it searches, and what every trial is trained and judged on.

    Attributes:
        trials: how many there shall be.
        inputs: what every run was made from, as its folder records it.
    """

    config: Config
    space: Space
    trials: int
    material: Material
    splits: Splits
    inputs: Mapping[str, Any]
    options: Options

    @property
    def fits_each(self) -> int:
        """Return the fits of a trial."""
        return len(self.splits.folds) * len(self.config.fit.seeds)

    @property
    def lower(self) -> bool:
        """Return whether a smaller validation figure is better."""
        return self.config.fit.monitor == "loss"

    def settings(self, drawn: Mapping[str, Scalar]) -> Config:
        """Return the settings of a trial."""
        return trial_config(self.config, self.space, drawn)

    def cells(self, number: int, config: Config) -> list[Cell]:
        """Return the fits of a trial, fold by fold, in its run folder, which is begun.

        Raises:
            ConfigError: the folder holds a run of other settings, of a sweep whose journal is gone.
        """
        run = SweepDir(self.options.out).run(name_of(number))
        if not (run.config.is_file() and run.inputs.is_file()):
            run.begin(config, dict(self.inputs))
        elif pipelines.config.read_config(run.config) != config:
            raise ConfigError(
                f"{run.root} holds a run of other settings than the journal has for it — remove "
                "that folder, or give another --out"
            )
        write_splits(self.splits, run.splits)
        return self.cells_in(run.root, config)

    def cells_in(self, root: Path, config: Config) -> list[Cell]:
        """Return the fits of a run of these settings in a folder."""
        run = SweepDir(root.parent).run(root.name)
        return [
            cell_of(
                config,
                self.options,
                run.cell(fold.index, seed),
                self.material,
                self.inputs,
                fold,
                seed,
            )
            for fold in self.splits.folds
            for seed in config.fit.seeds
        ]


def trials_of(config: Config, space: Space, asked: int | None) -> int:
    """Return how many trials there shall be: those asked for, all of a grid, or 30.

    Raises:
        ConfigError: a grid has no end.
    """
    wanted = asked or config.sweep.trials
    if config.sweep.sampler == "grid":
        every = sum(1 for _ in grid(space))
        return min(wanted or every, every)
    return wanted or DEFAULT_TRIALS


def need_validation(splits: Splits) -> None:
    """Raise CohortError unless every fold has a validation part, which alone may choose."""
    without = [fold.name for fold in splits.folds if not fold.val]
    if without:
        raise CohortError(
            f"fold {', '.join(without)} has no validation part, and a sweep chooses by nothing "
            "else — give splits with one"
        )
