"""Predictions: a probability per class for each slide, fold and seed, checked once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from wsi.evaluation.head import Head
from wsi.evaluation.prediction_table import normalised_table, probability_columns
from wsi.evaluation.validated import Calibration


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
        object.__setattr__(self, "table", normalised_table(self.table, self.classes))

    @property
    def p(self) -> np.ndarray:
        """Return the probabilities, (n, C) float64."""
        return self.table[probability_columns(self.classes)].to_numpy(np.float64)

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


def other_classes(classes: Sequence[str], others: Sequence[str]) -> str:
    """Return `others` as a list in words that says where only their order differs."""
    words = ", ".join(others)
    same = sorted(others) == sorted(classes)
    return f"the same in another order: {words}" if same else words


def _codes(labels: Iterable[str], classes: Sequence[str]) -> np.ndarray:
    index = {name: code for code, name in enumerate(classes)}
    return np.array([index.get(label, -1) for label in labels], dtype=np.int64)
