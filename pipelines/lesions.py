"""Lesion recall of a preprocessing run: read what was annotated, count, write, say."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from pipelines.console import Console
from pipelines.slides_csv import Surveyed
from wsi.annotations import Matched, Region, match_files, read_shapes, regions_of
from wsi.bags import BagStore
from wsi.cohorts.cells import read_table
from wsi.errors import BagError, ConfigError, SlideError
from wsi.extract import Tiling
from wsi.files import file_name_of, publish_bytes
from wsi.findings import few
from wsi.lesions import Lesion, Recall, lesions_of, recall_of

COLUMNS = ("slide_id", "lesion", "area_mm2", "covered", "state", "x0", "y0")
_TABLES = (".csv", ".tsv", ".xlsx")
_NAMED = 20  # missed lesions named one by one; the table has all

Regions = Mapping[str, Sequence[Region]]
Kept = tuple[np.ndarray, tuple[float, float]]


def read_lesions(source: Path, found: Sequence[Surveyed], console: Console) -> Regions:
    """Return the lesions by slide; a slide whose file holds none has an empty list.

    Raises:
        ConfigError: there are no files, or some are not of their format; all of those are listed.
    """
    slides = {item.file.slide_id: item for item in found}
    matched = lesion_files(source, {i: item.file.path for i, item in slides.items()})
    for file, hint in matched.unmatched.items():
        console.warn(f"lesions: {file.name} is of none of the slides{hint}")
    regions: dict[str, list[Region]] = {}
    problems = []
    for slide_id, file in matched.files.items():
        info = slides[slide_id].info
        try:
            shapes = read_shapes(file, (info.bounds0[0], info.bounds0[1]) if info else (0, 0))
            regions[slide_id] = regions_of(shapes, file.name)
        except SlideError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError(few(problems))
    n = sum(map(len, regions.values()))
    console.say(f"lesions: {n} on {sum(map(bool, regions.values()))} of {len(found)} slides")
    return regions


def lesion_files(source: Path, slides: Mapping[str, Path]) -> Matched:
    """Return the file of drawn lesions of each slide.

    Args:
        source: a file or folder, matched by name; or a cohort table with a column `lesions`.
        slides: the file of every slide, by id.

    Raises:
        ConfigError: there are no such files, a table has no such column, or two files are of one
            slide.
    """
    if not is_table(source):
        return match_files(source, slides)
    named = lesions_named(source)
    if named is None:
        raise ConfigError(
            f"{source.name} has no column lesions — give a table that `wsi cohort build` made, or "
            "a folder of annotations"
        )
    return Matched({slide_id: path for slide_id, path in named.items() if slide_id in slides})


def is_table(path: Path) -> bool:
    """Return whether a path is a table, not a folder or a file of annotations."""
    return path.suffix.lower() in _TABLES and path.is_file()


def lesions_named(table: Path) -> dict[str, Path] | None:
    """Return the files that the column `lesions` of a cohort table names; None without one.

    Raises:
        ConfigError: a file that is named is not there.
    """
    read = read_table(table)
    column = next((name for name in read.columns if name.lower() == "lesions"), None)
    if column is None or (slide := read.column("slide_id")) is None:
        return None
    lines = [line for line in read.lines if line.cells[column]]
    named = {line.cells[slide]: table.parent / line.cells[column] for line in lines}
    absent = [path.name for path in named.values() if not path.is_file()]
    if absent:
        raise ConfigError(
            f"{table.name} names {len(absent)} files of lesions that are not there: {few(absent)} "
            "— build the table anew"
        )
    return named


def holds_lesions(path: Path) -> bool:
    """Return whether a file has a lesion drawn in it; so does one that cannot be read, for now."""
    try:
        return bool(regions_of(read_shapes(path), path.name))
    except SlideError:
        return True  # whoever draws it says why


def count_lesions(
    regions: Regions,
    found: Sequence[Surveyed],
    out: Path,
    tiling: Tiling,
    store: BagStore | None,
    failed: Mapping[str, object],
) -> list[Lesion]:
    """Return what kept tiles cover of every lesion, after writing it to OUT/lesions.csv.

    Args:
        failed: slides that are quarantined; tiles of an earlier run of theirs do not count.
    """
    lesions: list[Lesion] = []
    for item in found:
        slide_id, info = item.file.slide_id, item.info
        if not regions.get(slide_id):
            continue
        kept = None if slide_id in failed else kept_tiles(out, slide_id, tiling, store)
        xy0, size0 = kept or (None, (0.0, 0.0))
        mpp = info.mpp if info else None
        lesions += lesions_of(slide_id, regions[slide_id], xy0, size0, mpp)
    _write(out / "lesions.csv", lesions)
    return lesions


def report_lesions(lesions: Sequence[Lesion], out: Path, console: Console) -> dict[str, Any]:
    """Say what was missed, and return the recall for scripts."""
    recall = recall_of(lesions)
    _say(recall, lesions, out, console)
    missed = [_place(lesion) for lesion in lesions if lesion.state == "missed"]
    return {**asdict(recall), "missed_lesions": missed, "table": str(out / "lesions.csv")}


def kept_tiles(out: Path, slide_id: str, tiling: Tiling, store: BagStore | None) -> Kept | None:
    """Return corners (N, 2) and size (w, h), level-0 pixels, of a slide's tiles; None without.

    They are what its bag holds: a tile that was laid and then dropped covers nothing. The bag is
    only opened where OUT/tiles tells less, or is of another tiling.
    """
    laid = _laid(out / "tiles" / f"{file_name_of(slide_id)}.h5", tiling)
    if store is None:
        return laid
    try:
        info = store.info(slide_id)
        if info.status == "empty":
            return np.zeros((0, 2), np.int32), (1.0, 1.0)
        if laid is not None and len(laid[0]) == info.n:
            return laid
        w, h = info.provenance.tiling["resolved"]["size0"]
        return store.read(slide_id).xy0, (w, h)
    except BagError:
        return None


def _laid(path: Path, tiling: Tiling) -> Kept | None:
    try:
        with h5py.File(path, "r", locking=False) as file:
            coords: Any = file["coords"]
            if (coords.attrs["tile_px"], coords.attrs["mpp"]) != (tiling.tile_px, tiling.mpp):
                return None
            w, h = map(float, coords.attrs["size0"])
            return np.asarray(coords[:]), (w, h)
    except (OSError, KeyError):
        return None


def _write(path: Path, lesions: Sequence[Lesion]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for x in lesions:
        mm2 = "" if x.area_mm2 is None else f"{x.area_mm2:.6g}"
        covered = "" if x.covered is None else f"{x.covered:.4f}"
        at = (f"{v:.0f}" for v in x.centroid0)
        writer.writerow([x.slide_id, x.lesion, mm2, covered, x.state, *at])
    publish_bytes(path, text.getvalue().encode())


def _say(recall: Recall, lesions: Sequence[Lesion], out: Path, console: Console) -> None:
    if recall.no_tiles:
        ids = dict.fromkeys(x.slide_id for x in lesions if x.state == "no-tiles")
        console.warn(f"{recall.no_tiles} lesions lie on slides without tiles: {few(ids)}")
    if recall.area is None:
        console.say("no lesion lies on a tiled slide")
        return
    for lesion in [x for x in lesions if x.state == "missed"][:_NAMED]:
        console.warn(f"missed lesion: {_sentence(lesion)}")
    if recall.missed > _NAMED:
        console.warn(f"and {recall.missed - _NAMED} more missed lesions, see {out / 'lesions.csv'}")
    console.say(
        f"lesions: {recall.lesions - recall.missed} of {recall.lesions} reached by kept tiles, "
        f"{recall.covered} of them at least by half; {recall.area:.1%} of their area: "
        f"{out / 'lesions.csv'}"
    )


def lesion_words(lesions: Sequence[Lesion]) -> str:
    """Return what became of one slide's lesions: `2 of 3 covered, missed: corner`."""
    if not lesions:
        return ""
    if any(x.state == "no-tiles" for x in lesions):
        return f"{len(lesions)}, on no tiles"
    covered = sum(x.state == "covered" for x in lesions)
    words = [f"{covered} of {len(lesions)} covered"]
    for state in ("partly", "missed"):
        names = [x.lesion for x in lesions if x.state == state]
        words += [f"{state}: {few(names)}"] if names else []
    return ", ".join(words)


def _sentence(lesion: Lesion) -> str:
    x, y = lesion.centroid0
    size = "" if lesion.area_mm2 is None else f", {lesion.area_mm2:.3g} mm2"
    return f"{lesion.slide_id}: {lesion.lesion} at ({x:.0f}, {y:.0f}){size}"


def _place(lesion: Lesion) -> dict[str, Any]:
    x, y = lesion.centroid0
    return {
        "slide_id": lesion.slide_id,
        "lesion": lesion.lesion,
        "x0": round(x),
        "y0": round(y),
        "area_mm2": lesion.area_mm2,
    }
