"""CAMELYON-17: 500 lymph nodes of 100 patients in five centres, from its folders and labels.

The patients are artificial: the data set's authors mixed the slides of real patients, so dividing
by patient does not keep a real patient on one side. Leaving a whole centre out does, and is the
preset's way.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from wsi.cohorts.built import (
    Built,
    Labels,
    overlaid,
    read_overlay,
    slide_files,
    with_findings,
)
from wsi.cohorts.camelyon17_labels import (
    ANNOTATED,
    NODE_CLASSES,
    STAGES,
    NodeLabels,
    check_labels,
    patient_of,
    read_labels,
    staged,
)
from wsi.errors import ConfigError
from wsi.findings import Finding, few

CENTRES, PATIENTS_PER_CENTRE = 5, 20

MET = {"negative": "negative", "itc": "negative", "micro": "metastasis", "macro": "metastasis"}
"""Metastasis or not, isolated tumour cells counting as negative, as the pN rule has it."""

ANY = {label: "negative" if label == "negative" else "tumour" for label in NODE_CLASSES}
"""Any tumour cell or none."""

CLASSES = {
    "node4": NODE_CLASSES,
    "met": ("negative", "metastasis"),
    "any": ("negative", "tumour"),
    "pn": STAGES,
}
"""Label columns and their classes; `pn` is the patient's, and fit for patient-level bags."""

_MIXED = Finding(
    "info",
    "mixed-patients",
    "the challenge mixed the slides of several people into each patient: only whole centres keep a "
    "person on one side, so leave one centre out at a time (split.kind=leave-one-site-out, as the "
    "preset does)",
)

_COLUMNS = ("slide_id", "patient_id", "site", *CLASSES, "path", "lesions")
_SUFFIXES = (".tif", ".tiff", ".svs")
_CENTRE = re.compile(r"^cent(?:er|re)_(\d)$", re.IGNORECASE)
_LABEL_FILES = ("stage_labels.csv", "stages.csv", "stage_labels*.csv")


def build(
    root: Path | None,
    labels: Path | None,
    *,
    overlay: Path | None = None,
    accept: bool = False,
) -> Built:
    """Return the cohort of the labelled nodes, one row each.

    Args:
        root: folder of the slides, in any layout; None for labels alone, without paths.
        labels: `stage_labels.csv` or a table of slide_id,label; sought below `root` when None.
        overlay: corrections, such as CAMELYON+'s: slide_id, keep, label, reason.
        accept: take labels that contradict the drawn lesions or the pN rule, on record.

    Raises:
        ConfigError: there is neither folder nor label file.
        CohortError: the labels contradict themselves, or slides lie in another centre's folder.
    """
    given = read_labels(_label_file(root, labels))
    files = {} if root is None else slide_files(root, "patient_*_node_*", _SUFFIXES)
    drawn = {} if root is None else _lesions(root)
    built = Built("camelyon17", _COLUMNS, (), _labels(given), CLASSES, patients_mixed=True)
    built = with_findings(built, [_MIXED], accept=accept)
    found = check_labels(given, {*ANNOTATED, *drawn})
    built = with_findings(built, [*found, *_misplaced(files)], accept=accept)
    nodes, stages = dict(given.nodes), dict(given.stages)
    if overlay is not None:
        laid = read_overlay(overlay, NODE_CLASSES)
        nodes, finding = overlaid(laid, nodes)
        touched = {patient_of(s) for s in (*laid.left_out, *laid.labels)}
        # A stage that rests on labels which changed is not the patient's any more.
        stages = {p: stage for p, stage in stages.items() if p not in touched}
        built = with_findings(built, [finding], accept=accept)
        built = replace(built, overlay=f"{laid.name} (sha256 {laid.sha256[:12]})")
    by_patient = staged(nodes, stages)
    rows = tuple(_row(node, nodes[node], by_patient, files, drawn) for node in sorted(nodes))
    built = replace(built, rows=rows)
    return with_findings(built, _about_files(rows, files) if root else [], accept=accept)


def _label_file(root: Path | None, labels: Path | None) -> Path:
    if labels is not None:
        return labels
    if root is None:
        raise ConfigError("give --root with the slides, --labels with stage_labels.csv, or both")
    for pattern in _LABEL_FILES:
        found = sorted(root.rglob(pattern))
        if len(found) == 1:
            return found[0]
        if found:
            listed = few(path.relative_to(root).as_posix() for path in found)
            raise ConfigError(
                f"several label files below {root.name}: {listed} — name one: --labels"
            )
    raise ConfigError(f"no stage_labels.csv below {root} — give it with --labels")


def _labels(given: NodeLabels) -> Labels:
    details = {"version": given.version, "nodes": len(given.nodes), "counts": given.counts}
    details["synthetic"] = bool(given.synthetic)
    return Labels(given.line, given.file, given.sha256, details)


def _lesions(root: Path) -> dict[str, Path]:
    """Return the files of drawn lesions by node."""
    return {path.stem: path for path in sorted(root.rglob("patient_*_node_*.xml"))}


def _site(node: str) -> str:
    """Return the centre of a training node; the challenge numbered patients by centre."""
    return str(int(patient_of(node).removeprefix("patient_")) // PATIENTS_PER_CENTRE)


def _misplaced(files: Mapping[str, Path]) -> list[Finding]:
    """Return slides that lie in the folder of another centre than their number says."""
    wrong = []
    for node, path in files.items():
        folders = [found[1] for part in path.parts if (found := _CENTRE.match(part))]
        if folders and _site(node) in map(str, range(CENTRES)) and folders[-1] != _site(node):
            wrong.append(node)
    if not wrong:
        return []
    message = f"{len(wrong)} slides lie in another centre's folder than their number says: "
    return [Finding("error", "centre", message + few(wrong), tuple(wrong))]


def _row(
    node: str,
    label: str,
    stages: Mapping[str, str],
    files: Mapping[str, Path],
    lesions: Mapping[str, Path],
) -> dict[str, str]:
    patient = patient_of(node)
    return {
        "slide_id": node,
        "patient_id": patient,
        "site": _site(node),
        "node4": label,
        "met": MET[label],
        "any": ANY[label],
        "pn": stages.get(patient, ""),
        "path": str(files[node].resolve()) if node in files else "",
        "lesions": str(lesions[node].resolve()) if node in lesions else "",
    }


def _about_files(rows: tuple[dict[str, str], ...], files: Mapping[str, Path]) -> list[Finding]:
    labelled = {row["slide_id"] for row in rows}
    absent = tuple(row["slide_id"] for row in rows if not row["path"])
    spare = tuple(sorted(set(files) - labelled))
    findings = []
    if absent:
        message = f"{len(absent)} labelled nodes have no slide here: {few(absent)}"
        findings.append(Finding("warning", "no-slide", message, absent))
    if spare:
        message = f"{len(spare)} slides have no label and are left out: {few(spare)}"
        findings.append(Finding("info", "no-label", message, spare))
    sites = Counter(row["site"] for row in rows)
    listed = ", ".join(f"{site}: {n}" for site, n in sorted(sites.items()))
    findings.append(Finding("info", "sites", f"nodes by centre: {listed}"))
    return findings
