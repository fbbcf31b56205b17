"""`wsi train`: one model per fold and seed, predictions of the test parts, scores, report."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd

from pipelines.console import Console
from pipelines.pack import usable_packed
from pipelines.rundir import RunDir
from pipelines.scoring import report_run, score_run
from pipelines.tileuse import TileUse, tile_use
from pipelines.workers import check_device, processes
from wsi.aggregators import AGGREGATORS
from wsi.bags import BagStore, PackedCohort, TileFilter, check_uniform, open_store
from wsi.cohorts import Cohort, SlideRow, match_ids, read_cohort
from wsi.errors import BagCorruptError, CohortError, ConfigError, ResourceError
from wsi.evaluation import METRICS, Head, Predictions, join_labels, write_predictions
from wsi.files import publish, publish_bytes, publish_json, sha256_file, sha256_json
from wsi.findings import few
from wsi.objectives import OBJECTIVES
from wsi.specs import Config
from wsi.splits import Fold, Splits, make_splits, read_splits, write_splits
from wsi.splits.folds import audited

_CACHE_BYTES = 4 << 30
_SMALL_VALIDATION = 10
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
        bag_ids: slide id of the cohort to id of its bag.
        packed: folder of a packed cohort of these bags, where there is one that holds.
    """

    config: Config
    fold: Fold
    seed: int
    folder: Path
    bags: Path
    recipe_key: str
    labels: dict[str, int]
    bag_ids: dict[str, str]
    device: str
    one_thread: bool
    packed: Path | None = None


def run(config: Config, options: Options, console: Console) -> int:
    """Train, predict, score and report; a rerun trains only what is missing."""
    AGGREGATORS.check(config.aggregator.name, config.aggregator.params)
    OBJECTIVES.check(config.objective.name, config.objective.params)
    check_device(options.device)
    whole = read_cohort(options.cohort, config.data.label, config.data.classes)
    store = open_store(options.bags)
    recipe_key = check_uniform(store.infos())
    cohort, bag_ids, absent = _with_bags(whole, store, config)
    packed = usable_packed(store, list(bag_ids.values()), console)
    if packed is None:
        _refuse_damaged(store, bag_ids.values(), console)
    use = tile_use(store, bag_ids, TileFilter.of(config.data), console)
    if use is not None:
        console.say(use.line())
        cohort, absent = _without(cohort, use.without), absent | dict(use.without)
        bag_ids = {row.slide_id: bag_ids[row.slide_id] for row in cohort.rows}
    splits = _splits(config, options, whole, cohort)
    _warn(config, splits, cohort, absent, console)
    _say_plan(config, splits, cohort, console, loud=options.dry_run)
    if options.dry_run:
        console.say("nothing was trained")
        return 0
    run_dir = RunDir(options.out)
    inputs = _inputs(options, cohort, store, bag_ids, recipe_key, splits, use)
    if run_dir.begin(config, inputs):
        console.say(f"continuing {run_dir.root}")
    write_splits(splits, run_dir.splits)
    cells = [
        _cell(config, options, run_dir, cohort, fold, seed, store, packed, recipe_key, bag_ids)
        for fold in splits.folds
        for seed in config.fit.seeds
    ]
    _train_cells(cells, options.jobs, console)
    predictions = _gathered(cells, cohort, config.data.classes or (), absent)
    write_predictions(predictions, run_dir.predictions)
    labelled = join_labels(predictions, cohort)
    write_predictions(labelled, run_dir.predictions)
    metrics = score_run(run_dir, labelled, config.evaluate, console)
    console.say(f"run: {run_dir.root}")
    if options.report:
        report_run(run_dir, console)
    console.result({"run": str(run_dir.root), "metrics": metrics})
    return 0


def _with_bags(
    cohort: Cohort, store: BagStore, config: Config
) -> tuple[Cohort, dict[str, str], dict[str, str]]:
    """Return the slides that have bags, their bag ids, and why others have none.

    Raises:
        CohortError: slides have no bag and data.missing=error.
    """
    infos = {info.slide_id: info for info in store.infos()}
    matched = match_ids(cohort, infos)
    usable = {s: b for s, b in matched.items() if infos[b].status == "done"}
    empty = {s: f"empty bag: {infos[b].reason}" for s, b in matched.items() if s not in usable}
    missing = [row.slide_id for row in cohort.rows if row.slide_id not in matched]
    if missing and config.data.missing == "error":
        raise CohortError(
            f"{len(missing)} of {len(cohort.rows)} slides of {cohort.name} have no bag in "
            f"{store.root}: {few(missing)} — run `wsi preprocess` for them, or set "
            "data.missing=skip"
        )
    absent = empty | dict.fromkeys(missing, "no bag")
    rows = tuple(row for row in cohort.rows if row.slide_id in usable)
    if not rows:
        raise CohortError(f"no slide of {cohort.name} has a bag in {store.root} — check the ids")
    return Cohort(cohort.name, cohort.classes, rows), usable, absent


def _without(cohort: Cohort, slides: Mapping[str, str]) -> Cohort:
    """Return the cohort without `slides`, each of which is given with its reason.

    Raises:
        CohortError: none is left.
    """
    rows = tuple(row for row in cohort.rows if row.slide_id not in slides)
    if not rows:
        raise CohortError(f"no slide of {cohort.name} can be used: {next(iter(slides.values()))}")
    return replace(cohort, rows=rows)


def _refuse_damaged(store: BagStore, bag_ids: Collection[str], console: Console) -> None:
    """Check every byte of the bags: a flipped bit trains as well as a sound one.

    Raises:
        BagCorruptError: bags differ from what was written.
    """
    with console.progress("checking bags", len(bag_ids)) as track:
        damaged = list(store.verify_all(bag_ids, looked=track.advance))
    if damaged:
        raise BagCorruptError(
            f"{len(damaged)} damaged bags in {store.root}: {few(f.name for f in damaged)} — "
            "remove them and run `wsi preprocess` again"
        )


def _splits(config: Config, options: Options, whole: Cohort, cohort: Cohort) -> Splits:
    """Return the splits of `cohort`, the slides with bags; given ones may divide `whole`."""
    if options.splits is None:
        return make_splits(cohort, config.split)
    given = read_splits(options.splits, whole)
    usable = {row.slide_id for row in cohort.rows}
    folds = []
    for fold in given.folds:
        kept = {k: tuple(s for s in ids if s in usable) for k, ids in fold.parts().items()}
        folds.append(replace(fold, **kept))
    left = audited(folds, cohort, given.settings)
    return replace(left, findings=tuple(dict.fromkeys((*given.findings, *left.findings))))


def _warn(
    config: Config, splits: Splits, cohort: Cohort, absent: dict[str, str], console: Console
) -> None:
    for finding in splits.warnings():
        console.warn(finding.message)
    if absent:
        reasons = Counter(absent.values())
        listed = "; ".join(f"{n} slides: {reason}" for reason, n in reasons.items())
        console.warn(f"{len(absent)} slides are not evaluable ({listed}): {few(absent)}")
    if len(config.fit.seeds) == 1:
        console.warn("one seed: the spread from seed to seed is unknown — fit.seeds=5 shows it")
    if config.fit.monitor == "macro_f1":
        labels = {row.slide_id: row.label for row in cohort.rows}
        for fold in splits.folds:
            counts = Counter(labels[s] for s in fold.val)
            small = [c for c in cohort.classes if counts[c] < _SMALL_VALIDATION]
            if small:
                console.warn(
                    f"fold {fold.name}: classes {', '.join(small)} have fewer than "
                    f"{_SMALL_VALIDATION} validation slides, so choosing by macro_f1 is close to "
                    "a coin — fit.monitor=auc is steadier"
                )


def _say_plan(
    config: Config, splits: Splits, cohort: Cohort, console: Console, *, loud: bool
) -> None:
    tell = console.say if loud else console.detail
    n = len(splits.folds) * len(config.fit.seeds)
    console.say(
        f"{config.aggregator.name} + {config.objective.name}: {len(splits.folds)} folds x "
        f"{len(config.fit.seeds)} seeds = {n} fits of {config.fit.epochs} epochs"
    )
    labels = {row.slide_id: row.label for row in cohort.rows}
    for fold in splits.folds:
        for part, ids in fold.parts().items():
            counts = Counter(labels[slide_id] for slide_id in ids)
            listed = ", ".join(f"{name} {counts[name]}" for name in cohort.classes)
            tell(f"fold {fold.name}: {len(ids)} {part} ({listed})")


def _inputs(
    options: Options,
    cohort: Cohort,
    store: BagStore,
    bag_ids: dict[str, str],
    recipe_key: str,
    splits: Splits,
    use: TileUse | None,
) -> dict[str, Any]:
    sample = store.info(next(iter(bag_ids.values())))
    hashes = {slide_id: store.info(bag).sha256 for slide_id, bag in sorted(bag_ids.items())}
    tiles = {} if use is None else {"tiles": use.to_json()}
    return tiles | {
        "cohort": cohort.name,
        "cohort_sha256": sha256_file(options.cohort),
        "recipe": store.root.name,
        "recipe_key": recipe_key,
        "encoder": sample.provenance.encoder,
        "tiling": sample.provenance.tiling["settings"],
        "slides": len(bag_ids),
        "bags_sha256": sha256_json(hashes),
        "splits_sha256": splits.hash,
        "bags": str(store.root),
        "cohort_table": str(options.cohort),
    }


def _cell(
    config: Config,
    options: Options,
    run_dir: RunDir,
    cohort: Cohort,
    fold: Fold,
    seed: int,
    store: BagStore,
    packed: Path | None,
    recipe_key: str,
    bag_ids: dict[str, str],
) -> Cell:
    known = {*fold.train, *fold.val}
    index = {name: k for k, name in enumerate(cohort.classes)}
    labels = {r.slide_id: index[r.label] for r in cohort.rows if r.slide_id in known and r.label}
    return Cell(
        config=config,
        fold=fold,
        seed=seed,
        folder=run_dir.cell(fold.index, seed),
        bags=store.root,
        packed=packed,
        recipe_key=recipe_key,
        labels=labels,
        bag_ids=bag_ids,
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
                f"validation {cell.config.fit.monitor} {shown}"
            )


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


def train_cell(cell: Cell) -> dict[str, Any]:
    """Train, save and apply one model; `done.json`, published last, marks it done."""
    import torch

    from wsi.data import BagDataset
    from wsi.training import build, fit, save
    from wsi.training.checkpoint import Origin
    from wsi.training.predict import predict

    if cell.one_thread:
        torch.set_num_threads(1)
    config = cell.config
    store = open_store(cell.bags)
    read = _reader(cell, store)

    def dataset(ids: Sequence[str], *, labelled: bool) -> BagDataset:
        y = [cell.labels[slide_id] for slide_id in ids] if labelled else None
        return BagDataset(read, ids, y, tiles=TileFilter.of(config.data))

    train = dataset(cell.fold.train, labelled=True)
    val = dataset(cell.fold.val, labelled=True) if cell.fold.val else None
    classes = config.data.classes or ()
    dim = store.info(cell.bag_ids[cell.fold.train[0]]).dim
    model = build(config, dim, classes, _training_counts(cell, len(classes)), seed=cell.seed)
    monitor = config.fit.monitor
    result = fit(
        model,
        train,
        val,
        config.fit,
        seed=cell.seed,
        score=_score("auc" if monitor == "loss" else monitor),
        device=cell.device,
    )
    cell.folder.mkdir(parents=True, exist_ok=True)
    origin = Origin(cell.recipe_key, result.best_epoch, monitor, result.monitor)
    save(cell.folder / "model.safetensors", model, origin)
    lines = "".join(json.dumps(row, allow_nan=False) + "\n" for row in result.history)
    publish_bytes(cell.folder / "metrics.jsonl", lines.encode())
    test = predict(model, dataset(cell.fold.test, labelled=False), cell.device)
    parts = {"test": test}
    for name in ("train", "val"):
        ids = cell.fold.parts()[name]
        if ids:
            parts[name] = predict(model, dataset(ids, labelled=False), cell.device)
    _write_embeddings(cell.folder / "embeddings.h5", parts)
    _write_cell_predictions(cell, test)
    summary = {
        "best_epoch": result.best_epoch,
        "monitor": result.monitor,
        "predicts_prior": getattr(model.objective, "predicts_prior", "training"),
    }
    files = {name: sha256_file(cell.folder / name) for name in _FILES}
    publish_json(cell.folder / "done.json", summary | {"files": files})
    return summary


def _reader(cell: Cell, store: BagStore) -> Callable[[str], Any]:
    """Return what reads the bag of a slide: maps of the packed cohort, or bags kept in memory."""
    from wsi.data import CachedReader

    if cell.packed is None:
        return CachedReader(lambda slide_id: store.read(cell.bag_ids[slide_id]), _CACHE_BYTES)
    packed = PackedCohort(cell.packed)
    return lambda slide_id: packed.read(cell.bag_ids[slide_id])


def _is_done(cell: Cell) -> bool:
    """Return whether all files of a fit are there, as they were written."""
    try:
        files = json.loads((cell.folder / "done.json").read_text(encoding="utf-8"))["files"]
        return all(sha256_file(cell.folder / name) == files[name] for name in _FILES)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _score(name: str) -> Any:
    """Return the metric as a plain number; undefined is NaN, which the loop refuses by name."""
    metric = METRICS[name]

    def score(y: np.ndarray, p: np.ndarray) -> float:
        value = metric(y, p).value
        return float("nan") if value is None else value

    return score


def _write_embeddings(path: Path, parts: dict[str, Any]) -> None:
    ids = [slide_id for part in parts.values() for slide_id in part.slide_ids]
    names = [name for name, part in parts.items() for _ in part.slide_ids]
    with publish(path) as temporary, h5py.File(temporary, "w") as file:
        text = h5py.string_dtype()
        file.create_dataset("slide_id", data=np.asarray(ids, object), dtype=text)
        file.create_dataset("part", data=np.asarray(names, object), dtype=text)
        embeddings = np.concatenate([part.embeddings for part in parts.values()])
        file.create_dataset("embedding", data=embeddings.astype(np.float32))


def _write_cell_predictions(cell: Cell, test: Any) -> None:
    classes = cell.config.data.classes or ()
    table = pd.DataFrame(test.probabilities, columns=[f"p_{name}" for name in classes])
    table.insert(0, "slide_id", list(test.slide_ids))
    data = table.to_csv(index=False, lineterminator="\n", float_format="%.17g").encode()
    publish_bytes(cell.folder / "predictions.csv", data)


def _gathered(
    cells: Sequence[Cell], cohort: Cohort, classes: Sequence[str], absent: dict[str, str]
) -> Predictions:
    """Return the test predictions of all cells, still without labels."""
    rows = {row.slide_id: row for row in cohort.rows}
    tables = []
    for cell in cells:
        table = pd.read_csv(
            cell.folder / "predictions.csv", dtype={"slide_id": str}, keep_default_na=False
        )
        table["patient_id"] = [rows[s].patient_id for s in table["slide_id"]]
        table["site"] = [_site(rows[s]) for s in table["slide_id"]]
        table["cohort"] = cohort.name
        table["fold"] = cell.fold.index
        table["seed"] = cell.seed
        tables.append(table)
    if not tables:
        raise ConfigError("there is nothing to train — the splits have no folds")
    table = pd.concat(tables, ignore_index=True)
    return Predictions(tuple(classes), table, not_evaluable=absent, head=_head(cells, len(classes)))


def _head(cells: Sequence[Cell], C: int) -> Head | None:
    """Return the prior the models predict at; None for fits from before it was recorded."""
    done = json.loads((cells[0].folder / "done.json").read_text(encoding="utf-8"))
    if "predicts_prior" not in done:
        return None
    return Head(
        done["predicts_prior"], {cell.fold.index: _training_counts(cell, C) for cell in cells}
    )


def _training_counts(cell: Cell, C: int) -> tuple[int, ...]:
    counts = Counter(cell.labels[slide_id] for slide_id in cell.fold.train)
    return tuple(counts[k] for k in range(C))


def _site(row: SlideRow) -> str:
    return row.site or ""
