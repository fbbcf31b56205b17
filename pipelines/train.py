"""`wsi train`: one model per fold and seed, predictions of the test parts, scores, report."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipelines.cells import Cell
from pipelines.console import Console, counted
from pipelines.fits import (
    UNKNOWN_PRIOR,
    Material,
    gather,
    head_of,
    out_of_fold,
    read_probabilities,
    splits_of,
    warn_of_data,
)
from pipelines.fitting import jobs_for, train_cells
from pipelines.floors import make_floors
from pipelines.patient_bags import write_patients
from pipelines.run_bags import bags_record, run_bags
from pipelines.rundir import RunDir
from pipelines.scoring import report_run, score_run
from pipelines.trackers import made, tracking
from pipelines.workers import check_device
from wsi.aggregators import check_aggregator
from wsi.cohorts import Cohort
from wsi.evaluation import Head, Predictions, join_labels, write_predictions
from wsi.evaluation.validated import Calibration, fit_name
from wsi.files import collect_temporaries, publish_json, sha256_file, sha256_json
from wsi.objectives import OBJECTIVES, check_objective
from wsi.specs import Config
from wsi.splits import Fold, Splits, write_splits


@dataclass(frozen=True)
class Options:
    """What the command line decides beside the settings.

    Attributes:
        jobs: fits side by side; None: as many as the machine is good for.
        threads: of each fit on the CPU.
        resume: refuse to begin a new run.
        track: names of trackers.
        like: run folder whose floors are taken where they are of the same bags and splits.
    """

    cohort: Path
    bags: Path
    out: Path
    splits: Path | None = None
    jobs: int | None = 1
    device: str = "cpu"
    dry_run: bool = False
    report: bool = True
    threads: int = 1
    resume: bool = False
    track: tuple[str, ...] = ()
    like: Path | None = None


def run(config: Config, options: Options, console: Console) -> int:
    """Train, predict, score and report; a rerun trains only what is missing."""
    n_classes = len(config.data.classes) if config.data.classes else None
    objective = config.objective
    check_objective(objective.name, objective.params, config.fit.bags_per_step, n_classes)
    wants = OBJECTIVES.load(objective.name).wants
    check_aggregator(config.aggregator.name, config.aggregator.params, wants)
    check_device(options.device)
    material = gather(config, options.cohort, options.bags, console)
    cohort = material.cohort
    splits = splits_of(material, config.split, options.splits)
    warn_of_data(config, splits, material, console)
    if len(config.fit.seeds) == 1:
        console.warn("one seed: the spread from seed to seed is unknown — fit.seeds=5 shows it")
    _say_plan(config, splits, cohort, console, loud=options.dry_run)
    if options.dry_run:
        console.say("nothing was trained")
        return 0
    for name in options.track:
        made(name, options.out)  # before anything is written, as its package may be absent
    jobs = options.jobs or jobs_for(config, splits, material, options.threads, options.device)
    run_dir = RunDir(options.out)
    inputs = inputs_of(material, options.cohort, splits) | {"threads": options.threads}
    if run_dir.begin(config, inputs, go_on=options.resume):
        console.say(f"continuing {run_dir.root}")
    with run_dir.claimed(config.limits.claim_ttl_s):
        return _trained(config, options, material, splits, inputs, jobs, run_dir, console)


def _trained(
    config: Config,
    options: Options,
    material: Material,
    splits: Splits,
    inputs: dict[str, Any],
    jobs: int,
    run_dir: RunDir,
    console: Console,
) -> int:
    collect_temporaries(run_dir.root)
    write_splits(splits, run_dir.splits)
    used = run_bags(material.store, material.bag_ids)
    publish_json(bags_record(run_dir.root), used.to_json())
    write_patients(run_dir.root, material.bag_ids, material.slides_absent, material.whole)
    cells = [
        cell_of(config, options, run_dir.cell(fold.index, seed), material, inputs, fold, seed)
        for fold in splits.folds
        for seed in config.fit.seeds
    ]
    on = f"on {counted(options.threads, 'thread')} each" if options.device == "cpu" else ""
    console.say(f"{counted(jobs, 'fit')} at a time {on}".rstrip())
    with tracking(options.track, run_dir, config, console) as told:
        train_cells(cells, jobs, console, told.on_row)
        labelled = _joined(cells, material, run_dir)
        like = None if options.like is None else RunDir(options.like)
        floors = make_floors(config, material, splits, run_dir, console, like)
        metrics = score_run(run_dir, labelled, config.evaluate, console, floors)
        told.scored(metrics)
    console.say(f"run: {run_dir.root}")
    if options.report:
        report_run(run_dir, console)
    console.result({"run": str(run_dir.root), "metrics": metrics})
    return 0


def _joined(cells: Sequence[Cell], material: Material, run_dir: RunDir) -> Predictions:
    """Return the predictions of all fits with labels, which only now join them; both are kept."""
    predictions = unlabelled_predictions(cells, material)
    write_predictions(predictions, run_dir.predictions)
    labelled = join_labels(predictions, material.cohort)
    write_predictions(labelled, run_dir.predictions)
    return labelled


def _say_plan(
    config: Config, splits: Splits, cohort: Cohort, console: Console, *, loud: bool
) -> None:
    tell = console.say if loud else console.detail
    n = len(splits.folds) * len(config.fit.seeds)
    console.say(
        f"{config.aggregator.name} + {config.objective.name}: "
        f"{counted(len(splits.folds), 'fold')} x {counted(len(config.fit.seeds), 'seed')} = "
        f"{counted(n, 'fit')} of {counted(config.fit.epochs, 'epoch')}"
    )
    labels = {row.slide_id: row.label for row in cohort.rows}
    for fold in splits.folds:
        for part, ids in fold.parts().items():
            counts = Counter(labels[slide_id] for slide_id in ids)
            listed = ", ".join(f"{name} {counts[name]}" for name in cohort.classes)
            tell(f"fold {fold.name}: {len(ids)} {part} ({listed})")


def inputs_of(material: Material, table: Path, splits: Splits) -> dict[str, Any]:
    """Return what a run was made from: hashes of table, bags and splits, and the recipe."""
    store, bag_ids, use = material.store, material.bag_ids, material.use
    sample = store.info(next(iter(bag_ids.values())))
    more: dict[str, Any] = {} if use is None else {"tiles": use.to_json()}
    if bag_ids.patients:
        more |= {"bag": "patient", "patients": len(bag_ids.patients)}
    if material.cohort.labels_from:
        more["labels_from"] = material.cohort.labels_from
    return more | {
        "cohort": material.cohort.name,
        "cohort_sha256": sha256_file(table),
        "recipe": store.root.name,
        "recipe_key": material.recipe_key,
        "encoder": sample.provenance.encoder,
        "tiling": sample.provenance.tiling["settings"],
        "slides": len(bag_ids),
        "bags_sha256": material.bags_sha256,
        "splits_sha256": splits.hash,
        "bags": str(store.root),
        "cohort_table": str(table),
    }


def cell_of(
    config: Config,
    options: Options,
    folder: Path,
    material: Material,
    inputs: Mapping[str, Any],
    fold: Fold,
    seed: int,
) -> Cell:
    """Return one fit of a run, made from `inputs`, with its own folder."""
    return Cell(
        config=config,
        fold=fold,
        seed=seed,
        folder=folder,
        bags=material.store.root,
        packed=material.packed,
        recipe_key=material.recipe_key,
        labels=material.labels((*fold.train, *fold.val)),
        bag_ids=material.bag_ids,
        device=options.device,
        threads=options.threads,
        made_from={"bags": inputs["bags_sha256"], "tiles": sha256_json(inputs.get("tiles"))},
    )


def unlabelled_predictions(cells: Sequence[Cell], material: Material) -> Predictions:
    """Return the predictions of the test parts by all fits of a run, without labels."""
    tables = (
        (cell.fold.index, cell.seed, read_probabilities(cell.folder / "predictions.csv"))
        for cell in cells
    )
    classes = material.cohort.classes
    counts = material.bag_ids.counts()
    made = out_of_fold(tables, material.cohort, classes, material.absent, counts)
    done = [json.loads((cell.folder / "done.json").read_text(encoding="utf-8")) for cell in cells]
    head = _head(cells, done, len(classes))
    ordered = any(cell.config.data.ordered for cell in cells)
    return replace(made, head=head, ordered=ordered, calibration=_calibration(cells, done))


def _calibration(
    cells: Sequence[Cell], done: Sequence[Mapping[str, Any]]
) -> dict[str, Calibration]:
    """Return what validation settled for each cell; nothing of cells made before that was kept."""
    return {
        fit_name(cell.fold.index, cell.seed): Calibration.from_json(one["calibration"])
        for cell, one in zip(cells, done, strict=True)
        if "calibration" in one
    }


def _head(cells: Sequence[Cell], done: Sequence[Mapping[str, Any]], C: int) -> Head | None:
    """Return what the predictions of the cells are, as the cells say."""
    priors = [one.get("predicts_prior", UNKNOWN_PRIOR) for one in done]
    training = {c.fold.index: Counter(c.labels[s] for s in c.fold.train) for c in cells}
    return head_of(priors, training, C)
