"""Checks of a table of predictions: its columns, probabilities and labels."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from wsi.errors import PredictionsError
from wsi.findings import few
from wsi.registry import suggest

TEXTS = ("slide_id", "patient_id", "site", "cohort", "split", "y_true", "y_pred")
NUMBERS = ("fold", "seed")
HEAD = ("slide_id", "patient_id", "site", "cohort", "fold", "seed", "split", "y_true")
_DEFAULTS = {"site": "", "cohort": "", "fold": 0, "seed": 0, "split": "test", "y_true": ""}
_DECIMAL_COMMA = re.compile(r"[-+]?\d+,\d+([eE][-+]?\d+)?")
SUM_TOLERANCE = 1e-3  # a softmax in half precision, written with few digits


def probability_columns(classes: Sequence[str]) -> list[str]:
    """Return the columns of the probabilities, one per class."""
    return [f"p_{name}" for name in classes]


def normalised_table(table: pd.DataFrame, classes: tuple[str, ...]) -> pd.DataFrame:
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
    written: Any = table[probability_columns(classes)]  # a copy
    for name in probability_columns(classes):
        table[name] = np.array([_number(value) for value in table[name]])
    problems += _probability_problems(table, classes, written)
    if "y_pred" not in table and not problems:
        p = table[probability_columns(classes)].to_numpy()
        table["y_pred"] = [classes[k] for k in p.argmax(axis=1)]
    problems += _label_problems(table, classes)
    if problems:
        raise PredictionsError("; ".join(problems))
    return table.reindex(columns=[*HEAD, *probability_columns(classes), "y_pred"])


def _check_columns(table: pd.DataFrame, classes: tuple[str, ...]) -> None:
    needed = ["slide_id", "patient_id", *probability_columns(classes)]
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


def decimal_commas(texts: Iterable[object]) -> str:
    """Return what to say of numbers written as 0,25; nothing where none is."""
    found = any(isinstance(text, str) and _DECIMAL_COMMA.fullmatch(text.strip()) for text in texts)
    return ", for numbers need a decimal point: 0.25, not 0,25" if found else ""


def _probability_problems(
    table: pd.DataFrame, classes: Sequence[str], written: pd.DataFrame
) -> list[str]:
    p = table[probability_columns(classes)].to_numpy(np.float64)
    finite = np.isfinite(p).all(axis=1)
    commas = decimal_commas(written.to_numpy()[~finite].ravel())
    inside = ((p >= 0) & (p <= 1)).all(axis=1)
    summed = np.abs(p.sum(axis=1) - 1) <= SUM_TOLERANCE
    named = [
        (~finite, f"probabilities that are no finite numbers{commas}"),
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
