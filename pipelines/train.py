"""`wsi train`: one model per fold and seed, predictions of the test parts, scores, report."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from pipelines.console import Console, counted
from pipelines.fits import (
    UNKNOWN_PRIOR,
    Material,
    Parts,
    as_csv,
    fitted,
    gather,
    head_of,
    history_lines,
    out_of_fold,
    probability_table,
    read_probabilities,
    reader,
    splits_of,
    warn_of_data,
)
from pipelines.patient_bags import BagIds, write_patients
from pipelines.run_bags import bags_record, run_bags
from pipelines.rundir import RunDir
from pipelines.scoring import report_run, score_run
from pipelines.validation import validation_figures
from pipelines.workers import check_device, processes
from wsi.aggregators import check_aggregator
from wsi.bags import open_store
from wsi.cohorts import Cohort
from wsi.errors import ResourceError
from wsi.evaluation import Head, Predictions, join_labels, write_predictions
from wsi.files import publish, publish_bytes, publish_json, sha256_file, sha256_json
from wsi.objectives import OBJECTIVES, check_objective
from wsi.specs import Config
from wsi.splits import Fold, Splits, write_splits

_FILES = ("model.safetensors", "metrics.jsonl", "embeddings.h5", "predictions.csv")


@dataclass(frozen=True)
class Options:
    """What the command line decides beside the settings."""

    cohort: Path
    bags: Path
    out: Path
    splits: Path | None = None
    jobs: int = 1
    device: str = "cpu"
    dry_run: bool = False
    one_thread: bool = False
    report: bool = True


@dataclass(frozen=True)
class Cell:
    """One fold and seed to train: everything a process needs, and no test label.

    Attributes:
        labels: class index of every training and validation slide, and of no other.
        bag_ids: slide id of the cohort to id of its bag, and which slides make one bag.
        packed: folder of a packed cohort of these bags, where there is one that holds.
    """

    config: Config
    fold: Fold
    seed: int
    folder: Path
    bags: Path
    recipe_key: str
    labels: dict[str, int]
    bag_ids: BagIds
    device: str
    one_thread: bool
    packed: Path | None = None


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
    run_dir = RunDir(options.out)
    if run_dir.begin(config, inputs_of(material, options.cohort, splits)):
        console.say(f"continuing {run_dir.root}")
    write_splits(splits, run_dir.splits)
    used = run_bags(material.store, material.bag_ids)
    publish_json(bags_record(run_dir.root), used.to_json())
    write_patients(run_dir.root, material.bag_ids, material.slides_absent, material.whole)
    cells = [
        cell_of(config, options, run_dir, material, fold, seed)
        for fold in splits.folds
        for seed in config.fit.seeds
    ]
    _train_cells(cells, options.jobs, console)
    predictions = unlabelled_predictions(cells, material)
    write_predictions(predictions, run_dir.predictions)
    labelled = join_labels(predictions, cohort)
    write_predictions(labelled, run_dir.predictions)
    metrics = score_run(run_dir, labelled, config.evaluate, console)
    console.say(f"run: {run_dir.root}")
    if options.report:
        report_run(run_dir, console)
    console.result({"run": str(run_dir.root), "metrics": metrics})
    return 0


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
    hashes: Any = {slide_id: store.info(b).sha256 for slide_id, b in sorted(bag_ids.items())}
    more: dict[str, Any] = {} if use is None else {"tiles": use.to_json()}
    if bag_ids.patients:
        hashes = [hashes, dict(bag_ids.patients)]  # the same slides of other patients
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
        "bags_sha256": sha256_json(hashes),
        "splits_sha256": splits.hash,
        "bags": str(store.root),
        "cohort_table": str(table),
    }


def cell_of(
    config: Config, options: Options, run_dir: RunDir, material: Material, fold: Fold, seed: int
) -> Cell:
    """Return one fit of a run."""
    return Cell(
        config=config,
        fold=fold,
        seed=seed,
        folder=run_dir.cell(fold.index, seed),
        bags=material.store.root,
        packed=material.packed,
        recipe_key=material.recipe_key,
        labels=material.labels((*fold.train, *fold.val)),
        bag_ids=material.bag_ids,
        device=options.device,
        one_thread=options.one_thread or options.jobs > 1,
    )


def _train_cells(cells: Sequence[Cell], jobs: int, console: Console) -> None:
    todo = [cell for cell in cells if not _is_done(cell)]
    if len(todo) < len(cells):
        console.say(f"{len(cells) - len(todo)} of {len(cells)} fits are done already")
    with console.progress("fits", len(todo)) as track:
        for cell, summary in _results(todo, jobs):
            track.advance(1, f"fold {cell.fold.name} seed {cell.seed}")
            value = summary["monitor"]
            shown = "no validation part" if value is None else f"{value:.3f}"
            console.detail(
                f"fold {cell.fold.name} seed {cell.seed}: epoch {summary['best_epoch']}, "
                f"validation {cell.config.fit.monitor} {shown}, decided by {summary['rule']}"
            )
            for alarm in summary["alarms"]:
                console.warn(f"fold {cell.fold.name} seed {cell.seed}: {alarm}")


def _results(todo: Sequence[Cell], jobs: int) -> Iterator[tuple[Cell, dict[str, Any]]]:
    if jobs <= 1 or len(todo) <= 1:
        yield from ((cell, train_cell(cell)) for cell in todo)
        return
    with processes(min(jobs, len(todo))) as pool:
        futures = {pool.submit(train_cell, cell): cell for cell in todo}
        for future in as_completed(futures):
            try:
                yield futures[future], future.result()
            except BrokenProcessPool:
                raise ResourceError(
                    "a training process was killed, most often for want of memory — rerun with "
                    "fewer --jobs; finished fits are kept"
                ) from None


def train_cell(cell: Cell, read: Callable[[str], Any] | None = None) -> dict[str, Any]:
    """Train, save and apply one model; `done.json`, published last, marks it done.

    Args:
        read: what reads the bag of a slide, when it is there already.
    """
    import torch

    from wsi.training import save
    from wsi.training.alarms import raised_over
    from wsi.training.checkpoint import Origin
    from wsi.training.predict import predict

    if cell.one_thread:
        torch.set_num_threads(1)
    store = open_store(cell.bags)
    read = read or reader(store, cell.bag_ids, cell.packed)
    parts = Parts.of(cell.fold, cell.labels, read, cell.config)
    dim = store.info(cell.bag_ids.together(cell.fold.train[0])[0]).dim
    model, result = fitted(cell.config, parts, dim, cell.seed, cell.device)
    cell.folder.mkdir(parents=True, exist_ok=True)
    origin = Origin(cell.recipe_key, result.best_epoch, cell.config.fit.monitor, result.monitor)
    save(cell.folder / "model.safetensors", model, origin)
    publish_bytes(cell.folder / "metrics.jsonl", history_lines(result.history))
    test = predict(model, parts.test, cell.device)
    predicted = {"test": test, "train": predict(model, parts.train, cell.device)}
    if parts.val is not None:
        predicted["val"] = predict(model, parts.val, cell.device)
    _write_embeddings(cell.folder / "embeddings.h5", predicted)
    table = probability_table(test, cell.config.data.classes or ())
    publish_bytes(cell.folder / "predictions.csv", as_csv(table))
    summary = {
        "best_epoch": result.best_epoch,
        "monitor": result.monitor,
        "rule": model.objective.rule,
        "predicts_prior": model.objective.predicts_prior,
    }
    if parts.val is not None:
        watched, p = cell.config.fit.monitor, predicted["val"].probabilities
        y = np.array([cell.labels[slide_id] for slide_id in predicted["val"].slide_ids])
        summary["validation"] = validation_figures(watched, y, p)
    files = {name: sha256_file(cell.folder / name) for name in _FILES}
    publish_json(cell.folder / "done.json", summary | {"files": files})
    return summary | {"alarms": [alarm.text for alarm in raised_over(result.history)]}


def _is_done(cell: Cell) -> bool:
    return finished(cell) is not None


def finished(cell: Cell) -> dict[str, Any] | None:
    """Return what a fit says of itself if all its files are there, as they were written."""
    try:
        done = json.loads((cell.folder / "done.json").read_text(encoding="utf-8"))
        whole = all(sha256_file(cell.folder / name) == done["files"][name] for name in _FILES)
        return done if whole else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write_embeddings(path: Path, parts: dict[str, Any]) -> None:
    ids = [slide_id for part in parts.values() for slide_id in part.slide_ids]
    names = [name for name, part in parts.items() for _ in part.slide_ids]
    with publish(path) as temporary, h5py.File(temporary, "w") as file:
        text = h5py.string_dtype()
        file.create_dataset("slide_id", data=np.asarray(ids, object), dtype=text)
        file.create_dataset("part", data=np.asarray(names, object), dtype=text)
        embeddings = np.concatenate([part.embeddings for part in parts.values()])
        file.create_dataset("embedding", data=embeddings.astype(np.float32))


def unlabelled_predictions(cells: Sequence[Cell], material: Material) -> Predictions:
    """Return the predictions of the test parts by all fits of a run, without labels."""
    tables = (
        (cell.fold.index, cell.seed, read_probabilities(cell.folder / "predictions.csv"))
        for cell in cells
    )
    classes = material.cohort.classes
    counts = material.bag_ids.counts()
    made = out_of_fold(tables, material.cohort, classes, material.absent, counts)
    return replace(made, head=_head(cells, len(classes)))


def _head(cells: Sequence[Cell], C: int) -> Head | None:
    """Return what the predictions of the cells are, as the cells say."""
    done = [json.loads((cell.folder / "done.json").read_text(encoding="utf-8")) for cell in cells]
    priors = [one.get("predicts_prior", UNKNOWN_PRIOR) for one in done]
    training = {c.fold.index: Counter(c.labels[s] for s in c.fold.train) for c in cells}
    return head_of(priors, training, C)
