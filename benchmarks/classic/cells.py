"""Fits of one model on one fold, each written once: a run that was cut off goes on."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from benchmarks.classic.recipe import UNSELECTED, key_of, words_of
from benchmarks.evidence.stores import Made
from pipelines.config import load_config
from pipelines.console import Console
from pipelines.fits import CACHE_BYTES, Parts, fitted
from pipelines.workers import processes
from wsi.bags import open_store
from wsi.cohorts import Cohort, read_cohort
from wsi.files import publish_json
from wsi.specs import SplitSpec
from wsi.splits import Fold, Splits, make_splits, read_splits


@dataclass(frozen=True)
class Cell:
    """One fit.

    Attributes:
        repetition: draws the folds, unless the data set has its own; and seeds the model.
        folder: of all fits.
    """

    name: str
    model: str
    repetition: int
    fold: int
    made: Made
    folder: Path
    n_folds: int
    short: bool = False
    keep_attention: bool = False

    @property
    def path(self) -> Path:
        """Return the file of what it predicts."""
        place = self.folder / self.name / self.model.replace(", ", "-")
        return place / f"repetition{self.repetition}-fold{self.fold}.json"


@dataclass(frozen=True)
class Bags:
    """A data set in memory: bags are read once by a process."""

    cohort: Cohort
    read: Any
    y: dict[str, int]

    @property
    def dim(self) -> int:
        """Return the features per tile, D."""
        return self.read(self.cohort.rows[0].slide_id).features.shape[1]


@lru_cache(maxsize=8)
def bags_of(made: Made) -> Bags:
    """Return the bags and classes of a data set."""
    from wsi.data import CachedReader

    cohort = read_cohort(made.cohort, "label", made.classes)
    y = {row.slide_id: made.classes.index(row.label or "") for row in cohort.rows}
    return Bags(cohort, CachedReader(open_store(made.bags).read, CACHE_BYTES), y)


@lru_cache(maxsize=64)
def splits_of(made: Made, repetition: int, n_folds: int) -> Splits:
    """Return the folds of a repetition: those of the data set, or drawn by class."""
    cohort = bags_of(made).cohort
    if made.splits is not None:
        return read_splits(made.splits, cohort)
    return make_splits(cohort, SplitSpec(kind="kfold", folds=n_folds, seed=repetition))


def complete(cells: Sequence[Cell], jobs: int, console: Console) -> None:
    """Fit those of `cells` that are not on disk yet."""
    todo = [cell for cell in cells if read(cell) is None]
    if len(todo) < len(cells):
        console.say(f"{len(cells) - len(todo)} of {len(cells)} fits are done already")
    with console.progress("fits", len(todo)) as track:
        for cell in _fitted(todo, jobs):
            track.advance(1, f"{cell.name} {cell.model} {cell.repetition} {cell.fold}")


def read(cell: Cell) -> dict[str, Any] | None:
    """Return what a finished fit wrote; None where there is none of these settings and folds."""
    try:
        found = json.loads(cell.path.read_text(encoding="utf-8"))
        return found if found["key"] == key_of_cell(cell) else None
    except (OSError, ValueError, KeyError):
        return None


def fold_of(cell: Cell) -> Fold:
    """Return the fold of a cell."""
    return splits_of(cell.made, cell.repetition, cell.n_folds).folds[cell.fold]


def key_of_cell(cell: Cell) -> str:
    """Return what tells a fit of other settings or folds apart."""
    hashed = splits_of(cell.made, cell.repetition, cell.n_folds).hash
    return key_of(words_of(cell.name, cell.model, short=cell.short), hashed)


def _fitted(todo: Sequence[Cell], jobs: int) -> Iterator[Cell]:
    if jobs <= 1:
        for cell in todo:
            yield _fit(cell)
        return
    with processes(jobs, _prepare) as pool:
        for future in as_completed([pool.submit(_fit, cell) for cell in todo]):
            yield future.result()


def _prepare() -> None:
    # Every step of an optimiser asks for accelerators, which takes a tenth of a small fit.
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    import torch

    torch.set_num_threads(1)


def _fit(cell: Cell) -> Cell:
    """Fit a cell and write what it predicts of its test bags, whose labels it never sees."""
    from wsi.training.predict import predict

    bags, fold = bags_of(cell.made), fold_of(cell)
    if cell.model == UNSELECTED:
        fold = replace(fold, train=(*fold.train, *fold.val), val=())
    words = words_of(cell.name, cell.model, short=cell.short)
    config = load_config([*words, f"data.classes=[{','.join(cell.made.classes)}]"])
    learnt = {slide_id: bags.y[slide_id] for slide_id in (*fold.train, *fold.val)}
    parts = Parts.of(fold, learnt, bags.read, config)
    model, result = fitted(config, parts, bags.dim, cell.repetition, "cpu")
    test = predict(model, parts.test, attention=cell.keep_attention)
    publish_json(
        cell.path,
        {
            "key": key_of_cell(cell),
            "slide_ids": list(test.slide_ids),
            "p": test.probabilities[:, 1].tolist(),
            "attention": [each[:, 0].tolist() for each in test.attention or ()],
            "best_epoch": result.best_epoch,
            "monitor": result.monitor,
            "seconds": sum(row["seconds"] for row in result.history),
        },
    )
    return cell
