"""The gallery of `wsi explain`: over all slides, the tiles that speak most for each class."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import cv2

from pipelines.console import Console
from pipelines.explain_drawing import RGB, SlideAt, Wanted, encoded, read_wanted
from pipelines.explain_files import ExplainDir
from pipelines.workers import readers
from wsi.explain import draw_gallery
from wsi.files import publish_bytes
from wsi.specs import Config
from wsi.supervision import Lost

_SHOWN = 18
_QUALITY = 90

Place = tuple[str, int, int]  # slide, x, y


def write_galleries(
    facts: Sequence[Mapping[str, Any]],
    slides: Mapping[str, SlideAt],
    classes: Sequence[str],
    out: ExplainDir,
    jobs: int,
    config: Config,
    console: Console,
) -> None:
    """Write OUT/top_tiles/<class>.jpg from the slides' own pixels."""
    best = {name: _best(facts, name) for name in classes}
    wanted = _wanted(best, facts, slides)
    pixels: dict[Place, RGB] = {}
    crew = readers(jobs, config.limits)
    with console.progress("reading top tiles", len(wanted)) as track:
        for item, read in crew.each(read_wanted, wanted, config.slides):
            track.advance()
            if isinstance(read, Lost | str):
                reason = read.message if isinstance(read, Lost) else read
                console.warn(f"{item.at.slide_id}: its top tiles cannot be read: {reason}")
                continue
            for (x, y), tile in zip(item.xy0, read, strict=True):
                pixels[item.at.slide_id, x, y] = tile
    for name, rows in best.items():
        tiles = [
            (pixels[place], place[0], f"{value:+.3g} nats")
            for value, place in rows
            if place in pixels
        ]
        if tiles:
            note = f"tiles that speak for {name} more than for any other class, the most first"
            picture = draw_gallery(name, note, tiles)
            data = encoded(picture, ".jpg", cv2.IMWRITE_JPEG_QUALITY, _QUALITY)
            publish_bytes(out.gallery(name), data)
        else:
            out.gallery(name).unlink(missing_ok=True)


def _best(facts: Sequence[Mapping[str, Any]], name: str) -> list[tuple[float, Place]]:
    rows = [(value, (f["slide_id"], x, y)) for f in facts for value, x, y in f["top"][name]]
    return sorted(rows, key=lambda row: (-row[0], row[1]))[:_SHOWN]


def _wanted(
    best: Mapping[str, Sequence[tuple[float, Place]]],
    facts: Sequence[Mapping[str, Any]],
    slides: Mapping[str, SlideAt],
) -> list[Wanted]:
    """Return the tiles to read by slide, so that each is opened once."""
    by_slide: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for slide_id, x, y in dict.fromkeys(place for rows in best.values() for _, place in rows):
        by_slide[slide_id].append((x, y))
    sizes = {f["slide_id"]: f["size0"] for f in facts}
    return [
        Wanted(slides[s], sorted(places), (sizes[s][0], sizes[s][1]))
        for s, places in sorted(by_slide.items())
    ]
