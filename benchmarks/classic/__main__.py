"""Run what docs/results/classic-mil.md rests on, fit by fit, and write the page.

    python -m benchmarks.classic --mil DIR --out DIR --jobs 2 --page docs/results/classic-mil.md

The classic MIL sets of --mil (5 times 10-fold), bags of digits with two classes, and all
aggregators on bags of digits with four. A run that was cut off goes on where it was. `--only`
takes the first letters of one: musk, fox, digit-bags-4. `--short` runs every step on little, to
show that it works; its figures mean nothing.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.classic import digits, page
from benchmarks.classic.cells import Cell, complete
from benchmarks.classic.recipe import (
    CLASSIC,
    DIGIT_SEEDS,
    DIGITS,
    FOLDS,
    MODELS,
    REPETITIONS,
)
from benchmarks.evidence.sets import classic
from pipelines.console import Console
from wsi.aggregators import AGGREGATORS
from wsi.errors import WsiError

_SHORT_FOLDS = 3


def main() -> None:
    """Run what is asked for and write the page; an error is one line."""
    try:
        _run(_asked(), Console())
    except WsiError as error:
        raise SystemExit(str(error)) from None


def _run(asked: argparse.Namespace, console: Console) -> None:
    fits = _cells(asked)
    for name, cells in fits.items():
        console.say(f"== {name}")
        complete(cells, asked.jobs, console)
    study = asked.out / digits.FOUR
    if _wanted(digits.FOUR, asked):
        console.say(f"== {digits.FOUR}")
        made = digits.four_class(asked.out / "sets" / digits.FOUR, short=asked.short)
        names = AGGREGATORS.names()[: 2 if asked.short else None]
        code = digits.compare_aggregators(made, study, asked.jobs, names, short=asked.short)
        if code:
            raise SystemExit(code)
    if asked.page:
        page.write(asked.page, fits, study / "study" / "results.json")
        console.say(f"wrote {asked.page}")


def _asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks.classic",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of data sets and fits")
    parser.add_argument("--mil", type=Path, help="folder of the classic MIL sets, left out without")
    parser.add_argument("--only", default="", help="what begins so")
    parser.add_argument("--jobs", type=int, default=2, help="fits side by side")
    parser.add_argument("--page", type=Path, help="write the page")
    parser.add_argument("--short", action="store_true", help="a few folds and epochs")
    return parser.parse_args()


def _wanted(name: str, asked: argparse.Namespace) -> bool:
    return name.startswith(asked.only)


def _cells(asked: argparse.Namespace) -> dict[str, list[Cell]]:
    """Return all fits by data set; data sets are made when they are not there yet."""
    folder, data, short = asked.out / "fits", asked.out / "sets", asked.short
    fits = {}
    if _wanted(DIGITS, asked):
        made = digits.two_class(data / DIGITS, short=short)
        seeds = 1 if short else DIGIT_SEEDS
        fits[DIGITS] = digits.two_class_cells(made, folder, DIGITS, seeds, short=short)
    for name in CLASSIC if asked.mil else ():
        if _wanted(name, asked):
            made = classic(name, asked.mil, data / name)
            n_folds, times = (_SHORT_FOLDS, 1) if short else (FOLDS, REPETITIONS)
            fits[name] = [
                Cell(name, model, repetition, fold, made, folder, n_folds, short)
                for model in MODELS
                for repetition in range(times)
                for fold in range(n_folds)
            ]
    return fits


if __name__ == "__main__":
    main()
