from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from wsi.evaluation import Predictions

PRIOR = {2: [0.7, 0.3], 3: [0.6, 0.3, 0.1], 4: [0.6, 0.1, 0.12, 0.18]}


def make(
    n: int = 120,
    C: int = 4,
    per_patient: int = 2,
    folds: int = 3,
    seeds: int = 2,
    sites: int = 3,
    skill: float = 1.5,
    draw: int = 0,
) -> Predictions:
    """Labels depend on n, C and `draw` only, predictions on all; scores are rounded to tie."""
    names = tuple("abcd"[:C])
    y = np.random.default_rng(draw).choice(C, n, p=PRIOR[C])
    rng = np.random.default_rng([draw, int(skill * 100)])
    patient = np.arange(n) // per_patient
    tables = []
    for seed in range(seeds):
        z = np.round(rng.normal(size=(n, C)), 1)
        z[np.arange(n), y] += skill
        p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
        table = pd.DataFrame(
            {
                "slide_id": [f"s{k:04}" for k in range(n)],
                "patient_id": [f"p{k:04}" for k in patient],
                "site": [f"c{k % sites}" for k in patient],
                "fold": patient % folds,
                "seed": seed,
                "y_true": [names[k] for k in y],
            }
        )
        for k, name in enumerate(names):
            table[f"p_{name}"] = p[:, k]
        tables.append(table)
    return Predictions(names, pd.concat(tables, ignore_index=True))


@pytest.fixture(scope="session")
def toy():
    """A maker of predictions: slides of patients of sites, in folds, under several seeds."""
    return make
