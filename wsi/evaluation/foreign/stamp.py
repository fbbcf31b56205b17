"""STAMP's predictions: one row per patient, in `patient-preds.csv`.

Columns: the patient's (`PATIENT` by default), the label's, `pred`, `<label>_<class>` for each class
and `loss`. A cross-validation writes one such file in each of `split-0`, `split-1`, ... (`fold-0`
in its first versions). Regression and survival have no columns of classes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from wsi.cohorts.cells import Table, read_table
from wsi.errors import ConfigError
from wsi.evaluation.foreign.rows import Given, Layout, Sheet, column_given, in_order

FILE = "patient-preds.csv"
_FOLD = re.compile(r"(?:split|fold)-(\d+)")
_OTHER = ("pred", "loss")


def layout(path: Path, given: Given) -> Layout:
    """Return the tables of a file, a deployment's or a cross-validation's folder."""
    refused = sorted(set(given.columns) - {"patient_id", "y_true"})
    if refused:
        raise ConfigError(
            f"{', '.join(refused)}: of STAMP's columns only patient_id and y_true may be named — "
            "read other tables with --from csv"
        )
    sheets = []
    for k, file in enumerate(_files(path)):
        table = read_table(file)
        fold = _FOLD.fullmatch(file.parent.name) if path.is_dir() else None
        sheets.append(_sheet(table, given, int(fold.group(1)) if fold else k))
    _refuse_unlike(sheets)
    return Layout("STAMP", "patient", tuple(sheets))


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    found = [p for p in path.glob(f"*/{FILE}") if _FOLD.fullmatch(p.parent.name)]
    if found:
        return sorted(found, key=lambda p: int(_FOLD.sub(r"\1", p.parent.name)))
    if (path / FILE).is_file():
        return [path / FILE]
    raise ConfigError(
        f"no {FILE} in {path}, nor in split-0, split-1, ... below it — give the output folder of "
        "STAMP's deploy or crossval"
    )


def _sheet(table: Table, given: Given, fold: int) -> Sheet:
    label = column_given(table, given, "y_true") or _label(table)
    patient = column_given(table, given, "patient_id") or _patient(table, label)
    prefix = f"{label}_"
    found = {c.removeprefix(prefix): c for c in table.columns if c.startswith(prefix)}
    if len(found) < 2 or "pred" not in table.columns:
        raise _none(table)
    columns = {"patient_id": patient, "y_true": label, "y_pred": "pred"}
    probabilities = {name: found[name] for name in in_order(list(found), given, table.path.name)}
    return Sheet(table, columns, probabilities, fold)


def _label(table: Table) -> str:
    """Return the column whose name begins those of the classes."""

    def of_classes(label: str) -> int:
        return sum(column.startswith(f"{label}_") for column in table.columns)

    named = [c for c in table.columns if c not in _OTHER and of_classes(c) > 1]
    if not named:
        raise _none(table)
    # A class whose name begins others' could be taken for the label, which stands before it.
    return named[0]


def _patient(table: Table, label: str) -> str:
    found = table.column("patient_id")
    if found is not None:
        return found
    others = [
        c for c in table.columns if c not in (*_OTHER, label) and not c.startswith(f"{label}_")
    ]
    if len(others) != 1:
        raise ConfigError(
            f"{table.path.name} does not say which column holds the patients "
            f"({', '.join(others) or 'none is left'}) — name it: --columns patient_id=<column>"
        )
    return others[0]


def _none(table: Table) -> ConfigError:
    return ConfigError(
        f"{table.path.name} has no columns pred and <label>_<class> as STAMP's classifications "
        f"have (it has {', '.join(table.columns)}) — regression and survival are not scored here; "
        "read other tables with --from csv"
    )


def _refuse_unlike(sheets: Sequence[Sheet]) -> None:
    first = sheets[0]
    for sheet in sheets[1:]:
        if list(sheet.probabilities) != list(first.probabilities):
            raise ConfigError(
                f"{sheet.table.path} has the classes {', '.join(sheet.probabilities)}, "
                f"{first.table.path} {', '.join(first.probabilities)} — give folds of one task"
            )
