"""What single slides have of their own: settings in the slide table, shapes that were imported."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipelines.console import Console, counted
from pipelines.slides_csv import Surveyed
from wsi.errors import ConfigError, SlideError, WsiError
from wsi.files import file_name_of
from wsi.findings import few
from wsi.geojson import unchanged_hash
from wsi.slides import SlideFile, SlideInfo
from wsi.specs import TissueSpec
from wsi.tissue import OwnTissue, edit_path, own_spec, read_edits

EDITS = "edits"
"""Folder of the outputs that holds imported shapes; runs read it and never write it."""


def own_tissue(out: Path, file: SlideFile, info: SlideInfo, common: TissueSpec) -> OwnTissue:
    """Return what one slide has in place of the common tissue settings and of the mask found.

    Raises:
        ConfigError: a setting does not go with its method.
        SlideError: an imported file is damaged.
    """
    spec = own_spec(common, file.tissue) if file.tissue else None
    return OwnTissue(spec, read_edits(out / EDITS, info))


def check_own(out: Path, found: Sequence[Surveyed], common: TissueSpec, console: Console) -> None:
    """Say how many slides have settings or shapes of their own.

    Raises:
        ConfigError: some cannot be used; all are listed, before any work starts.
    """
    problems, edited, roi = [], 0, 0
    for item in found:
        if item.info is None:
            continue
        try:
            own = own_tissue(out, item.file, item.info, common)
        except SlideError as error:
            problems.append(f"{error}; or remove it from {out / EDITS}")
        except WsiError as error:
            problems.append(f"slide {item.file.slide_id}: {error}")
        else:
            edited += own.edits.mask is not None
            roi += own.edits.include is not None or own.edits.exclude is not None
    if problems:
        raise ConfigError(few(problems))
    counts = {
        "their own tissue settings": sum(bool(item.file.tissue) for item in found),
        "an edited mask": edited,
        "a region of interest": roi,
    }
    for what, n in counts.items():
        if n:
            console.say(f"{n} {'slides have' if n > 1 else 'slide has'} {what}")


def outline_path(out: Path, slide_id: str) -> Path:
    """Return where a run writes the tissue outline of a slide."""
    return out / "tissue" / f"{file_name_of(slide_id)}.geojson"


def edited_in_place(out: Path, slide_id: str) -> bool:
    """Return whether a person changed an outline where it lies, and did not import it since."""
    path = outline_path(out, slide_id)
    if not path.is_file() or unchanged_hash(path) is not None:
        return False
    imported = edit_path(out / EDITS, "mask", slide_id)
    return not imported.is_file() or imported.stat().st_mtime_ns < path.stat().st_mtime_ns


def tell_edited_in_place(out: Path, todo: Sequence[Surveyed], console: Console) -> None:
    """Warn of outlines that were edited but not imported: they are kept, and not used."""
    ids = [item.file.slide_id for item in todo if edited_in_place(out, item.file.slide_id)]
    if ids:
        console.warn(
            f"{counted(len(ids), 'outline')} in {out / 'tissue'} edited and not imported "
            f"({few(ids)}): kept, but not used — run wsi tissue import {out / 'tissue'} "
            f"--out {out}, or remove them"
        )
