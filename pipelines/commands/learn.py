"""Commands from bags to results: cohort, splits, train, study, evaluate, compare, explain."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter
from cyclopts.validators import Number

from pipelines.commands.base import (
    COMMON,
    LEARN,
    Common,
    Jobs,
    Replicates,
    Settings,
    SlidePlaces,
    TileMap,
    TrackerName,
    app,
)

cohort = app.command(App(name="cohort", help="Check cohort tables.", group=LEARN))


@cohort.command(name="check")
def cohort_check(table: Path, *settings: Settings, common: Common = COMMON) -> int:
    """Find what is wrong with a table of slides, patients and labels; exit code 5 on errors.

    Parameters
    ----------
    table
        CSV or Excel: slide_id, patient_id, label, and site, split, path, mpp where known.
    """
    from pipelines.cohort import check

    return check(table, settings, common.console())


splits = app.command(App(name="splits", help="Make and audit splits by patient.", group=LEARN))


@splits.command(name="make")
def splits_make(table: Path, *settings: Settings, out: Path, common: Common = COMMON) -> int:
    """Divide the patients of a cohort into training, validation and test parts.

    Example: wsi splits make cohort.csv --out splits.csv split.kind=leave-one-site-out

    Parameters
    ----------
    table
        The cohort table.
    out
        CSV of slide_id, patient_id, fold, part; a JSON with seed and hash goes beside it.
    """
    from pipelines.cohort import make

    return make(table, settings, out, common.console())


@splits.command(name="audit")
def splits_audit(file: Path, *settings: Settings, cohort: Path, common: Common = COMMON) -> int:
    """Find leaks and gaps in a split file; exit code 5 when a patient is on two sides.

    Parameters
    ----------
    file
        A split table written by `wsi splits make`.
    cohort
        The cohort table it divides.
    """
    from pipelines.cohort import audit

    return audit(file, settings, cohort, common.console())


@app.command(group=LEARN)
def train(
    *settings: Settings,
    cohort: Path,
    bags: Path,
    out: Path,
    splits: Path | None = None,
    jobs: Jobs | None = None,
    threads: Jobs = 1,
    device: str = "cpu",
    resume: Annotated[bool, Parameter(negative=())] = False,
    track: Annotated[
        list[TrackerName] | None, Parameter(consume_multiple=True, negative=())
    ] = None,
    dry_run: Annotated[bool, Parameter(negative=())] = False,
    common: Common = COMMON,
) -> int:
    """Train one model per fold and seed, predict the test parts, evaluate and report.

    The same command again goes on where a run was ended, epoch by epoch: on a CPU, predictions
    are those of a run that nobody ended, for any --jobs.

    Example: wsi train --cohort cohort.csv --bags OUT/bags --out RUN objective=ncmi
    data.classes=[negative,itc,micro,macro] split.kind=leave-one-site-out fit.seeds=5

    Parameters
    ----------
    cohort
        Table of slides, patients, labels, sites.
    bags
        Folder of bags of one recipe.
    out
        Run folder; made new, or continued where it stopped.
    splits
        Use these splits in place of making them from split.*.
    jobs
        Folds and seeds trained side by side; as many as cores and memory allow when not given, 1
        on an accelerator.
    threads
        Threads of each fit on a CPU; a run keeps to one number, as sums depend on it.
    device
        Where to train: cpu, cuda, cuda:1.
    resume
        Only go on with a run that is there: refuse to begin one.
    track
        Also send settings and figures to tensorboard, mlflow or wandb; no ids, no paths.
    dry_run
        Say what would be trained: folds, seeds, slides and classes per part.
    """
    from pipelines.config import load_config
    from pipelines.train import Options, run

    options = Options(
        cohort,
        bags,
        out,
        splits,
        jobs,
        device,
        dry_run,
        threads=threads,
        resume=resume,
        track=tuple(dict.fromkeys(track or ())),
    )
    return run(load_config(settings), options, common.console(None if dry_run else out / "run.log"))


@app.command(group=LEARN)
def study(
    *settings: Settings,
    cohort: Path,
    bags: Path,
    out: Path,
    splits: Path | None = None,
    jobs: Jobs = 1,
    device: str = "cpu",
    until: Literal["rates", "final"] = "final",
    allow_few_seeds: Annotated[bool, Parameter(negative=())] = False,
    dry_run: Annotated[bool, Parameter(negative=())] = False,
    common: Common = COMMON,
) -> int:
    """Compare objectives fairly: same splits and seeds, rates tuned alike, paired intervals.

    Every arm of study.arms tries every rate of study.rates on validation, then is fitted with all
    seeds at its best rate. Rerun to go on; further processes with the same --out share the fits.

    Example: wsi study --cohort cohort.csv --bags OUT/bags --out STUDY --jobs 2 fit.seeds=8
    study.arms=[ce,balanced-ce,ncmi] data.classes=[negative,itc,micro,macro]

    Parameters
    ----------
    cohort
        Table of slides, patients, labels, sites.
    bags
        Folder of bags of one recipe.
    out
        Study folder; made new, or continued where it stopped.
    splits
        Use the test parts of these splits in place of making them from split.*.
    jobs
        Processes that fit side by side, one thread each.
    device
        Where to fit: cpu, cuda, cuda:1.
    until
        Stop after the rates, for a cheap look at validation.
    allow_few_seeds
        Take fit.seeds as they are, also when they are fewer than study.least_seeds.
    dry_run
        Say how many fits and hours it takes, by one fit that is thrown away.
    """
    from pipelines.config import load_config
    from pipelines.study.run import Options, run

    options = Options(cohort, bags, out, splits, jobs, device, until, allow_few_seeds, dry_run)
    console = common.console(None if dry_run else out / "study.log")
    return run(load_config(settings), options, console)


@app.command(group=LEARN)
def evaluate(
    *runs: Path,
    by: Annotated[
        list[Literal["site", "cohort"]] | None, Parameter(consume_multiple=True, negative=())
    ] = None,
    cohort: Path | None = None,
    out: Path | None = None,
    replicates: Replicates = 2000,
    common: Common = COMMON,
) -> int:
    """Print macro-F1, AUC and more with patient-clustered intervals, overall and by site.

    Parameters
    ----------
    runs
        Run folders or predictions.csv files.
    by
        What to divide the results by; sites where known.
    cohort
        Join corrected labels from this table first.
    out
        Write metrics.json here; for a run folder it is written there.
    replicates
        Bootstrap replicates.
    """
    from pipelines.evaluate import run

    return run(runs, tuple(by or ()), cohort, out, replicates, common.console())


@app.command(group=LEARN)
def compare(
    *runs: Path,
    metric: str = "macro_f1",
    out: Path | None = None,
    replicates: Replicates = 2000,
    common: Common = COMMON,
) -> int:
    """Compare runs on the same slides: paired differences with patient-clustered intervals.

    Parameters
    ----------
    runs
        Two or more run folders or predictions.csv files; the first is the reference.
    metric
        What to compare: macro_f1, auc, balanced_accuracy, ...
    out
        Write the comparison, accuracy against NCMI as SVG, and a report of all runs here.
    replicates
        Bootstrap replicates.
    """
    from pipelines.compare import run

    return run(runs, metric, out, replicates, common.console())


@app.command(group=LEARN)
def explain(
    run: Path,
    *,
    slides: SlidePlaces,
    out: Path,
    slide: Annotated[list[str] | None, Parameter(consume_multiple=True, negative=())] = None,
    target: str | None = None,
    against: str = "others",
    map: Annotated[list[TileMap] | None, Parameter(consume_multiple=True, negative=())] = None,
    bags: Path | None = None,
    annotations: Path | None = None,
    smooth: Annotated[float, Parameter(validator=Number(gte=0))] = 0.0,
    jobs: Jobs = 1,
    device: str = "cpu",
    dry_run: Annotated[bool, Parameter(negative=())] = False,
    common: Common = COMMON,
) -> int:
    """Show where on slides the evidence for a class is: maps in nats, top tiles, QuPath files.

    A slide of the run is explained by the models that never trained on it, any other one with a
    bag by the mean of all. Tiles sum to the logit exactly for mean and attention pooling with a
    linear head; what is approximate says so. A rerun continues. Exit code 3 when slides fail.

    Example: wsi explain RUN --slides DIR --out OUT --against runner-up

    Parameters
    ----------
    run
        Run folder of `wsi train`.
    slides
        Folders, slide files or a CSV; slides without a bag are left out.
    out
        Folder for <id>.png, .csv and .geojson, top_tiles, summary.json and index.html.
    slide
        Only these slides, by id.
    target
        The class to explain; the predicted one when not given.
    against
        What it is held against: others (their mean), least, runner-up, or a class.
    map
        What to draw; the first one as <id>.png, others in folders of their own.
    bags
        Folder of bags of the run's recipe, when not those it was trained on.
    annotations
        Lesion outlines by slide, drawn and scored; <id>.geojson beside slides when not given.
    smooth
        Smooth pictures, not numbers, by a Gaussian of so many tiles.
    jobs
        Processes that read slides side by side.
    device
        Where the model runs: cpu, cuda, cuda:1, mps.
    dry_run
        Say what would be explained, and by which models.
    """
    from pipelines.explain import run as explain_run
    from pipelines.explain_plan import Options
    from wsi.explain import Question

    options = Options(
        run=run,
        slides=tuple(slides),
        out=out,
        only=tuple(slide or ()),
        question=Question(target, against),
        maps=tuple(dict.fromkeys(map or ("contrast",))),
        bags=bags,
        annotations=annotations,
        smoothing=smooth,
        jobs=jobs,
        device=device,
        dry_run=dry_run,
    )
    return explain_run(options, common.console())
