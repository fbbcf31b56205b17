"""Cohorts from any table: one row per slide, everything as text, every bad row named at once."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from wsi.cohorts.cells import Table, read_table
from wsi.cohorts.own import setting_columns, with_site_settings
from wsi.cohorts.record import Record, read_record
from wsi.cohorts.rows import SlideRow, bad_cell, parse_rows
from wsi.errors import CohortError, ConfigError, LeakageError
from wsi.findings import Finding, errors_among, few, sentence
from wsi.registry import suggest


@dataclass(frozen=True)
class Cohort:
    """Slides with patients and labels; `classes` fixes the order of classes everywhere.

    Attributes:
        record: what a builder says of the labels, where one made the table.
    """

    name: str
    classes: tuple[str, ...]
    rows: tuple[SlideRow, ...]
    record: Record | None = None

    @property
    def labels_from(self) -> str:
        """Return in one line which labels these are; empty where nothing is known of them."""
        return "" if self.record is None else self.record.line


def read_cohort(
    path: Path | str,
    label: str = "label",
    classes: Sequence[str] | None = None,
    require_label: bool = True,
    name: str | None = None,
) -> Cohort:
    """Return the cohort in a CSV or Excel table.

    Args:
        label: the column that holds the labels of the task.
        classes: the class names, in order; needed where labels are.
        require_label: False reads a table for prediction or splitting: labels may be absent, and
            without `classes` any label is taken and `Cohort.classes` is empty.
        name: of the cohort; the file's stem when not given.

    Raises:
        ConfigError: no such file or column, or no `classes`; the message lists the values found.
        CohortError: bad rows, all listed with line and column.
        LeakageError: the bad rows are patients in the test and another part of an official split.
    """
    path = Path(path)
    table = read_table(path)
    column = label_column(table, label, required=require_label)
    if require_label and classes is None:
        raise ConfigError(_classes_wanted(table, column))
    if classes is not None and len(set(classes)) < len(classes):
        raise ConfigError(f"classes {', '.join(classes)} repeat a name — name each class once")
    rows, findings = parse_rows(table, column, classes, require_label=require_label)
    _refuse(path, errors_among(findings))
    return Cohort(name or path.stem, tuple(classes or ()), rows, _record_of(path))


def _record_of(path: Path) -> Record | None:
    """Return the record beside a table; of one edited since, it says so."""
    found = read_record(path)
    if found is None:
        return None
    record, whole = found
    return record if whole else replace(record, labels=f"{record.labels}, edited since")


def read_slide_table(path: Path | str) -> list[SlideRow]:
    """Return the slides of a table that needs neither labels nor patients.

    A row without a slide_id takes its path relative to the table, without extension. Columns
    `tissue.<setting>` and `tissue.method.<parameter>` are settings of single slides, and of a whole
    site in a row whose slide_id is `*`; every row comes with what applies to it.

    Raises:
        ConfigError: no such file, or no column with slide paths.
        CohortError: bad rows, all listed with line and column.
    """
    path = Path(path)
    table = read_table(path)
    table.require("path")
    columns, misnamed = setting_columns(table)
    rows, findings = parse_rows(
        table, None, None, require_label=False, require_patient=False, settings=columns
    )
    rows, bad_settings = with_site_settings(table, columns, rows)
    findings = [*misnamed, *findings, *bad_settings]
    pathless = [
        bad_cell(table, row.line, table.column("path"), "missing path", "path", row.slide_id)
        for row in rows
        if row.path is None
    ]
    _refuse(path, [*errors_among(findings), *pathless])
    return rows


def read_ids(path: Path | str) -> Cohort:
    """Return the slides that a table names, without patients, labels or classes.

    Raises:
        ConfigError: no such file, or neither ids nor paths in it.
        CohortError: bad rows, all listed with line and column.
    """
    path = Path(path)
    rows, findings = parse_rows(
        read_table(path), None, None, require_label=False, require_patient=False
    )
    _refuse(path, errors_among(findings))
    return Cohort(path.stem, (), rows)


_EXTENSION = re.compile(r"\.(svs|tiff?|ndpi|mrxs|scn|dcm|h5|pt)$", re.IGNORECASE)


def without_extension(slide_id: str) -> str:
    """Return an id without the extension of a slide or of its features."""
    return _EXTENSION.sub("", slide_id)


def match_ids(cohort: Cohort, available: Iterable[str]) -> dict[str, str]:
    """Return which available id each slide of the cohort means; slides without one are left out.

    An id matches itself, else the one available id whose last path component it is, else the one
    that differs from it by nothing but a slide's file extension (`x` and `x.svs`).

    Raises:
        CohortError: a bare name has several candidates, or two slides mean the same id.
    """
    ids = list(available)
    exact = set(ids)
    by_name: dict[str, list[str]] = defaultdict(list)
    by_stem: dict[str, list[str]] = defaultdict(list)
    for slide_id in ids:
        name = slide_id.rsplit("/", 1)[-1]
        by_name[name].append(slide_id)
        if (stem := without_extension(name)) != name:
            by_stem[stem].append(slide_id)
            if "/" in slide_id:
                by_stem[without_extension(slide_id)].append(slide_id)
    matched: dict[str, str] = {}
    problems: list[str] = []
    meant: dict[str, str] = {}
    for row in cohort.rows:
        stem = without_extension(row.slide_id)
        candidates = [row.slide_id] if row.slide_id in exact else by_name.get(row.slide_id, [])
        if not candidates and stem != row.slide_id:
            candidates = [stem] if stem in exact else by_name.get(stem, [])
        candidates = candidates or by_stem.get(row.slide_id, [])
        if len(candidates) > 1:
            problems.append(f"slide {row.slide_id} could be {few(sorted(candidates))}")
        elif candidates and candidates[0] in meant:
            problems.append(f"{meant[candidates[0]]} and {row.slide_id} both mean {candidates[0]}")
        elif candidates:
            matched[row.slide_id] = candidates[0]
            meant[candidates[0]] = row.slide_id
    if problems:
        raise CohortError(
            f"cohort {cohort.name}: {'; '.join(problems)} — write the whole id in the table"
        )
    return matched


def label_column(
    table: Table, label: str, required: bool, advice: str = "set data.label to one of:"
) -> str | None:
    """Return the column that holds the labels, None where it is not required and not there.

    Raises:
        ConfigError: there is none; the nearest name is suggested, and `advice` precedes them all.
    """
    if label in table.columns:
        return label
    folded = [c for c in table.columns if c.lower() == label.lower()]
    if len(folded) == 1:
        return folded[0]
    if not required and label == "label":
        return None
    raise ConfigError(
        f"{table.path.name} has no label column '{label}'{suggest(label, table.columns)} — "
        f"{advice} {', '.join(table.columns)}"
    )


def _classes_wanted(table: Table, column: str | None) -> str:
    counts = Counter(line.cells[column] for line in table.lines if column and line.cells[column])
    found = ", ".join(f"{value} ({n})" for value, n in sorted(counts.items()))
    example = ",".join(sorted(counts)) if len(counts) <= 20 else "..."
    return (
        f"{table.path.name}: the order of classes is not given; column '{column}' holds "
        f"{found or 'nothing'} — set data.classes=[{example}] in the order you want"
    )


def _refuse(path: Path, problems: list[Finding]) -> None:
    if not problems:
        return
    only_leakage = all(problem.rule == "leakage" for problem in problems)
    error = LeakageError if only_leakage else CohortError
    only_labels = all(problem.rule == "unknown-label" for problem in problems)
    what = "data.classes or the table" if only_labels else "the table"
    raise error(sentence(problems, f"{path.name}") + f" — correct {what}")
