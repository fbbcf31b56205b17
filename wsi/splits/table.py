"""Splits as a CSV, one row per slide and fold, with a JSON sidecar of settings and hash."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from wsi.cohorts import Cohort, SlideRow
from wsi.cohorts.cells import Table, read_table
from wsi.cohorts.rows import PARTS as PART_WORDS
from wsi.cohorts.suspects import barcode, suspects
from wsi.errors import CohortError, ConfigError
from wsi.files import publish_bytes, publish_json, sha256_file
from wsi.findings import Finding, errors_among, few, sentence
from wsi.splits.folds import Fold, Splits, audit, audited, balance
from wsi.splits.foreign import ForeignSplits, read_foreign, slides_of
from wsi.splits.unread import but_for_extension, unknown_slides, unread_parts

SCHEMA = "wsi-splits/1"


def write_splits(splits: Splits, path: Path) -> None:
    """Write `path` (slide_id, patient_id, fold, part) and, last, its sidecar `<stem>.json`."""
    publish_bytes(path, splits.csv_text().encode())
    sidecar = {
        "schema": SCHEMA,
        "seed": splits.settings.get("seed"),
        "settings": dict(splits.settings),
        "sha256": splits.hash,
        "warnings": [finding.message for finding in splits.findings],
    }
    publish_json(path.with_suffix(".json"), sidecar)


def read_splits(path: Path | str, cohort: Cohort) -> Splits:
    """Return the splits of a file, audited against the cohort.

    Files and folders of other tools do as well; see `wsi.splits.foreign`. A file without a
    sidecar, made by hand, is held to the strict rules. Cohort slides that a fold leaves out, and a
    table edited since it was written, are among the findings.

    Raises:
        ConfigError: no such file or column.
        CohortError: unknown slides or parts, contradictory rows, an empty part, or a class absent
            from a training part.
        LeakageError: a patient stands on two sides.
    """
    folds, settings, findings = _read(Path(path), cohort)
    problems = errors_among(findings)
    if problems:
        raise CohortError(sentence(problems, Path(path).name) + " — correct the table")
    return audited(folds, cohort, settings, findings)


def audit_splits(path: Path | str, cohort: Cohort | None = None) -> list[Finding]:
    """Return everything found in a split file, errors first; nothing it finds is raised.

    Files and folders of other tools are read as they are; see `wsi.splits.foreign`.

    Args:
        cohort: patients, labels and sites; may be None where the file names the patients itself,
            or its slides are TCGA's. What is not checked then is told.

    Raises:
        ConfigError: no such file or column, or nobody knows the patients.
        CohortError: the file is no table, or its sidecar is not ours.
    """
    path = Path(path)
    foreign = read_foreign(path)
    if foreign is not None:
        folds, whole, findings = foreign_folds(foreign, cohort)
        settings: dict[str, Any] = {"kind": "file"}
    else:
        whole = cohort or _named_in(read_table(path))
        says = "the cohort" if cohort else "an earlier line"
        folds, settings, findings = _read(path, whole, says)
    leaks = audit(folds, whole, settings)
    findings += [
        *suspects(whole.rows),
        *leaks,
        *_on_two_sides(leaks, whole),
        *balance(folds, whole),
    ]
    if foreign is not None:
        findings += _left_out(folds, whole)
    if cohort is None:
        findings += _unchecked(whole)
    rank = {"error": 0, "warning": 1, "info": 2}
    return sorted(findings, key=lambda finding: rank[finding.severity])


def _on_two_sides(leaks: Iterable[Finding], cohort: Cohort) -> Iterator[Finding]:
    """Yield how many patients stand on two sides of any fold, and who."""
    rules = ("leakage", "leaking-validation")
    who = tuple(sorted({name for leak in leaks if leak.rule in rules for name in leak.ids}))
    if who:
        patients = {barcode(row.slide_id) or row.patient_id for row in cohort.rows}
        message = f"{len(who)} of {len(patients)} patients are on two sides: {few(who, 100)}"
        yield Finding("info", "two-sides", message, who)


def _unchecked(cohort: Cohort) -> Iterator[Finding]:
    """Yield what a file that was audited alone does not name."""
    lacks = [
        what
        for what, named in (
            ("labels", any(row.label for row in cohort.rows)),
            ("sites", any(row.site for row in cohort.rows)),
        )
        if not named
    ]
    if lacks:
        what = " and ".join(lacks)
        message = f"{what} were not checked: the file names none — give --cohort for them"
        yield Finding("info", "unchecked", message)


def foreign_folds(
    foreign: ForeignSplits, cohort: Cohort | None
) -> tuple[list[Fold], Cohort, list[Finding]]:
    """Return another tool's folds with the cohort they divide, and what does not fit.

    Raises:
        ConfigError: there is no cohort, and the file does not name the patients.
    """
    cohort = cohort or _cohort_of(foreign)
    known = {row.slide_id for row in cohort.rows}
    meant = but_for_extension(known)
    findings: list[Finding] = [
        Finding("info", "format", f"{len(foreign.folds)} folds as {foreign.tool} writes them")
    ]
    unknown = tuple(slide for slide in slides_of(foreign) if meant(slide) not in known)
    if unknown:
        findings += unknown_slides(unknown, known)
    folds = []
    for index, fold in enumerate(foreign.folds):
        placed: dict[str, list[str]] = defaultdict(list)
        for part, slides in fold.parts.items():
            for slide in slides:
                placed[meant(slide)].append(part)
        findings += _repeated(fold.name, placed)
        parts = [tuple(sorted({*map(meant, slides)} & known)) for slides in fold.parts.values()]
        folds.append(Fold(index, fold.name, *parts))
    return folds, cohort, findings


def _repeated(fold: str, placed: Mapping[str, list[str]]) -> Iterator[Finding]:
    """Yield what is listed several times: in two parts an error, in one only a remark."""
    torn = tuple(slide for slide, parts in placed.items() if len(set(parts)) > 1)
    if torn:
        listed = few(f"{slide} in {' and '.join(dict.fromkeys(placed[slide]))}" for slide in torn)
        message = f"fold {fold}: {len(torn)} slides are in two parts: {listed}"
        yield Finding("error", "conflict", message, torn)
    again = tuple(s for s, parts in placed.items() if len(parts) > 1 and s not in torn)
    if again:
        message = f"fold {fold}: {len(again)} slides are listed several times: {few(again)}"
        yield Finding("warning", "repeated", message, again)


def _cohort_of(foreign: ForeignSplits) -> Cohort:
    """Return the slides of a file with what it says of them itself."""
    patients: dict[str, str] = {}
    labels: dict[str, str] = {}
    for fold in foreign.folds:
        patients |= fold.patients
        labels |= fold.labels
    return _of_patients(slides_of(foreign), patients, labels)


def _of_patients(
    slides: Iterable[str], patients: Mapping[str, str], labels: Mapping[str, str]
) -> Cohort:
    """Return the slides as a cohort.

    Raises:
        ConfigError: neither the file nor a barcode says whose a slide is.
    """
    slides = list(slides)
    without = [s for s in slides if not patients.get(s) and barcode(s) is None]
    if without:
        raise ConfigError(
            f"the splits do not say whose {len(without)} slides are ({few(without)}) — give a "
            "table with their patients: --cohort"
        )
    rows = (
        SlideRow(slide, patients.get(slide) or barcode(slide) or "", label=labels.get(slide))
        for slide in slides
    )
    return Cohort("splits", (), tuple(rows))


def _named_in(table: Table) -> Cohort:
    """Return the slides of a file of ours with the patients it names; the first of a slide counts.

    Raises:
        ConfigError: it does not name them, or lacks a column.
    """
    slide, patient = table.require("slide_id"), table.column("patient_id")
    patients: dict[str, str] = {}
    for line in table.lines:
        named = line.cells[patient] if patient else ""
        patients[line.cells[slide]] = patients.get(line.cells[slide]) or named
    return _of_patients(patients, patients, {})


def _read(
    path: Path, cohort: Cohort, says: str = "the cohort"
) -> tuple[list[Fold], dict[str, Any], list[Finding]]:
    foreign = read_foreign(path)
    if foreign is not None:
        folds, _, found = foreign_folds(foreign, cohort)
        told = [finding for finding in found if finding.severity != "info"]
        return folds, {"kind": "file"}, [*told, *_left_out(folds, cohort)]
    table = read_table(path)
    settings, findings = _sidecar(path)
    placed, problems = _placed(table, cohort, says)
    folds = _folds(placed, settings.get("names"))
    return folds, settings, [*problems, *findings, *_left_out(folds, cohort)]


def _left_out(folds: list[Fold], cohort: Cohort) -> Iterator[Finding]:
    for fold in folds:
        here = {slide_id for ids in fold.parts().values() for slide_id in ids}
        absent = tuple(row.slide_id for row in cohort.rows if row.slide_id not in here)
        if absent:
            message = f"fold {fold.name}: {len(absent)} cohort slides are in no part: {few(absent)}"
            yield Finding("warning", "left-out", message, absent)


def _sidecar(path: Path) -> tuple[dict[str, Any], list[Finding]]:
    beside = path.with_suffix(".json")
    if not beside.is_file():
        return {"kind": "file"}, []
    try:
        sidecar = json.loads(beside.read_text(encoding="utf-8"))
        schema, settings, digest = sidecar["schema"], dict(sidecar["settings"]), sidecar["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise CohortError(
            f"{beside.name} is no sidecar of a split table — remove it or write the splits anew"
        ) from error
    if schema != SCHEMA:
        raise CohortError(f"{beside.name} has schema {schema}, not {SCHEMA} — write it anew")
    if digest == sha256_file(path):
        return settings, []
    message = f"{path.name} was changed since it was written: its hash is not the sidecar's"
    # An edited file has lost its excuse for leaking: it is held to the strict rules.
    kept = {key: value for key, value in settings.items() if key == "names"}
    return {"kind": "file", **kept}, [Finding("warning", "edited", message)]


def _placed(
    table: Table, cohort: Cohort, says: str
) -> tuple[dict[str, dict[str, str]], list[Finding]]:
    """Return the part of each slide by fold as written, and what is wrong with the rows.

    Args:
        says: who names the patients of the cohort, for messages.
    """
    slide, fold, part = (table.require(name) for name in ("slide_id", "fold", "part"))
    patient = table.column("patient_id")
    patients = {row.slide_id: row.patient_id for row in cohort.rows}
    meant = but_for_extension(patients)
    placed: dict[str, dict[str, str]] = defaultdict(dict)
    unknown: dict[str, int] = {}
    unread: dict[str, list[tuple[str, int]]] = defaultdict(list)
    again: dict[str, int] = {}
    problems: list[Finding] = []
    for line in table.lines:
        slide_id, word = line.cells[slide], PART_WORDS.get(line.cells[part].lower())
        slide_id = meant(slide_id)
        if slide_id not in patients:
            unknown.setdefault(slide_id, line.number)
            continue
        if word is None:
            unread[line.cells[part]].append((slide_id, line.number))
            continue
        if patient and line.cells[patient] and line.cells[patient] != patients[slide_id]:
            rule, problem = "patient", f"slide {slide_id} has patient {line.cells[patient]}, "
            problem += f"{says} says {patients[slide_id]}"
        elif slide_id in placed[line.cells[fold]]:
            if (before := placed[line.cells[fold]][slide_id]) == word:
                again.setdefault(slide_id, line.number)
                continue
            rule, problem = "conflict", f"slide {slide_id} is in {before} and {word} of one fold"
        else:
            placed[line.cells[fold]][slide_id] = word
            continue
        message = f"line {line.number}: {problem}"
        problems.append(Finding("error", rule, message, (slide_id,), line.number))
    if not table.lines:
        problems.append(Finding("error", "empty", "no rows below the header"))
    strange = [*unknown_slides(unknown, patients, unknown), *unread_parts(unread)]
    return placed, [*strange, *problems, *_listed_again(again)]


def _listed_again(again: Mapping[str, int]) -> Iterator[Finding]:
    """Yield slides that stand several times in the same part of a fold, a remark only."""
    if again:
        lines = few(map(str, again.values()))
        message = f"lines {lines}: {len(again)} slides are listed several times: {few(again)}"
        yield Finding("warning", "repeated", message, tuple(again), next(iter(again.values())))


def _folds(placed: dict[str, dict[str, str]], names: list[str] | None) -> list[Fold]:
    """Return the folds; other words than numbers are names, in the order they appear."""
    numbered = all(word.isascii() and word.isdigit() for word in placed)
    folds = []
    for k, (word, parts) in enumerate(placed.items()):
        index = int(word) if numbered else k
        name = names[index] if numbered and names and index < len(names) else word
        ids = [
            tuple(sorted(slide for slide, is_in in parts.items() if is_in == part))
            for part in ("train", "val", "test")
        ]
        folds.append(Fold(index, name, *ids))
    return sorted(folds, key=lambda fold: fold.index)
