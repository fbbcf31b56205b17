"""What a preprocessing run would do, found out before it computes anything."""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Sequence
from pathlib import Path

from rich import filesize

from pipelines.console import Console, counted
from pipelines.own import own_tissue
from pipelines.slides_csv import Surveyed
from wsi.encoders import encoder_info
from wsi.errors import NeedsUpsamplingError, WsiError
from wsi.extract import Tiling, locate
from wsi.findings import few
from wsi.slides import open_slide
from wsi.specs import Component, Config
from wsi.supervision import Crew, Lost

_TILE_BYTES = 16  # corner, tissue and scores of a tile
_FILES = 4  # of a slide beside its bags: overlay and its facts, tissue, tiles
_SAMPLE = 40  # slides whose tissue is looked for in a dry run; the rest is extrapolated


def is_too_coarse(item: Surveyed, tiling: Tiling) -> bool:
    """Return whether a slide with a resolution is coarser than the tiling allows."""
    if item.status != "ok" or item.info is None:
        return False
    try:
        item.info.check_upsampling(tiling.mpp, tiling.max_upsampling)
    except NeedsUpsamplingError:
        return True
    return False


def too_coarse_lines(found: Sequence[Surveyed], tiling: Tiling) -> list[str]:
    """Return a line that names the slides coarser than the tiling allows, if there are any."""
    ids = [item.file.slide_id for item in found if is_too_coarse(item, tiling)]
    if not ids:
        return []
    which = f"{ids[0]} is" if len(ids) == 1 else f"{len(ids)} slides ({few(ids)}) are"
    return [
        f"needs-upsampling: {which} coarser than tiling.mpp={tiling.mpp:g} — ask for a "
        "coarser tiling.mpp, or allow it with tiling.max_upsampling"
    ]


def say_plan(
    config: Config,
    tiling: Tiling,
    encoders: Sequence[Component],
    out: Path,
    found: Sequence[Surveyed],
    crew: Crew,
    console: Console,
) -> int:
    """Say what a run would do; nothing is written. Return 3 when some slides cannot be used."""
    infos = [encoder_info(encoder) for encoder in encoders]
    usable = [item for item in found if item.status == "ok" and not is_too_coarse(item, tiling)]
    sample = usable[:: max(1, len(usable) // _SAMPLE)]
    counts = []
    with console.progress("looking for tissue", len(sample)) as track:
        for item, planned in crew.each(_tiles, sample, config, tiling, out):
            if isinstance(planned, int):
                counts.append(planned)
            else:
                message = planned.message if isinstance(planned, Lost) else planned
                console.warn(f"{item.file.slide_id}: {message}")
            track.advance()
    tiles = round(statistics.mean(counts) * len(usable)) if counts else 0
    width = 2 if config.precision == "float16" else 4
    size = sum(tiles * (info.dim * width + _TILE_BYTES) for info in infos)
    about = "" if len(sample) == len(usable) else f" (from {len(sample)} slides looked at)"
    names = " and ".join(info.name for info in infos)
    files = len(usable) * (_FILES + 2 * len(infos))
    console.say(
        f"would embed {counted(len(usable), 'slide')}, "
        f"{'about ' if about else ''}{counted(tiles, 'tile')}{about}, "
        f"{filesize.decimal(size)} in {counted(files, 'file')}, with {names} at "
        f"{tiling.mpp:g} um/px, {tiling.tile_px} px"
    )
    free = _free_bytes(out)
    if size > free:
        console.warn(f"{filesize.decimal(free)} are free for {out} — give another --out")
    console.say(f"unresolved: {len(found) - len(usable)}; nothing was written")
    console.result(
        {
            "slides": len(usable),
            "unresolved": len(found) - len(usable),
            "tiles": tiles,
            "bytes": size,
            "files": files,
        }
    )
    return 3 if len(usable) < len(found) else 0


def _tiles(item: Surveyed, config: Config, tiling: Tiling, out: Path) -> int | str:
    """Return how many tiles a slide has, or what is wrong with it."""
    try:
        path, slide_id, mpp = item.file.path, item.file.slide_id, item.file.mpp
        with open_slide(path, slide_id, mpp=mpp, spec=config.slides) as slide:
            own = own_tissue(out, item.file, slide.info, config.tissue)
            return len(locate(slide, config.tissue, tiling, own).grid)
    except WsiError as error:
        return str(error)


def _free_bytes(folder: Path) -> int:
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
