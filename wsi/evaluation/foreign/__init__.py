"""Predictions of other tools, read into ours.

- stamp: `patient-preds.csv`, one row per patient; a crossval folder becomes folds.
- clam: `fold_<k>.csv` of its evaluation, classes by number; a folder becomes folds.
- csv: any table, with a map from our columns to its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

from wsi.errors import ConfigError, PredictionsError
from wsi.evaluation.foreign import any_table, clam, stamp
from wsi.evaluation.foreign.rows import Given, Layout, predictions_of
from wsi.evaluation.foreign.rows import parse_columns as parse_columns
from wsi.evaluation.predictions import Predictions

Tool = Literal["stamp", "clam", "csv"]
_LAYOUTS: Mapping[Tool, Callable[[Path, Given], Layout]] = {
    "stamp": stamp.layout,
    "clam": clam.layout,
    "csv": any_table.layout,
}

__all__ = ["Given", "Tool", "parse_columns", "read_foreign_predictions", "tool_of"]


def read_foreign_predictions(
    path: Path | str, tool: Tool, given: Given | None = None
) -> Predictions:
    """Return the predictions in a file or folder of another tool.

    Its own decisions are kept as y_pred. What is weak about the table stands in `notes`. A slide
    whose patient the table does not name is its own patient; `join_labels` gives it the right one.

    Args:
        given: what the table does not say: names of columns, and of classes.

    Raises:
        ConfigError: no such file, column or class, or too little is known of the table.
        PredictionsError: bad rows, all listed with their lines.
    """
    path = Path(path)
    if not path.exists():
        raise ConfigError(f"no predictions at {path} — check the path")
    layout = _LAYOUTS[tool](path, given or Given())
    try:
        return predictions_of(layout)
    except PredictionsError as error:
        raise PredictionsError(f"{path.name}: {error}") from error


def tool_of(columns: list[str]) -> Tool | None:
    """Return the tool whose table has such columns, None where none is known by them."""
    if {"Y", "Y_hat"} <= set(columns):
        return "clam"
    if {"pred", "loss"} <= set(columns):
        return "stamp"
    return None
