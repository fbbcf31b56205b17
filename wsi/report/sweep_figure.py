"""The picture of a sweep: validation against each searched setting, and the best so far."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from wsi.report.cells import short_title
from wsi.report.figures import BLUE, VERMILION, as_svg, drawing

Json = Mapping[str, Any]
_GREY = "#5f6670"
_COLUMNS = 3
_SPREAD = 0.25  # of the distance of two choices, over which their trials are laid out


def draw(result: Json, uid: str) -> str:
    """Return an <svg> of one panel per searched setting, and one of the best figure so far.

    Args:
        result: of schema wsi-sweep/1.
        uid: prefix of all ids, distinct on the page.
    """
    trials = [row for row in result["trials"] if row["state"] == "complete"]
    failed = [row for row in result["trials"] if row["state"] == "failed"]
    best = next(row for row in trials if row["trial"] == result["best"]["trial"])
    keys = list(result["space"])
    columns = min(_COLUMNS, len(keys) + 1)
    lines = math.ceil((len(keys) + 1) / columns)
    with drawing(2.9 * columns, 2.5 * lines + 0.4) as figure:
        panels = figure.subplots(lines, columns, squeeze=False, sharey=True).ravel()
        for axes, key in zip(panels, keys):
            _panel(axes, key, result["space"][key], trials, failed, best)
        _so_far(panels[len(keys)], trials, best, higher=result["higher_is_better"])
        for axes in panels[len(keys) + 1 :]:
            axes.set_visible(False)
        for axes in panels[::columns]:
            axes.set_ylabel(f"validation {short_title(result['monitor'])}")
        figure.legend(*_legend(failed), loc="outside lower center", ncols=3)
        said = f"validation {best['validation']:.3f} in trial {best['trial']}"
        return as_svg(figure, uid, f"Sweep of {', '.join(keys)}: best {said}")


def _panel(
    axes: Axes,
    key: str,
    space: Any,
    trials: Sequence[Json],
    failed: Sequence[Json],
    best: Json,
) -> None:
    place = _Places(key, space, [*trials, *failed])
    axes.plot(
        [place.of(row) for row in trials],
        [row["validation"] for row in trials],
        "o",
        color=BLUE,
        ms=4.5,
        alpha=0.75,
        gid=f"trials-{key}",
    )
    axes.plot([place.of(best)], [best["validation"]], "D", color=VERMILION, ms=7)
    for row in failed:
        axes.plot([place.of(row)], [0.02], "x", color=_GREY, transform=axes.get_xaxis_transform())
    axes.set_xlabel(key)
    place.ticks(axes)


class _Places:
    """Where on the horizontal axis of a setting each trial lies."""

    def __init__(self, key: str, space: Any, rows: Sequence[Json]) -> None:
        self._key = key
        self._log = isinstance(space, Mapping) and bool(space.get("log"))
        drawn = [row["values"][key] for row in rows]
        self._names = None if isinstance(space, Mapping) else [str(choice) for choice in space]
        # Beside a number a step aside would read as another number.
        words = self._names is not None and not all(map(_is_number, space))
        self._shift = _shifts(rows, drawn) if words else {}

    def of(self, row: Json) -> float:
        value = row["values"][self._key]
        if self._names is None:
            return float(value)
        return self._names.index(str(value)) + self._shift.get(row["trial"], 0.0)

    def ticks(self, axes: Axes) -> None:
        if self._names is not None:
            tilted = max(map(len, self._names)) * len(self._names) > 24
            names = [name if len(name) < 20 else name[:19] + "…" for name in self._names]
            side: dict[str, Any] = {"rotation": 25, "ha": "right"} if tilted else {"rotation": 0}
            axes.set_xticks(range(len(names)), names, **side)
            axes.set_xlim(-0.5, len(names) - 0.5)
            axes.grid(visible=False, axis="x")
        elif self._log:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(numticks=6))
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _is_number(choice: Any) -> bool:
    return isinstance(choice, int | float) and not isinstance(choice, bool)


def _shifts(rows: Sequence[Json], drawn: Sequence[Any]) -> dict[int, float]:
    """Return a small step aside for trials of the same choice, so that all can be seen."""
    found: dict[int, float] = {}
    for value in dict.fromkeys(map(str, drawn)):
        same = [row["trial"] for row, one in zip(rows, drawn) if str(one) == value]
        steps = np.linspace(-_SPREAD, _SPREAD, len(same)) if len(same) > 1 else [0.0]
        found |= dict(zip(same, map(float, steps)))
    return found


def _so_far(axes: Axes, trials: Sequence[Json], best: Json, *, higher: bool) -> None:
    numbers = [row["trial"] for row in trials]
    values = [row["validation"] for row in trials]
    reached = (np.maximum if higher else np.minimum).accumulate(values)
    axes.plot(numbers, values, "o", color=BLUE, ms=4.5, alpha=0.75)
    axes.step(numbers, reached, where="post", color=VERMILION, lw=1.6)
    axes.plot([best["trial"]], [best["validation"]], "D", color=VERMILION, ms=7)
    axes.set_xlabel("trial, best so far as a line")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))


def _legend(failed: Sequence[Json]) -> tuple[list[Line2D], list[str]]:
    handles = [
        Line2D([], [], marker="o", color=BLUE, ls="", ms=4.5),
        Line2D([], [], marker="D", color=VERMILION, ls="", ms=7),
    ]
    names = ["trial", "best on validation"]
    if failed:
        handles.append(Line2D([], [], marker="x", color=_GREY, ls=""))
        names.append("failed")
    return handles, names
