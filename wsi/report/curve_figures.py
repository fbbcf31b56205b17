"""Curves of one class each, and the reliability diagram, as SVG text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from wsi.evaluation.curves import GRID, Curve
from wsi.report.figures import BLUE, as_svg, drawing, short_name

_MUTED = "#5f6670"
_BAND = "#b9d7ea"
_MARGINS = {"left": 0.18, "right": 0.97, "bottom": 0.16, "top": 0.91}
_UNIT: dict[str, Any] = {
    "xlim": (-0.02, 1.02),
    "ylim": (-0.02, 1.02),
    "xticks": (0, 0.5, 1),
    "yticks": (0, 0.5, 1),
}


def roc_panel(curve: Curve | None, name: str, uid: str) -> str:
    """Return the ROC curve of one class with its band, or an empty panel that says there is none.

    Args:
        name: of the class.
        uid: prefix of all ids, distinct on the page.
    """
    return _panel(
        curve,
        name,
        uid,
        area="AUC",
        said="ROC curve",
        axes_names=("false positive rate", "true positive rate"),
        chance=([0, 1], [0, 1]),
    )


def precision_recall_panel(curve: Curve | None, name: str, uid: str) -> str:
    """Return the precision-recall curve of one class with its band; see `roc_panel`."""
    share = curve.share if curve else 0.0
    return _panel(
        curve,
        name,
        uid,
        area="AP",
        said="Precision-recall curve",
        axes_names=("recall", "precision"),
        chance=([0, 1], [share, share]),
    )


def _panel(
    curve: Curve | None,
    name: str,
    uid: str,
    *,
    area: str,
    said: str,
    axes_names: tuple[str, str],
    chance: tuple[Sequence[float], Sequence[float]],
) -> str:
    with drawing(2.75, 2.75, layout=None) as figure:
        axes = figure.subplots(gridspec_kw=_MARGINS)
        axes.set(**_UNIT, aspect="equal", xlabel=axes_names[0], ylabel=axes_names[1])
        axes.set_title(short_name(name), loc="left", fontsize=9, fontweight="bold")
        if curve is None:
            axes.text(0.5, 0.5, "undefined:\nno slide of this class,\nor of no other", ha="center")
            return as_svg(figure, uid, f"{said} of {name}: undefined")
        axes.plot(*chance, color=_MUTED, lw=0.8, ls=(0, (2, 3)), gid="chance")
        if not np.isnan(curve.low).any():
            outline = np.concatenate([curve.high, curve.low[::-1]])
            axes.fill(np.concatenate([GRID, GRID[::-1]]), outline, color=_BAND, lw=0, gid="band")
        axes.plot(curve.x, curve.y, color=BLUE, lw=1.7, gid="curve")
        value = f"{area} {curve.area:.2f}"
        axes.set_title(value, loc="right", fontsize=9)
        return as_svg(figure, uid, f"{said} of {name} against the rest: {value}")


def reliability(bins: Sequence[Mapping[str, Any]], ece: str, counted: str, uid: str) -> str:
    """Return accuracy against confidence of each bin, above the number of predictions in it.

    A bin whose accuracy has no interval is hollow.

    Args:
        bins: low, high, n, confidence, accuracy, accuracy_low and accuracy_high of each bin that
            holds predictions.
        ece: the expected calibration error, ready to print.
        counted: what n counts: slides.
    """
    with drawing(4.0, 4.3) as figure:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
        upper.plot([0, 1], [0, 1], color=_MUTED, lw=0.8, ls=(0, (2, 3)), gid="ideal")
        for k, one in enumerate(bins):
            _accuracy(upper, one, f"bin-{k}")
        upper.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), ylabel="accuracy")
        upper.set_title(f"ECE {ece}", loc="right", fontsize=9)
        _counts(lower, bins)
        lower.set(xlabel="confidence: probability of the likeliest class", ylabel=counted)
        told = "; ".join(
            f"{b['n']} at {b['confidence']:.2f}: {b['accuracy']:.2f} right" for b in bins
        )
        return as_svg(figure, uid, f"Reliability diagram, ECE {ece}. {told}")


def _accuracy(axes: Axes, one: Mapping[str, Any], gid: str) -> None:
    bounds = [one["accuracy_low"], one["accuracy_high"]]
    bounded = None not in bounds
    if bounded:
        style: dict[str, Any] = {"color": _BAND, "lw": 3.2, "solid_capstyle": "butt"}
        axes.plot([one["confidence"]] * 2, bounds, **style)
    fill = {"mfc": BLUE if bounded else "white", "mec": BLUE, "ms": 5}
    axes.plot([one["confidence"]], [one["accuracy"]], "o", **fill, gid=gid)


def _counts(axes: Axes, bins: Sequence[Mapping[str, Any]]) -> None:
    most = max((b["n"] for b in bins), default=1)
    for b in bins:
        width = b["high"] - b["low"]
        place = (b["low"] + width / 2, b["n"])
        axes.bar(*place, 0.9 * width, color=BLUE, lw=0)
        beside: dict[str, Any] = {"xytext": (0, 1.5), "textcoords": "offset points"}
        axes.annotate(str(b["n"]), place, ha="center", va="bottom", fontsize=7, **beside)
    axes.set(ylim=(0, 1.35 * most), yticks=())
