"""CAMELYON-17's patient stages from predicted nodes, and the kappa of the challenge."""

from __future__ import annotations

import csv
import io
import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from wsi.cohorts.camelyon17_labels import (
    NODE_CLASSES,
    NODES_PER_PATIENT,
    STAGES,
    patient_of,
    pn_stage,
)
from wsi.errors import PredictionsError
from wsi.evaluation.metrics import confusion_matrix, quadratic_kappa
from wsi.evaluation.predictions import Predictions
from wsi.files import publish_bytes
from wsi.findings import few

DECISION = "pN rule on the predicted nodes"

METRICS_OF_STAGES = ("quadratic_kappa", "macro_f1", "micro_f1", "balanced_accuracy")
"""What stages are scored by; the first is the challenge's."""


def stage_kappa(true: Sequence[str], given: Sequence[str]) -> float:
    """Return the quadratic-weighted kappa between stages of the same patients; NaN if undefined."""
    code = {stage: k for k, stage in enumerate(STAGES)}
    y, decided = (np.array([code[stage] for stage in stages]) for stages in (true, given))
    return float(quadratic_kappa(confusion_matrix(y, decided, len(STAGES)).astype(float)))


def stage_patients(predictions: Predictions) -> Predictions:
    """Return one row per patient, fold and seed: the stage by the pN rule on the decided nodes.

    `p_<stage>` is the probability of the stage when nodes are independent given their slides;
    the decision does not use it. Patients without all five nodes are named as not evaluable. The
    true stage comes from the true nodes by the same rule.

    Raises:
        PredictionsError: the classes are not those of CAMELYON-17's nodes, a slide is no node, a
            patient's nodes lie in several folds, or no patient is complete.
    """
    if set(predictions.classes) != set(NODE_CLASSES):
        raise PredictionsError(
            f"predictions have the classes {', '.join(predictions.classes)}, stages need "
            f"{', '.join(NODE_CLASSES)} — train with data.label=node4"
        )
    table: Any = predictions.table
    names = table["slide_id"].map(lambda slide_id: slide_id.rpartition("/")[2])
    strange = sorted(set(table["slide_id"][~names.str.fullmatch(r"patient_\d{3}_node_\d")]))
    if strange:
        raise PredictionsError(
            f"{few(strange)} are no nodes of CAMELYON-17 (patient_017_node_2) — "
            "give predictions of its slides"
        )
    table = table.assign(patient=names.map(patient_of))
    _refuse_scattered(table)
    rows: list[dict[str, object]] = []
    short: dict[str, str] = {}
    for (patient, fold, seed), nodes in table.groupby(["patient", "fold", "seed"]):
        if len(nodes) == NODES_PER_PATIENT:
            rows.append(_staged(str(patient), int(str(fold)), int(str(seed)), nodes))
        else:
            short[str(patient)] = f"{len(nodes)} of {NODES_PER_PATIENT} nodes predicted"
    if not rows:
        raise PredictionsError(f"no patient has all {NODES_PER_PATIENT} nodes predicted")
    staged = pd.DataFrame(rows)
    known = {patient: why for patient, why in short.items() if patient not in staged["slide_id"]}
    return Predictions(STAGES, staged, DECISION, known, None, predictions.labels_from)


def _refuse_scattered(table: Any) -> None:
    folds = table.groupby(["patient", "seed"])["fold"].nunique()
    scattered = sorted({str(patient) for patient, _ in folds[folds > 1].index})
    if scattered:
        raise PredictionsError(
            f"nodes of {len(scattered)} patients lie in several folds: {few(scattered)} — "
            "divide by patient or by centre"
        )


def _staged(patient: str, fold: int, seed: int, nodes: Any) -> dict[str, object]:
    known = (nodes["y_true"] != "").all()
    p = stage_probabilities(nodes[[f"p_{name}" for name in NODE_CLASSES]].to_numpy(np.float64))
    first = nodes.iloc[0]
    return {
        "slide_id": patient,
        "patient_id": patient,
        "site": first["site"],
        "cohort": first["cohort"],
        "fold": fold,
        "seed": seed,
        "split": first["split"],
        "y_true": pn_stage(nodes["y_true"].tolist()) if known else "",
        "y_pred": pn_stage(nodes["y_pred"].tolist()),
        **{f"p_{stage}": value for stage, value in zip(STAGES, p, strict=True)},
    }


def stage_probabilities(p: np.ndarray) -> np.ndarray:
    """Return p(stage) (5,) from independent nodes (n, 4), in the order of `NODE_CLASSES`."""
    p = p / p.sum(axis=1, keepdims=True)
    total: dict[str, float] = defaultdict(float)
    for classes in itertools.product(range(len(NODE_CLASSES)), repeat=len(p)):
        stage = pn_stage([NODE_CLASSES[k] for k in classes])
        total[stage] += float(np.prod(p[np.arange(len(p)), list(classes)]))
    return np.array([total[stage] for stage in STAGES])


@dataclass(frozen=True)
class Submission:
    """Stages of patients as the challenge takes them."""

    stages: dict[str, str]

    def csv_text(self) -> str:
        """Return the table `patient,stage`, with patients named as the challenge names them."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["patient", "stage"])
        writer.writerows([f"{patient}.zip", stage] for patient, stage in self._sorted())
        return text.getvalue()

    def write(self, path: Path) -> None:
        """Write the table."""
        publish_bytes(path, self.csv_text().encode())

    def _sorted(self) -> Iterator[tuple[str, str]]:
        yield from sorted(self.stages.items())


def submission(predictions: Predictions) -> Submission:
    """Return the stages of an ensemble: node probabilities averaged over folds and seeds.

    Raises:
        PredictionsError: as `stage_patients`.
    """
    columns = [f"p_{name}" for name in predictions.classes]
    mean: Any = predictions.table.groupby("slide_id", as_index=False)[columns].mean()
    owner = dict(zip(predictions.table["slide_id"], predictions.table["patient_id"]))
    mean["patient_id"] = [owner[slide_id] for slide_id in mean["slide_id"]]
    staged = stage_patients(Predictions(predictions.classes, mean)).table
    return Submission(dict(zip(staged["slide_id"], staged["y_pred"], strict=True)))
