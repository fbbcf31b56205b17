"""Commands on predictions: scores, comparisons, stages."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from pipelines.commands.base import (
    COMMON,
    LEARN,
    Common,
    ForeignColumns,
    ForeignTool,
    Replicates,
    app,
)

if TYPE_CHECKING:
    from pipelines.sources import Foreign


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
    ordered: Annotated[bool, Parameter(negative=())] = False,
    tool: ForeignTool = None,
    columns: ForeignColumns = None,
    classes: str | None = None,
    invert_softmax: Annotated[bool, Parameter(negative=())] = False,
    leave_out_trained: Annotated[bool, Parameter(negative=())] = False,
    out: Path | None = None,
    replicates: Replicates = 2000,
    common: Common = COMMON,
) -> int:
    """Print macro-F1, AUC and more with patient-clustered intervals, overall and by site.

    Example: wsi evaluate fold_0.csv --from clam --classes normal,tumour --cohort cohort.csv

    Parameters
    ----------
    runs
        Run folders or predictions.csv files; with --from tables and folders of other tools.
    by
        What to divide the results by; sites where known. By cohort, a table of all cohorts and
        their mean is written to --out.
    cohort
        Join corrected labels from this table first.
    label
        Column of that table; the label column of the run when not given.
    level
        What is scored: slides, or patients by the predictions of all their slides.
    patient_rule
        How slides become a patient: mean of the probabilities, or max, of the probability of at
        least a class, for ordered classes; evaluate.patient_rule of the run when not given.
    ordered
        The classes are grades, from the least to the most severe: score quadratic kappa, too.
    tool
        The tool that wrote tables which wsi did not: stamp, clam, or csv for any other.
    columns
        Where things stand in such a table: slide_id=ID patient_id=CASE y_true=Y p_<class>=COLUMN.
    classes
        Its classes in order, a,b,c; needed for CLAM, which numbers them.
    invert_softmax
        Undo the second of two softmaxes that its probabilities went through.
    leave_out_trained
        Score predictions of new slides without those that trained the models, or whose patients
        did; they are refused otherwise, with exit code 5.
    out
        Write metrics.json here, with the patients' predictions; when not given, into the run
        folder, or as <table>-metrics.json beside a table. By cohort also cohorts.md, .csv, .tex
        and .json.
    replicates
        Bootstrap replicates.
    """
    from pipelines.evaluate import Options, run

    foreign = _foreign(tool, columns, classes, invert_softmax)
    parts = tuple(by or ())
    options = Options(
        by=parts,
        cohort=cohort,
        label=label,
        out=out,
        replicates=replicates,
        level=level,
        patient_rule=patient_rule,
        ordered=ordered,
        foreign=foreign,
        leave_out_trained=leave_out_trained,
    )
    return run(runs, options, common.console())


def _foreign(
    tool: Literal["stamp", "clam", "csv"] | None,
    columns: list[str] | None,
    classes: str | None,
    invert_softmax: bool,
) -> Foreign:
    from pipelines.sources import Foreign
    from wsi.evaluation.foreign import parse_columns

    names = tuple(name.strip() for name in (classes or "").split(",") if name.strip())
    return Foreign(tool, parse_columns(columns or ()), names, invert_softmax)


@app.command(group=LEARN)
def compare(
    *runs: Path,
    metric: str = "macro_f1",
    level: Literal["slide", "patient"] = "slide",
    patient_rule: Literal["mean", "max"] | None = None,
    cohort: Path | None = None,
    label: str | None = None,
    tool: ForeignTool = None,
    columns: ForeignColumns = None,
    classes: str | None = None,
    invert_softmax: Annotated[bool, Parameter(negative=())] = False,
    out: Path | None = None,
    replicates: Replicates = 2000,
    common: Common = COMMON,
) -> int:
    """Compare runs on the same slides: paired differences with patient-clustered intervals.

    What is said of another tool's table (--from and what follows) is of those that wsi did not
    write; run folders and its own tables may stand beside them.

    Example: wsi compare RUN patient-preds.csv --from stamp --level patient

    Parameters
    ----------
    runs
        Two or more run folders or predictions.csv files; the first is the reference.
    metric
        What to compare: macro_f1, auc, balanced_accuracy, ...
    level
        What is compared: slides, or patients by the predictions of all their slides.
    patient_rule
        How slides become a patient; evaluate.patient_rule of each run when not given.
    cohort
        Join labels, patients and sites from this table first.
    label
        Column of that table; the label column of the run when not given.
    tool
        The tool that wrote tables which wsi did not: stamp, clam, or csv for any other.
    columns
        Where things stand in such a table: slide_id=ID patient_id=CASE y_true=Y p_<class>=COLUMN.
    classes
        Its classes in order, a,b,c; needed for CLAM, which numbers them.
    invert_softmax
        Undo the second of two softmaxes that its probabilities went through.
    out
        Write the comparison, accuracy against NCMI as SVG, and of slides a report of all here.
    replicates
        Bootstrap replicates.
    """
    from pipelines.compare import Options, run

    foreign = _foreign(tool, columns, classes, invert_softmax)
    options = Options(metric, out, replicates, level, patient_rule, cohort, label, foreign)
    return run(runs, options, common.console())


@app.command(group=LEARN)
def report(
    *runs: Path,
    out: Path | None = None,
    metric: str = "macro_f1",
    cohort: Path | None = None,
    label: str | None = None,
    tool: ForeignTool = None,
    columns: ForeignColumns = None,
    classes: str | None = None,
    invert_softmax: Annotated[bool, Parameter(negative=())] = False,
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
    cohort
        Join labels, patients and sites from this table first; no model card is written then.
    label
        Column of that table; the label column of the run when not given.
    tool
        The tool that wrote tables which wsi did not: stamp, clam, or csv for any other.
    columns
        Where things stand in such a table: slide_id=ID patient_id=CASE y_true=Y p_<class>=COLUMN.
    classes
        Its classes in order, a,b,c; needed for CLAM, which numbers them.
    invert_softmax
        Undo the second of two softmaxes that its probabilities went through.
    replicates
        Bootstrap replicates for tables and comparisons.
    """
    from pipelines.report import Options, run

    foreign = _foreign(tool, columns, classes, invert_softmax)
    return run(runs, Options(out, metric, replicates, foreign, cohort, label), common.console())


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
