"""The predictions table: one row per slide, fold and seed, written as CSV with a JSON sidecar."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from wsi.cohorts import Cohort, SlideRow, match_ids
from wsi.errors import PredictionsError
from wsi.evaluation.head import Head
from wsi.evaluation.validated import Calibration
from wsi.files import publish_bytes, publish_json, sha256_file
from wsi.findings import few
from wsi.registry import suggest

SCHEMA = "wsi-predictions/1"
TEXTS = ("slide_id", "patient_id", "site", "cohort", "split", "y_true", "y_pred")
NUMBERS = ("fold", "seed")
HEAD = ("slide_id", "patient_id", "site", "cohort", "fold", "seed", "split", "y_true")
_DEFAULTS = {"site": "", "cohort": "", "fold": 0, "seed": 0, "split": "test", "y_true": ""}
SUM_TOLERANCE = 1e-3  # a softmax in half precision, written with few digits


@dataclass(frozen=True, eq=False)
class Predictions:
    """Predictions of known classes, valid once made.

    Args:
        classes: class names in order, C of them.
        table: columns slide_id, patient_id, site, cohort, fold, seed, split, y_true, one
            p_<class> per class, y_pred. Ids, sites, labels are text and empty where unknown; fold
            and seed whole numbers. Of these site, cohort, fold, seed, split, y_true and y_pred
            (the class of largest probability) may be left out.
        decision: the rule that made y_pred, in words.
        not_evaluable: slides that could not be predicted (no bag, no tile), and why.
        head: the prior that the probabilities are posteriors at, None where it is unknown.
        labels_from: which labels y_true holds, in one line; empty where nobody said.
        slides: where rows are patients, how many slides each is predicted from; else empty.
        ordered: the classes are grades, from the least to the most severe.
        calibration: what the validation part of each fit settled, by `fit_name`; empty where
            nothing is known.
        of_patients: rows are patients, though nobody said of how many slides.
        notes: what a reader of their scores must know, one line each.

    Raises:
        PredictionsError: a column is missing, a probability is not one, a label is no class, or
            a slide stands twice in one fold and seed; all problems are listed.
    """

    classes: tuple[str, ...]
    table: pd.DataFrame
    decision: str = "largest probability"
    not_evaluable: Mapping[str, str] = field(default_factory=dict)
    head: Head | None = None
    labels_from: str = ""
    slides: Mapping[str, int] = field(default_factory=dict)
    ordered: bool = False
    calibration: Mapping[str, Calibration] = field(default_factory=dict)
    of_patients: bool = False
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", tuple(self.classes))
        if self.head is not None:
            self.head.check(len(self.classes))
        object.__setattr__(self, "table", _normalised(self.table, self.classes))

    @property
    def p(self) -> np.ndarray:
        """Return the probabilities, (n, C) float64."""
        return self.table[_columns(self.classes)].to_numpy(np.float64)

    @property
    def y(self) -> np.ndarray:
        """Return the true classes as (n,) indices, -1 where unknown."""
        return _codes(self.table["y_true"].tolist(), self.classes)

    @property
    def decided(self) -> np.ndarray:
        """Return the predicted classes as (n,) indices."""
        return _codes(self.table["y_pred"].tolist(), self.classes)

    @property
    def unit(self) -> str:
        """Return what a row is of: `slide`, or `patient`."""
        return "patient" if self.slides or self.of_patients else "slide"

    @property
    def seeds(self) -> list[int]:
        """Return the seeds, sorted."""
        return sorted({int(seed) for seed in self.table["seed"]})


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
    elif predictions.of_patients:
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


def join_labels(
    predictions: Predictions, cohort: Cohort, *, keep_labels: bool = False
) -> Predictions:
    """Return the predictions with the labels of a cohort table, its sites and name if missing.

    A slide whose patient is unknown, so that its own id stands there, gets that of the table.

    Args:
        keep_labels: leave the labels as they are, and take patients and sites alone.

    Raises:
        PredictionsError: a predicted slide is not in the cohort, has no label or another patient,
            or the classes differ.
    """
    if cohort.classes and tuple(cohort.classes) != predictions.classes:
        raise PredictionsError(
            f"predictions have the classes {', '.join(predictions.classes)}, cohort {cohort.name} "
            f"has {other_classes(predictions.classes, cohort.classes)} — read the cohort with "
            "the classes of the run"
        )
    table = predictions.table.copy()
    by_id = {row.slide_id: row for row in cohort.rows}
    meant = {
        found: by_id[mine] for mine, found in match_ids(cohort, set(table["slide_id"])).items()
    }
    _refuse("are not in cohort", cohort, [s for s in table["slide_id"] if s not in meant])
    if not keep_labels:
        none = [s for s in table["slide_id"] if not meant[s].label]
        _refuse("have no label in cohort", cohort, none)
    rows = [meant[slide_id] for slide_id in table["slide_id"]]
    # A slide predicted without a table stands for its own patient.
    known = table["patient_id"] != table["slide_id"]
    others = [r.slide_id for r, p in zip(rows, table["patient_id"].where(known)) if _differs(r, p)]
    _refuse("have another patient in cohort", cohort, others)
    table["patient_id"] = [row.patient_id for row in rows]
    table["site"] = [kept or row.site or "" for kept, row in zip(table["site"], rows)]
    table["cohort"] = [kept or cohort.name for kept in table["cohort"]]
    if keep_labels:
        return replace(predictions, table=table)
    table["y_true"] = [row.label or "" for row in rows]
    return replace(predictions, table=table, labels_from=cohort.labels_from)


def other_classes(classes: Sequence[str], others: Sequence[str]) -> str:
    """Return `others` as a list in words that says where only their order differs."""
    words = ", ".join(others)
    same = sorted(others) == sorted(classes)
    return f"the same in another order: {words}" if same else words


def _differs(row: SlideRow, patient_id: object) -> bool:
    return isinstance(patient_id, str) and patient_id != row.patient_id


def changed_labels(before: Predictions, after: Predictions) -> list[tuple[str, str, str]]:
    """Return slide_id, old and new label of every slide whose known label differs."""
    old = dict(zip(before.table["slide_id"], before.table["y_true"]))
    new = dict(zip(after.table["slide_id"], after.table["y_true"]))
    return [
        (slide_id, label, new[slide_id])
        for slide_id, label in sorted(old.items())
        if label and slide_id in new and new[slide_id] != label
    ]


def _refuse(what: str, cohort: Cohort, slides: Sequence[str]) -> None:
    if slides:
        listed = sorted(set(slides))
        raise PredictionsError(
            f"{len(listed)} predicted slides {what} {cohort.name}: {few(listed)} — "
            "use the cohort table of the run"
        )


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
    columns = [name for name in _columns(sidecar["classes"]) if name in table]
    if not columns or "slide_id" not in table:
        return table
    empty = (table[columns] == "").all(axis=1)
    return table.loc[~(empty & table["slide_id"].isin(list(sidecar["not_evaluable"])))]


def _columns(classes: Sequence[str]) -> list[str]:
    return [f"p_{name}" for name in classes]


def _codes(labels: Iterable[str], classes: Sequence[str]) -> np.ndarray:
    index = {name: code for code, name in enumerate(classes)}
    return np.array([index.get(label, -1) for label in labels], dtype=np.int64)


def _normalised(table: pd.DataFrame, classes: tuple[str, ...]) -> pd.DataFrame:
    """Return a checked copy with the columns in order and of their types."""
    if len(set(classes)) < max(2, len(classes)):
        raise PredictionsError(
            f"classes ({', '.join(classes)}) must be two or more different names"
        )
    _check_columns(table, classes)
    table = table.copy().reset_index(drop=True)
    for name, value in _DEFAULTS.items():
        if name not in table:
            table[name] = value
    for name in set(TEXTS) & set(table.columns):
        table[name] = ["" if pd.isna(value) else str(value) for value in table[name]]
    problems = [problem for name in NUMBERS for problem in _make_whole(table, name)]
    for name in _columns(classes):
        table[name] = np.array([_number(value) for value in table[name]])
    problems += _probability_problems(table, classes)
    if "y_pred" not in table and not problems:
        table["y_pred"] = [classes[k] for k in table[_columns(classes)].to_numpy().argmax(axis=1)]
    problems += _label_problems(table, classes)
    if problems:
        raise PredictionsError("; ".join(problems))
    return table.reindex(columns=[*HEAD, *_columns(classes), "y_pred"])


def _check_columns(table: pd.DataFrame, classes: tuple[str, ...]) -> None:
    needed = ["slide_id", "patient_id", *_columns(classes)]
    known = {*needed, *HEAD, "y_pred"}
    missing = [name for name in needed if name not in table]
    if missing:
        near = suggest(missing[0], [str(name) for name in table.columns])
        raise PredictionsError(
            f"predictions lack the columns {', '.join(missing)}{near} — "
            f"they have: {', '.join(map(str, table.columns))}"
        )
    extra = [name for name in table.columns if str(name).startswith("p_") and name not in known]
    if extra:
        raise PredictionsError(
            f"predictions have {', '.join(extra)}, which is no declared class "
            f"({', '.join(classes)}) — declare it or drop the column"
        )


def _make_whole(table: pd.DataFrame, name: str) -> list[str]:
    numbers = np.array([_number(value) for value in table[name]])
    bad = ~np.isfinite(numbers) | (numbers != np.round(numbers))
    if bad.any():
        return [f"{name} must be whole numbers, not {few(map(repr, table[name][bad]))}"]
    table[name] = numbers.astype(np.int64)
    return []


def _number(value: object) -> float:
    try:
        return float(str(value))
    except ValueError:
        return math.nan


def _probability_problems(table: pd.DataFrame, classes: Sequence[str]) -> list[str]:
    p = table[_columns(classes)].to_numpy(np.float64)
    finite = np.isfinite(p).all(axis=1)
    inside = ((p >= 0) & (p <= 1)).all(axis=1)
    summed = np.abs(p.sum(axis=1) - 1) <= SUM_TOLERANCE
    named = [
        (~finite, "probabilities that are no finite numbers"),
        (finite & ~inside, "probabilities outside [0, 1]"),
        (finite & inside & ~summed, "probabilities that do not sum to 1"),
    ]
    return [problem for bad, what in named for problem in _rows_with(table, bad, what)]


def _label_problems(table: pd.DataFrame, classes: tuple[str, ...]) -> list[str]:
    problems = []
    for name in ("slide_id", "patient_id"):
        problems += _rows_with(table, (table[name] == "").to_numpy(), f"no {name}")
    for name, allowed in (("y_true", (*classes, "")), ("y_pred", classes)):
        if name in table:
            bad = ~table[name].isin(allowed).to_numpy()
            values = few(sorted(set(table[name][bad])))
            problems += _rows_with(table, bad, f"{name} that is no class ({values})")
    twice = table.duplicated(["slide_id", "fold", "seed"]).to_numpy()
    problems += _rows_with(table, twice, "a second prediction in the same fold and seed")
    for name, what in (("patient_id", "patients"), ("site", "sites"), ("y_true", "labels")):
        several = table.groupby("slide_id")[name].transform("nunique").to_numpy() > 1
        problems += _rows_with(table, several, f"several {what} for one slide")
    return problems


def _rows_with(table: pd.DataFrame, bad: np.ndarray, what: str) -> list[str]:
    if not bad.any():
        return []
    return [f"{int(bad.sum())} rows have {what}: {few(dict.fromkeys(table['slide_id'][bad]))}"]
