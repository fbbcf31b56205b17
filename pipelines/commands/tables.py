"""Commands on tables before training: cohorts and splits."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from pipelines.commands.base import (
    COMMON,
    LEARN,
    Common,
    Jobs,
    Settings,
    app,
)

cohort = app.command(App(name="cohort", help="Build and check cohort tables.", group=LEARN))


@cohort.command(name="build")
def cohort_build(
    name: str,
    *,
    out: Path,
    root: Path | None = None,
    labels: Path | None = None,
    overlay: Path | None = None,
    accept_labels: Annotated[bool, Parameter(negative=())] = False,
    present_only: Annotated[bool, Parameter(negative=())] = False,
    dry_run: Annotated[bool, Parameter(negative=())] = False,
    common: Common = COMMON,
) -> int:
    """Make the cohort table of a published data set from its folders and label files.

    Example: wsi cohort build camelyon17 --root CAMELYON17 --out camelyon17.csv

    Parameters
    ----------
    name
        camelyon17 or bracs; `wsi list cohorts` shows all.
    out
        CSV with one label column per task; a JSON beside it says which labels these are.
    root
        Folder of the slides, as downloaded; without it the table has no paths.
    labels
        stage_labels.csv, or BRACS.xlsx; sought below the root when not given.
    overlay
        Corrections as a CSV of slide_id, keep, label, reason, such as CAMELYON+'s.
    accept_labels
        Take labels that contradict drawn lesions or the staging rule; every result says so.
    present_only
        Leave out slides that are not below the root.
    dry_run
        Only say what would be written.
    """
    from pipelines.cohort import Sources, build

    sources = Sources(root, labels, overlay, accept_labels, present_only)
    return build(name, sources, out, dry_run, common.console())


@cohort.command(name="miniature")
def cohort_miniature(
    name: Literal["camelyon17", "bracs"],
    *,
    out: Path,
    jobs: Jobs = 1,
    common: Common = COMMON,
) -> int:
    """Draw a miniature of a published data set: synthetic slides in its folders, with its tables.

    Every step from `wsi cohort build` to the report can then be tried in minutes, without a
    download. The lesions are drawn: scores say nothing about the real slides.

    Example: wsi cohort miniature camelyon17 --out mini

    Parameters
    ----------
    name
        Which data set.
    out
        A new folder.
    jobs
        Processes that draw side by side.
    """
    from pipelines.cohort import miniature

    return miniature(name, out, jobs, common.console())


@cohort.command(name="labels")
def cohort_labels(
    file: Path,
    *,
    against: Path | None = None,
    accept_labels: Annotated[bool, Parameter(negative=())] = False,
    common: Common = COMMON,
) -> int:
    """Say which version of CAMELYON-17's labels a file holds; exit code 5 when contradicted.

    Example: wsi cohort labels stage_labels.csv

    Parameters
    ----------
    file
        stage_labels.csv, or a table of slide_id,label.
    against
        Another such file: show what differs, and the kappa between the stages.
    accept_labels
        Return 0 although the labels contradict themselves.
    """
    from pipelines.cohort import labels

    return labels(file, against, accept_labels, common.console())


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
def splits_audit(
    file: Path, *settings: Settings, cohort: Path | None = None, common: Common = COMMON
) -> int:
    """Find leaks and gaps in a split file; exit code 5 when a patient is on two sides.

    Told are also patient ids that look made up or cut short, classes that a part lacks, and the
    classes and sites of every part.

    Parameters
    ----------
    file
        A split table written by `wsi splits make`, or a file or folder of CLAM (splits_0.csv),
        TransMIL (fold0.csv), PANTHER (train.csv, test.csv) or MIL-Lab (a column per fold).
    cohort
        The cohort table it divides; needed unless the file itself names the patients, and for
        labels and sites.
    """
    from pipelines.cohort import audit

    return audit(file, settings, cohort, common.console())
