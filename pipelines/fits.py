"""What training commands share: slides with their bags, one fit, and the predictions of many."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pipelines.console import Console
from pipelines.pack import usable_packed
from pipelines.patient_bags import BagIds, patients_without, say_patients
from pipelines.tileuse import TileUse, tile_use
from wsi.bags import BagStore, PackedCohort, TileFilter, check_uniform, joined, open_store
from wsi.bags.draws import chance_of_seeing
from wsi.cohorts import (
    Cohort,
    SlideRow,
    match_ids,
    patients_of,
    read_cohort,
    slides_of_patients,
)
from wsi.errors import BagCorruptError, CohortError, ConfigError
from wsi.evaluation import Head, Predictions
from wsi.evaluation.metrics import monitored
from wsi.files import sha256_json
from wsi.findings import few
from wsi.specs import Config, SplitSpec
from wsi.splits import Fold, Splits, by_patient, make_splits, names_patients, read_splits
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
        cohort: those that have a bag with tiles; with data.bag=patient, a row per patient.
        bag_ids: slide id to id of its bag, and which slides make one bag.
        packed: folder of a packed cohort of these bags, where there is one that holds.
        absent: why the others are not used, by slide id, or by patient.
        use: what the limits on tiles leave; None when they leave all.
        slides: the slides that are used; with data.bag=patient `cohort` has their patients.
        slides_absent: why the other slides are not used.
    """

    whole: Cohort
    cohort: Cohort
    store: BagStore
    recipe_key: str
    bag_ids: BagIds
    packed: Path | None
    absent: dict[str, str]
    use: TileUse | None
    slides: Cohort
    slides_absent: dict[str, str]

    @property
    def dim(self) -> int:
        """Return the features per tile, D."""
        return self.store.info(next(iter(self.bag_ids.values()))).dim

    @property
    def bags_sha256(self) -> str:
        """Return a hash of all bags that are used, and of which make one."""
        of_slides = sorted(self.bag_ids.items())
        hashes: Any = {slide_id: self.store.info(b).sha256 for slide_id, b in of_slides}
        if self.bag_ids.patients:
            hashes = [hashes, dict(self.bag_ids.patients)]  # the same slides of other patients
        return sha256_json(hashes)

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
    if config.data.bag == "patient":
        patients_of(whole)  # contradictions are told before any bag is looked at
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
    ids = BagIds(bag_ids)
    made = Material(whole, cohort, store, recipe_key, ids, packed, absent, use, cohort, absent)
    return made if config.data.bag == "slide" else _of_patients(made, console)


def _of_patients(made: Material, console: Console) -> Material:
    """Return the material with one bag per patient."""
    members = slides_of_patients(made.slides)
    bag_ids = BagIds(made.bag_ids.of_slides, members)
    say_patients(made.slides, bag_ids, made.absent, made.whole, console)
    absent = patients_without(made.whole, members, made.absent)
    return replace(made, cohort=patients_of(made.slides), bag_ids=bag_ids, absent=absent)


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
    return replace(cohort, rows=rows), usable, absent


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
    """Return the splits of the slides with bags; those of `table` may divide all slides.

    Those of patients are the splits of their slides, unless a table divides patients.
    """
    if not material.bag_ids.patients:
        return _splits_of(material.whole, material.cohort, spec, table)
    if table is not None and names_patients(table):
        return _splits_of(patients_of(material.whole), material.cohort, spec, table)
    slides = _splits_of(material.whole, material.slides, spec, table)
    return by_patient(slides, material.cohort)


def _splits_of(whole: Cohort, cohort: Cohort, spec: SplitSpec, table: Path | None) -> Splits:
    if table is None:
        return make_splits(cohort, spec)
    given = read_splits(table, whole)
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
        unit = "patients" if material.bag_ids.patients else "slides"
        listed = "; ".join(f"{n} {unit}: {reason}" for reason, n in reasons.items())
        console.warn(f"{len(absent)} {unit} are not evaluable ({listed}): {few(absent)}")
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
        f"fit.max_tiles={max_tiles}: if just {_RARE} of the {n:,} tiles of the median bag were "
        f"positive, an epoch would see at least one of them with a chance of {chance:.0%}"
    )


def reader(store: BagStore, bag_ids: BagIds, packed: Path | None) -> Callable[[str], Any]:
    """Return what reads the bag of a slide, or of all slides of a patient.

    It reads maps of the packed cohort, or bags that are kept in memory.
    """
    from wsi.data import CachedReader

    bag = once_reader(store, bag_ids, packed)
    return bag if packed is not None else CachedReader(bag, CACHE_BYTES)


def once_reader(store: BagStore, bag_ids: BagIds, packed: Path | None) -> Callable[[str], Any]:
    """Return what reads the same bags as `reader` and keeps none: for those who read them once."""
    read: Callable[[str], Any] = store.read if packed is None else PackedCohort(packed).read

    def bag(sample_id: str) -> Any:
        bags = [read(bag_id) for bag_id in bag_ids.together(sample_id)]
        return bags[0] if len(bags) == 1 else joined(bags)

    return bag


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
    config: Config, parts: Parts, dim: int, seed: int, device: str, **watched: Any
) -> tuple[Model, FitResult]:
    """Return a model trained on the training part, its checkpoint picked on the validation part.

    Args:
        watched: on_epoch and state of `wsi.training.fit`.

    Raises:
        TrainingError: it cannot start, or diverges.
    """
    from wsi.training import build, fit

    classes = config.data.classes or ()
    y: list[int] = [] if parts.train.y is None else parts.train.y.tolist()
    counts = Counter(y)
    model = build(config, dim, classes, [counts[k] for k in range(len(classes))], seed=seed)
    score = monitored(config.fit.monitor)
    train, val, spec = parts.train, parts.val, config.fit
    result = fit(model, train, val, spec, seed=seed, score=score, device=device, **watched)
    return model, result


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
    slides: Mapping[str, int],
) -> Predictions:
    """Return the test predictions of all fits, each (fold, seed, table), still without labels.

    Args:
        slides: how many slides the bag of each patient is of; empty where rows are slides.

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
    tests = pd.concat(gathered, ignore_index=True)
    ids = set(tests["slide_id"])
    counts = {patient: n for patient, n in slides.items() if patient in ids}
    return Predictions(tuple(classes), tests, not_evaluable=absent, slides=counts)


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
