"""Figures as SVG text: plain arrays in, one self-contained element out."""

from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

BLUE, VERMILION, GREEN = "#0072B2", "#D55E00", "#009E73"
CLASS_COLORS = (BLUE, VERMILION, GREEN, "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Colour-blind safe (Okabe & Ito 2008), without the yellow that white swallows."""

_ALARM = "#b34700"
_INK, _MUTED, _RULE = "#222222", "#5f6670", "#d5d9de"
_NAME_CHARS = 22
_MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")
_MOST_LABELLED = 24  # points whose seeds can be written beside them
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a class may be called $x$
    "path.simplify": False,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _MUTED,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e8ebee",
    "grid.linewidth": 0.7,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "legend.frameon": False,
}
_NO_METADATA: dict[str, Any] = dict.fromkeys(("Creator", "Date", "Format", "Type"))
_TAG = re.compile(r"<[^>]+>")
_REFERENCE = re.compile(r'(\bid="|href="#|url\(#)')


def confusion(counts: np.ndarray, classes: Sequence[str], uid: str) -> str:
    """Return the confusion matrix with counts and row percent.

    Args:
        counts: (C, C), true classes in rows; means over seeds need not be whole.
        uid: prefix of all ids, distinct on the page.
    """
    C = len(classes)
    total = counts.sum(axis=1, keepdims=True)
    share = np.divide(counts, total, out=np.zeros(counts.shape), where=total > 0)
    names = [short_name(name) for name in classes]
    edge = max(2.85, 0.62 * C)
    with drawing(1.05 + edge, 0.75 + edge) as figure:
        axes = figure.subplots()
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        blues = LinearSegmentedColormap.from_list("blues", ["#f5f8fa", BLUE])
        # Squares rather than an image, which would be a bitmap inside the SVG.
        edges = np.arange(C + 1) - 0.5
        axes.pcolormesh(edges, edges, share, cmap=blues, vmin=0, vmax=1, edgecolors="w", lw=1.5)
        axes.set(xlim=(-0.5, C - 0.5), ylim=(C - 0.5, -0.5), aspect="equal")
        tilted = C > 4 or max(map(len, names)) > 10
        axes.set_xticks(
            range(C), names, rotation=30 if tilted else 0, ha="right" if tilted else "center"
        )
        axes.set_yticks(range(C), names)
        axes.tick_params(length=0)
        axes.set(xlabel="predicted", ylabel="true")
        for row, column in np.ndindex(C, C):
            percent = f"{100 * share[row, column]:.0f}%" if total[row, 0] else "–"
            colour = "white" if share[row, column] > 0.72 else _INK
            text = f"{_count(float(counts[row, column]))}\n{percent}"
            axes.text(column, row, text, ha="center", va="center", color=colour, linespacing=1.35)
        return as_svg(figure, uid, f"Confusion matrix of {C} classes: {_diagonal(counts, classes)}")


def _count(value: float) -> str:
    return f"{value:.0f}" if float(value).is_integer() else f"{value:.1f}"


def _diagonal(counts: np.ndarray, classes: Sequence[str]) -> str:
    rows = zip(classes, counts.diagonal(), counts.sum(axis=1))
    return "; ".join(f"{name} {_count(hit)} of {_count(n)} right" for name, hit, n in rows)


def learning(
    trainings: Mapping[str, Sequence[Mapping[str, Any]]],
    chosen: Mapping[str, int],
    monitor: str,
    limits: Mapping[str, tuple[float, float]],
    uid: str,
    title: str,
) -> str:
    """Return loss and monitor by epoch for the trainings of one fold.

    Kept epochs are ringed, those that raised an alarm have a triangle on the lower edge.

    Args:
        trainings: epochs of each training, as in `RunSummary.histories`.
        chosen: the kept epoch of each training, where known.
        limits: common y range of `loss` and `monitor`, as `learning_limits` returns.
    """
    panels = ["loss", *(["monitor"] if "monitor" in limits else [])]
    ratios = [3, 2][: len(panels)]
    with drawing(3.5, 1.2 + 0.55 * sum(ratios)) as figure:
        every = figure.subplots(len(panels), 1, sharex=True, squeeze=False, height_ratios=ratios)
        for axes, panel in zip(every[:, 0], panels):
            for name, rows in trainings.items():
                _draw_training(axes, panel, rows, chosen.get(name))
            axes.set(ylabel="loss" if panel == "loss" else short_name(monitor), ylim=limits[panel])
            axes.yaxis.set_major_locator(MaxNLocator(4))
        every[0, 0].set_title(title, loc="left", fontsize=9, fontweight="bold")
        every[-1, 0].set_xlabel("epoch")
        every[-1, 0].xaxis.set_major_locator(MaxNLocator(6, integer=True))
        kept = ", ".join(
            f"{name} kept epoch {chosen[name]}" for name in trainings if name in chosen
        )
        label = f"Loss and {monitor} by epoch, {title}" + (f": {kept}" if kept else "")
        raised = [n for n, rows in trainings.items() if any(row.get("alarms") for row in rows)]
        label += f"; alarms in {', '.join(raised)}" if raised else ""
        return as_svg(figure, uid, label)


def learning_limits(
    histories: Mapping[str, Sequence[Mapping[str, Any]]],
) -> dict[str, tuple[float, float]]:
    """Return the y range of `loss` and, where there is one, `monitor` over all trainings."""
    keys = {"loss": ("train_loss", "val_loss"), "monitor": ("monitor",)}
    limits = {}
    for panel, names in keys.items():
        known = [
            row[name]
            for rows in histories.values()
            for row in rows
            for name in names
            if row.get(name) is not None
        ]
        if known:
            margin = 0.06 * ((max(known) - min(known)) or 1.0)
            limits[panel] = (min(known) - margin, max(known) + margin)
    return limits


def _draw_training(
    axes: Axes, panel: str, rows: Sequence[Mapping[str, Any]], kept: int | None
) -> None:
    epochs = np.array([row["epoch"] for row in rows])
    lines = {
        "loss": (("train_loss", BLUE, "-"), ("val_loss", VERMILION, "--")),
        "monitor": (("monitor", GREEN, "-"),),
    }[panel]
    dot = "." if len(rows) == 1 else None  # a line of one point cannot be seen
    for key, colour, dash in lines:
        values = np.array([row.get(key) for row in rows], dtype=float)
        axes.plot(epochs, values, color=colour, ls=dash, lw=1.4, marker=dot)
    last = np.array([row.get(lines[-1][0]) for row in rows], dtype=float)
    at = epochs == kept
    axes.plot(epochs[at], last[at], "o", ms=6.5, mfc="none", mec=_INK, mew=1.3, zorder=4)
    if panel == "loss":
        _mark_alarms(axes, rows)


def _mark_alarms(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    """Set a triangle on the lower edge at each epoch that raised an alarm."""
    alarmed = [row["epoch"] for row in rows if row.get("alarms")]
    if alarmed:
        style: dict[str, Any] = {"color": _ALARM, "ms": 5, "clip_on": False, "zorder": 5}
        edge = axes.get_xaxis_transform()
        axes.plot(alarmed, [0.0] * len(alarmed), "^", transform=edge, gid="alarms", **style)


def forest(
    metric: str,
    runs: Sequence[Mapping[str, Any]],
    differences: Sequence[Mapping[str, Any]],
    reference: str,
    uid: str,
) -> str:
    """Return runs with their intervals on the left, differences to the reference on the right.

    Args:
        metric: its title, for the axes.
        runs: name, value, low and high of each run.
        differences: the same for all but the reference run.
    """
    by_name = {row["name"]: row for row in differences}
    places = range(len(runs))
    with drawing(8.4, 0.95 + 0.36 * len(runs)) as figure:
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=[1, 1])
        right.axvline(0, color=_MUTED, lw=0.9)
        for place, run in zip(places, runs):
            style = run_style(run["name"], [of["name"] for of in runs])
            _draw_interval(left, run, place, style)
            if run["name"] in by_name:
                _draw_interval(right, by_name[run["name"]], place, style)
            else:
                beside = {"xytext": (7, 0), "textcoords": "offset points"}
                right.annotate("reference", (0, place), va="center", color=_MUTED, **beside)
        left.set_yticks(places, [short_name(run["name"], 30) for run in runs])
        left.set(ylim=(len(runs) - 0.4, -0.6), xlabel=metric)
        right.set_xlabel(f"difference in {metric}")
        for axes in (left, right):
            axes.tick_params(axis="y", length=0)
            axes.grid(visible=False, axis="y")
            axes.spines["left"].set_visible(False)
        return as_svg(figure, uid, f"{metric} of {len(runs)} runs, and differences to {reference}")


def run_style(run: str, runs: Sequence[str]) -> dict[str, Any]:
    """Return the colour and mark of a run, the same in every figure of a comparison.

    Args:
        runs: the names of all runs compared, in their order.
    """
    k = list(runs).index(run)
    return {"color": CLASS_COLORS[k % len(CLASS_COLORS)], "marker": _MARKS[k % len(_MARKS)]}


def forest_by_site(
    metric: str,
    sites: Sequence[Mapping[str, Any]],
    whole: Sequence[Mapping[str, Any]],
    runs: Sequence[str],
    uid: str,
) -> str:
    """Return the differences of every run to the reference on each site, and on all slides.

    Args:
        metric: its title, for the axis.
        sites: site, n and differences of each, as `wsi.evaluation.compare` gives them.
        whole: the differences on all slides.
        runs: the names of all runs compared, the reference among them.
    """
    groups = [(f"{group['site']} ({group['n']})", group["differences"]) for group in sites]
    groups.append(("all sites", whole))
    names = [row["name"] for row in whole]
    step = 0.8 / len(names)
    with drawing(7.2, 1.0 + (0.26 * len(names) + 0.14) * len(groups)) as figure:
        axes = figure.subplots()
        axes.axvline(0, color=_MUTED, lw=0.9)
        axes.axhline(len(groups) - 1.5, color=_RULE, lw=0.9)
        handles = []
        for k, name in enumerate(names):
            style = run_style(name, runs)
            handles.append(Line2D([], [], **style, lw=2))
            for place, (_, differences) in enumerate(groups):
                row = next(row for row in differences if row["name"] == name)
                at = place + (k - (len(names) - 1) / 2) * step
                _draw_interval(axes, row, at, style)
        axes.set_yticks(range(len(groups)), [short_name(label, 30) for label, _ in groups])
        axes.set(ylim=(len(groups) - 0.4, -0.6), xlabel=f"difference in {metric}")
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
        axes.spines["left"].set_visible(False)
        if len(names) > 1:
            shown = [short_name(name, 30) for name in names]
            figure.legend(handles, shown, loc="outside lower center", ncols=min(3, len(names)))
        return as_svg(figure, uid, f"Differences in {metric} on each of {len(sites)} sites")


def _draw_interval(
    axes: Axes, score: Mapping[str, Any], place: float, style: Mapping[str, Any]
) -> None:
    if score["value"] is None:
        axes.text(0.5, place, "undefined", transform=axes.get_yaxis_transform(), va="center")
        return
    if score["low"] is not None and score["high"] is not None:
        axes.plot([score["low"], score["high"]], [place, place], color=style["color"], lw=2)
    axes.plot([score["value"]], [place], **style, ls="", ms=6)


def accuracy_ncmi(points: Sequence[Mapping[str, Any]], uid: str, among: Sequence[str] = ()) -> str:
    """Return accuracy against NCMI, a point per run and seed, runs told apart by mark and colour.

    Args:
        points: run, seed, accuracy and ncmi of each model, all defined.
        among: the names of all runs compared, where some have no point.
    """
    runs = list(dict.fromkeys(point["run"] for point in points))
    values = np.array([point["ncmi"] for point in points])
    several = len(points) > len(runs)
    with drawing(5.2, 3.4 + 0.23 * len(runs)) as figure:
        axes = figure.subplots()
        handles = []
        for k, run in enumerate(runs):
            style = run_style(run, among or runs) | {"ls": "", "ms": 6.5}
            mine = [point for point in points if point["run"] == run]
            x, y = ([point[key] for point in mine] for key in ("ncmi", "accuracy"))
            axes.plot(x, y, **style, gid=f"run-{k}")
            handles.append(Line2D([], [], **style))
            if several and len(points) <= _MOST_LABELLED:
                for point in mine:
                    at = (point["ncmi"], point["accuracy"])
                    beside: dict[str, Any] = {"xytext": (5, 4), "textcoords": "offset points"}
                    axes.annotate(f"seed {point['seed']}", at, color=_MUTED, fontsize=7, **beside)
        if values.min() > 0 and values.max() > 10 * values.min():
            axes.set_xscale("log")
            few = values.max() < 1000 * values.min()
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,)))
            axes.xaxis.set_minor_formatter(NullFormatter())
            # Powers of ten would come as mathematics, which is off: a class may be called $x$.
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.margins(0.12)
        axes.set(xlabel="NCMI of the predictions (lower is better)", ylabel="accuracy")
        figure.legend(handles, [short_name(run, 30) for run in runs], loc="outside lower center")
        said = "; ".join(
            f"{p['run']} seed {p['seed']}: {p['accuracy']:.3f} at {p['ncmi']:.3g}" for p in points
        )
        return as_svg(figure, uid, f"Accuracy against NCMI of {len(points)} models: {said}")


@contextmanager
def drawing(
    width: float, height: float, layout: Literal["constrained"] | None = "constrained"
) -> Iterator[Figure]:
    """Yield an empty figure of a size in inches, drawn and saved in our style.

    Args:
        layout: None for small figures all alike, whose margins are given: fitting takes longer.
    """
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # The browser has the letters that the font used for measuring lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = Figure(figsize=(width, height), layout=layout)
        FigureCanvasSVG(figure)
        yield figure


def as_svg(figure: Figure, uid: str, label: str) -> str:
    """Return the figure as an <svg> element with a name, whose ids begin with `uid`."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": uid}):
        figure.savefig(buffer, format="svg", metadata=_NO_METADATA)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    # Only inside tags: a class may be called id="x".
    text = _TAG.sub(lambda tag: _REFERENCE.sub(rf"\g<1>{uid}-", tag.group()), text)
    return text.replace("<svg", f'<svg role="img" aria-label="{html.escape(label)}"', 1).strip()


def short_name(name: str, limit: int = _NAME_CHARS) -> str:
    """Return a name that fits a figure; tables give it in full."""
    return name if len(name) <= limit else f"{name[: limit - 1]}…"
