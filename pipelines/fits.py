"""What training commands share: slides with their bags, one fit, and the predictions of many."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pipelines.console import Console
from pipelines.pack import usable_packed
from pipelines.tileuse import TileUse, tile_use
from wsi.bags import BagStore, PackedCohort, TileFilter, check_uniform, open_store
from wsi.bags.draws import chance_of_seeing
from wsi.cohorts import Cohort, SlideRow, match_ids, read_cohort
from wsi.errors import BagCorruptError, CohortError, ConfigError
from wsi.evaluation import METRICS, Head, Predictions
from wsi.findings import few
from wsi.specs import Config, SplitSpec
from wsi.splits import Fold, Splits, make_splits, read_splits
from wsi.splits.folds import audited

if TYPE_CHECKING:
    from wsi.data import BagDataset
    from wsi.training import FitResult, Model

CACHE_BYTES = 4 << 30
UNKNOWN_PRIOR = "unknown"
_SMALL_VALIDATION = 10
_RARE = 3  # positive tiles of a slide that is hard to tell


@dataclass(frozen=True)
class Material:
    """The slides a command trains and tests on, and where their bags are.

    Attributes:
        whole: all slides of the table.
        cohort: those that have a bag with tiles.
        bag_ids: slide id to id of its bag.
        packed: folder of a packed cohort of these bags, where there is one that holds.
        absent: why the other slides are not used, by slide id.
        use: what the limits on tiles leave; None when they leave all.
    """

    whole: Cohort
    cohort: Cohort
    store: BagStore
    recipe_key: str
    bag_ids: dict[str, str]
    packed: Path | None
    absent: dict[str, str]
    use: TileUse | None

    @property
    def dim(self) -> int:
        """Return the features per tile, D."""
        return self.store.info(next(iter(self.bag_ids.values()))).dim

    def labels(self, slide_ids: Iterable[str]) -> dict[str, int]:
        """Return the class index of every slide of `slide_ids`, and of no other."""
        wanted = set(slide_ids)
        index = {name: k for k, name in enumerate(self.cohort.classes)}
        rows = self.cohort.rows
        return {r.slide_id: index[r.label] for r in rows if r.slide_id in wanted and r.label}


def gather(config: Config, table: Path, bags: Path, console: Console) -> Material:
    """Return the slides of `table` with their bags, every byte of which was checked.

    Raises:
        CohortError: slides have no bag and data.missing=error, or none can be used.
        BagCorruptError: bags differ from what was written.
    """
    whole = read_cohort(table, config.data.label, config.data.classes)
    store = open_store(bags)
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
    return Material(whole, cohort, store, recipe_key, bag_ids, packed, absent, use)


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


def splits_of(material: Material, spec: SplitSpec, table: Path | None) -> Splits:
    """Return the splits of the slides with bags; those of `table` may divide all slides."""
    cohort = material.cohort
    if table is None:
        return make_splits(cohort, spec)
    given = read_splits(table, material.whole)
    usable = {row.slide_id for row in cohort.rows}
    folds = []
    for fold in given.folds:
        kept = {k: tuple(s for s in ids if s in usable) for k, ids in fold.parts().items()}
        folds.append(replace(fold, **kept))
    left = audited(folds, cohort, given.settings)
    return replace(left, findings=tuple(dict.fromkeys((*given.findings, *left.findings))))


def warn_of_data(config: Config, splits: Splits, material: Material, console: Console) -> None:
    """Say what is known to be wrong with the splits and slides, before anything is trained."""
    cohort, absent = material.cohort, material.absent
    for finding in splits.warnings():
        console.warn(finding.message)
    if absent:
        reasons = Counter(absent.values())
        listed = "; ".join(f"{n} slides: {reason}" for reason, n in reasons.items())
        console.warn(f"{len(absent)} slides are not evaluable ({listed}): {few(absent)}")
    without = [fold.name for fold in splits.folds if not fold.val]
    if without and config.objective.params.get("predict") == "auto":
        console.warn(
            f"fold {', '.join(without)}: without a validation part objective.predict=auto leaves "
            "the objective's own rule — give one, or name a rule"
        )
    if config.fit.max_tiles is not None:
        console.say(draw_line(config.fit.max_tiles, material))
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


def draw_line(max_tiles: int, material: Material) -> str:
    """Return what drawing tiles risks: the chance that an epoch sees one of a few positive ones."""
    sizes = [material.store.info(bag_id).n for bag_id in material.bag_ids.values()]
    n = int(np.median(sizes))
    chance = chance_of_seeing(_RARE, n, max_tiles)
    return (
        f"fit.max_tiles={max_tiles}: with {_RARE} positive tiles among the {n:,} of the median "
        f"bag, an epoch sees at least one of them with a chance of {chance:.0%}"
    )


def reader(
    store: BagStore, bag_ids: Mapping[str, str], packed: Path | None
) -> Callable[[str], Any]:
    """Return what reads the bag of a slide: maps of the packed cohort, or bags kept in memory."""
    from wsi.data import CachedReader

    if packed is None:
        return CachedReader(lambda slide_id: store.read(bag_ids[slide_id]), CACHE_BYTES)
    cohort = PackedCohort(packed)
    return lambda slide_id: cohort.read(bag_ids[slide_id])


@dataclass(frozen=True)
class Parts:
    """The data sets of one fold: only train and val carry labels."""

    train: BagDataset
    val: BagDataset | None
    test: BagDataset

    @staticmethod
    def of(
        fold: Fold, labels: Mapping[str, int], read: Callable[[str], Any], config: Config
    ) -> Parts:
        """Return the parts of a fold, whose bags `read` returns."""
        from wsi.data import BagDataset

        def dataset(ids: Sequence[str], *, labelled: bool = True) -> BagDataset:
            y = [labels[slide_id] for slide_id in ids] if labelled else None
            return BagDataset(read, ids, y, tiles=TileFilter.of(config.data))

        val = dataset(fold.val) if fold.val else None
        return Parts(dataset(fold.train), val, dataset(fold.test, labelled=False))


def fitted(
    config: Config, parts: Parts, dim: int, seed: int, device: str
) -> tuple[Model, FitResult]:
    """Return a model trained on the training part, its checkpoint picked on the validation part.

    Raises:
        TrainingError: it cannot start, or diverges.
    """
    from wsi.training import build, fit

    classes = config.data.classes or ()
    y: list[int] = [] if parts.train.y is None else parts.train.y.tolist()
    counts = Counter(y)
    model = build(config, dim, classes, [counts[k] for k in range(len(classes))], seed=seed)
    score = _score("auc" if config.fit.monitor == "loss" else config.fit.monitor)
    result = fit(model, parts.train, parts.val, config.fit, seed=seed, score=score, device=device)
    return model, result


def _score(name: str) -> Callable[[np.ndarray, np.ndarray], float]:
    """Return the metric as a plain number; undefined is NaN, which the loop refuses by name."""
    metric = METRICS[name]

    def score(y: np.ndarray, p: np.ndarray) -> float:
        value = metric(y, p).value
        return float("nan") if value is None else value

    return score


def history_lines(history: Sequence[dict[str, Any]]) -> bytes:
    """Return the rows of a history, one JSON object a line."""
    return "".join(json.dumps(row, allow_nan=False) + "\n" for row in history).encode()


def probability_table(predicted: Any, classes: Sequence[str]) -> pd.DataFrame:
    """Return slide_id and one p_<class> per class of what `wsi.training` predicted."""
    table = pd.DataFrame(predicted.probabilities, columns=[f"p_{name}" for name in classes])
    table.insert(0, "slide_id", list(predicted.slide_ids))
    return table


def as_csv(table: pd.DataFrame) -> bytes:
    """Return a table of probabilities as text that reads back as the same numbers."""
    return table.to_csv(index=False, lineterminator="\n", float_format="%.17g").encode()


def read_probabilities(path: Path) -> pd.DataFrame:
    """Return a table that `as_csv` wrote."""
    return pd.read_csv(path, dtype={"slide_id": str}, keep_default_na=False)


def out_of_fold(
    tables: Iterable[tuple[int, int, pd.DataFrame]],
    cohort: Cohort,
    classes: Sequence[str],
    absent: Mapping[str, str],
) -> Predictions:
    """Return the test predictions of all fits, each (fold, seed, table), still without labels.

    Raises:
        ConfigError: there are none.
    """
    rows = {row.slide_id: row for row in cohort.rows}
    gathered = []
    for fold, seed, table in tables:
        owners = [rows[slide_id] for slide_id in table["slide_id"]]
        gathered.append(
            table.assign(
                patient_id=[row.patient_id for row in owners],
                site=[_site(row) for row in owners],
                cohort=cohort.name,
                fold=fold,
                seed=seed,
            )
        )
    if not gathered:
        raise ConfigError("there is nothing to train — the splits have no folds")
    return Predictions(tuple(classes), pd.concat(gathered, ignore_index=True), not_evaluable=absent)


def head_of(
    priors: Iterable[str | None], training: Mapping[int, Counter[int]], C: int
) -> Head | None:
    """Return what predictions of several models are; None where one of them does not say.

    Args:
        priors: what each model says its probabilities are meant under; `UNKNOWN_PRIOR` of models
            made before that was recorded.
        training: training slides of each class, by fold.
    """
    found = set(priors)
    if UNKNOWN_PRIOR in found:
        return None
    # With the rule chosen on validation, models may decide by rules of different priors.
    prior: Any = found.pop() if len(found) == 1 else None
    counts = {fold: tuple(of[k] for k in range(C)) for fold, of in training.items()}
    return Head(prior, counts)


def _site(row: SlideRow) -> str:
    return row.site or ""
