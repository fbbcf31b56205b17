"""`wsi cohort check`, `wsi splits make` and `wsi splits audit`: tables before training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from pipelines.config import load_config
from pipelines.console import Console
from wsi.cohorts import Cohort, check_cohort, read_cohort
from wsi.findings import Finding, errors_among
from wsi.specs import Config
from wsi.splits import make_splits, write_splits
from wsi.splits.table import audit_splits


def check(table: Path, settings: Sequence[str], console: Console) -> int:
    """Print what is found in a cohort table; 5 when there is an error."""
    data = load_config(settings).data
    return _show(check_cohort(table, data.label, data.classes), table, console)


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


def audit(file: Path, settings: Sequence[str], table: Path, console: Console) -> int:
    """Print what is found in a split file; 5 when a patient leaks or a part is impossible."""
    cohort = _cohort(table, load_config(settings))
    return _show(audit_splits(file, cohort), file, console)


def _cohort(table: Path, config: Config) -> Cohort:
    return read_cohort(table, config.data.label, config.data.classes, require_label=False)


def _show(findings: Sequence[Finding], path: Path, console: Console) -> int:
    rows = [[f.severity, f.rule, f.message] for f in findings]
    if rows:
        console.table(["severity", "rule", "finding"], rows, path.name)
    console.result([asdict(finding) for finding in findings])
    errors = errors_among(list(findings))
    console.say(f"{path.name}: {len(errors)} errors, {len(findings) - len(errors)} other findings")
    return 5 if errors else 0
