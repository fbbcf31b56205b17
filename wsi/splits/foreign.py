"""Split files of other tools, read into our folds; told apart by their columns.

- CLAM: `splits_<k>.csv` with columns train, val, test that list slide ids; a file or a folder.
- TransMIL: the same with train_label, val_label, test_label beside them; `fold<k>.csv`.
- PANTHER: folders of train.csv, val.csv, test.csv, one row per slide; one folder or several.
- MIL-Lab and others: one row per slide and a column per fold (`fold_0`, `split_0`), or one column
  `split`, that holds train, val, test.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from wsi.cohorts.cells import Table, read_table
from wsi.cohorts.rows import PARTS as PART_WORDS
from wsi.cohorts.table import without_extension
from wsi.errors import CohortError, ConfigError
from wsi.findings import few

PARTS = ("train", "val", "test")

_FOLD_COLUMN = re.compile(r"^(?:fold|split)_?(\d+)$", re.IGNORECASE)
_CLAM_EXTRAS = re.compile(r"_(bool|descriptor)$")


@dataclass
class ForeignFold:
    """One division of slides as another tool wrote it.

    Attributes:
        parts: slide ids by part, as written but for extensions.
        patients, labels: what the file itself says of slides; empty where it does not.
    """

    name: str
    parts: dict[str, list[str]] = field(default_factory=lambda: {part: [] for part in PARTS})
    patients: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)

    def add(self, part: str, slide: str, patient: str = "", label: str = "") -> None:
        """Put a slide into a part."""
        self.parts[part].append(slide)
        if patient:
            self.patients[slide] = patient
        if label:
            self.labels[slide] = label


@dataclass(frozen=True)
class ForeignSplits:
    """Folds of another tool.

    Attributes:
        tool: the layout: `CLAM`, `TransMIL`, `PANTHER` or `columns`.
    """

    tool: str
    folds: tuple[ForeignFold, ...]


def read_foreign(path: Path) -> ForeignSplits | None:
    """Return the splits of another tool's file or folder; None for a file of our own layout.

    Raises:
        ConfigError: no such file, or nothing in it that is known as splits.
        CohortError: a table cannot be read.
    """
    if path.is_dir():
        return _folder(path)
    table = read_table(path)
    lower = {column.lower(): column for column in table.columns}
    if {"slide_id", "fold"} <= set(lower) or {"fold", "part"} <= set(lower):
        return None
    one = _of_lists(table, path.stem)
    if one is not None:
        return one
    return _of_columns(table, lower)


def _folder(path: Path) -> ForeignSplits:
    files = [p for p in sorted(path.glob("*.csv"), key=_number) if not _CLAM_EXTRAS.search(p.stem)]
    if {"train", "test"} <= {file.stem for file in files}:
        return ForeignSplits("PANTHER", (_panther(path, path.name),))
    nested = [
        p for p in sorted(path.iterdir(), key=_number) if p.is_dir() and (p / "train.csv").is_file()
    ]
    if nested:
        return ForeignSplits("PANTHER", tuple(_panther(p, p.name) for p in nested))
    found = [one for file in files if (one := _of_lists(read_table(file), file.stem)) is not None]
    if not found:
        raise ConfigError(
            f"no splits in {path} — give splits_0.csv of CLAM, fold0.csv of TransMIL, train.csv "
            "and test.csv of PANTHER, or a table of slide_id, fold, part"
        )
    return ForeignSplits(found[0].tool, tuple(fold for one in found for fold in one.folds))


def _number(path: Path) -> tuple[int, str]:
    digits = re.findall(r"\d+", path.stem)
    return int(digits[-1]) if digits else -1, path.name


def _of_lists(table: Table, name: str) -> ForeignSplits | None:
    """Return the fold of a table whose columns train, val, test list slides; None for others."""
    lower = {column.lower(): column for column in table.columns}
    parts = {part: lower[part] for part in PARTS if part in lower}
    if not {"train", "test"} <= set(parts):
        return None
    fold = ForeignFold(name)
    labelled = {part: lower.get(f"{part}_label") for part in parts}
    for line in table.lines:
        for part, column in parts.items():
            slide = _slide(line.cells[column])
            label = line.cells[labelled[part] or ""] if labelled[part] else ""
            if slide:
                fold.add(part, slide, label=_whole(label))
    return ForeignSplits("TransMIL" if any(labelled.values()) else "CLAM", (fold,))


def _panther(folder: Path, name: str) -> ForeignFold:
    fold = ForeignFold(name)
    for part in PARTS:
        file = folder / f"{part}.csv"
        if file.is_file():
            table = read_table(file)
            slide, patient = table.require("slide_id"), table.column("patient_id")
            label = next((c for c in table.columns if c.lower() == "label"), None)
            for line in table.lines:
                fold.add(
                    part,
                    _slide(line.cells[slide]),
                    line.cells[patient] if patient else "",
                    line.cells[label] if label else "",
                )
    return fold


def _of_columns(table: Table, lower: Mapping[str, str]) -> ForeignSplits:
    """Return the folds of a table with one row per slide and a column per fold."""
    columns = {column: column for column in table.columns if _FOLD_COLUMN.match(column)}
    if not columns and "split" in lower:
        columns = {lower["split"]: "split"}
    if not columns:
        raise ConfigError(
            f"{table.path.name} has the columns {few(table.columns, 12)}, which are no splits that "
            "are known — give slide_id, fold, part, or a file of CLAM, TransMIL, PANTHER or MIL-Lab"
        )
    slide, patient = table.require("slide_id"), table.column("patient_id")
    label = lower.get("label")
    folds = []
    for column, name in columns.items():
        fold = ForeignFold(name)
        for line in table.lines:
            word = line.cells[column].lower()
            if not word:
                continue
            if word not in PART_WORDS:
                raise CohortError(
                    f"{table.path.name}, line {line.number}: {column} is '{word}', not train, val "
                    "or test — correct the table"
                )
            fold.add(
                PART_WORDS[word],
                _slide(line.cells[slide]),
                line.cells[patient] if patient else "",
                line.cells[label] if label else "",
            )
        folds.append(fold)
    return ForeignSplits("columns", tuple(folds))


def _slide(cell: str) -> str:
    return without_extension(_whole(cell))


def _whole(cell: str) -> str:
    # Shorter columns of such tables are filled with empty cells, which turns whole numbers to 3.0.
    return cell[:-2] if cell.endswith(".0") and cell[:-2].isdigit() else cell


def slides_of(splits: ForeignSplits) -> Iterator[str]:
    """Yield every slide once, in order of appearance."""
    every: Iterable[str] = (
        slide for fold in splits.folds for ids in fold.parts.values() for slide in ids
    )
    yield from dict.fromkeys(every)
