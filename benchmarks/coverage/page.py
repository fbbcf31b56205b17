"""The page of measured coverage: tables of the simulation between text written by hand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.coverage.trials import TESTS
from benchmarks.evidence.page import table
from wsi.evaluation import METRICS
from wsi.files import publish_bytes

_READING = Path(__file__).with_name("reading")  # text around the tables, by name of the part

Found = Mapping[str, Any]


def write(path: Path, found: Found) -> None:
    """Write the page of one simulation."""
    parts = [
        _text("head"),
        f"{found['cohorts']:,} cohorts of each design, {found['replicates']:,} replicates each.",
        "## Coverage of 95 % intervals",
        coverage_table(found),
        _text("coverage"),
        "## Two equal models told apart",
        null_table(found),
        _text("null"),
    ]
    publish_bytes(path, ("\n\n".join(parts) + "\n").encode())


def coverage_table(found: Found) -> str:
    """Return a row for every design and metric."""
    header = ["cohort", "metric", "truth", "mean value", "covered", "standard error"]
    header += ["wholly below", "wholly above", "mean width"]
    header += ["no interval", "cohorts lack a class", "covered in the others"]
    rows = []
    for design, metrics in found["intervals"].items():
        for name, one in metrics.items():
            n, missed = one["cohorts"], (one["below"], one["above"])
            share = 1 - sum(missed) / n
            rows.append(
                [
                    design,
                    METRICS[name].title,
                    f"{one['truth']:.3f}",
                    f"{one['mean']:.3f}",
                    f"{share:.1%}",
                    f"{(share * (1 - share) / n) ** 0.5:.1%}",
                    *(f"{k / n:.1%}" for k in missed),
                    f"{one['width']:.3f}",
                    str(one["without"]),
                    str(one["lacking"]),
                    _share(sum(missed) - one["lacking_missed"], n - one["lacking"]),
                ]
            )
    return table(header, rows)


def _share(missed: int, n: int) -> str:
    return f"{1 - missed / n:.1%}" if n else "-"


def null_table(found: Found) -> str:
    """Return how often each test tells two equal models apart at 5 %."""
    rows = [
        [design, METRICS[metric].title, TESTS[test], f"{hits / n:.1%}", str(n)]
        for design, metrics in found["nulls"].items()
        for metric, tests in metrics.items()
        for test, (hits, n) in tests.items()
    ]
    return table(["cohort", "metric", "test", "told apart", "of"], rows)


def _text(name: str) -> str:
    return (_READING / f"{name}.md").read_text(encoding="utf-8").strip()
