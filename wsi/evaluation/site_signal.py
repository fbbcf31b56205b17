"""How well mean features tell the site of a slide, which a model could lean on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from wsi.bags import BagMeans
from wsi.evaluation.logistic import Rows, logistic_probabilities
from wsi.evaluation.metrics import METRICS
from wsi.evaluation.predictions import Predictions
from wsi.evaluation.sample import make_sample
from wsi.evaluation.scores import Draw, score_of
from wsi.findings import few
from wsi.specs import EvaluateSpec

Array = np.ndarray

MOST_FOLDS = 5
LEAST_PATIENTS = 2


def site_from_features(
    means: BagMeans,
    sites: Mapping[str, str],
    patients: Mapping[str, str],
    spec: EvaluateSpec | None = None,
) -> dict[str, Any]:
    """Return how well the sites of slides are told from their mean features, ready for JSON.

    Patient-grouped, stratified cross-validation of a logistic regression that weighs sites equally.
    Slides without a site, and sites of fewer than two patients, are left out.

    Args:
        sites, patients: by slide id; sites empty where unknown.

    Returns:
        `balanced_accuracy` and `auc` (one site against the others) with intervals over patients,
        each beside its `chance`; `n_sites`, `n`, `n_patients`, `folds`, and `note`. The figures
        are None, with the reason in `note`, where fewer than two sites are left.
    """
    kept, note = _usable(means.ids, sites, patients)
    names = sorted({sites[s] for s in kept})
    found: dict[str, Any] = {
        "n": len(kept),
        "n_patients": len({patients[s] for s in kept}),
        "n_sites": len(names),
    }
    if len(names) < 2:
        reason = f"fewer than two sites have {LEAST_PATIENTS} patients or more"
        return found | {
            "folds": 0,
            **dict.fromkeys(("balanced_accuracy", "auc")),
            "note": "; ".join(t for t in (reason, note) if t),
        }
    predictions, folds = _cross_validated(means, kept, names, sites, patients)
    draw = Draw.of(make_sample(predictions), spec or EvaluateSpec())
    figures = {}
    for metric, chance in ((METRICS["balanced_accuracy"], 1 / len(names)), (METRICS["auc"], 0.5)):
        score = score_of(draw, metric, draw.resampled(metric))
        figures[metric.name] = score | {"chance": chance}
    return found | {"folds": folds, **figures, "note": note}


def _usable(
    ids: tuple[str, ...], sites: Mapping[str, str], patients: Mapping[str, str]
) -> tuple[list[str], str]:
    """Return the slides of sites that can be told, and why others are left out."""
    owners: dict[str, set[str]] = defaultdict(set)
    for slide_id in ids:
        owners[sites[slide_id]].add(patients[slide_id])
    unknown = sum(not sites[slide_id] for slide_id in ids)
    small = sorted(s for s, who in owners.items() if s and len(who) < LEAST_PATIENTS)
    notes = [f"{unknown} slides have no site"] if unknown else []
    if small:
        notes.append(f"sites of one patient are left out: {few(small)}")
    kept = [s for s in ids if sites[s] and sites[s] not in small]
    return kept, "; ".join(notes)


def _cross_validated(
    means: BagMeans,
    kept: list[str],
    names: list[str],
    sites: Mapping[str, str],
    patients: Mapping[str, str],
) -> tuple[Predictions, int]:
    """Return the sites that are told of each slide by a model without its patient."""
    from sklearn.model_selection import StratifiedGroupKFold

    index = {slide_id: k for k, slide_id in enumerate(means.ids)}
    x = means.features[[index[s] for s in kept]]
    y = np.array([names.index(sites[s]) for s in kept])
    owners = np.array([patients[s] for s in kept])
    fewest = min(len(set(owners[y == k])) for k in range(len(names)))
    folds = min(MOST_FOLDS, fewest)
    p, fold = np.zeros((len(kept), len(names))), np.zeros(len(kept), np.int64)
    none = Rows(x[:0], y[:0])
    cut = StratifiedGroupKFold(folds, shuffle=True, random_state=0)
    for k, (train, test) in enumerate(cut.split(x, y, owners)):
        rows = Rows(x[train], y[train])
        p[test] = logistic_probabilities(rows, none, x[test], len(names), balanced=True)
        fold[test] = k
    table = pd.DataFrame({f"p_{name}": p[:, k] for k, name in enumerate(names)})
    table = table.assign(
        slide_id=kept, patient_id=owners, fold=fold, y_true=[names[code] for code in y]
    )
    return Predictions(tuple(names), table), folds
