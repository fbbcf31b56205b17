"""Accuracy against NCMI over models, with what must be said under such a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from wsi.findings import counted
from wsi.report import figures
from wsi.report.cells import number

_CAPTION = (
    "Accuracy against NCMI of the predicted probabilities, one point per run and seed, folds "
    "pooled; lower NCMI is better. It depends on the temperature of the probabilities, so it "
    "ranks models of one task only."
)


def accuracy_against_ncmi(
    found: Mapping[str, Any] | None, runs: Sequence[str], uid: str
) -> tuple[Markup, str] | None:
    """Return the figure and its caption; None where fewer than two models have both.

    Args:
        found: `accuracy_ncmi` of a comparison or of a study's selection; None of older ones.
        runs: the names of all runs compared, in the order that settles their colours.
        uid: prefix of all ids, distinct on the page.
    """
    if found is None:
        return None
    points = [point for point in found["points"] if point["ncmi"] is not None]
    if len(points) < 2:
        return None
    caption = _CAPTION
    left_out = len(found["points"]) - len(points)
    if left_out:
        caption += f" Without a defined NCMI, and left out: {counted(left_out, 'model')}."
    if found["spearman"] is not None:
        caption += (
            f" Rank correlation (Spearman) {number(found['spearman'])} over "
            f"{found['ranked']} models, which share their slides and are not independent."
        )
    return Markup(figures.accuracy_ncmi(points, uid, runs)), caption
