"""Floors beside a run: made from its bags and splits, kept in its folder, scored as it is."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from pipelines.console import Console
from pipelines.fits import Material, once_reader, out_of_fold, splits_of
from pipelines.fits import gather as gather_material
from pipelines.rundir import RunDir
from wsi.bags import TileFilter, bag_means
from wsi.errors import PredictionsError, WsiError
from wsi.evaluation import Head, Predictions, join_labels, read_predictions, write_predictions
from wsi.evaluation.floor_scores import conclusion, score_floors
from wsi.evaluation.floors import FLOORS, FloorData, floor_probabilities, unseen_sites
from wsi.evaluation.site_signal import site_from_features
from wsi.files import publish_json, sha256_file, sha256_json
from wsi.specs import Config, EvaluateSpec
from wsi.splits import Fold, Splits

SCHEMA = "wsi-floors/1"
_RECORD = "floors.json"
OFF = "evaluate.floors=false"


@dataclass(frozen=True)
class Floors:
    """Predictions of every floor, and what else was found when they were made.

    Attributes:
        notes: what is to be known of a floor, by its name.
        site_from_features: of `wsi.evaluation.site_signal`.
    """

    predictions: Mapping[str, Predictions]
    notes: Mapping[str, str]
    site_from_features: Mapping[str, Any]

    def changed(self, change: Callable[[Predictions], Predictions]) -> Floors:
        """Return the floors with a change made to the predictions of each."""
        return replace(self, predictions={k: change(of) for k, of in self.predictions.items()})


def make_floors(
    config: Config,
    material: Material,
    splits: Splits,
    run_dir: RunDir,
    console: Console,
    like: RunDir | None = None,
) -> Floors | None:
    """Return the floors of a run with labels, made unless they lie there; None when turned off.

    They are fitted on labels of training and validation slides; those of test slides join later.

    Args:
        like: another run, whose floors are taken where they are of the same bags and splits.
    """
    if not config.evaluate.floors:
        return None
    made_from = _made_from(config, material, splits)
    for folder in (run_dir, like):
        held = None if folder is None else read_floors(folder)
        if folder and held and _record(folder).get("made_from") == made_from:
            return held if folder == run_dir else _keep(held, made_from, run_dir)
    data, patients = _floor_data(config, material, splits, console)
    made = {name: _predictions(name, data, material, splits) for name in FLOORS}
    found = site_from_features(data.means, data.sites, patients, config.evaluate)
    floors = Floors(made, _notes(data, splits), found)
    labelled = floors.changed(lambda predictions: join_labels(predictions, material.cohort))
    return _keep(labelled, made_from, run_dir)


def _keep(floors: Floors, made_from: str, run_dir: RunDir) -> Floors:
    """Write floors into a run folder, the record of them last, and return them."""
    files = {name: run_dir.floors / f"{name}.csv" for name in floors.predictions}
    for name, path in files.items():
        write_predictions(floors.predictions[name], path)
    record = {
        "schema": SCHEMA,
        "made_from": made_from,
        "files": {path.name: sha256_file(path) for path in files.values()},
        "notes": dict(floors.notes),
        "site_from_features": dict(floors.site_from_features),
    }
    publish_json(run_dir.floors / _RECORD, record)
    return floors


def read_floors(run_dir: RunDir) -> Floors | None:
    """Return the floors that lie in a run folder; None where they do not, or not as written."""
    record = _record(run_dir)
    try:
        if record["schema"] != SCHEMA or set(record["files"]) != {f"{n}.csv" for n in FLOORS}:
            return None
        found = {}
        for name in FLOORS:
            path = run_dir.floors / f"{name}.csv"
            if sha256_file(path) != record["files"][path.name]:
                return None
            found[name] = read_predictions(path)
        return Floors(found, record["notes"], record["site_from_features"])
    except (OSError, KeyError, TypeError, PredictionsError):
        return None


def _record(run_dir: RunDir) -> dict[str, Any]:
    try:
        return json.loads((run_dir.floors / _RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def floors_of_run(config: Config, run_dir: RunDir, console: Console) -> tuple[Floors | None, str]:
    """Return the floors of a finished run, made now if need be, or why there are none."""
    if not config.evaluate.floors:
        return None, OFF
    held = read_floors(run_dir)
    if held is not None:
        return held, ""
    inputs = run_dir.read_inputs()
    table, bags = Path(inputs.get("cohort_table", "")), Path(inputs["bags"])
    if not table.is_file() or sha256_file(table) != inputs["cohort_sha256"]:
        return None, f"the cohort table of the run is no longer as it was at {table}"
    try:
        console.say(f"no floors beside {run_dir.root} yet: making them from its bags")
        material = gather_material(config, table, bags, console)
        splits = splits_of(material, config.split, run_dir.splits)
        return _of_same_bags(config, inputs, material, splits, run_dir, console)
    except WsiError as error:
        return None, str(error)


def _of_same_bags(
    config: Config,
    inputs: Mapping[str, Any],
    material: Material,
    splits: Splits,
    run_dir: RunDir,
    console: Console,
) -> tuple[Floors | None, str]:
    if material.bags_sha256 != inputs["bags_sha256"] or splits.hash != inputs["splits_sha256"]:
        return None, f"the bags at {inputs['bags']} or the splits are no longer those of the run"
    return make_floors(config, material, splits, run_dir, console), ""


def with_floors(
    metrics: Mapping[str, Any],
    predictions: Predictions,
    floors: Floors | None,
    spec: EvaluateSpec,
    reason: str = OFF,
) -> dict[str, Any]:
    """Return metrics with the scores of floors beside them.

    Args:
        predictions: those scored in `metrics`.
        reason: why there are no floors.
    """
    if floors is None:
        note = f"no floors: {reason}"
        return {**metrics, "floors": None, "floors_note": note, "site_from_features": None}
    scores = score_floors(predictions, floors.predictions, spec, floors.notes)
    return {
        **metrics,
        "floors": scores,
        "floors_note": conclusion(scores),
        "site_from_features": dict(floors.site_from_features),
    }


def _made_from(config: Config, material: Material, splits: Splits) -> str:
    """Return a hash of all that decides floors; the tile filter is part of the data settings."""
    rows = [[r.slide_id, r.patient_id, r.site, r.label] for r in material.cohort.rows]
    data = config.data.model_dump(mode="json")
    return sha256_json([SCHEMA, material.bags_sha256, data, splits.hash, sorted(rows)])


def _floor_data(
    config: Config, material: Material, splits: Splits, console: Console
) -> tuple[FloorData, dict[str, str]]:
    """Return what floors know of the slides of all folds, and their patients."""
    ids = sorted({s for fold in splits.folds for part in fold.parts().values() for s in part})
    rows = {row.slide_id: row for row in material.cohort.rows}
    read = once_reader(material.store, material.bag_ids, material.packed)
    with console.progress("floors: mean features", len(ids)) as track:
        means = bag_means(read, ids, TileFilter.of(config.data), track.advance)
    sites = {slide_id: rows[slide_id].site or "" for slide_id in ids}
    return FloorData(means, sites), {slide_id: rows[slide_id].patient_id for slide_id in ids}


def _predictions(name: str, data: FloorData, material: Material, splits: Splits) -> Predictions:
    classes = material.cohort.classes
    tables = []
    for fold in splits.folds:
        p = floor_probabilities(name, data, fold, _labels(material, fold), len(classes))
        table = pd.DataFrame(p, columns=[f"p_{c}" for c in classes])
        table.insert(0, "slide_id", list(fold.test))
        tables.append((fold.index, 0, table))
    counts = material.bag_ids.counts()
    made = out_of_fold(tables, material.cohort, classes, material.absent, counts)
    return replace(made, head=_head(material, splits))


def _labels(material: Material, fold: Fold) -> dict[str, int]:
    """Return the class indices of all slides but those that are tested."""
    return material.labels((*fold.train, *fold.val))


def _head(material: Material, splits: Splits) -> Head:
    C = len(material.cohort.classes)
    counts = {}
    for fold in splits.folds:
        of = list(material.labels(fold.train).values())
        counts[fold.index] = tuple(of.count(k) for k in range(C))
    return Head("training", counts)


def _notes(data: FloorData, splits: Splits) -> dict[str, str]:
    """Return why the floor of sites is none, where it is."""
    if not any(data.sites.values()):
        return {"site": "no slide has a site, so this is the majority floor"}
    unseen = {fold.name: unseen_sites(data, fold) for fold in splits.folds}
    tested = {
        fold.name: {data.sites[s] for s in fold.test if data.sites[s]} for fold in splits.folds
    }
    if unseen == tested:
        return {
            "site": "every test site is new to its fold, so sites tell nothing: this is the "
            "majority floor"
        }
    n = sum(map(bool, unseen.values()))
    return {"site": f"{n} of {len(unseen)} folds test sites without training slides"} if n else {}
