"""Predictions as files: a CSV of one row per slide, fold and seed, with a JSON sidecar."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from wsi.errors import PredictionsError
from wsi.evaluation.head import Head
from wsi.evaluation.prediction_table import probability_columns
from wsi.evaluation.predictions import Predictions, other_classes
from wsi.evaluation.validated import Calibration
from wsi.files import publish_bytes, publish_json, sha256_file

SCHEMA = "wsi-predictions/1"


def write_predictions(predictions: Predictions, path: Path) -> None:
    """Write `path` and, last, its sidecar `<stem>.json` (classes in order, rule, hash)."""
    write_table(predictions, predictions.table, path)


def write_table(
    predictions: Predictions,
    table: pd.DataFrame,
    path: Path,
    about: Mapping[str, Any] | None = None,
) -> None:
    """Write predictions as a table of more columns, and of rows for slides not evaluable.

    Args:
        table: those of `predictions.table`, and more; rows of slides that are not evaluable have
            no probabilities, and readers leave them out.
        about: more for the sidecar.
    """
    publish_bytes(path, table.to_csv(index=False, lineterminator="\n").encode())
    sidecar = {
        "schema": SCHEMA,
        "classes": list(predictions.classes),
        "decision": predictions.decision,
        "not_evaluable": dict(predictions.not_evaluable),
        "labels_from": predictions.labels_from,
        "rows": len(table),
        "sha256": sha256_file(path),
    }
    if predictions.head is not None:
        sidecar["head"] = predictions.head.to_json()
    if predictions.slides:
        sidecar["slides"] = dict(predictions.slides)
    if predictions.ordered:
        sidecar["ordered"] = True
    if predictions.calibration:
        sidecar["calibration"] = {k: one.to_json() for k, one in predictions.calibration.items()}
    if predictions.of_patients:
        sidecar["of_patients"] = True
    if predictions.notes:
        sidecar["notes"] = list(predictions.notes)
    publish_json(path.with_suffix(".json"), sidecar | dict(about or {}))


def read_predictions(path: Path | str, classes: Sequence[str] | None = None) -> Predictions:
    """Return the predictions of a file.

    Args:
        classes: the classes in order, for a file without sidecar; of one that has a sidecar they
            must be the same.

    Raises:
        PredictionsError: no file, no sidecar and no classes, a changed file, or bad values.
    """
    path = Path(path)
    if not path.is_file():
        raise PredictionsError(f"no predictions at {path} — give a predictions.csv or a run folder")
    sidecar = _sidecar(path, classes)
    if "sha256" in sidecar and sidecar["sha256"] != sha256_file(path):
        raise PredictionsError(
            f"{path.name} was changed since it was written: its hash is not the sidecar's — "
            "restore it, or remove the sidecar and name the classes"
        )
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (ValueError, pd.errors.ParserError) as error:
        raise PredictionsError(f"{path.name} is no readable CSV: {error}") from error
    try:
        return Predictions(
            tuple(sidecar["classes"]),
            _evaluable(table, sidecar),
            sidecar["decision"],
            sidecar["not_evaluable"],
            sidecar["head"],
            sidecar["labels_from"],
            sidecar["slides"],
            sidecar["ordered"],
            sidecar["calibration"],
            sidecar["of_patients"],
            sidecar["notes"],
        )
    except PredictionsError as error:
        raise PredictionsError(f"{path.name}: {error}") from error


def _sidecar(path: Path, classes: Sequence[str] | None) -> dict:
    beside = path.with_suffix(".json")
    if not beside.is_file():
        if classes is None:
            raise PredictionsError(
                f"{path.name} has no sidecar {beside.name}, so the classes are unknown — name them"
            )
        nothing = {"not_evaluable": {}, "head": None, "labels_from": "", "slides": {}}
        nothing |= {"ordered": False, "calibration": {}}
        unsaid = {"of_patients": False, "notes": ()}
        return {"classes": list(classes), "decision": "as given", **nothing, **unsaid}
    try:
        sidecar = json.loads(beside.read_text(encoding="utf-8"))
        known = {
            k: sidecar[k] for k in ("schema", "classes", "decision", "not_evaluable", "sha256")
        }
        known["head"] = Head.from_json(sidecar["head"]) if "head" in sidecar else None
        known["labels_from"] = str(sidecar.get("labels_from", ""))
        known["slides"] = dict(sidecar.get("slides", {}))
        known["ordered"] = bool(sidecar.get("ordered", False))
        settled = sidecar.get("calibration", {})
        known["calibration"] = {k: Calibration.from_json(one) for k, one in settled.items()}
        known["of_patients"] = bool(sidecar.get("of_patients", False))
        known["notes"] = tuple(str(note) for note in sidecar.get("notes", ()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise PredictionsError(f"{beside.name} is no sidecar of predictions: {error}") from error
    if known["schema"] != SCHEMA:
        raise PredictionsError(f"{beside.name} has schema {known['schema']}, not {SCHEMA}")
    if classes is not None and list(classes) != known["classes"]:
        raise PredictionsError(
            f"{path.name} has the classes {', '.join(known['classes'])}, "
            f"not {other_classes(known['classes'], classes)}"
        )
    return known


def _evaluable(table: pd.DataFrame, sidecar: Mapping[str, Any]) -> pd.DataFrame:
    """Return the rows but those of slides that the sidecar calls not evaluable, if empty."""
    columns = [name for name in probability_columns(sidecar["classes"]) if name in table]
    if not columns or "slide_id" not in table:
        return table
    empty = (table[columns] == "").all(axis=1)
    return table.loc[~(empty & table["slide_id"].isin(list(sidecar["not_evaluable"])))]
