"""The slides of a run that are worth a look: a table of all, and what pictures there are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wsi.report.cells import UNKNOWN, Cell, Table, number
from wsi.report.summary import Example, RunSummary
from wsi.report.telling import KINDS, Kind, TellingSlide, telling

TITLES: Mapping[Kind, str] = {
    "wrong": "Wrong, the surest of each class first",
    "uncertain": "Most uncertain",
    "right": "Right, the surest of each class",
}
_NO_ROOM = "left out, as the page would be too large"
_NOT_DRAWN = "not drawn"


@dataclass(frozen=True)
class Shown:
    """A picture with what stands under it."""

    example: Example
    slide: TellingSlide
    uri: str
    alt: str


def section(run: RunSummary, uris: Sequence[str | None]) -> dict[str, Any]:
    """Return the table of telling slides, and the pictures by kind.

    Args:
        uris: of the run's examples, None for those that found no room.
    """
    slides = telling(run.predictions)
    by_id = {slide.slide_id: slide for slide in slides}
    pairs = list(zip(run.examples, uris, strict=True))
    shown = [
        Shown(example, by_id[example.slide_id], uri, _alt(example))
        for example, uri in pairs
        if uri is not None and example.slide_id in by_id
    ]
    state = {example.slide_id: "shown" if uri else _NO_ROOM for example, uri in pairs}
    groups = [(TITLES[kind], [s for s in shown if s.slide.kind == kind]) for kind in KINDS]
    return {
        "table": _table(slides, dict(run.without_picture) | state),
        "groups": [(title, found) for title, found in groups if found],
    }


def _alt(example: Example) -> str:
    return f"{example.slide_id}: {example.caption or 'picture of the slide'}"


def _table(slides: Sequence[TellingSlide], pictures: Mapping[str, str]) -> Table | None:
    if not slides:
        return None
    several = any(slide.of > 1 for slide in slides)
    rows = []
    for slide in slides:
        numbers = (slide.p, slide.p_true, slide.entropy)
        cells = [
            Cell(slide.slide_id),
            Cell(slide.kind),
            Cell(slide.site or UNKNOWN),
            Cell(slide.y_true),
            Cell(slide.y_pred),
            *(Cell(number(value), value) for value in numbers),
        ]
        cells += [Cell(f"{slide.wrong} of {slide.of}", slide.wrong / slide.of)] if several else []
        rows.append((*cells, Cell(pictures.get(slide.slide_id, _NOT_DRAWN))))
    columns = ("Slide", "Kind", "Site", "True", "Predicted", "p", "p of true class", "Entropy")
    columns += ("Wrong in",) if several else ()
    words = (0, 1, 2, 3, 4, len(columns))
    caption = (
        "Slides worth a look: p and entropy (a share of the largest there can be) are of the "
        f"{'mean' if several else 'predicted'} probabilities"
    )
    return Table(caption, (*columns, "Picture"), tuple(rows), text_columns=words)
