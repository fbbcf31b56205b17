"""Bags of clean digits: is there a nine, does attention find it, and how many are there.

Two classes: attention of models that know only bags' labels is scored against the digits. Four
classes, as uneven as CAMELYON-17's nodes: every aggregator in a `wsi study`.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.classic.cells import Cell, bags_of, fold_of, read
from benchmarks.evidence.sets import digit_bags
from benchmarks.evidence.stores import Made, write_splits
from pipelines.config import load_config
from pipelines.console import Console
from pipelines.study.run import Options
from pipelines.study.run import run as run_study
from wsi.aggregators import AGGREGATORS
from wsi.errors import ConfigError

FOUR = "digit-bags-4"
_DRAW, _FOLDS, _POOLS = 1000, 5, 15
_PER_POOL = 48  # bags of each of the pools of images, two classes
_TIMES = 2  # bags per pool over those of the imbalanced plan
_PARTS = {"train": range(7), "val": range(7, 10), "test": range(10, 15)}  # pools of images
_EQUAL = {"hidden": 64, "position": "none"}  # set wherever an aggregator has them
_STUDY = (
    "objective.name=ce",
    "objective.weight=balanced",
    "fit.epochs=20",
    "fit.patience=20",
    "fit.bags_per_step=8",
    "fit.monitor=auc",
    "fit.seeds=5",
    "study.least_seeds=5",
    "study.rates=[3e-3,1e-2,3e-2]",
    "study.rate_seeds=1",
    "study.selection=[patient]",
    "study.rivals=[abmil]",
    "study.controls=[]",
)
_SHORT = (
    "fit.epochs=2",
    "fit.patience=2",
    "study.rates=[3e-3]",
    "study.rate_seeds=1",
    "evaluate.replicates=200",
)


def two_class(root: Path, *, short: bool) -> Made:
    """Return bags of digits without noise: is there a nine."""
    return digit_bags(2, _DRAW, root, 4 if short else _PER_POOL, noise_sd=0.0)


def two_class_cells(made: Made, folder: Path, name: str, seeds: int, *, short: bool) -> list[Cell]:
    """Return the fits of gated attention on every fold, with several seeds."""
    folds = range(1 if short else _FOLDS)
    return [
        Cell(name, "gated", seed, fold, made, folder, _FOLDS, short, keep_attention=True)
        for seed in range(seeds)
        for fold in folds
    ]


@dataclass(frozen=True)
class Found:
    """What models of all folds and seeds know of nines.

    Attributes:
        auc: of the bags, one per seed and fold.
        pooled: AUC of attention over all tiles of a test part's positive bags, one per seed and
            fold; tiles are compared across bags of different size.
        within: mean over positive bags of the AUC of attention inside the bag, likewise.
        bags: positive bags looked into.
    """

    auc: np.ndarray
    pooled: np.ndarray
    within: np.ndarray
    bags: int


def found_nines(cells: Sequence[Cell]) -> Found:
    """Return how well bags with nines, and the nines in them, are told."""
    from sklearn.metrics import roc_auc_score

    known = _digit_of_image()
    rows, n = [], 0
    for cell in cells:
        result = read(cell)
        if result is None:
            raise ConfigError(f"{cell.path} is not there — run the command without --page first")
        bags, test = bags_of(cell.made), fold_of(cell).test
        y = [bags.y[s] for s in test]
        nines, weights = [], []
        for slide_id, positive, attention in zip(test, y, result["attention"], strict=True):
            if positive:
                nines.append(_is_nine(bags.read(slide_id).features, known))
                weights.append(np.asarray(attention))
        each = [roc_auc_score(t, a) for t, a in zip(nines, weights)]
        pooled = roc_auc_score(np.concatenate(nines), np.concatenate(weights))
        rows.append((roc_auc_score(y, result["p"]), pooled, np.mean(each)))
        n += len(each)
    auc, pooled, within = np.array(rows).T
    return Found(auc, pooled, within, n)


def _digit_of_image() -> dict[bytes, int]:
    from sklearn.datasets import load_digits

    images, digit = load_digits(return_X_y=True)
    return {image.astype(np.float32).tobytes(): int(d) for image, d in zip(images, digit)}


def _is_nine(tiles: np.ndarray, known: dict[bytes, int]) -> np.ndarray:
    """Return which tiles (N, D) are nines, by looking each up among the images."""
    rows = np.asarray(tiles, np.float32)
    return np.array([known[np.ascontiguousarray(row).tobytes()] == 9 for row in rows])


def four_class(root: Path, *, short: bool) -> Made:
    """Return bags of digits without noise: none, one, few or many nines."""
    return digit_bags(4, _DRAW, root, times=1 if short else _TIMES, noise_sd=0.0)


def compare_aggregators(
    made: Made, out: Path, jobs: int, names: Sequence[str], *, short: bool
) -> int:
    """Run the study of all aggregators and return its exit code."""
    splits = out / "splits"
    write_splits(splits, [_by_pool(made)])
    config = load_config(
        [
            *_STUDY,
            f"data.classes=[{','.join(made.classes)}]",
            f"study.arms={json.dumps([_arm(name) for name in names])}",
            *(_SHORT if short else ()),
            *(("fit.seeds=2", "study.least_seeds=2") if short else ()),
        ]
    )
    options = Options(
        made.cohort, made.bags, out / "study", splits / "splits.csv", jobs, allow_few_seeds=True
    )
    return run_study(config, options, Console(log=out / "study.log"))


def _arm(name: str) -> dict[str, Any]:
    """Return an aggregator as an arm, with the equal settings that it has."""
    has = AGGREGATORS.settings(name)
    settings = {key: value for key, value in _EQUAL.items() if key in has}
    return {"label": name, "aggregator": {"name": name, **settings}}


def _by_pool(made: Made) -> dict[str, list[str]]:
    """Return the bags of each part; no image is in two parts, since bags are drawn in pools."""
    with made.cohort.open(encoding="utf-8", newline="") as handle:
        ids = [row["slide_id"] for row in csv.DictReader(handle)]
    each = len(ids) // _POOLS
    return {
        part: [s for k in pools for s in ids[k * each : (k + 1) * each]]
        for part, pools in _PARTS.items()
    }
