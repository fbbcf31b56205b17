"""External validation: a frozen run on the slides of another cohort."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.console import Console, counted
from pipelines.rundir import RunDir
from wsi.cohorts import Cohort, match_ids, read_cohort
from wsi.errors import ConfigError, LeakageError
from wsi.evaluation import Predictions, join_labels, read_predictions
from wsi.files import sha256_file
from wsi.findings import few
from wsi.specs import PatientRule

if TYPE_CHECKING:
    from pipelines.predict_models import RunEnsemble
    from pipelines.predict_slides import Material

BY_SEED = "predictions_by_seed.csv"
_SEEN = ("train", "val")


@dataclass(frozen=True)
class ExternalCohort:
    """The table of slides to predict: patients and sites, for labels are not read.

    Attributes:
        sha256: of the table, by which evaluation knows it again.
    """

    cohort: Cohort
    table: Path
    sha256: str

    @property
    def name(self) -> str:
        """Return what the cohort is called."""
        return self.cohort.name


def read_external(table: Path) -> ExternalCohort:
    """Return the cohort of a table, without its labels."""
    cohort = read_cohort(table, require_label=False)
    return ExternalCohort(cohort, table, sha256_file(table))


def of_cohort(material: Material, external: ExternalCohort, console: Console) -> Material:
    """Return the slides of the table alone, with its patients and sites.

    Raises:
        ConfigError: no slide of the table is among those given.
    """
    from pipelines.predict_slides import Asked

    given = {asked.slide_id: asked for asked in material.slides}
    matched = match_ids(external.cohort, given)
    if not matched:
        raise ConfigError(
            f"no slide of {external.table.name} is among the {len(given)} given "
            f"({few(given, 3)}) — check the ids of the table"
        )
    left_out = sorted(set(given) - set(matched.values()))
    if left_out:
        console.say(
            f"{counted(len(left_out), 'slide')} not in {external.table.name} left out: "
            f"{few(left_out)}"
        )
    slides = []
    for row in external.cohort.rows:
        bare = Asked(row.slide_id, trouble=("missing", "no slide or bag of that id was given"))
        asked = given[matched[row.slide_id]] if row.slide_id in matched else bare
        site = row.site or asked.site
        slides.append(replace(asked, patient_id=row.patient_id, site=site))
    return replace(material, slides=tuple(sorted(slides, key=lambda s: s.slide_id)))


def external_facts(models: RunEnsemble, external: ExternalCohort | None) -> dict[str, Any]:
    """Return what an evaluation of the predictions needs to know of the run and the cohort."""
    used = {member.fold for member in models.members}
    trained: dict[str, set[int]] = {}
    for slide_id, parts in models.trained.parts.items():
        folds = {fold for fold, part in parts.items() if part in _SEEN and fold in used}
        trained.setdefault(models.trained.patients[slide_id], set()).update(folds)
    facts: dict[str, Any] = {
        "label": models.config.data.label,
        "patient_rule": models.config.evaluate.patient_rule,
        "trained_patients": {p: sorted(folds) for p, folds in sorted(trained.items()) if folds},
    }
    if external is not None:
        table = {"table": str(external.table.resolve()), "sha256": external.sha256}
        facts["cohort"] = {"name": external.name, **table}
    return facts


@dataclass(frozen=True)
class Told:
    """What the sidecar of `wsi predict` tells an evaluation.

    Attributes:
        trained_patients: folds whose models were trained or picked on each patient.
    """

    label: str = "label"
    patient_rule: PatientRule = "mean"
    trained_patients: Mapping[str, frozenset[int]] = field(default_factory=dict)
    table: Path | None = None
    sha256: str = ""


def told_by(source: Path) -> Told | None:
    """Return what is known of predictions of `wsi predict`; None for any others."""
    path = (RunDir(source).predictions if source.is_dir() else source).with_suffix(".json")
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))["predict"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    cohort = facts.get("cohort", {})
    trained = {p: frozenset(folds) for p, folds in facts.get("trained_patients", {}).items()}
    return Told(
        facts.get("label", "label"),
        facts.get("patient_rule", "mean"),
        trained,
        Path(cohort["table"]) if cohort else None,
        cohort.get("sha256", ""),
    )


def external_predictions(folder: Path) -> Predictions:
    """Return the predictions of a folder of `wsi predict`: by seed where there are several.

    They get the labels of the table they were predicted with, unless it is gone or was changed.
    """
    path = folder / BY_SEED
    made = read_predictions(path if path.is_file() else RunDir(folder).predictions)
    told = told_by(folder)
    if told is None or told.table is None or not told.table.is_file():
        return made
    if sha256_file(told.table) != told.sha256:
        return made
    return join_labels(made, read_cohort(told.table, told.label, made.classes))


def without_leakage(
    before: Predictions, after: Predictions, told: Told, *, leave_out: bool, console: Console
) -> Predictions:
    """Return predictions in which slides that trained the models, or whose patients did, are none.

    Args:
        before: as they were predicted, when some patients may not have been known.
        after: with the patients of a table.
        leave_out: go on without them.

    Raises:
        LeakageError: there are such slides, and nobody said to leave them out.
    """
    table = after.table.copy()
    table["split"] = [
        "train" if late else split
        for late, split in zip(_late(before, after, told), table["split"])
    ]
    seen = table.loc[table["split"].isin(_SEEN)]
    if seen.empty:
        return after
    slides, patients = sorted(set(seen["slide_id"])), sorted(set(seen["patient_id"]))
    what = (
        f"{counted(len(slides), 'slide')} of {counted(len(patients), 'patient')} trained models "
        f"that predict them here: patients {few(patients)}, slides {few(slides)}"
    )
    if not leave_out:
        raise LeakageError(
            f"{what} — this is no test of them: leave them out with --leave-out-trained, or "
            "predict again with --out-of-fold"
        )
    console.warn(f"{what}; they are left out")
    return replace(after, table=table)


def _late(before: Predictions, after: Predictions, told: Told) -> list[bool]:
    """Return which rows are of training patients whom nobody had named as they were predicted."""
    every = frozenset(fold for folds in told.trained_patients.values() for fold in folds)
    # Rows count under the fold that alone made them, where several are told apart.
    apart = len(set(after.table["fold"])) > 1
    late = []
    rows = zip(
        before.table["slide_id"],
        before.table["patient_id"],
        after.table["patient_id"],
        after.table["fold"],
        strict=True,
    )
    for slide_id, named, patient, fold in rows:
        made_by = ({fold} & every if apart else every) or every
        trained = told.trained_patients.get(str(patient), frozenset())
        late.append(str(named) == str(slide_id) and bool(trained & made_by))
    return late
