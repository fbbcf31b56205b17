"""One fold and seed: what a process needs to train it, and the folder it leaves."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from pipelines.fits import Parts, as_csv, fitted, probability_table, reader
from pipelines.live import METRICS, LiveRows, history_lines
from pipelines.patient_bags import BagIds
from pipelines.validation import validation_figures
from pipelines.workers import threads_of_torch
from wsi.bags import open_store
from wsi.evaluation.validated import fit_calibration
from wsi.files import collect_temporaries, publish, publish_bytes, publish_json, sha256_file
from wsi.specs import Config
from wsi.splits import Fold

STATE = "state.safetensors"
_DONE = "done.json"
_FILES = ("model.safetensors", METRICS, "embeddings.h5", "predictions.csv")


def nothing() -> None:
    """Do nothing."""


@dataclass(frozen=True)
class Cell:
    """One fold and seed to train: everything a process needs, and no test label.

    Attributes:
        labels: class index of every training and validation slide, and of no other.
        bag_ids: slide id of the cohort to id of its bag, and which slides make one bag.
        threads: of a fit on the CPU, whose sums depend on their number.
        packed: folder of a packed cohort of these bags, where there is one that holds.
        made_from: hashes of what else decides the fit: the bags, and which of their tiles.
    """

    config: Config
    fold: Fold
    seed: int
    folder: Path
    bags: Path
    recipe_key: str
    labels: dict[str, int]
    bag_ids: BagIds
    device: str
    threads: int
    packed: Path | None = None
    made_from: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Return what people call it."""
        return f"fold {self.fold.name} seed {self.seed}"

    @property
    def epochs(self) -> int:
        """Return the most epochs it takes."""
        return self.config.fit.epochs


def train_cell(
    cell: Cell,
    after_epoch: Callable[[], None] = nothing,
    read: Callable[[str], Any] | None = None,
) -> dict[str, Any]:
    """Train, save and apply one model; `done.json`, published last, marks it done.

    A fit that was ended goes on from the state it left. Return what is to be told of it.

    Args:
        read: what reads the bag of a slide, when it is there already.
    """
    with threads_of_torch(cell.threads if cell.device == "cpu" else None):
        return _trained(cell, after_epoch, read)


def _trained(
    cell: Cell, after_epoch: Callable[[], None], read: Callable[[str], Any] | None
) -> dict[str, Any]:
    from wsi.training import save
    from wsi.training.alarms import raised_over
    from wsi.training.checkpoint import Origin
    from wsi.training.predict import predict
    from wsi.training.state import FitState

    cell.folder.mkdir(parents=True, exist_ok=True)
    collect_temporaries(cell.folder)
    store = open_store(cell.bags)
    read = read or reader(store, cell.bag_ids, cell.packed)
    parts = Parts.of(cell.fold, cell.labels, read, cell.config)
    dim = store.info(cell.bag_ids.together(cell.fold.train[0])[0]).dim
    notes: list[str] = []
    state = FitState(cell.folder / STATE, cell.made_from, say=notes.append)
    live = LiveRows(cell.folder / METRICS)

    def on_epoch(row: dict[str, Any]) -> None:
        live.add(row)
        after_epoch()

    model, result = fitted(
        cell.config, parts, dim, cell.seed, cell.device, on_epoch=on_epoch, state=state
    )
    origin = Origin(cell.recipe_key, result.best_epoch, cell.config.fit.monitor, result.monitor)
    test = predict(model, parts.test, cell.device)
    predicted = {"test": test, "train": predict(model, parts.train, cell.device)}
    if parts.val is not None:
        predicted["val"] = predict(model, parts.val, cell.device)
    classes = cell.config.data.classes or ()
    y, p = _validation(cell, predicted, len(classes))
    calibration = fit_calibration(y, p, classes).to_json()
    save(cell.folder / "model.safetensors", model, origin, {"calibration": calibration})
    publish_bytes(cell.folder / METRICS, history_lines(result.history))
    _write_embeddings(cell.folder / "embeddings.h5", predicted)
    table = probability_table(test, classes)
    publish_bytes(cell.folder / "predictions.csv", as_csv(table))
    summary = {
        "best_epoch": result.best_epoch,
        "monitor": result.monitor,
        "rule": model.objective.rule,
        "predicts_prior": model.objective.predicts_prior,
        "precision": result.precision,
        "threads": cell.threads if cell.device == "cpu" else None,
        "calibration": calibration,
    }
    if parts.val is not None:
        summary["validation"] = validation_figures(cell.config.fit.monitor, y, p)
    files = {name: sha256_file(cell.folder / name) for name in _FILES}
    publish_json(cell.folder / _DONE, summary | {"files": files})
    state.discard()
    alarms = [alarm.text for alarm in raised_over(result.history)]
    return summary | {"warnings": [*notes, *alarms]}


def _validation(cell: Cell, predicted: Mapping[str, Any], C: int) -> tuple[np.ndarray, np.ndarray]:
    """Return classes (n,) and probabilities (n, C) of the validation part, n = 0 without one."""
    if "val" not in predicted:
        return np.zeros(0, int), np.zeros((0, C))
    val = predicted["val"]
    return np.array([cell.labels[slide_id] for slide_id in val.slide_ids]), val.probabilities


def finished(cell: Cell) -> dict[str, Any] | None:
    """Return what a fit says of itself if all its files are there, as they were written."""
    try:
        done = json.loads((cell.folder / _DONE).read_text(encoding="utf-8"))
        whole = all(sha256_file(cell.folder / name) == done["files"][name] for name in _FILES)
        return done if whole else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def tidy(cell: Cell, *, done: bool) -> None:
    """Remove what a killed process left in the folder and nothing will go on from."""
    collect_temporaries(cell.folder)
    state = cell.folder / STATE
    if done:
        state.unlink(missing_ok=True)
    elif not state.is_file():
        (cell.folder / METRICS).unlink(missing_ok=True)


def _write_embeddings(path: Path, parts: dict[str, Any]) -> None:
    ids = [slide_id for part in parts.values() for slide_id in part.slide_ids]
    names = [name for name, part in parts.items() for _ in part.slide_ids]
    with publish(path) as temporary, h5py.File(temporary, "w") as file:
        text = h5py.string_dtype()
        file.create_dataset("slide_id", data=np.asarray(ids, object), dtype=text)
        file.create_dataset("part", data=np.asarray(names, object), dtype=text)
        embeddings = np.concatenate([part.embeddings for part in parts.values()])
        file.create_dataset("embedding", data=embeddings.astype(np.float32))
