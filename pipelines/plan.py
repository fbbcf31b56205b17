"""What a preprocessing run would do, found out before it computes anything."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from rich import filesize

from pipelines.console import Console, counted
from pipelines.own import own_tissue
from pipelines.slides_csv import Surveyed
from wsi.encoders import encoder_info
from wsi.errors import NeedsUpsamplingError, WsiError
from wsi.extract import Tiling, locate, settle_tiling
from wsi.findings import few
from wsi.slides import open_slide
from wsi.specs import Config

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


def say_plan(config: Config, out: Path, found: Sequence[Surveyed], console: Console) -> int:
    """Say what a run would do; nothing is written. Return 3 when some slides cannot be used."""
    encoder = encoder_info(config.encoder)
    tiling = settle_tiling(config.tiling, encoder)
    usable = [item for item in found if item.status == "ok" and not is_too_coarse(item, tiling)]
    sample = usable[:: max(1, len(usable) // _SAMPLE)]
    counts = []
    with console.progress("looking for tissue", len(sample)) as track:
        for item in sample:
            try:
                path, slide_id, mpp = item.file.path, item.file.slide_id, item.file.mpp
                with open_slide(path, slide_id, mpp=mpp, spec=config.slides) as slide:
                    own = own_tissue(out, item.file, slide.info, config.tissue)
                    counts.append(len(locate(slide, config.tissue, tiling, own).grid))
            except WsiError as error:
                console.warn(f"{item.file.slide_id}: {error}")
            track.advance()
    tiles = round(statistics.mean(counts) * len(usable)) if counts else 0
    size = tiles * (encoder.dim * (2 if config.precision == "float16" else 4) + 10)
    about = "" if len(sample) == len(usable) else f" (from {len(sample)} slides looked at)"
    console.say(
        f"would embed {counted(len(usable), 'slide')}, "
        f"{'about ' if about else ''}{counted(tiles, 'tile')}{about}, "
        f"{filesize.decimal(size)}, with {encoder.name} at {tiling.mpp:g} um/px, "
        f"{tiling.tile_px} px"
    )
    console.say(f"unresolved: {len(found) - len(usable)}; nothing was written")
    console.result(
        {
            "slides": len(usable),
            "unresolved": len(found) - len(usable),
            "tiles": tiles,
            "bytes": size,
        }
    )
    return 3 if len(usable) < len(found) else 0
