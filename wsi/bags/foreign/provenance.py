"""Where an imported bag came from: what its tool, its user and its slide say."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from wsi.bags.bag import Json, Provenance
from wsi.bags.foreign.archive import Entry, Given
from wsi.errors import ConfigError, ForeignBagError
from wsi.files import sampled_fingerprint, sha256_file

if TYPE_CHECKING:
    from wsi.slides import SlideInfo

DECLARED, VERIFIED = "declared", "verified"
"""States of an imported encoder: as its tool named it, and as found by embedding tiles anew."""

NOT_RECORDED = "not recorded"
"""Said of tissue fractions that no archive has; the bags hold 1 in their place."""

Slides = Mapping[str, "SlideInfo"]
Mpp = tuple[float, float]


def slide_of(slides: Slides, slide_id: str) -> SlideInfo | None:
    """Return the slide of an archive's id: the same id, or the one slide of that file name."""
    if slide_id in slides:
        return slides[slide_id]
    name = slide_id.rpartition("/")[2]
    named = [info for other, info in slides.items() if other.rpartition("/")[2] == name]
    return named[0] if len(named) == 1 else None


def mpp0_of(entry: Entry, slide: SlideInfo | None, given: Given) -> Mpp | None:
    """Return um per level-0 pixel (x, y): the slide's own, else the archive's, else as given."""
    if slide is not None and slide.mpp is not None:
        return slide.mpp
    one = entry.mpp0 or given.mpp
    return None if one is None else (one, one)


def source_of(entry: Entry, root: Path) -> Json:
    """Return where the arrays of an entry lie and what identifies their files, all bytes read.

    A sample of each file is kept beside the hash, so that a rerun need not read all of it.
    """
    coords = {"dataset": entry.coords.name, "unit": entry.unit}
    if entry.coords.path != entry.features.path:
        coords |= _file(entry.coords.path, root)
    features = {"dataset": entry.features.name, "dtype": entry.dtype}
    return {
        "layout": entry.layout,
        **_file(entry.features.path, root),
        **features,
        "coords": coords,
    }


def same_files(source: Json, entry: Entry, root: Path) -> bool:
    """Return whether the files of an entry are as `source` says, by size and samples."""
    known = [(source, entry.features.path)]
    if entry.coords.path != entry.features.path:
        known.append((source.get("coords", {}), entry.coords.path))
    return all(
        record.get("file") == _relative(path, root)
        and record.get("bytes") == path.stat().st_size
        and record.get("sampled") == sampled_fingerprint(path)
        for record, path in known
    )


def _file(path: Path, root: Path) -> Json:
    stat = path.stat()
    return {
        "file": _relative(path, root),
        "bytes": stat.st_size,
        "mtime_ns": stat.st_mtime_ns,
        "sampled": sampled_fingerprint(path),
        "sha256": sha256_file(path),
    }


def _relative(path: Path, root: Path) -> str:
    # CLAM's coordinates may lie beside the root.
    return Path(os.path.relpath(path, root)).as_posix()


def declared(entry: Entry, slide: SlideInfo | None, given: Given, source: Json) -> Provenance:
    """Return the provenance of an imported bag; its encoder is marked as only declared.

    Raises:
        ConfigError: nothing says which encoder it was.
        ForeignBagError: nothing says how the slide was tiled, or how long a pixel is where the
            coordinates are micrometres.
    """
    if not entry.encoder:
        raise ConfigError(
            f"{entry.layout} features do not name their encoder — give it by --encoder"
        )
    if entry.tiling.tile_px is None:
        raise ForeignBagError(
            f"{entry.slide_id}: nothing says how the slide was tiled — add its file in patches/, "
            "or give --tile-px with --tile-mpp (um per tile pixel) and --slides or --mpp (um per "
            "level-0 pixel)",
            "no-tiling",
        )
    mpp0 = mpp0_of(entry, slide, given)
    if mpp0 is None and entry.unit == "um":
        raise ForeignBagError(
            f"{entry.slide_id}: its coordinates are micrometres, and pixels need the slide's "
            "resolution — give the slides by --slides, or --mpp",
            "no-mpp",
        )
    return Provenance(
        slide=_slide(entry, slide, mpp0) | {"source": source},
        tiling={"settings": _settings(entry), "resolved": _resolved(entry, mpp0)},
        encoder={
            "name": entry.encoder,
            "fingerprint": f"{DECLARED}:{entry.layout}:{entry.encoder}:{entry.dim}",
            "dim": entry.dim,
            "state": DECLARED,
            **entry.recorded,
        },
        tissue={"settings": {"method": f"imported:{entry.layout}"}, "fractions": NOT_RECORDED},
        precision=entry.dtype,
    )


def _slide(entry: Entry, slide: SlideInfo | None, mpp0: Mpp | None) -> Json:
    if slide is not None:
        known = {"fingerprint": slide.fingerprint, "size0": slide.size0, "vendor": slide.vendor}
        return known | {"mpp": mpp0, "magnification": slide.magnification}
    size0 = {"size0": entry.slide_size0} if entry.slide_size0 else {}
    # Two archives of one slide must not look like two states of one file.
    return {"fingerprint": f"unknown:{entry.layout}:{entry.slide_id}", "mpp": mpp0} | size0


def _settings(entry: Entry) -> Json:
    tiling = entry.tiling
    step = (tiling.tile_px or 0) - tiling.overlap_px
    stride = step * tiling.mpp if tiling.overlap_px and tiling.mpp else None
    return {"mpp": tiling.mpp, "tile_px": tiling.tile_px, "stride_um": stride, **tiling.details}


def _resolved(entry: Entry, mpp0: Mpp | None) -> Json:
    """Return what is true of this slide: size of a tile in level-0 pixels and micrometres."""
    size0 = tile_size0(entry, mpp0)
    found: Json = {"size0": size0} if size0 else {}
    if size0 and mpp0 and entry.tiling.tile_px:
        fov = [size0[0] * mpp0[0], size0[1] * mpp0[1]]
        found |= {"fov_um": fov, "mpp": [edge / entry.tiling.tile_px for edge in fov]}
    return found


def tile_size0(entry: Entry, mpp0: Mpp | None) -> Sequence[float] | None:
    """Return the size (w, h) of a tile in level-0 pixels, or None where nothing says."""
    tiling = entry.tiling
    if tiling.size0 is not None:
        return [tiling.size0, tiling.size0]
    if mpp0 is None or tiling.mpp is None or tiling.tile_px is None:
        return None
    edge_um = tiling.mpp * tiling.tile_px
    return [edge_um / mpp0[0], edge_um / mpp0[1]]
