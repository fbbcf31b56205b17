"""What a run leaves of each slide to look at: overlay, tissue outline, tiles, and their facts."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
from numpy.typing import NDArray

from pipelines.own import edited_in_place, outline_path
from wsi.errors import CohortError
from wsi.extract import Located, Tiling
from wsi.files import file_name_of, publish, publish_bytes, publish_json
from wsi.geojson import Shape, write_geojson
from wsi.report.overlay import TISSUE_COLOR, draw_overlay, sharp_thumbnail
from wsi.slides import Slide, SlideInfo, Thumbnail
from wsi.specs import TissueSpec
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
        mpp: um per level-0 pixel (x, y) that tiles and areas were measured by.
        tiling: settings of the tiles that are drawn, None where there are none.
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
    mpp: tuple[float, float] | None = None
    tiling: dict[str, Any] | None = None
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
        if known.get("mpp") is not None:
            known["mpp"] = tuple(known["mpp"])
        return Overlay(**known)
    except (CohortError, OSError, ValueError, TypeError, LookupError):
        return None


def write_located(
    out: Path, slide: Slide, common: TissueSpec, located: Located, tiling: Tiling
) -> None:
    """Write overlay, tissue outline and tiles of one slide below `out`.

    Args:
        common: the tissue settings that all slides share; a slide may have its own.
    """
    tissue, grid = located.tissue, located.grid
    facts = _facts(slide.info, common, located.own, tissue, grid, tiling)
    _write_outline(out, slide.info, tissue)
    _write_tiles(out, slide.info, grid, facts)  # before the facts, which vouch for them
    _write_picture(out, slide, tissue, located.thumbnail, facts, grid)


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
    tiling: Tiling,
    embedded_xy0: NDArray[np.integer],
) -> None:
    """Draw the overlay again with the tiles crossed out that were laid but not embedded."""
    grid, tissue = located.grid, located.tissue
    kept = set(map(tuple, embedded_xy0.tolist()))
    left_out = np.asarray([tuple(corner) not in kept for corner in grid.xy0.tolist()], bool)
    n = int(left_out.sum())
    facts = _facts(slide.info, common, located.own, tissue, grid, tiling, n)
    _write_picture(out, slide, tissue, located.thumbnail, facts, grid, left_out)


def is_current(
    drawn: Overlay | None,
    info: SlideInfo,
    common: TissueSpec,
    own: OwnTissue,
    tiling: Tiling | None,
) -> bool:
    """Return whether an overlay shows the slide as it now is, under these settings.

    Args:
        tiling: None for an overlay without tiles.
    """
    if drawn is None or drawn.tiling != tiling_facts(tiling):
        return False
    wanted = info.fingerprint, info.mpp, _settings(common, own), _edits(own)
    return (drawn.fingerprint, drawn.mpp, drawn.settings, drawn.edits) == wanted


def tiling_facts(tiling: Tiling | None) -> dict[str, Any] | None:
    """Return a tiling as it is kept beside an overlay."""
    return None if tiling is None else asdict(tiling)


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
    tiling: Tiling | None = None,
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
        mpp=info.mpp,
        tiling=tiling_facts(tiling),
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
