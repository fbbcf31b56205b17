"""Run the studies behind docs/results/objectives.md, each resumable, and write the page.

    python -m benchmarks.evidence --out DIR --mil DIR --tier core
    python -m benchmarks.evidence --out DIR --page docs/results/objectives.md

`core` compares six objectives with 8 seeds and 4 rates each; `explore` all others with 2 seeds,
and the variants under development; `confirm` the frozen ones, once, on what they were not
developed on; `classic` the core on the classic MIL sets of --mil. `--short` runs every step on a
few bags, to show that it works; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.evidence import arms, page, sets
from benchmarks.evidence.stores import Made
from pipelines.config import load_config
from pipelines.console import Console
from pipelines.study.run import Options
from pipelines.study.run import run as run_study

DEVELOPED, CONFIRMED = 1000, 2000  # seeds of what is drawn: bags, images, slides
_FIT = (
    "aggregator.hidden=64",
    "fit.epochs=20",
    "fit.patience=20",
    "fit.bags_per_step=16",
)
_SHORT = (
    "fit.epochs=2",
    "study.rates=[1e-2,3e-2]",
    "study.rate_seeds=1",
    "evaluate.replicates=200",
)


@dataclass(frozen=True)
class Study:
    """One data set, compared in one way."""

    name: str
    made: Made
    settings: tuple[str, ...] = ("study.selection=[patient]",)


def main() -> None:
    asked = _asked()
    if asked.tier:
        for study in _studies(asked):
            _run(study, asked)
    if asked.page:
        page.write(asked.out, asked.page)
        print(f"wrote {asked.page}")


def _asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.evidence", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of data sets and studies")
    parser.add_argument("--mil", type=Path, help="folder of the classic MIL sets, left out without")
    parser.add_argument("--tier", choices=list(arms.TIERS), help="which studies to run")
    parser.add_argument("--only", help="run the studies whose name begins so")
    parser.add_argument("--jobs", type=int, default=2, help="fits side by side")
    parser.add_argument("--page", type=Path, help="write the page from all studies of --out")
    parser.add_argument("--short", action="store_true", help="a few bags, two seeds")
    return parser.parse_args()


def _studies(asked: argparse.Namespace) -> Iterator[Study]:
    """Yield the studies of a tier, data sets made when their turn comes."""
    tier, data = arms.TIERS[asked.tier], asked.out / "sets"
    fresh = tier.fresh
    draw, mark = (CONFIRMED, "-new") if fresh else (DEVELOPED, "")

    def wanted(name: str) -> bool:
        return name.startswith(asked.only or "") and tier.takes(name)

    for n in (2, 4):
        if wanted(name := f"digit-bags-{n}"):
            few = 4 if asked.short else 16
            yield Study(name, sets.digit_bags(n, draw, data / f"{name}{mark}", few))
    for noise in (0.0, 0.3):
        if wanted(name := f"digit-images-{round(100 * noise)}"):
            yield Study(name, sets.digit_images(noise, draw, data / f"{name}{mark}"))
    within = ("split.kind=kfold", "split.folds=3", "study.selection=[patient]")
    selection = "[patient,site]" if len(tier.seeds) > 2 else "[patient]"
    across = ("split.kind=leave-one-site-out", f"study.selection={selection}")
    for name, settings in (("cohort-in-domain", within), ("cohort-across-sites", across)):
        if wanted(name):
            stains = sets.NEW_SITES if fresh else sets.SITES
            slides = 2 if asked.short else 6 if fresh else 12
            made = sets.cohort(stains, slides, draw, data / f"cohort{mark}")
            yield Study(name, made, settings)
    if asked.mil:
        for name in sets.CLASSIC:
            if wanted(name):
                yield Study(name, sets.classic(name, asked.mil, data / name))


def _run(study: Study, asked: argparse.Namespace) -> None:
    tier, made = arms.TIERS[asked.tier], study.made
    seeds = tier.seeds[:2] if asked.short else tier.seeds
    config = load_config(
        [
            *_FIT,
            *made.settings,
            *study.settings,
            f"data.classes=[{','.join(made.classes)}]",
            f"fit.seeds=[{','.join(map(str, seeds))}]",
            f"study.arms={json.dumps(tier.arms)}",
            f"study.rates={list(tier.rates)}",
            f"study.rate_seeds={tier.rate_seeds}",
            *(_SHORT if asked.short else ()),
        ]
    )
    root = asked.out / "studies" / asked.tier / study.name
    options = Options(made.cohort, made.bags, root, made.splits, asked.jobs, allow_few_seeds=True)
    print(f"== {asked.tier}: {study.name}", flush=True)
    code = run_study(config, options, Console(log=root.with_suffix(".log")))
    if code:
        raise SystemExit(code)


if __name__ == "__main__":
    main()
