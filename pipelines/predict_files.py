"""What `wsi predict` writes, and how a rerun knows its own folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipelines.external import BY_SEED, ExternalCohort, external_facts
from pipelines.predict_models import Member, RunEnsemble
from pipelines.rundir import holds_other_things
from wsi.errors import ConfigError
from wsi.evaluation import Head, Predictions
from wsi.evaluation.prediction_files import write_table
from wsi.files import file_name_of, publish_json, sha256_json

SCHEMA = "wsi-predict/1"
PREDICTED = "predicted"
_MARK = "predict.json"
_LOGS = frozenset({"predict.log", "predict.jsonl"})
_PATHS = ("bags", "cohort_table")  # of a run's inputs: where things lay, not what they were


@dataclass(frozen=True, eq=False)
class Answer:
    """What the models say of one slide.

    Attributes:
        state: `predicted`, or why it was not, as one word.
        note: what to know about it, empty where nothing is.
        in_training: whether models used had the slide in their training or validation part.
        by_member: probabilities (C,) of each model used.
        trained_folds: whose models had the slide, or another one of its patient, in these parts.
    """

    slide_id: str
    patient_id: str
    site: str
    state: str
    note: str
    in_training: bool
    by_member: Mapping[Member, np.ndarray]
    p: np.ndarray | None = None
    sd: np.ndarray | None = None
    trained_folds: frozenset[int] = frozenset()

    @property
    def seen(self) -> bool:
        """Return whether models used had the slide or its patient in training or validation."""
        return any(m.fold in self.trained_folds for m in self.by_member)

    @property
    def trained_patient(self) -> bool:
        """Return whether it was the patient alone that models used had seen."""
        return self.seen and not self.in_training


@dataclass(frozen=True)
class PredictDir:
    """Paths of an output folder."""

    root: Path

    @property
    def predictions(self) -> Path:
        return self.root / "predictions.csv"

    @property
    def by_seed(self) -> Path:
        return self.root / BY_SEED

    @property
    def by_model(self) -> Path:
        return self.root / "predictions_by_model.csv"

    def page(self, slide_id: str) -> Path:
        """Return the page of a slide."""
        return self.root / "pages" / f"{file_name_of(slide_id)}.html"

    def map(self, slide_id: str) -> Path:
        """Return where the evidence of a slide is drawn."""
        return self.root / "maps" / f"{file_name_of(slide_id)}.png"

    def check(self, settings: Mapping[str, Any]) -> None:
        """Raise ConfigError unless the folder is new, or holds predictions of the same models."""
        mark = self.root / _MARK
        if not mark.is_file():
            if holds_other_things(self.root, _LOGS):
                raise ConfigError(
                    f"{self.root} is not empty and holds no predictions — give another --out"
                )
            return
        try:
            held = json.loads(mark.read_text(encoding="utf-8"))
        except ValueError:
            held = {}
        changed = [key for key, value in settings.items() if held.get(key) != value]
        if changed:
            raise ConfigError(
                f"{self.root} holds predictions of another run or choice of models "
                f"({', '.join(changed)}) — give another --out"
            )

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Mark the folder as one of these models."""
        self.root.mkdir(parents=True, exist_ok=True)
        publish_json(self.root / _MARK, dict(settings))


def settings_of(models: RunEnsemble, *, out_of_fold: bool) -> dict[str, Any]:
    """Return what all predictions of a folder have in common."""
    return {
        "schema": SCHEMA,
        "run_sha256": run_hash(models),
        "models": [{"fold": m.fold, "seed": m.seed, "sha256": m.sha256} for m in models.members],
        "out_of_fold": out_of_fold,
    }


def run_hash(models: RunEnsemble) -> str:
    """Return a hash of what the run was made from, and of the models used."""
    inputs = {k: v for k, v in models.run_dir.read_inputs().items() if k not in _PATHS}
    return sha256_json([inputs, sorted(m.sha256 for m in models.members)])


def write_answers(
    out: PredictDir,
    answers: Sequence[Answer],
    models: RunEnsemble,
    cohort: ExternalCohort | None = None,
) -> None:
    """Write the tables by model, by seed, and, last, that of the ensemble."""
    tables = _Tables(answers, models, cohort.name if cohort else "")
    mark = json.loads((out.root / _MARK).read_text(encoding="utf-8"))
    about = mark | external_facts(models, cohort)
    by_model, by_seed, mean = tables.by_model(), tables.by_seed(), tables.mean()
    write_table(by_model, by_model.table, out.by_model, {"predict": about})
    if by_seed is not None:
        write_table(by_seed, by_seed.table, out.by_seed, {"predict": about})
    else:
        out.by_seed.unlink(missing_ok=True)
        out.by_seed.with_suffix(".json").unlink(missing_ok=True)
    about |= {"run": models.run_dir.root.name, "recipe": dict(models.bags.recipe)}
    about |= {"encoder": dict(models.bags.encoder), "recipe_key": models.bags.key}
    write_table(mean, _whole(mean, answers), out.predictions, {"predict": about})


@dataclass(frozen=True)
class _Tables:
    """Predictions of the same answers: by model, by seed, and of all models together."""

    answers: Sequence[Answer]
    models: RunEnsemble
    cohort: str

    def by_model(self) -> Predictions:
        """Return a row per slide and model."""
        classes = self.models.classes
        rows = [_row(a, p, classes, m) for a in self.answers for m, p in a.by_member.items()]
        made = self._made(rows, "largest probability", heads(self.models)[0])
        return replace(made, calibration=self.models.calibration)

    def by_seed(self) -> Predictions | None:
        """Return a row per slide and seed; None where seeds are not told apart."""
        rows = _by_seed(self.answers, folds_of(self.answers, self.models), self.models.classes)
        if not rows:
            return None
        rule = "largest mean probability of the models of a seed"
        seeds = {m.seed for a in self.answers for m in a.by_member}
        return self._of_several(rows, rule, len(seeds))

    def mean(self) -> Predictions:
        """Return a row per slide."""
        fold_of, classes = folds_of(self.answers, self.models), self.models.classes
        rows = [
            _row(a, a.p, classes) | {"fold": fold_of[a.slide_id]}
            for a in self.answers
            if a.p is not None
        ]
        return self._of_several(rows, "largest mean probability of the models", 1)

    def _of_several(self, rows: Sequence[dict[str, Any]], rule: str, parts: int) -> Predictions:
        """Return means over models, those of a slide taken in so many parts."""
        most = max((len(a.by_member) for a in self.answers), default=0) // parts
        note = f"rows are means of up to {most} models, where a row of the run itself is of one"
        made = self._made(rows, rule, self._head())
        return replace(made, notes=(note,)) if most > 1 else made

    def _made(self, rows: Sequence[dict[str, Any]], rule: str, head: Head | None) -> Predictions:
        told = {a.slide_id: f"{a.state}: {a.note}" for a in self.answers if a.p is None}
        classes, ordered = self.models.classes, self.models.ordered
        table = _table(rows, classes, self.cohort)
        return Predictions(classes, table, rule, told, head, ordered=ordered)

    def _head(self) -> Head | None:
        """Return the head of means over models, with the counts of all folds under its own."""
        by_fold, together = heads(self.models)
        several = any(folds_of(self.answers, self.models).values())
        if together is None or by_fold is None or not several:
            return together
        last = max(by_fold.training_counts) + 1
        known = dict(by_fold.training_counts) | {last: together.training_counts[0]}
        return replace(together, training_counts=known)


def _by_seed(
    answers: Sequence[Answer], fold_of: Mapping[str, int], classes: Sequence[str]
) -> list[dict[str, Any]]:
    """Return a row per slide and seed, the mean over folds; none with one seed, or uneven folds."""
    rows, seeds = [], {m.seed for a in answers for m in a.by_member}
    for answer in answers:
        if answer.p is None:
            continue
        folds = {seed: {m.fold for m in answer.by_member if m.seed == seed} for seed in seeds}
        if len(seeds) < 2 or len({frozenset(of) for of in folds.values()}) > 1:
            return []
        for seed in sorted(seeds):
            p = np.mean([v for m, v in answer.by_member.items() if m.seed == seed], axis=0)
            rows.append(_row(answer, p, classes) | {"fold": fold_of[answer.slide_id], "seed": seed})
    return rows


def folds_of(answers: Sequence[Answer], models: RunEnsemble) -> dict[str, int]:
    """Return the fold each mean prediction counts under: one whose models alone made it, or 0.

    Slides that models of several folds predict together are not ranked beside those of one fold:
    next to such they count as a fold of their own, the one after the last.
    """
    every = {m.fold for m in models.members}
    made = {a.slide_id: {m.fold for m in a.by_member} for a in answers if a.p is not None}
    single = len(every) > 1 and any(len(folds) == 1 for folds in made.values())
    together = max(every) + 1 if single else 0
    return {s: next(iter(f)) if single and len(f) == 1 else together for s, f in made.items()}


def heads(models: RunEnsemble) -> tuple[Head | None, Head | None]:
    """Return what the probabilities of single models are, and what their mean is.

    The mean of posteriors at the priors of several trainings counts as one at their mean.
    """
    loaded = {m: models.model(m) for m in models.members}
    priors = {model.objective.predicts_prior for model in loaded.values()}
    if len(priors) > 1 or "imported" in models.run_dir.read_inputs():
        return None, None
    prior: Any = priors.pop()
    counts = {m.fold: model.card.class_counts for m, model in loaded.items()}
    summed = tuple(int(n) for n in np.sum(list(counts.values()), axis=0))
    return Head(prior, counts), Head(prior, {0: summed})


def _row(
    answer: Answer, p: np.ndarray | None, classes: Sequence[str], member: Member | None = None
) -> dict[str, Any]:
    if member is None:
        fold = seed = 0
        trained = answer.seen
    else:
        fold, seed, trained = member.fold, member.seed, member.fold in answer.trained_folds
    row: dict[str, Any] = {
        "slide_id": answer.slide_id,
        "patient_id": answer.patient_id,
        "site": answer.site,
        "fold": fold,
        "seed": seed,
        "split": "train" if trained else "test",
    }
    if p is not None:
        row |= {f"p_{name}": float(value) for name, value in zip(classes, p, strict=True)}
    return row


def _table(
    rows: Sequence[dict[str, Any]], classes: Sequence[str], cohort: str = ""
) -> pd.DataFrame:
    columns = ["slide_id", "patient_id", "site", "cohort", "fold", "seed", "split"]
    told = [{**row, "cohort": cohort} for row in rows]
    return pd.DataFrame(told, columns=[*columns, *(f"p_{name}" for name in classes)])


def _whole(mean: Predictions, answers: Sequence[Answer]) -> pd.DataFrame:
    """Return the rows of all slides, in the order of `answers`, with what else is known of each."""
    more = []
    for answer in answers:
        spread = {}
        if answer.sd is not None and np.isfinite(answer.sd).all():
            spread = {f"sd_{c}": float(v) for c, v in zip(mean.classes, answer.sd, strict=True)}
        more.append(
            {
                "slide_id": answer.slide_id,
                "patient_id": answer.patient_id,
                "site": answer.site,
                **spread,
                "n_models": len(answer.by_member),
                "in_training": "yes" if answer.in_training else "no",
                "state": answer.state,
                "note": answer.note,
            }
        )
    spreads = [f"sd_{name}" for name in mean.classes]
    extra = [*spreads, "n_models", "in_training", "state", "note"]
    known = pd.DataFrame(more, columns=["slide_id", "patient_id", "site", *extra])
    kept = mean.table.drop(columns=["patient_id", "site"])
    joined = known.merge(kept, on="slide_id", how="left", validate="one_to_one")
    for name in ("fold", "seed"):
        joined[name] = joined[name].fillna(0).astype(int)
    texts = ["cohort", "split", "y_true", "y_pred"]
    joined[texts] = joined[texts].fillna("")
    return joined.reindex(columns=[*mean.table.columns, *extra])
