"""CLAM's predictions: `fold_<k>.csv` of its evaluation, one row per slide.

Columns: `slide_id`, `Y` and `Y_hat` (numbers of classes, written 0.0, 1.0, ...), `p_0`, `p_1`, ...
The results of its training are pickles, which are never opened.
"""

from __future__ import annotations

import re
from pathlib import Path

from wsi.cohorts.cells import Table, read_table
from wsi.errors import ConfigError, PredictionsError
from wsi.evaluation.foreign.rows import Given, Layout, Sheet, column_given
from wsi.registry import suggest

_FOLD = re.compile(r"fold_(\d+)")
_NUMBERED = re.compile(r"p_(\d+)")
_PART = re.compile(r"'split': '(\w+)'")
_NAMED = {"slide_id": "slide_id", "y_true": "Y", "y_pred": "Y_hat"}


def layout(path: Path, given: Given) -> Layout:
    """Return the tables of a file, or of a folder with one for each fold."""
    refused = sorted(set(given.columns) - {"slide_id", "patient_id", "site"})
    if refused:
        raise ConfigError(
            f"{', '.join(refused)}: CLAM's columns of these are known — read other tables with "
            "--from csv"
        )
    files = [path] if path.is_file() else _files(path)
    _refuse_other_parts(files[0].parent)
    return Layout("CLAM", "slide", tuple(_sheet(file, given) for file in files))


def _files(path: Path) -> list[Path]:
    found = {int(m.group(1)): p for p in path.glob("*.csv") if (m := _FOLD.fullmatch(p.stem))}
    if found:
        return [found[k] for k in sorted(found)]
    pickles = " (its split_<k>_results.pkl are pickles, which run code when opened)"
    raise ConfigError(
        f"no fold_0.csv in {path}{pickles if list(path.glob('*.pkl')) else ''} — run CLAM's "
        "eval.py, and give its folder below eval_results"
    )


def _refuse_other_parts(folder: Path) -> None:
    """Raise where the settings beside the tables say that they are not of the test parts."""
    for file in sorted(folder.glob("eval_experiment_*.txt")):
        part = _PART.search(file.read_text(encoding="utf-8", errors="replace"))
        if part is not None and part.group(1) != "test":
            raise PredictionsError(
                f"{file.name} says that CLAM evaluated the part '{part.group(1)}', slides of which "
                "trained or picked the models — evaluate with --split test"
            )


def _sheet(file: Path, given: Given) -> Sheet:
    table = read_table(file)
    missing = [name for name in ("Y", "Y_hat") if name not in table.columns]
    numbers = sorted(int(m.group(1)) for c in table.columns if (m := _NUMBERED.fullmatch(c)))
    if missing or len(numbers) < 2 or numbers != list(range(len(numbers))):
        raise ConfigError(
            f"{file.name} is no table of CLAM's eval.py, which has slide_id, Y, Y_hat, p_0, p_1, "
            f"... (it has {', '.join(table.columns)}) — read other tables with --from csv"
        )
    classes = _classes(file, given, len(numbers))
    columns = {
        **{ours: column_given(table, given, ours) or name for ours, name in _NAMED.items()},
        **{ours: named for ours in ("patient_id", "site") if (named := _extra(table, given, ours))},
    }
    if columns["slide_id"] not in table.columns:
        raise ConfigError(
            f"{file.name} has no column slide_id{suggest('slide_id', table.columns)} — name it: "
            "--columns slide_id=<column>"
        )
    words = {f"{k}{end}": name for k, name in enumerate(classes) for end in ("", ".0")}
    fold = _FOLD.fullmatch(file.stem)
    probabilities = {name: f"p_{k}" for k, name in enumerate(classes)}
    return Sheet(table, columns, probabilities, int(fold.group(1)) if fold else 0, words)


def _extra(table: Table, given: Given, ours: str) -> str | None:
    return column_given(table, given, ours) or table.column(ours)


def _classes(file: Path, given: Given, n: int) -> tuple[str, ...]:
    if len(given.classes) != n:
        what = f"--classes names {len(given.classes)}" if given.classes else "nobody names them"
        raise ConfigError(
            f"{file.name} numbers its {n} classes 0 to {n - 1}, and {what} — give --classes "
            f"{','.join('abcdefghijklmnopqrstuvwxyz'[: min(n, 26)])} in the order of CLAM's "
            "label_dict"
        )
    return given.classes
