"""How large the parts of a run's folds are: slides, patients, classes and sites of each."""

from __future__ import annotations

import csv
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.patient_bags import read_slide_counts
from pipelines.rundir import RunDir
from wsi.cohorts import match_ids, patients_of, read_cohort
from wsi.errors import WsiError
from wsi.evaluation import Predictions
from wsi.files import sha256_file
from wsi.report import PartRow
from wsi.specs import Config

_ORDER = {"train": 0, "val": 1, "test": 2}


def parts_of(
    run_dir: RunDir, config: Config, inputs: Mapping[str, Any], predictions: Predictions
) -> list[PartRow]:
    """Return the parts of every fold; their classes and sites where all slides have known ones."""
    members: dict[tuple[int, str], dict[str, str]] = defaultdict(dict)
    for row in _split_rows(run_dir):
        members[int(row["fold"]), row["part"]][row["slide_id"]] = row["patient_id"]
    known = _labels_and_sites(
        config, inputs, predictions, {s for of in members.values() for s in of}
    )
    of_patient = read_slide_counts(run_dir.root)
    rows = []
    for fold, part in sorted(members, key=lambda key: (key[0], _ORDER[key[1]])):
        of = members[fold, part]
        weights = {s: of_patient.get(p, 1) if of_patient else 1 for s, p in of.items()}
        labels, sites = (_counts(weights, known, k) for k in (0, 1))
        n = sum(weights.values())
        rows.append(PartRow(fold, part, n, len(set(of.values())), labels, sites))
    return rows


def ids_of(run_dir: RunDir, predictions: Predictions) -> frozenset[str]:
    """Return the ids of all slides and patients of a run."""
    table = predictions.table
    found = {row[key] for row in _split_rows(run_dir) for key in ("slide_id", "patient_id")}
    found |= set(table["slide_id"]) | set(table["patient_id"]) | set(predictions.not_evaluable)
    return frozenset(found - {""})


def _split_rows(run_dir: RunDir) -> list[dict[str, str]]:
    with run_dir.splits.open(encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


def _counts(
    weights: Mapping[str, int], known: Mapping[str, tuple[str, str]], which: int
) -> dict[str, int] | None:
    """Return slides by label (0) or site (1); None unless those of all are known."""
    if not set(weights) <= set(known):
        return None
    counts = Counter[str]()
    for slide_id, n in weights.items():
        counts[known[slide_id][which]] += n
    return dict(counts)


def _labels_and_sites(
    config: Config, inputs: Mapping[str, Any], predictions: Predictions, ids: set[str]
) -> dict[str, tuple[str, str]]:
    """Return label and site by id: of the cohort table, or of the tested slides if it is gone."""
    table = predictions.table
    pairs = zip(table["y_true"].tolist(), table["site"].tolist(), strict=True)
    found = dict(zip(table["slide_id"].tolist(), pairs, strict=True))
    path = Path(inputs["cohort_table"])
    if not path.is_file() or sha256_file(path) != inputs["cohort_sha256"]:
        return found
    try:
        cohort = read_cohort(path, config.data.label, predictions.classes)
        cohort = patients_of(cohort) if predictions.unit == "patient" else cohort
        meant = match_ids(cohort, ids)
    except WsiError:
        return found
    by_id = {row.slide_id: (row.label or "", row.site or "") for row in cohort.rows}
    return {theirs: by_id[mine] for mine, theirs in meant.items()} | found
