"""The predictions of a run with their labels, which trials of a sweep are kept without."""

from __future__ import annotations

from pathlib import Path

import pipelines.config
from pipelines.rundir import RunDir
from wsi.cohorts import read_cohort
from wsi.evaluation import Predictions, join_labels, read_predictions
from wsi.files import sha256_file


def labelled_predictions(run: RunDir) -> Predictions:
    """Return the predictions of a run; ones without any label get those of its own cohort table.

    They stay without where that table is gone or was changed.
    """
    made = read_predictions(run.predictions)
    if (made.y >= 0).any() or not (run.config.is_file() and run.inputs.is_file()):
        return made
    inputs = run.read_inputs()
    table = Path(inputs["cohort_table"])
    if not table.is_file() or sha256_file(table) != inputs["cohort_sha256"]:
        return made
    label = pipelines.config.read_config(run.config).data.label
    return join_labels(made, read_cohort(table, label, made.classes))
