"""`wsi sweep`: settings searched on validation; trials are run folders; test labels come last."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipelines.console import Console, counted
from pipelines.fits import gather, splits_of, warn_of_data
from pipelines.sweep.book import Book
from pipelines.sweep.fitting import benches, fit
from pipelines.sweep.folder import SweepDir
from pipelines.sweep.output import finish_best, others_scored, show_trials, write_results
from pipelines.sweep.plan import Plan, need_validation, trials_of
from pipelines.sweep.results import SCHEMA, best_of, notes_of, results, rows_of, warnings_of
from pipelines.sweep.space import space_of
from pipelines.sweep.trials import Sharing
from pipelines.train import Options as TrainOptions
from pipelines.train import inputs_of
from pipelines.workers import check_device
from wsi.claims import Claims
from wsi.errors import TrainingError
from wsi.specs import Config
from wsi.splits import write_splits


@dataclass(frozen=True)
class Options:
    """What the command line decides beside the settings."""

    cohort: Path
    bags: Path
    out: Path
    splits: Path | None = None
    trials: int | None = None
    jobs: int = 1
    device: str = "cpu"
    dry_run: bool = False


def run(config: Config, options: Options, console: Console) -> int:
    """Search, choose, score the chosen one and report; a rerun goes on where it stopped."""
    space = space_of(config)
    trials = trials_of(config, space, options.trials)
    check_device(options.device)
    material = gather(config, options.cohort, options.bags, console)
    splits = splits_of(material, config.split, options.splits)
    need_validation(splits)
    warn_of_data(config, splits, material, console)
    train = TrainOptions(options.cohort, options.bags, options.out, device=options.device)
    inputs = inputs_of(material, options.cohort, splits) | {"threads": train.threads}
    plan = Plan(config, space, trials, material, splits, inputs, train)
    _say_plan(plan, console)
    if options.dry_run:
        return _dry_run(plan, options.jobs, console)
    folder = SweepDir(options.out)
    folder.begin(config, inputs)
    write_splits(splits, folder.splits)
    with Claims(folder.claims, ttl_s=config.limits.claim_ttl_s) as claims:
        book = Book(folder.root, config.sweep, space, lower=plan.lower, claims=claims)
        with benches(options.jobs, options.device) as pool:
            after = _hours(options.jobs, console)
            Sharing(plan, book, pool, options.jobs, console, after).complete()
        return _conclude(folder, plan, book, console)


def _say_plan(plan: Plan, console: Console) -> None:
    config = plan.config
    console.say(f"{config.aggregator.name} + {config.objective.name}, searched are")
    for one in plan.space:
        console.say(f"  {one}")
    folds, seeds = counted(len(plan.splits.folds), "fold"), counted(len(config.fit.seeds), "seed")
    console.say(
        f"{counted(plan.trials, 'trial')} ({config.sweep.sampler}) x {folds} x {seeds} = "
        f"{counted(plan.trials * plan.fits_each, 'fit')} of {config.fit.epochs} epochs; chosen by "
        f"validation {config.fit.monitor}"
    )


def _dry_run(plan: Plan, jobs: int, console: Console) -> int:
    """Say how long all would take, by one fit in the middle that is thrown away."""
    drawn = {one.key: one.middle for one in plan.space}
    with tempfile.TemporaryDirectory() as aside:
        tries = [Path(aside) / name for name in ("first", "second")]
        cells = [plan.cells_in(root, plan.settings(drawn))[0] for root in tries]
        figures = [fit(cell) for cell in cells][-1]  # the first one also reads the bags
    fits = plan.trials * plan.fits_each
    _say_hours(fits, figures["seconds"], jobs, console)
    console.say("nothing was kept")
    space = {one.key: one.to_json() for one in plan.space}
    counts = {"trials": plan.trials, "fits": fits, "seconds_each": figures["seconds"]}
    console.result({"schema": SCHEMA, "stage": "plan", "space": space, **counts})
    return 0


def _hours(jobs: int, console: Console) -> Callable[[float, int], None]:
    """Return what says, after the first fits, how long all will take.

    The first fit of each process does not count: it also imports torch and reads the bags.
    """
    made = 0

    def after(seconds: float, left: int) -> None:
        nonlocal made
        made += 1
        if made == jobs + 1 and left > 0:
            _say_hours(left, seconds, jobs, console)

    return after


def _say_hours(todo: int, each: float, jobs: int, console: Console) -> None:
    hours = todo * each / jobs / 3600
    console.say(
        f"{counted(todo, 'fit')} to do at {each:.2g} s each: about {hours:.2g} hours with "
        f"--jobs {jobs}, when nobody else helps"
    )


def _conclude(folder: SweepDir, plan: Plan, book: Book, console: Console) -> int:
    rows = rows_of(book.trials(), plan.space)
    best = best_of(rows, lower=plan.lower)
    if best is None:
        reason = next((row["reason"] for row in rows if row["reason"]), "no trial is complete")
        raise TrainingError(
            f"no trial of {len(rows)} could be completed ({reason}) — change sweep.space"
        )
    warnings = warnings_of(rows, best, plan.space)
    looked = others_scored(folder, rows, best)
    if looked:
        warnings.append(
            f"test figures of {counted(len(looked), 'other trial')} lie in the folder "
            f"({', '.join(looked[:5])}): choosing among them by test would be selection on test"
        )
    notes = notes_of(rows, best, plan)
    result = results(rows, best, plan, warnings, notes)
    show_trials(rows, best, plan.space, plan, console)
    result["test"] = finish_best(folder, best, plan, console)
    write_results(folder, result, plan, console)
    for warning in warnings:
        console.warn(warning)
    for note in notes:
        console.say(f"note: {note}")
    console.say(f"report: {folder.report}")
    console.result(result)
    return 0
