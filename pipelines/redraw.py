"""Overlays drawn apart from the work on a slide: it cannot be tiled, or its bag is done already."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipelines.console import Console
from pipelines.overlay import (
    draw_tissue,
    is_current,
    read_overlay,
    show_left_out,
    write_located,
)
from pipelines.own import own_tissue
from pipelines.slides_csv import Surveyed
from pipelines.slidework import Work
from wsi.bags import BagInfo
from wsi.errors import WsiError
from wsi.extract import Tiling, locate
from wsi.slides import Slide, open_slide
from wsi.supervision import Crew, Lost

Done = tuple[Surveyed, BagInfo]


def draw_unusable(found: Sequence[Surveyed], work: Work, crew: Crew, console: Console) -> None:
    """Draw the slides that open but cannot be tiled, such as those without a resolution.

    What was drawn before, and has not changed, is left as it is.
    """
    todo = [item for item in found if item.info and item.status != "ok"]
    todo = [item for item in todo if not _is_drawn(item, work, None)]
    with console.progress("drawing slides that cannot be tiled", len(todo)) as track:
        for item, problem in crew.each(_draw_unusable, todo, work):
            track.advance()
            if problem:
                console.warn(f"{item.file.slide_id} cannot be drawn: {_words(problem)}")


def draw_done(done: Sequence[Done], work: Work, crew: Crew, console: Console) -> None:
    """Draw those slides again whose overlay and OUT/tiles are not of the tiles in their bags.

    An earlier run may have drawn another tiling, other tissue, or tissue alone.
    """
    todo = [(item, bag) for item, bag in done if not _shows_bag(item, bag, work)]
    with console.progress("drawing slides as their bags are", len(todo)) as track:
        for (item, _), problem in crew.each(_draw_done, todo, work):
            track.advance()
            if problem:
                console.warn(
                    f"{item.file.slide_id} cannot be drawn as its bag is: {_words(problem)}"
                )


def _words(problem: str | Lost) -> str:
    return problem.message if isinstance(problem, Lost) else problem


def _shows_bag(item: Surveyed, bag: BagInfo, work: Work) -> bool:
    drawn = read_overlay(work.out, item.file.slide_id)
    if drawn is None or drawn.tiles is None or drawn.tiles - drawn.left_out != bag.n:
        return False
    return _is_drawn(item, work, work.tiling)


def _is_drawn(item: Surveyed, work: Work, tiling: Tiling | None) -> bool:
    if item.info is None:
        return False
    common = work.config.tissue
    own = own_tissue(work.out, item.file, item.info, common)
    drawn = read_overlay(work.out, item.file.slide_id)
    return is_current(drawn, item.info, common, own, tiling)


def _draw_unusable(item: Surveyed, work: Work) -> str:
    """Draw one slide and return what went wrong, if anything did."""
    common = work.config.tissue
    try:
        with _opened(item, work) as slide:
            own = own_tissue(work.out, item.file, slide.info, common)
            draw_tissue(work.out, slide, common, own)
    except WsiError as error:
        return str(error)
    return ""


def _draw_done(pair: Done, work: Work) -> str:
    """Draw one slide as its bag is and return what went wrong, if anything did."""
    (item, bag), common = pair, work.config.tissue
    try:
        with _opened(item, work) as slide:
            own = own_tissue(work.out, item.file, slide.info, common)
            located = locate(slide, common, work.tiling, own)
            write_located(work.out, slide, common, located, work.tiling)
            if bag.n < len(located.grid):
                kept = _kept(bag, work)
                show_left_out(work.out, slide, common, located, work.tiling, kept)
    except WsiError as error:
        return str(error)
    return ""


def _kept(bag: BagInfo, work: Work) -> np.ndarray:
    if not bag.n:
        return np.zeros((0, 2), np.int32)
    return work.store().read(bag.slide_id).xy0


def _opened(item: Surveyed, work: Work) -> Slide:
    file, config = item.file, work.config
    return open_slide(file.path, file.slide_id, mpp=file.mpp, spec=config.slides)
