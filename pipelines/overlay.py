"""What a run leaves of each slide to look at: overlay, tissue outline, tiles, and their facts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
from numpy.typing import NDArray

from pipelines.console import Console
from pipelines.own import edited_in_place, outline_path, own_tissue
from pipelines.slides_csv import Surveyed
from pipelines.workers import processes
from wsi.errors import CohortError, SlideError
from wsi.extract import Located
from wsi.files import file_name_of, publish, publish_bytes, publish_json
from wsi.geojson import Shape, write_geojson
from wsi.report.overlay import TISSUE_COLOR, draw_overlay, sharp_thumbnail
from wsi.slides import Slide, SlideInfo, Thumbnail, open_slide
from wsi.specs import Config, TissueSpec
from wsi.tiling import TileGrid
from wsi.tissue import OwnTissue, TissueMask

_QUALITY = 85  # of the JPEGs


@dataclass(frozen=True)
class Overlay:
    """What the overlay of one slide shows; kept beside it, so that no later run opens the slide.

    Attributes:
        fingerprint: of the slide file that was drawn.
        method: name of the tissue method; `flags` are what it raised.
        settings: tissue settings of this slide, of which `overrides` are its own.
        edits: hash of the shapes that changed its mask, empty where there are none.
        tissue_share: tissue's share of the scanned bounds.
        tissue_mm2: its area, None without a resolution.
        scale: level-0 pixels per mask pixel (x, y).
        tiles: tiles laid, None where none could be or none were asked for.
        considered: tiles of the whole grid, kept or not.
        left_out: laid tiles that were not embedded: without data, unreadable or dropped.
    """

    slide_id: str
    fingerprint: str
    method: str
    flags: tuple[str, ...]
    settings: dict[str, Any]
    overrides: tuple[str, ...]
    edits: str
    tissue_share: float
    tissue_mm2: float | None
    scale: tuple[float, float]
    tiles: int | None = None
    considered: int | None = None
    upsampling: float = 1.0
    left_out: int = 0


def overlay_path(out: Path, slide_id: str) -> Path:
    """Return where the overlay of a slide lies; its facts lie beside it as JSON."""
    return out / "thumbnails" / f"{file_name_of(slide_id)}.jpg"


def read_overlay(out: Path, slide_id: str) -> Overlay | None:
    """Return what an earlier run drew of a slide, None where there is nothing sound."""
    try:
        text = overlay_path(out, slide_id).with_suffix(".json").read_text(encoding="utf-8")
        content = json.loads(text)
        known = {f.name: content[f.name] for f in fields(Overlay) if f.name in content}
        for name in ("flags", "overrides", "scale"):
            known[name] = tuple(known[name])
        return Overlay(**known)
    except (CohortError, OSError, ValueError, TypeError, LookupError):
        return None


def write_located(out: Path, slide: Slide, common: TissueSpec, located: Located) -> None:
    """Write overlay, tissue outline and tiles of one slide below `out`.

    Args:
        common: the tissue settings that all slides share; a slide may have its own.
    """
    tissue, grid = located.tissue, located.grid
    facts = _facts(slide.info, common, located.own, tissue, grid)
    _write_outline(out, slide.info, tissue)
    _write_picture(out, slide, tissue, located.thumbnail, facts, grid)
    _write_tiles(out, slide.info, grid, facts)


def draw_tissue(out: Path, slide: Slide, common: TissueSpec, own: OwnTissue) -> bool:
    """Write overlay and tissue outline, without tiles, and return whether there is any tissue.

    That is all that can be shown of a slide without a resolution.

    Raises:
        RegionError: the thumbnail cannot be decoded.
    """
    _, tissue, thumbnail = own.find(slide, common)
    _write_outline(out, slide.info, tissue)
    _write_picture(out, slide, tissue, thumbnail, _facts(slide.info, common, own, tissue))
    return bool(tissue.mask.any())


def show_left_out(
    out: Path,
    slide: Slide,
    common: TissueSpec,
    located: Located,
    embedded_xy0: NDArray[np.integer],
) -> None:
    """Draw the overlay again with the tiles crossed out that were laid but not embedded."""
    grid, tissue = located.grid, located.tissue
    kept = set(map(tuple, embedded_xy0.tolist()))
    left_out = np.asarray([tuple(corner) not in kept for corner in grid.xy0.tolist()], bool)
    facts = _facts(slide.info, common, located.own, tissue, grid, int(left_out.sum()))
    _write_picture(out, slide, tissue, located.thumbnail, facts, grid, left_out)


def draw_unusable(
    found: Sequence[Surveyed], out: Path, config: Config, jobs: int, console: Console
) -> None:
    """Draw the slides that open but cannot be tiled, such as those without a resolution.

    What was drawn before, and has not changed, is left as it is.
    """
    draw = partial(_draw_unusable, out=out, config=config)
    todo = [item for item in found if item.info and item.status != "ok"]
    todo = [item for item in todo if not _is_drawn(out, item, config.tissue)]
    with console.progress("drawing slides that cannot be tiled", len(todo)) as track:
        for item, problem in zip(todo, _each(draw, todo, jobs)):
            track.advance()
            if problem:
                console.warn(f"{item.file.slide_id} cannot be drawn: {problem}")


def _is_drawn(out: Path, item: Surveyed, common: TissueSpec) -> bool:
    drawn = read_overlay(out, item.file.slide_id)
    if drawn is None or item.info is None or drawn.tiles is not None:
        return False
    own = own_tissue(out, item.file, item.info, common)
    wanted = item.info.fingerprint, _settings(common, own), _edits(own)
    return (drawn.fingerprint, drawn.settings, drawn.edits) == wanted


def _each(draw: Callable[[Surveyed], str], todo: Sequence[Surveyed], jobs: int) -> Iterator[str]:
    if jobs <= 1 or len(todo) <= 1:
        yield from map(draw, todo)
        return
    with processes(min(jobs, len(todo))) as pool:
        yield from pool.map(draw, todo)


def _draw_unusable(item: Surveyed, out: Path, config: Config) -> str:
    """Draw one slide and return what went wrong, if anything did."""
    file, common = item.file, config.tissue
    try:
        with open_slide(file.path, file.slide_id, mpp=file.mpp, spec=config.slides) as slide:
            draw_tissue(out, slide, common, own_tissue(out, file, slide.info, common))
    except SlideError as error:
        return str(error)
    return ""


def _write_outline(out: Path, info: SlideInfo, tissue: TissueMask) -> None:
    if edited_in_place(out, info.slide_id):
        return  # somebody's work; the run has said so
    shapes = [Shape(part, "Tissue", TISSUE_COLOR) for part in tissue.outlines().geoms]
    path = outline_path(out, info.slide_id)
    write_geojson(path, shapes, (info.bounds0[0], info.bounds0[1]))


def _write_picture(
    out: Path,
    slide: Slide,
    tissue: TissueMask,
    thumbnail: Thumbnail,
    facts: Overlay,
    grid: TileGrid | None = None,
    left_out: NDArray[np.bool_] | None = None,
) -> None:
    shown = sharp_thumbnail(slide, thumbnail)
    picture = draw_overlay(shown, tissue, grid, left_out, slide.info.mpp)
    bgr = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    _, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    path = overlay_path(out, facts.slide_id)
    publish_bytes(path, data.tobytes())
    publish_json(path.with_suffix(".json"), asdict(facts))


def _settings(common: TissueSpec, own: OwnTissue) -> dict[str, Any]:
    return (own.spec or common).model_dump(mode="json")


def _edits(own: OwnTissue) -> str:
    return own.edits.sha256 if own.edits else ""


def _facts(
    info: SlideInfo,
    common: TissueSpec,
    own: OwnTissue,
    tissue: TissueMask,
    grid: TileGrid | None = None,
    left_out: int = 0,
) -> Overlay:
    area0 = float(tissue.mask.sum()) * tissue.scale[0] * tissue.scale[1]
    laid: dict[str, Any] = {}
    if grid is not None:
        laid = {
            "tiles": len(grid),
            "considered": grid.considered,
            "upsampling": grid.upsampling,
            "left_out": left_out,
        }
    return Overlay(
        slide_id=info.slide_id,
        fingerprint=info.fingerprint,
        method=tissue.method,
        flags=tissue.flags,
        settings=_settings(common, own),
        overrides=tuple(own.provenance(common).get("overrides", ())),
        edits=_edits(own),
        tissue_share=float(tissue.mask.mean()),
        tissue_mm2=area0 * info.mpp[0] * info.mpp[1] / 1e6 if info.mpp else None,
        scale=tissue.scale,
        **laid,
    )


def _write_tiles(out: Path, info: SlideInfo, grid: TileGrid, facts: Overlay) -> None:
    path = out / "tiles" / f"{file_name_of(info.slide_id)}.h5"
    with publish(path) as temporary, h5py.File(temporary, "w") as file:
        coords = file.create_dataset("coords", data=grid.xy0)
        file.create_dataset("tissue", data=grid.tissue.astype(np.float16))
        coords.attrs.update(
            slide_id=info.slide_id,
            tile_px=grid.tile_px,
            mpp=grid.mpp,
            size0=grid.size0,
            level=grid.level,
            upsampling=grid.upsampling,
            considered=grid.considered,
            tissue_method=facts.method,
            tissue_flags=";".join(facts.flags),
            tissue_mm2=facts.tissue_mm2 or 0.0,
            thumbnail_scale=facts.scale,
            slide_mpp=info.mpp,
            slide_mpp_source=info.mpp_source,
            slide_fingerprint=info.fingerprint,
        )
