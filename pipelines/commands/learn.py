"""Commands that train: one run, a fair comparison, a search."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from pipelines.commands.base import (
    COMMON,
    LEARN,
    Common,
    Jobs,
    Settings,
    TrackerName,
    app,
)


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
    track: Annotated[list[TrackerName] | None, Parameter(negative=())] = None,
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
def sweep(
    *settings: Settings,
    cohort: Path,
    bags: Path,
    out: Path,
    splits: Path | None = None,
    trials: Annotated[int | None, Parameter(validator=Number(gte=1))] = None,
    jobs: Jobs = 1,
    device: str = "cpu",
    dry_run: Annotated[bool, Parameter(negative=())] = False,
    common: Common = COMMON,
) -> int:
    """Search settings on validation; every trial is a run folder, test labels come last.

    Rerun to go on, with more --trials to go further; further processes and machines with the same
    --out share the trials. Needs the extra `sweep`.

    Example: wsi sweep --cohort cohort.csv --bags OUT/bags --out SWEEP --trials 30 --jobs 4
    data.classes=[negative,itc,micro,macro] sweep.space.fit.lr=[1e-4,3e-4,1e-3]

    Parameters
    ----------
    cohort
        Table of slides, patients, labels, sites.
    bags
        Folder of bags of one recipe.
    out
        Sweep folder; made new, or continued where it stopped.
    splits
        Use these splits in place of making them from split.*.
    trials
        How many settings to try, in place of sweep.trials.
    jobs
        Processes that fit side by side, one thread each.
    device
        Where to fit: cpu, cuda, cuda:1.
    dry_run
        Say what is searched, and how many fits and hours it takes, by one fit that is thrown away.
    """
    from importlib.util import find_spec

    from pipelines.config import load_config
    from wsi.errors import ConfigError

    if find_spec("optuna") is None:
        raise ConfigError("wsi sweep needs Optuna, which is not here — pip install 'wsi[sweep]'")
    from pipelines.sweep.run import Options, run

    options = Options(cohort, bags, out, splits, trials, jobs, device, dry_run)
    console = common.console(None if dry_run else out / "sweep.log")
    return run(load_config(settings), options, console)
