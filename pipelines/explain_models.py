"""Which models of a run speak for a slide: those that never trained on it, where there are any."""

from __future__ import annotations

import csv
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

import pipelines.config
from pipelines.console import counted
from pipelines.rundir import RunDir
from wsi.cohorts import Cohort, SlideRow, match_ids
from wsi.errors import ConfigError
from wsi.evaluation import read_predictions

if TYPE_CHECKING:
    from wsi.data import BagBatch
    from wsi.explain import Evidence
    from wsi.training.model import Model

_CELL = re.compile(r"fold(\d+)-seed(\d+)")


@dataclass(frozen=True)
class Speakers:
    """The models that explain one slide.

    Attributes:
        cells: their folders.
        how: in words, such as `out-of-fold (fold 0), mean of 2 seeds`.
        out_of_fold: none of them trained on the slide, and the run knows it.
        label: its class in the run, empty where unknown.
    """

    cells: tuple[Path, ...]
    how: str
    out_of_fold: bool
    label: str


class RunModels:
    """The models of a finished run.

    Args:
        root: the run folder.
        bag_ids: ids of the bags at hand, which the run's slides are matched with.

    Raises:
        ConfigError: the folder is no run, or holds no finished fit.
    """

    def __init__(self, root: Path, bag_ids: Iterable[str]) -> None:
        self.run_dir = RunDir(root)
        self.inputs = self.run_dir.read_inputs()
        self.config = pipelines.config.read_config(self.run_dir.config)
        self.hashes = model_hashes(self.run_dir.cells())
        if not self.hashes or not self.run_dir.predictions.is_file():
            raise ConfigError(f"{root} holds no finished run — let `wsi train` finish it first")
        self._cells: dict[int, list[Path]] = defaultdict(list)
        for cell in self.hashes:
            self._cells[cell_of(cell)[0]].append(cell)
        self._seen = _parts_of(self.run_dir.splits)
        predictions = read_predictions(self.run_dir.predictions)
        self.classes = predictions.classes
        table = predictions.table
        self._labels = dict(zip(table["slide_id"], table["y_true"], strict=True))
        rows = tuple(SlideRow(slide_id, slide_id) for slide_id in self._seen)
        matched = match_ids(Cohort(str(root), self.classes, rows), bag_ids)
        self._known = {bag_id: slide_id for slide_id, bag_id in matched.items()}
        self._loaded: dict[Path, Model] = {}

    def speakers(self, bag_id: str) -> Speakers:
        """Return the models that explain the slide of a bag."""
        slide_id = self._known.get(bag_id)
        if slide_id is None:
            cells = [cell for fold in sorted(self._cells) for cell in self._cells[fold]]
            return Speakers(tuple(cells), f"not in the run, mean of {self._all}", False, "")
        parts = self._seen[slide_id]
        label = self._labels.get(slide_id, "")
        folds = [f for f in sorted(self._cells) if parts.get(f) == "test"]
        if folds:
            how = f"out-of-fold (fold {', '.join(map(str, folds))})"
            cells = [cell for fold in folds for cell in self._cells[fold]]
            seeds = "" if len(cells) == 1 else f", mean of {counted(len(cells), 'model')}"
            return Speakers(tuple(cells), how + seeds, True, label)
        cells = [cell for fold in sorted(self._cells) for cell in self._cells[fold]]
        return Speakers(tuple(cells), f"trained on it, mean of {self._all}", False, label)

    @cached_property
    def _all(self) -> str:
        return counted(len(self.hashes), "model")

    def evidence(self, cells: Sequence[Path], batch: BagBatch, device: str) -> Evidence:
        """Return what the models in `cells` say of one bag, on average."""
        from wsi.explain import mean_evidence, model_evidence

        return mean_evidence(
            [model_evidence(self._model(c), batch, device, average_bag(c)) for c in cells]
        )

    def _model(self, cell: Path) -> Model:
        from wsi.training import load

        if cell not in self._loaded:
            self._loaded[cell], _ = load(cell / "model.safetensors")
        return self._loaded[cell]


@cache
def average_bag(cell: Path) -> np.ndarray | None:
    """Return the mean embedding (E,) of the bags a model was trained on."""
    try:
        with h5py.File(cell / "embeddings.h5", "r", locking=False) as file:
            embeddings: Any = file["embedding"]
            parts: Any = file["part"]
            return np.asarray(embeddings[:], np.float64)[parts.asstr()[:] == "train"].mean(axis=0)
    except (OSError, KeyError):
        return None


def model_hashes(cells: Iterable[Path]) -> dict[Path, str]:
    """Return the SHA-256 of the model in each cell that is done."""
    found: dict[Path, str] = {}
    for cell in cells:
        try:
            done: Any = json.loads((cell / "done.json").read_text(encoding="utf-8"))
            found[cell] = done["files"]["model.safetensors"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return found


def cell_of(cell: Path) -> tuple[int, int]:
    """Return fold and seed of the folder of a model."""
    match = _CELL.fullmatch(cell.name)
    if match is None:
        raise ConfigError(f"{cell} is not named fold<n>-seed<n> — restore the run folder")
    return int(match[1]), int(match[2])


def _parts_of(path: Path) -> dict[str, dict[int, str]]:
    """Return the part of every slide in each fold."""
    parts: dict[str, dict[int, str]] = defaultdict(dict)
    with path.open(encoding="utf-8", newline="") as handle:
        for row in csv.DictReader(handle):
            parts[row["slide_id"]][int(row["fold"])] = row["part"]
    return dict(parts)
