"""The figures of one run, with what has to be said under them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from wsi.evaluation.calibration import reliability
from wsi.evaluation.curves import Curve, precision_recall_curves, roc_curves
from wsi.evaluation.intervals import draw_weights
from wsi.evaluation.metrics import ECE_BINS
from wsi.evaluation.sample import Sample, make_sample
from wsi.report import curve_figures, figures
from wsi.report.cells import number, percent
from wsi.report.summary import RunSummary
from wsi.specs import EvaluateSpec

_MOST_BESIDE = 5  # classes of a confusion matrix that leaves room for another figure


@dataclass(frozen=True)
class Figure:
    """An SVG with its caption; a wide one stands alone."""

    svg: Markup
    caption: str
    wide: bool = False


@dataclass(frozen=True)
class Panels:
    """Small figures of one kind, one for each class, under one heading and caption."""

    title: str
    svgs: tuple[Markup, ...]
    caption: str


def beside_each_other(index: int, run: RunSummary) -> list[Figure]:
    """Return the confusion matrix and the reliability diagram of the index-th run."""
    sample = make_sample(run.predictions)
    return [_confusion(index, run), _reliability(index, run, sample)]


def by_class(index: int, run: RunSummary) -> list[Panels]:
    """Return ROC and precision-recall curves, a panel per class."""
    sample = make_sample(run.predictions)
    spec = EvaluateSpec(level=run.metrics["level"], replicates=run.metrics["replicates"])
    roc, found = roc_curves(sample, spec), precision_recall_curves(sample, spec)
    classes, averaged = run.metrics["classes"], _averaged(sample, roc)
    band = (
        f"Bands: pointwise {percent(spec.level)} intervals, bootstrap over patients, "
        "each place by itself"
    )
    return [
        Panels(
            "ROC curves",
            _svgs(curve_figures.roc_panel, roc, classes, f"r{index}-roc"),
            f"ROC of each class against the rest{averaged} {band}. Dotted: chance.",
        ),
        Panels(
            "Precision-recall curves",
            _svgs(curve_figures.precision_recall_panel, found, classes, f"r{index}-pr"),
            f"Precision and recall of each class against the rest{averaged} AP: average "
            f"precision. {band}. Dotted: chance, which is the share of the class.",
        ),
    ]


def _svgs(
    draw: Callable[[Curve | None, str, str], str],
    curves: Sequence[Curve | None],
    classes: Sequence[str],
    uid: str,
) -> tuple[Markup, ...]:
    pairs = enumerate(zip(curves, classes, strict=True))
    return tuple(Markup(draw(curve, name, f"{uid}-{c}")) for c, (curve, name) in pairs)


def _averaged(sample: Sample, curves: Sequence[Curve | None]) -> str:
    """Return of what the curves are means, and of which folds some are not."""
    folds, seeds = len(set(sample.runs[0].fold)), len(sample.runs)
    several = [f"{n} {word}" for n, word in ((folds, "folds"), (seeds, "seeds")) if n > 1]
    if not several:
        return "."
    text = f": the mean of the curves of {' and '.join(several)}, as the headline is of the areas."
    if folds > 1:
        text += " The table by class pools the folds instead, so its areas differ from these."
    some = [
        f"{name} in {curve.defined}"
        for name, curve in zip(sample.classes, curves, strict=True)
        if curve and curve.defined < folds
    ]
    return f"{text} Of {folds} folds, defined: {', '.join(some)}." if some else text


def _confusion(index: int, run: RunSummary) -> Figure:
    counts = np.asarray(run.metrics["confusion"]["mean_over_seeds"], dtype=float)
    seeds = len(run.metrics["seeds"])
    what = "Slides" if seeds == 1 else f"Slides, mean over {seeds} seeds"
    caption = f"Confusion matrix. {what}, and percent of the row; decided by: "
    caption += f"{run.metrics['decision']}."
    drawn = figures.confusion(counts, run.metrics["classes"], f"r{index}-confusion")
    return Figure(Markup(drawn), caption, wide=len(counts) > _MOST_BESIDE)


def _reliability(index: int, run: RunSummary, sample: Sample) -> Figure:
    bins = _bins(run, sample)
    ece = number(run.metrics["ece"]["value"]) if "ece" in run.metrics else "not scored"
    folds, seeds = len(set(sample.runs[0].fold)), len(sample.runs)
    counted = f"{sample.unit}s" if seeds == 1 else "predictions"
    drawn = curve_figures.reliability(bins, ece, counted, f"r{index}-reliability")
    over = " and ".join(word for word, n in (("folds", folds), ("seeds", seeds)) if n > 1)
    pooled = f", all {over} together (the ECE is the mean over them)" if over else ""
    caption = (
        f"Reliability of the likeliest class, in {ECE_BINS} bins of confidence{pooled}. On the "
        "dotted line confidence is right; below it the model is too sure. Pale: "
        f"{percent(run.metrics['level'])} intervals over patients; hollow: none, as too "
        f"few differ. Below, {counted} in each bin."
    )
    return Figure(Markup(drawn), caption)


def _bins(run: RunSummary, sample: Sample) -> list[dict[str, Any]]:
    """Return the bins of reliability; scores from before there were any get those they lack."""
    spec = EvaluateSpec(level=run.metrics["level"], replicates=run.metrics["replicates"])
    if "reliability" in run.metrics:
        return run.metrics["reliability"]
    return reliability(sample, draw_weights(sample.strata, spec), spec.level)
