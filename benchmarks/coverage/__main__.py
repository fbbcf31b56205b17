"""Count how often intervals hold the truth and tests cry wolf, and write docs/results/intervals.md.

    python -m benchmarks.coverage --out results.json --page docs/results/intervals.md

1,000 simulated cohorts of every design. `--out` keeps what was counted; given one that is there,
the page is written from it and nothing is simulated. `--only` takes the first letters of designs,
`--cohorts` fewer cohorts, to see that it works.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.coverage import page
from benchmarks.coverage.cohorts import DESIGNS, truth
from benchmarks.coverage.trials import (
    PAIRED,
    covered,
    differences_of,
    false_positives,
    intervals_of,
    many,
)
from wsi.files import publish_json


def main() -> None:
    """Simulate, print the tables, and write the page."""
    asked = _asked()
    if asked.out and asked.out.is_file():
        found = json.loads(asked.out.read_text(encoding="utf-8"))
    else:
        found = _simulated(asked)
    if asked.out:
        publish_json(asked.out, found)
    print(page.coverage_table(found))
    print(page.null_table(found))
    if asked.page:
        page.write(asked.page, found)
        print(f"wrote {asked.page}")


def _simulated(asked: argparse.Namespace) -> dict[str, Any]:
    """Return the counts of every design, by metric and test."""
    given = asked.cohorts, asked.replicates, asked.jobs
    intervals, nulls = {}, {}
    for design in DESIGNS:
        if design.name.startswith(asked.only):
            print(f"== {design.name}", flush=True)
            records = many(intervals_of, design, *given)
            of_metrics = covered(records, truth(design))
            intervals[design.name] = {name: asdict(one) for name, one in of_metrics.items()}
    for design in PAIRED:
        if design.name.startswith(asked.only):
            print(f"== two equal models, {design.name}", flush=True)
            nulls[design.name] = false_positives(many(differences_of, design, *given))
    counts = {"cohorts": asked.cohorts, "replicates": asked.replicates}
    return {**counts, "intervals": intervals, "nulls": nulls}


def _asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks.coverage",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--cohorts", type=int, default=1000, help="simulated, of each design")
    parser.add_argument("--replicates", type=int, default=1000, help="of each bootstrap")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--only", default="", help="designs whose name begins so")
    parser.add_argument("--out", type=Path, help="file of what was counted")
    parser.add_argument("--page", type=Path, help="write the page")
    return parser.parse_args()


if __name__ == "__main__":
    main()
