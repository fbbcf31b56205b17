"""`wsi cohort`, `wsi splits make` and `wsi splits audit`: tables before training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from pipelines.config import load_config
from pipelines.console import Console, counted
from pipelines.workers import processes
from wsi.cohorts import COHORTS, Cohort, check_cohort, read_cohort
from wsi.cohorts.built import Built, write_built
from wsi.cohorts.camelyon17_labels import (
    NodeLabels,
    check_labels,
    read_labels,
    staged,
    stages_derived,
)
from wsi.cohorts.miniature import Slide, plan
from wsi.errors import ConfigError
from wsi.findings import Finding, errors_among
from wsi.specs import Config
from wsi.splits import make_splits, write_splits
from wsi.splits.table import audit_splits


def check(table: Path, settings: Sequence[str], console: Console) -> int:
    """Print what is found in a cohort table; 5 when there is an error."""
    data = load_config(settings).data
    return _show(check_cohort(table, data.label, data.classes), table, console)


@dataclass(frozen=True)
class Sources:
    """Where a published data set lies, and how its labels are taken."""

    root: Path | None = None
    labels: Path | None = None
    overlay: Path | None = None
    accept_labels: bool = False
    present_only: bool = False


def build(name: str, sources: Sources, out: Path, dry_run: bool, console: Console) -> int:
    """Write the cohort table of a published data set, with a record of its labels beside it."""
    made = COHORTS.load(name)(
        sources.root, sources.labels, overlay=sources.overlay, accept=sources.accept_labels
    )
    if sources.present_only:
        made = _with_slides(made, console)
    for finding in made.findings:
        (console.warn if finding.severity == "warning" else console.say)(finding.message)
    counts = _counts(made)
    _say_classes(made, counts, console)
    console.say(f"labels: {made.record.line}")
    if not dry_run:
        write_built(made, out)
        console.say(f"wrote {out} and {out.with_suffix('.json').name}")
    patients = {row["patient_id"] for row in made.rows}
    console.result(
        {
            "table": None if dry_run else str(out),
            "slides": len(made.rows),
            "patients": len(patients) if made.patients_known else None,
            "labels_from": made.record.line,
            "classes": counts,
            "findings": [asdict(finding) for finding in made.findings],
        }
    )
    return 0


def _with_slides(made: Built, console: Console) -> Built:
    here = tuple(row for row in made.rows if row["path"])
    if not here:
        raise ConfigError("--present-only leaves nothing: no slide was found — check --root")
    console.say(f"left out, as not here: {counted(len(made.rows) - len(here), 'slide')}")
    return replace(made, rows=here)


def _counts(made: Built) -> dict[str, dict[str, dict[str, int]]]:
    """Return slides, patients where known, and slides of each part, by label column and class."""
    parts = sorted({row.get("split", "") for row in made.rows} - {""}, key=_PARTS.index)
    counts: dict[str, dict[str, dict[str, int]]] = {}
    for column, names in made.classes.items():
        counts[column] = {}
        for name in names:
            of = [row for row in made.rows if row[column] == name]
            known = {"patients": len({row["patient_id"] for row in of})}
            counts[column][name] = {
                "slides": len(of),
                **(known if made.patients_known else {}),
                **{part: sum(row["split"] == part for row in of) for part in parts},
            }
    return counts


def _say_classes(
    made: Built, counts: dict[str, dict[str, dict[str, int]]], console: Console
) -> None:
    patients = {row["patient_id"] for row in made.rows}
    known = f"{len(patients)} patients" if made.patients_known else "patients unknown"
    console.say(f"{made.name}: {len(made.rows)} slides, {known}")
    rows = [
        [column, name, *of.values()]
        for column, names in counts.items()
        for name, of in names.items()
    ]
    heads = list(next(iter(next(iter(counts.values())).values())))
    parts = [head for head in heads if head in _PARTS]
    if parts:
        totals = [sum(row["split"] == part for row in made.rows) for part in parts]
        of_all = [len(made.rows), *([len(patients)] if made.patients_known else [])]
        rows.append(["all", "", *of_all, *totals])
    console.table(["label column", "class", *heads], rows, "slides of each class")


_PARTS = ("train", "val", "test")


def miniature(name: str, out: Path, jobs: int, console: Console) -> int:
    """Draw a miniature of a data set: synthetic slides in its own folders, with its tables."""
    if out.is_dir() and any(out.iterdir()):
        raise ConfigError(f"{out} is not empty — give another --out")
    tree = plan(name)
    draw = partial(_draw, root=out)
    with console.progress("slides", len(tree.slides)) as track:
        if jobs > 1:
            with processes(min(jobs, len(tree.slides))) as pool:
                for path in pool.map(draw, tree.slides):
                    track.advance(1, path)
        else:
            for slide in tree.slides:
                track.advance(1, draw(slide))
    tree.write_tables(out)
    console.say(f"{len(tree.slides)} synthetic slides, laid out as {name}: {out}")
    console.say(f"next: wsi cohort build {name} --root {out} --out {name}.csv")
    console.result({"root": str(out), "slides": len(tree.slides)})
    return 0


def _draw(slide: Slide, root: Path) -> str:
    slide.write(root)
    return slide.path


def labels(file: Path, against: Path | None, accept: bool, console: Console) -> int:
    """Check a file of CAMELYON-17 labels and say which version it is; 5 when it is contradicted."""
    mine = read_labels(file)
    console.say(mine.line)
    findings = check_labels(mine)
    n = len(staged(mine.nodes, {}))
    contradicted = sum(f.rule == "contradicted-labels" and "stages" in f.message for f in findings)
    if mine.stages and not contradicted:
        console.say(f"the pN rule gives the stage of {n} of {n} patients")
    told = {"version": mine.version, "sha256": mine.sha256, "counts": mine.counts}
    if against is not None:
        told["against"] = _differences(mine, read_labels(against), console)
    code = _show(findings, file, console, told)
    if code and accept:
        console.say("accepted: results made with these labels say so")
        return 0
    return code


def _differences(mine: NodeLabels, other: NodeLabels, console: Console) -> dict[str, Any]:
    """Say how two files of labels differ, and the quadratic kappa between their stages."""
    from wsi.evaluation.staging import stage_kappa

    nodes = [n for n in sorted(mine.nodes) if other.nodes.get(n, mine.nodes[n]) != mine.nodes[n]]
    here, there = (staged(one.nodes, one.stages) for one in (mine, other))
    shared = sorted(set(here) & set(there))
    patients = [p for p in shared if here[p] != there[p]]
    kappa = stage_kappa([here[p] for p in shared], [there[p] for p in shared])
    console.say(f"against {other.line}")
    if derived := stages_derived(other):
        console.say(derived)  # of `mine` the findings tell
    rows = [[node, mine.nodes[node], other.nodes[node]] for node in nodes]
    rows += [[patient, here[patient], there[patient]] for patient in patients]
    if rows:
        console.table(["differs", mine.file, other.file], rows, "differences")
    console.say(
        f"{len(nodes)} nodes and {len(patients)} of {len(shared)} patients differ; quadratic "
        f"kappa between the stages {kappa:.4f}"
    )
    return {"nodes": nodes, "patients": patients, "quadratic_kappa": kappa}


def make(table: Path, settings: Sequence[str], out: Path, console: Console) -> int:
    """Make splits of a cohort and write them."""
    config = load_config(settings)
    splits = make_splits(_cohort(table, config), config.split)
    write_splits(splits, out)
    for finding in splits.warnings():
        console.warn(finding.message)
    rows = [
        [fold.index, fold.name, len(fold.train), len(fold.val), len(fold.test)]
        for fold in splits.folds
    ]
    console.table(["fold", "name", "train", "val", "test"], rows, "slides per part")
    console.result({"folds": len(rows), "sha256": splits.hash, "path": str(out)})
    console.say(f"wrote {out}")
    return 0


def audit(file: Path, settings: Sequence[str], table: Path | None, console: Console) -> int:
    """Print what is found in a split file; 5 when a patient leaks or a part is impossible."""
    cohort = None if table is None else _cohort(table, load_config(settings))
    return _show(audit_splits(file, cohort), file, console)


def _cohort(table: Path, config: Config) -> Cohort:
    return read_cohort(table, config.data.label, config.data.classes, require_label=False)


def _show(
    findings: Sequence[Finding],
    path: Path,
    console: Console,
    told: dict[str, Any] | None = None,
) -> int:
    rows = [[f.severity, f.rule, f.message] for f in findings]
    if rows:
        console.table(["severity", "rule", "finding"], rows, path.name)
    listed = [asdict(finding) for finding in findings]
    console.result(listed if told is None else told | {"findings": listed})
    errors = errors_among(list(findings))
    console.say(
        f"{path.name}: {counted(len(errors), 'error')}, "
        f"{counted(len(findings) - len(errors), 'other finding')}"
    )
    return 5 if errors else 0
