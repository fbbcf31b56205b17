"""`wsi tissue import`: shapes drawn by a person become the tissue of their slides."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from pipelines.console import Console
from pipelines.own import EDITS, outline_path
from pipelines.slides_csv import read_slides_csv
from wsi.annotations import Area, area_of, is_hole, match_files, read_shapes, share_inside
from wsi.errors import ConfigError, SlideError
from wsi.geojson import unchanged_hash
from wsi.slides import SlideInfo, open_slide
from wsi.tissue import EditKind, Edits, edit_path, read_edits, write_edit

Origin = Literal["bounds", "slide"]
State = Literal["imported", "as-exported", "known", "refused"]

_HARDLY = 0.99  # a smaller share inside the slide is told


@dataclass(frozen=True)
class Options:
    """What the command line decides.

    Attributes:
        source: a file, or a folder searched below.
        roi: restrict the tissue in place of replacing it.
        origin: where GeoJSON counts from; QuPath counts from the scanned bounds.
    """

    source: Path
    out: Path
    roi: Literal["include", "exclude"] | None = None
    origin: Origin = "bounds"
    dry_run: bool = False


@dataclass(frozen=True)
class Imported:
    """What became of one file.

    Attributes:
        state: `imported`; `as-exported`, when nobody changed it; `known`, when the same was
            imported before; `refused`.
        note: what a person should know, or why it is refused.
        area_mm2: what the shapes cover, where the slide has a resolution.
    """

    slide_id: str
    file: str
    state: State
    note: str = ""
    shapes: int = 0
    holes: int = 0
    area_mm2: float | None = None


def run(options: Options, console: Console) -> int:
    """Return 0 when every file was taken, 3 when one was refused or belongs to no slide."""
    rows = read_slides_csv(options.out / "slides.csv")
    if not rows:
        raise ConfigError(
            f"{options.out} has no slides.csv — give the output folder of `wsi preprocess`"
        )
    paths = {row["slide_id"]: Path(row["path"]) for row in rows}
    matched = match_files(options.source, paths)
    done = [_import(options, i, paths[i], file) for i, file in sorted(matched.files.items())]
    for item in done:
        say = console.warn if item.state == "refused" else console.say
        say(_line(item))
    for file, hint in matched.unmatched.items():
        console.warn(f"{file.name} is of no slide in {options.out / 'slides.csv'}{hint}")
    _close(options, done, console)
    unmatched = [{"file": str(f), "hint": hint.strip()} for f, hint in matched.unmatched.items()]
    console.result({"slides": [asdict(item) for item in done], "unmatched": unmatched})
    refused = any(item.state == "refused" for item in done)
    return 3 if refused or unmatched else 0


def _import(options: Options, slide_id: str, slide_path: Path, file: Path) -> Imported:
    """Take one file, unless nobody changed it or it cannot be of this slide."""
    kind: EditKind = options.roi or "mask"
    if kind == "mask" and _as_exported(options.out, slide_id, file):
        return Imported(slide_id, file.name, "as-exported", "the shapes are those written here")
    try:
        with open_slide(slide_path, slide_id) as slide:
            info = slide.info
        origin0 = (info.bounds0[0], info.bounds0[1]) if options.origin == "bounds" else (0, 0)
        shapes = read_shapes(file, origin0)
        area = area_of(shapes, file.name)
        note = _note(area, info, file.name)
        known = _is_known(options.out / EDITS, kind, info, area)
    except SlideError as error:
        return Imported(slide_id, file.name, "refused", str(error))
    if not known and not options.dry_run:
        write_edit(options.out / EDITS, kind, info, area.geometry)
    mm2 = area.geometry.area * info.mpp[0] * info.mpp[1] / 1e6 if info.mpp else None
    holes = sum(map(is_hole, shapes))
    state: State = "known" if known else "imported"
    return Imported(slide_id, file.name, state, note, len(shapes) - holes, holes, mm2)


def _as_exported(out: Path, slide_id: str, file: Path) -> bool:
    """Return whether a file holds what a run wrote as this slide's tissue, and not an older one."""
    export = outline_path(out, slide_id)
    stated = unchanged_hash(file)
    if stated is None or not export.is_file() or stated != unchanged_hash(export):
        return False
    edit = edit_path(out / EDITS, "mask", slide_id)
    # An edit that no run has taken up yet is to be replaced by what was there before it.
    return not edit.is_file() or edit.stat().st_mtime_ns < export.stat().st_mtime_ns


def _note(area: Area, info: SlideInfo, name: str) -> str:
    inside = share_inside(area.geometry, info.bounds0)
    if inside == 0:
        raise SlideError(
            f"{name} lies outside of {info.path.name} — is it of another slide, or drawn in a "
            "program that counts from another corner (--origin)?"
        )
    notes = []
    if area.mended:
        notes.append(f"{area.mended} outlines crossed themselves and were mended")
    if area.without_area:
        notes.append(f"{area.without_area} points or lines cover nothing and were left out")
    if inside < _HARDLY:
        notes.append(f"{1 - inside:.0%} of the area lies outside of the slide")
    return "; ".join(notes)


def _is_known(folder: Path, kind: EditKind, info: SlideInfo, area: Area) -> bool:
    try:
        before = getattr(read_edits(folder, info), kind)
    except SlideError:
        return False  # a damaged file is replaced
    return before is not None and Edits(before).sha256 == Edits(area.geometry).sha256


def _line(item: Imported) -> str:
    if item.state == "refused":
        return f"{item.slide_id}: refused: {item.note}"
    if item.state == "as-exported":
        return f"{item.slide_id}: {item.file} was not changed, nothing to import"
    size = f", {item.area_mm2:.3g} mm2" if item.area_mm2 is not None else ""
    cut = f" less {item.holes} holes" if item.holes else ""
    again = " (the same as before)" if item.state == "known" else ""
    note = f" — {item.note}" if item.note else ""
    return f"{item.slide_id}: {item.file}: {item.shapes} shapes{cut}{size}{again}{note}"


def _close(options: Options, done: list[Imported], console: Console) -> None:
    counts = Counter(item.state for item in done)
    what = {"include": "regions to keep", "exclude": "regions to leave out"}
    noun = what.get(options.roi or "", "edited masks")
    verb = "to import" if options.dry_run else "imported"
    console.say(
        f"{noun}: {counts['imported']} {verb}, {counts['known']} known before, "
        f"{counts['as-exported']} not changed, {counts['refused']} refused"
    )
    if counts["imported"] and not options.dry_run:
        folder = options.out / EDITS / (options.roi or "mask")
        console.say("run the same `wsi preprocess` again: only these slides are redone")
        console.say(f"they are kept in {folder}; remove a file there to take it back")
