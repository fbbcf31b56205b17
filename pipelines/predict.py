"""`wsi predict`: raw slides, or bags, to predictions of a run's models together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipelines.account import allowed_quarantined
from pipelines.console import Console, counted
from pipelines.external import of_cohort, read_external
from pipelines.patient_bags import refuse_patients
from pipelines.predict_files import (
    PREDICTED,
    Answer,
    PredictDir,
    settings_of,
    write_answers,
)
from pipelines.predict_models import Member, Relation, RunEnsemble, run_ensemble
from pipelines.predict_recipe import config_of
from pipelines.predict_slides import Asked, Material, Options, check_places, with_bags
from pipelines.run_bags import mpp_of
from pipelines.workers import check_device
from wsi.bags import BagStore, TileFilter
from wsi.errors import ConfigError, WsiError
from wsi.findings import few

_SAME_MPP = 0.05  # resolutions that differ by less are one scanner's


def run(options: Options, console: Console) -> int:
    """Predict slides; 3 when some could not be."""
    check_places(options)
    check_device(options.device)
    allowed_quarantined(options.allow_quarantined, 0)
    models = run_ensemble(options.run, options.folds, options.seeds)
    refuse_patients(models.config, options.run, "predictions of new slides")
    out = PredictDir(options.out)
    settings = settings_of(models, out_of_fold=options.out_of_fold)
    out.check(settings)
    if not options.dry_run:
        out.begin(settings)
    _say_models(models, console)
    material = with_bags(options, models, console)
    if isinstance(material, int):
        return material
    cohort = read_external(options.cohort) if options.cohort else None
    if cohort is not None:
        material = of_cohort(material, cohort, console)
    if not material.slides:
        raise ConfigError("there is no slide to predict — check --slides or --bags")
    if options.dry_run:
        return _say_plan(material, models, options, console)
    answers = _answers(material, models, options, console)
    write_answers(out, answers, models, cohort)
    if options.explain:
        _explain(answers, material, models, options, out, console)
    return _close(answers, material, models, options, out, console)


def _say_models(models: RunEnsemble, console: Console) -> None:
    folds = len({m.fold for m in models.members})
    seeds = len({m.seed for m in models.members})
    console.say(
        f"{models.run_dir.root}: {counted(len(models.members), 'model')} "
        f"({counted(folds, 'fold')}, {counted(seeds, 'seed')}), "
        f"recipe {models.run_dir.read_inputs()['recipe']}"
    )


def _say_plan(material: Material, models: RunEnsemble, options: Options, console: Console) -> int:
    bad = {s.slide_id: ": ".join(s.trouble) for s in material.slides if s.trouble[0]}
    console.say(
        f"would predict {counted(len(material.slides) - len(bad), 'slide')} of "
        f"{len(material.slides)}; nothing was written"
    )
    console.result({"slides": len(material.slides), "not_evaluable": bad})
    return _code(len(bad), material, options)


def _code(bad: int, material: Material, options: Options) -> int:
    allowed = allowed_quarantined(options.allow_quarantined, len(material.slides))
    return 3 if bad > allowed or material.closed else 0


def _answers(
    material: Material, models: RunEnsemble, options: Options, console: Console
) -> list[Answer]:
    answers = []
    with console.progress("predicting", len(material.slides)) as track:
        for asked in material.slides:
            answer = _answer(asked, material.store, models, options)
            if answer.state != PREDICTED:
                console.warn(f"{asked.slide_id} is not predicted: {answer.state}: {answer.note}")
            answers.append(answer)
            track.advance(1, asked.slide_id)
    return answers


def _answer(asked: Asked, store: BagStore | None, models: RunEnsemble, options: Options) -> Answer:
    """Return what the models say of one slide; a slide that fails never stops the others."""
    relation = models.trained.relation(asked.slide_id, asked.patient_id, asked.info)
    seen = relation.own | relation.patient
    used = [m for m in models.members if not (options.out_of_fold and m.fold in seen)]
    state, reason = asked.trouble
    p: dict[Member, np.ndarray] = {}
    if not state and not used:
        state, reason = "no-model", "every model asked for has trained on it or its patient"
    if not state and store is not None:
        try:
            p = _probabilities(asked.slide_id, store, models, used, options.device)
        except WsiError as error:
            state, reason = "failed", str(error)
    notes = _notes(asked, relation, used, models)
    return _answer_of(asked, relation, state, [reason] if state else notes, p)


def _answer_of(
    asked: Asked,
    relation: Relation,
    state: str,
    notes: Sequence[str],
    p: Mapping[Member, np.ndarray],
) -> Answer:
    from wsi.training.ensemble import ensemble

    mean, sd = ensemble(list(p.values())) if p else (None, None)
    return Answer(
        asked.slide_id,
        asked.patient_id or relation.patient_id or asked.slide_id,
        asked.site,
        state or PREDICTED,
        "; ".join(notes),
        any(m.fold in relation.own for m in p),
        p,
        mean,
        sd,
        relation.own | relation.patient,
    )


def _probabilities(
    slide_id: str, store: BagStore, models: RunEnsemble, used: Sequence[Member], device: str
) -> dict[Member, np.ndarray]:
    """Return the probabilities (C,) of each model for one bag, which is read once."""
    from wsi.data import BagDataset
    from wsi.training.predict import predict

    bag = store.read(slide_id)
    dataset = BagDataset(lambda _: bag, [slide_id], tiles=TileFilter.of(models.config.data))
    return {m: predict(models.model(m), dataset, device).probabilities[0] for m in used}


def _notes(
    asked: Asked, relation: Relation, used: Sequence[Member], models: RunEnsemble
) -> list[str]:
    """Return what a reader of the prediction should know."""
    folds = {m.fold for m in used}
    notes = []
    if relation.own & folds:
        notes.append(f"trained on it (same {relation.how}), so this is no test")
    elif relation.how:
        notes.append(
            f"a slide of the run (same {relation.how}), of no part these models trained on"
        )
    if relation.patient & folds:
        notes.append("trained on another slide of its patient")
    if asked.site and models.trained.sites and asked.site not in models.trained.sites:
        notes.append(f"site {asked.site} was not in training")
    mpp = None if asked.info is None else mpp_of(asked.info)
    known = {used.mpp for used in models.bags.slides.values() if used.mpp}
    if mpp and known and not any(abs(math.log(mpp / other)) < _SAME_MPP for other in known):
        span = f"{min(known):.3g}" + (f" to {max(known):.3g}" if len(known) > 1 else "")
        notes.append(f"scanned at {mpp:.3g} um/px, training slides at {span}")
    return notes


def _explain(
    answers: Sequence[Answer],
    material: Material,
    models: RunEnsemble,
    options: Options,
    out: PredictDir,
    console: Console,
) -> None:
    from pipelines.predict_pages import write_pages

    if material.store is None:
        return
    spec = config_of(models.bags, options.settings).slides
    slides, store = material.slides, material.store
    pages = write_pages(
        answers, slides, store, models, out, options.jobs, options.device, spec, console
    )
    if pages:
        console.say(f"pages: {counted(len(pages), 'slide')} in {pages[0].parent}")


def _close(
    answers: Sequence[Answer],
    material: Material,
    models: RunEnsemble,
    options: Options,
    out: PredictDir,
    console: Console,
) -> int:
    bad = {a.slide_id: f"{a.state}: {a.note}" for a in answers if a.p is None}
    trained = [a.slide_id for a in answers if a.in_training]
    _say_close(answers, bad, trained, models, options, console)
    console.say(f"predictions: {out.predictions}")
    console.result(
        {
            "predictions": str(out.predictions),
            "slides": len(answers),
            "predicted": len(answers) - len(bad),
            "not_evaluable": bad,
            "in_training": trained,
            "patients_in_training": [a.slide_id for a in answers if a.trained_patient],
            "models": len(models.members),
        }
    )
    return _code(len(bad), material, options)


def _say_close(
    answers: Sequence[Answer],
    bad: Mapping[str, str],
    trained: Sequence[str],
    models: RunEnsemble,
    options: Options,
    console: Console,
) -> None:
    done = [a for a in answers if a.p is not None]
    columns = ["slide", "predicted", "p", "sd", "models", "in training", "note"]
    console.table(columns, [_shown(a, models.classes) for a in done], "research use only")
    console.say(
        f"{counted(len(answers), 'slide')}: {len(done)} predicted, {len(bad)} not evaluable"
        + (f" ({few(bad)})" if bad else "")
    )
    if trained:
        hint = "" if options.out_of_fold else " — --out-of-fold uses models that did not"
        console.warn(
            f"{counted(len(trained), 'slide')} trained models that predict them here, so that is "
            f"no test of these ({few(trained)}){hint}"
        )
    mates = [a for a in done if a.trained_patient]
    if mates:
        patients = sorted({a.patient_id for a in mates})
        console.warn(
            f"{counted(len(mates), 'slide')} of {counted(len(patients), 'patient')} whose other "
            f"slides trained models that predict them here ({few(patients)}): no test either"
        )
    if any(a.patient_id == a.slide_id for a in done):
        console.say("no patient is known of some slides: each counts as a patient of its own")


def _shown(answer: Answer, classes: Sequence[str]) -> list[Any]:
    p, sd = answer.p, answer.sd
    if p is None or sd is None:
        return []
    k = int(p.argmax())
    spread = f"{sd[k]:.3f}" if np.isfinite(sd[k]) else ""
    trained = "yes" if answer.in_training else "no"
    name, n = classes[k], len(answer.by_member)
    return [answer.slide_id, name, f"{p[k]:.3f}", spread, n, trained, answer.note]
