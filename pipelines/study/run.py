"""`wsi study`: rates tuned on validation with an equal budget, final fits, paired differences."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipelines.console import Console, counted
from pipelines.fits import Material, gather, warn_of_data
from pipelines.floors import Floors, make_floors
from pipelines.rundir import RunDir
from pipelines.study.cells import Bench, Sharing, Summary, benches, summaries
from pipelines.study.choices import Choice, choose_rates, standings
from pipelines.study.folder import StudyDir
from pipelines.study.hours import (
    estimate,
    left_to_fit,
    mean_seconds,
    new_fits,
    rates_of,
    say_hours,
    say_rest,
)
from pipelines.study.output import show_rates, show_results, write_arms, write_results
from pipelines.study.plan import (
    CellId,
    Plan,
    by_number,
    check_arms,
    few_seeds,
    keys_of,
    listed,
    seeds_of,
    splits_by_selection,
    with_root,
)
from pipelines.study.results import (
    beside_floors,
    predictions_of,
    selection_results,
    selection_table,
)
from pipelines.train import inputs_of
from pipelines.workers import check_device
from wsi.claims import Claims
from wsi.cohorts import Cohort, patients_of, read_cohort
from wsi.errors import ConfigError, TrainingError
from wsi.evaluation import join_labels
from wsi.registry import suggest
from wsi.specs import Config
from wsi.splits import Splits, write_splits

SCHEMA = "wsi-study/1"


@dataclass(frozen=True)
class Options:
    """What the command line decides beside the settings."""

    cohort: Path
    bags: Path
    out: Path
    splits: Path | None = None
    jobs: int = 1
    device: str = "cpu"
    until: Literal["rates", "final"] = "final"
    allow_few_seeds: bool = False
    dry_run: bool = False


def run(config: Config, options: Options, console: Console) -> int:
    """Tune, fit, compare and report; a rerun, or another process, fits only what is missing."""
    configs = check_arms(config)
    _check_rivals(config, list(configs))
    check_device(options.device)
    material = gather(config, options.cohort, options.bags, console)
    truth = _truth(config, options, material)
    splits, notes = splits_by_selection(config, material, options.splits, console)
    warn_of_data(config, next(iter(splits.values())), material, console)
    seeds = seeds_of(config, allow_few=options.allow_few_seeds, console=console)
    notes += few_seeds(seeds)
    inputs = _inputs(material, options, splits)
    plan = _plan(config, options, configs, material, splits, seeds, inputs)
    _say_plan(plan, config, console)
    if options.dry_run:
        return _dry_run(plan, config, options, console)
    folder = StudyDir(options.out)
    folder.begin(config, inputs)
    for selection, split in splits.items():
        write_splits(split, folder.splits(selection))
    with _claims(options, config) as claims, benches(plan, options.jobs) as pool:
        sharing = Sharing(plan, claims, pool, options.jobs, console)
        estimate(sharing, config, console, only_rates=options.until == "rates")
        tuned = sharing.complete(plan.rate_cells(), "rates")
        found = standings(tuned)
        lower = config.fit.monitor == "loss"
        chosen = choose_rates(found, plan.rates, lower=lower)
        notes += _remarks(chosen, configs, found, plan, console)
        show_rates(found, chosen, config.fit.monitor, console)
        if options.until == "rates":
            console.say(f"stopped after the rates; without --until, {_final_count(plan)} follow")
            console.result({"schema": SCHEMA, "stage": "rates", **_rates_json(found, chosen)})
            return 0
        _need_two(chosen)
        say_rest(sharing, tuned, chosen, console)
        final = sharing.complete(plan.final_cells(rates_of(chosen)), "final")
    notes += _failures(final, console)
    first = next(iter(splits.values()))  # whose test parts are those of all
    floors = make_floors(config, material, first, RunDir(folder.root), console)
    floors = floors and floors.changed(lambda predictions: join_labels(predictions, truth))
    result = _results(
        folder, plan, config, material, truth, chosen, tuned, final, notes, splits, floors
    )
    write_results(folder, result, console)
    show_results(result, console)
    console.say(f"report: {folder.report}")
    console.result(result)
    return 0


def _check_rivals(config: Config, labels: Sequence[str]) -> None:
    rivals = config.study.rivals
    if not set(rivals) & set(labels):
        raise ConfigError(
            f"study.rivals ({', '.join(rivals) or 'none'}) names none of the arms: "
            f"{', '.join(labels)}{suggest(rivals[0] if rivals else '', labels)} — name the arms "
            "of which the best on validation shall be the one to beat"
        )


def _truth(config: Config, options: Options, material: Material) -> Cohort:
    """Return the slides with the labels that test predictions are scored against."""
    column = config.study.truth
    if column is None:
        return material.cohort
    truth = read_cohort(options.cohort, column, material.cohort.classes)
    return patients_of(truth) if config.data.bag == "patient" else truth


def _inputs(material: Material, options: Options, splits: Mapping[str, Splits]) -> dict[str, Any]:
    """Return what the study was made from; each way of validating has splits of its own."""
    inputs = inputs_of(material, options.cohort, next(iter(splits.values())))
    del inputs["splits_sha256"]
    return inputs | {f"splits_sha256_{name}": split.hash for name, split in splits.items()}


def _plan(
    config: Config,
    options: Options,
    configs: Mapping[str, Config],
    material: Material,
    splits: Mapping[str, Splits],
    seeds: tuple[int, ...],
    inputs: Mapping[str, Any],
) -> Plan:
    folds = {selection: by_number(split) for selection, split in splits.items()}
    learnt = (s for each in folds.values() for f in each.values() for s in (*f.train, *f.val))
    labels = material.labels(learnt)
    return Plan(
        root=options.out,
        configs=configs,
        folds=folds,
        labels=labels,
        seeds=seeds,
        rate_seeds=config.study.rate_seeds,
        rates=tuple(sorted(config.study.rates)),
        bags=material.store.root,
        bag_ids=material.bag_ids,
        packed=material.packed,
        dim=material.dim,
        device=options.device,
        keys=keys_of(splits, labels, inputs),
        recipe_key=material.recipe_key,
        keep_models=config.study.keep_models,
    )


def _say_plan(plan: Plan, config: Config, console: Console) -> None:
    n_folds = len(next(iter(plan.folds.values())))
    shared = f"{counted(n_folds, 'fold')}, selection by {' and '.join(plan.folds)}"
    console.say(f"{len(plan.configs)} arms: {', '.join(plan.configs)}; {shared}")
    console.say(
        f"rates: {listed(plan.rates)} x {counted(plan.rate_seeds, 'seed')} for each = "
        f"{counted(len(plan.rate_cells()), 'fit')} of {counted(config.fit.epochs, 'epoch')}"
    )
    console.say(
        f"final: {counted(len(plan.seeds), 'seed')} at the chosen rate = {_final_count(plan)}"
    )


def _final_count(plan: Plan) -> str:
    """Return the final fits to come; those of the seeds that tuned the rate are there already."""
    every = len(plan.configs) * len(plan.seeds) * sum(map(len, plan.folds.values()))
    return f"{counted(every, 'fit')}, {new_fits(plan):,} of them new"


def _dry_run(plan: Plan, config: Config, options: Options, console: Console) -> int:
    """Say how long all would take, by one fit that is thrown away."""
    cells = plan.rate_cells()
    done = summaries(plan, cells)
    if done:
        each = mean_seconds(done.values())
    else:
        with tempfile.TemporaryDirectory() as aside:
            bench = Bench(with_root(plan, Path(aside)))
            bench.fit(cells[0], keep=False)  # reads the bags
            each = float(bench.fit(cells[-1], keep=False)["seconds"])
    left = left_to_fit(plan, done, config, only_rates=options.until == "rates")
    say_hours(left, each, options.jobs, console)
    console.say("nothing was fitted")
    counts = {"rates": len(cells), "final_new": new_fits(plan), "done": len(done)}
    console.result({"schema": SCHEMA, "stage": "plan", "fits": counts, "seconds_each": each})
    return 0


def _claims(options: Options, config: Config) -> Claims:
    return Claims(options.out / "claims", ttl_s=config.limits.claim_ttl_s)


def _remarks(
    chosen: Mapping[str, Mapping[str, Choice]],
    configs: Mapping[str, Config],
    found: Sequence[Any],
    plan: Plan,
    console: Console,
) -> list[str]:
    """Return, and say, what a reader of the rates must know."""
    remarks = []
    for selection in plan.folds:
        arms = chosen.get(selection, {})
        for arm in configs:
            if arm not in arms:
                said = next(s.failed for s in found if (s.selection, s.arm) == (selection, arm))
                remarks.append(
                    f"{arm}, selection by {selection}: left out, a fit failed at every rate "
                    f"({said})"
                )
            elif arms[arm].edge:
                remarks.append(
                    f"{arm}, selection by {selection}: the best rate {arms[arm].rate:g} is the "
                    f"{arms[arm].edge} tried — a better one may lie beyond; widen study.rates"
                )
    if len(plan.rates) == 1:
        remarks.append(f"one rate ({listed(plan.rates)}): nothing was tuned")
    for remark in remarks:
        console.warn(remark)
    return remarks


def _failures(final: Mapping[CellId, Summary], console: Console) -> list[str]:
    """Return, and say, which arms have no result because a final fit failed."""
    first: dict[tuple[str, str], str] = {}
    for cell, summary in final.items():
        if summary["failed"]:
            first.setdefault((cell.selection, cell.arm), f"{cell.name}: {summary['failed']}")
    remarks = [
        f"{arm}, selection by {selection}: left out, a final fit failed ({said})"
        for (selection, arm), said in first.items()
    ]
    for remark in remarks:
        console.warn(remark)
    return remarks


def _need_two(chosen: Mapping[str, Mapping[str, Choice]]) -> None:
    if not any(len(arms) > 1 for arms in chosen.values()):
        raise TrainingError(
            "fewer than two arms could be fitted, so there is nothing to compare — lower "
            "study.rates, or see the warnings above"
        )


def _rates_json(found: Sequence[Any], chosen: Mapping[str, Mapping[str, Choice]]) -> dict[str, Any]:
    return {
        "rates": [standing.to_json() for standing in found],
        "chosen": rates_of(chosen),
    }


def _results(
    folder: StudyDir,
    plan: Plan,
    config: Config,
    material: Material,
    truth: Cohort,
    chosen: Mapping[str, Mapping[str, Choice]],
    tuned: Mapping[CellId, Summary],
    final: Mapping[CellId, Summary],
    notes: Sequence[str],
    splits: Mapping[str, Splits],
    floors: Floors | None,
) -> dict[str, Any]:
    selections = {}
    for selection, arms in chosen.items():
        own = {cell: summary for cell, summary in final.items() if cell.selection == selection}
        runs = predictions_of(plan, material, truth, own)
        write_arms(folder, selection, runs)
        found = selection_results(config, arms, own, runs)
        found["floors"] = beside_floors(runs, found["best_on_validation"], floors, config.evaluate)
        selections[selection] = found
    every = {**tuned, **final}
    failed = sorted(cell.name for cell, summary in every.items() if summary["failed"])
    return {
        "schema": SCHEMA,
        "stage": "final",
        "cohort": material.cohort.name,
        "classes": list(material.cohort.classes),
        "slides": len(material.cohort.rows),
        "patients": len({row.patient_id for row in material.cohort.rows}),
        "label": config.data.label,
        "truth": config.study.truth,
        "monitor": config.fit.monitor,
        "metrics": list(config.study.metrics),
        "seeds": list(plan.seeds),
        "rate_seeds": plan.rate_seeds,
        "rates": list(plan.rates),
        "epochs": config.fit.epochs,
        "bags_per_step": config.fit.bags_per_step,
        "level": config.evaluate.level,
        "splits_sha256": {selection: split.hash for selection, split in splits.items()},
        "arms": [arm.model_dump(mode="json", exclude_none=True) for arm in config.study.arms],
        "fits": {
            "rates": len(tuned),
            "final": len(final),
            "all": len(every),
            "failed": failed,
            "seconds": round(sum(summary["seconds"] for summary in every.values()), 1),
        },
        "selections": selections,
        "site_from_features": None if floors is None else dict(floors.site_from_features),
        "selection_table": selection_table(selections, config.study.metrics[0]),
        "warnings": list(notes),
    }
