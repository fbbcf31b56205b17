"""The slides at hand, for commands that look at bags: what each is, and its fingerprint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pipelines.console import Console
from pipelines.survey import listed_slides, survey
from pipelines.workers import readers
from wsi.files import sampled_fingerprint
from wsi.slides import SlideInfo
from wsi.specs import LimitsSpec, SlidesSpec


def slides_at_hand(sources: Sequence[Path], console: Console) -> dict[str, SlideInfo]:
    """Return the slides of folders, files and tables by id; those that do not open are told."""
    if not sources:
        return {}
    found = survey(listed_slides(sources), SlidesSpec(), console, readers(1, LimitsSpec()))
    closed = [item for item in found if item.info is None]
    for item in closed:
        console.warn(f"{item.file.slide_id}: {item.reason}")
    return {item.file.slide_id: item.info for item in found if item.info is not None}


def fingerprints(sources: Sequence[Path], console: Console) -> Mapping[str, str]:
    """Return the fingerprint of every slide by id, opening none; unreadable files are told."""
    files = listed_slides(sources).files
    found = {}
    with console.progress("fingerprints", len(files)) as track:
        for file in files:
            try:
                found[file.slide_id] = sampled_fingerprint(file.path)
            except OSError as error:
                console.warn(f"{file.slide_id}: {error.strerror} — this slide is left aside")
            track.advance()
    return found
