"""What a cohort builder makes, and how it is written."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from wsi.cohorts.cells import read_table
from wsi.cohorts.record import Record, write_record
from wsi.errors import CohortError, LeakageError
from wsi.files import publish_bytes, sha256_file
from wsi.findings import Finding, errors_among, few, sentence
from wsi.registry import suggest

CONTRADICTED = "contradicted-labels"
"""The rule of labels that their own source contradicts; a user may accept them, on record."""

_LEFT_OUT = {"0", "no", "false", "n"}
_KEPT = {"1", "yes", "true", "y", ""}


@dataclass(frozen=True)
class Labels:
    """A file of labels as a builder names it: `text` is the line results carry."""

    text: str
    file: str
    sha256: str
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Built:
    """A cohort table in the making.

    Attributes:
        name: of the builder.
        columns: of the table, in order, slide_id and patient_id first.
        rows: cells by column, one mapping per slide; `path` absolute or empty.
        labels: where the labels come from.
        classes: classes in order, by label column.
        findings: what was found on the way; accepted errors have become warnings.
        accepted: those errors.
        patients_known, patients_mixed: see `wsi.cohorts.record.Record`.
    """

    name: str
    columns: tuple[str, ...]
    rows: tuple[dict[str, str], ...]
    labels: Labels
    classes: Mapping[str, tuple[str, ...]]
    findings: tuple[Finding, ...] = ()
    accepted: tuple[str, ...] = ()
    patients_known: bool = True
    patients_mixed: bool = False
    overlay: str = ""

    @property
    def record(self) -> Record:
        """Return what the table says of itself."""
        details = {
            "labels_file": self.labels.file,
            "labels_sha256": self.labels.sha256,
            "classes": {column: list(names) for column, names in self.classes.items()},
            "overlay": self.overlay,
            "findings": [finding.message for finding in self.findings],
            **self.labels.details,
        }
        text = self.labels.text + (f", with {self.overlay}" if self.overlay else "")
        return Record(
            self.name, text, self.accepted, self.patients_known, self.patients_mixed, details
        )


def with_findings(built: Built, found: Iterable[Finding], *, accept: bool) -> Built:
    """Return the cohort with more findings; errors are refused, or accepted and recorded.

    Only contradictions (rule `contradicted-labels`) can be accepted.

    Raises:
        CohortError: an error remains.
    """
    kept: list[Finding] = []
    accepted = list(built.accepted)
    for finding in found:
        if accept and finding.severity == "error" and finding.rule == CONTRADICTED:
            accepted.append(finding.message.partition(" — ")[0])
            finding = replace(finding, severity="warning", message=f"accepted: {finding.message}")
        kept.append(finding)
    errors = errors_among(kept)
    if errors:
        error = LeakageError if all(e.rule == "leakage" for e in errors) else CohortError
        raise error(sentence(errors, built.labels.file or built.name))
    return replace(built, findings=(*built.findings, *kept), accepted=tuple(accepted))


def write_built(built: Built, path: Path) -> None:
    """Write the table, with paths relative to it, and its record."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(built.columns)
    folder = path.resolve().parent
    for row in built.rows:
        cells = dict(row)
        for name in ("path", "lesions"):
            if cells.get(name):
                cells[name] = Path(os.path.relpath(cells[name], folder)).as_posix()
        writer.writerow([cells.get(column, "") for column in built.columns])
    publish_bytes(path, text.getvalue().encode())
    write_record(built.record, path)


def slide_files(root: Path, stems: str, suffixes: Sequence[str]) -> dict[str, Path]:
    """Return the slide files below `root` by stem.

    Args:
        stems: glob of the stems wanted: `BRACS_*`.

    Raises:
        CohortError: no such folder, or one stem is there twice.
    """
    if not root.is_dir():
        raise CohortError(f"no folder {root} — give the folder the slides were downloaded into")
    found: dict[str, list[Path]] = {}
    for path in sorted(root.rglob(f"{stems}.*")):
        if path.suffix.lower() in suffixes and path.is_file():
            found.setdefault(path.stem, []).append(path)
    twice = {stem: paths for stem, paths in found.items() if len(paths) > 1}
    if twice:
        stem, paths = next(iter(twice.items()))
        where = " and ".join(path.relative_to(root).as_posix() for path in paths)
        raise CohortError(
            f"{len(twice)} slides are there twice below {root.name}, {stem} as {where} — "
            "give --root one of the copies"
        )
    return {stem: paths[0] for stem, paths in found.items()}


@dataclass(frozen=True)
class Overlay:
    """Corrections laid over a cohort: what is left out and why, and labels that replace others."""

    name: str
    sha256: str
    left_out: Mapping[str, str]
    labels: Mapping[str, str]


def read_overlay(path: Path, classes: Sequence[str]) -> Overlay:
    """Return the overlay of a CSV: slide_id, keep (1 or 0), label, reason.

    Such tables come with re-annotations like CAMELYON+; an empty label keeps the old one.

    Raises:
        ConfigError: no such file or column.
        CohortError: a bad row, all listed.
    """
    table = read_table(path)
    slide = table.require("slide_id")
    problems: list[Finding] = []
    left_out: dict[str, str] = {}
    labels: dict[str, str] = {}
    for line in table.lines:
        cells = {column.lower(): cell for column, cell in line.cells.items()}
        slide_id = Path(line.cells[slide]).stem
        keep, label = cells.get("keep", "").lower(), cells.get("label", "")
        if keep not in _KEPT | _LEFT_OUT:
            problems.append(_bad(line.number, f"keep is '{keep}', use 1 or 0", slide_id))
        elif label and label not in classes:
            near = suggest(label, classes)
            problems.append(_bad(line.number, f"unknown label '{label}'{near}", slide_id))
        elif keep in _LEFT_OUT:
            left_out[slide_id] = cells.get("reason", "") or "left out by the overlay"
        elif label:
            labels[slide_id] = label
    if problems:
        raise CohortError(sentence(problems, path.name) + " — correct the table")
    return Overlay(path.name, sha256_file(path), left_out, labels)


def _bad(line: int, problem: str, slide_id: str) -> Finding:
    return Finding("error", "overlay", f"line {line}: {problem}", (slide_id,), line)


def overlaid(overlay: Overlay, labels: Mapping[str, str]) -> tuple[dict[str, str], Finding]:
    """Return labels by slide under an overlay, and what it did."""
    changed = {
        s: f"{labels[s]} -> {new}"
        for s, new in overlay.labels.items()
        if s in labels and labels[s] != new
    }
    gone = [s for s in overlay.left_out if s in labels]
    kept = {s: overlay.labels.get(s, old) for s, old in labels.items() if s not in overlay.left_out}
    unknown = [s for s in (*overlay.labels, *overlay.left_out) if s not in labels]
    message = f"{overlay.name} leaves out {len(gone)} slides and changes {len(changed)} labels"
    message += f" ({few(f'{s} {change}' for s, change in changed.items())})" if changed else ""
    message += f"; {len(unknown)} of its slides are not here" if unknown else ""
    return kept, Finding("info", "overlay", message, (*gone, *changed))
