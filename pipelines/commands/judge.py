"""Commands on predictions: scores, comparisons, stages."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from pipelines.commands.base import (
    COMMON,
    LEARN,
    Common,
    Replicates,
    app,
)


@app.command(group=LEARN)
def evaluate(
    *runs: Path,
    by: Annotated[
        list[Literal["site", "cohort"]] | None, Parameter(consume_multiple=True, negative=())
    ] = None,
    cohort: Path | None = None,
    label: str | None = None,
    level: Literal["slide", "patient"] = "slide",
    patient_rule: Literal["mean", "max"] | None = None,
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
    label
        Column of that table; the label column of the run when not given.
    level
        What is scored: slides, or patients by the predictions of all their slides.
    patient_rule
        How slides become a patient: mean of the probabilities, or max, of the probability of at
        least a class, for ordered classes; evaluate.patient_rule of the run when not given.
    out
        Write metrics.json here, with the patients' predictions; for a run folder, there.
    replicates
        Bootstrap replicates.
    """
    from pipelines.evaluate import Options, run

    options = Options(tuple(by or ()), cohort, label, out, replicates, level, patient_rule)
    return run(runs, options, common.console())


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
def report(
    *runs: Path,
    out: Path | None = None,
    metric: str = "macro_f1",
    replicates: Replicates = 2000,
    common: Common = COMMON,
) -> int:
    """Write one offline HTML page about runs, and the model card of each.

    Pictures of slides need the slide files where `wsi preprocess` found them.

    Parameters
    ----------
    runs
        Run folders that have scores, or predictions.csv files, of which less is known.
    out
        The page; for a single run folder RUN/report.html when not given.
    metric
        What several are compared by.
    replicates
        Bootstrap replicates for tables and comparisons.
    """
    from pipelines.report import Options, run

    return run(runs, Options(out, metric, replicates), common.console())


@app.command(group=LEARN)
def stage(
    source: Path,
    *,
    out: Path,
    replicates: Replicates = 2000,
    common: Common = COMMON,
) -> int:
    """Stage CAMELYON-17's patients from predicted nodes, score them, and write a submission.

    The pN rule is applied to the decided nodes; the score is the challenge's quadratic kappa.

    Parameters
    ----------
    source
        A run folder or predictions.csv of the node classes negative, itc, micro and macro.
    out
        Where stages.csv, metrics.json and submission.csv go.
    replicates
        Bootstrap replicates.
    """
    from pipelines.stage import run

    return run(source, out, replicates, common.console())
