"""Bags as TRIDENT's: `<mag>x_<px>px_<n>px_overlap/features_<encoder>/` and `patches/`."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from wsi.bags.bag import Bag, Json
from wsi.bags.foreign.exporting import Export, Exported, Stored, write_h5
from wsi.bags.foreign.trident import UM_AT_1X
from wsi.bags.sidecar import BagInfo
from wsi.errors import ConfigError

_UNKNOWN = "None"  # how TRIDENT stores what it does not know


class TridentExport(Export):
    """Features in their own precision, one row to a chunk, with the attributes of both datasets."""

    def write(self, bag: Bag, info: BagInfo, name: str) -> Exported:
        """Write two files: the features with their corners, and the corners alone."""
        encoder = re.sub(r"[^\w.-]+", "-", str(bag.provenance.encoder.get("name", "encoder")))
        said = _coords_attributes(bag, name)
        job = (
            f"{said['target_magnification']:g}x_{said['patch_size']}px_{said['overlap']}px_overlap"
        )
        folder = self.root / job
        corners = Stored(bag.xy0.astype(np.int64), (1, 2), attributes=said | {"savetodir": job})
        of_features = {"name": name, "savetodir": job, "encoder": encoder}
        features = Stored(bag.features, (1, bag.features.shape[1]), attributes=of_features)
        written = write_h5(folder / "patches" / f"{name}_patches.h5", {"coords": corners})
        contents = {"features": features, "coords": corners}
        written |= write_h5(folder / f"features_{encoder}" / f"{name}.h5", contents)
        return Exported(info.slide_id, name, "written" if written else "kept")


def _coords_attributes(bag: Bag, name: str) -> Json:
    made = bag.provenance
    settings, slide = made.tiling["settings"], made.slide
    mpp, tile_px = settings.get("mpp"), settings.get("tile_px")
    if mpp is None or tile_px is None:
        raise ConfigError(
            f"bag {bag.slide_id}: nothing says at what resolution it was tiled, which TRIDENT's "
            "folders are named by — import it again with --mpp or --slides"
        )
    w, h = slide.get("size0") or (_UNKNOWN, _UNKNOWN)
    return {
        "patch_size": int(tile_px),
        "patch_size_level0": _size0(made.tiling.get("resolved") or {}),
        "level0_magnification": _magnification(slide),
        "target_magnification": _whole(UM_AT_1X / mpp),
        "overlap": _overlap(settings),
        "name": name,
        "level0_width": w,
        "level0_height": h,
    }


def _size0(resolved: Json) -> Any:
    """Return the edge of a tile in level-0 pixels as it is, where TRIDENT rounds it down."""
    edges = resolved.get("size0")
    return _whole(float(np.mean(edges))) if edges else _UNKNOWN


def _magnification(slide: Json) -> Any:
    if slide.get("magnification"):
        return _whole(float(slide["magnification"]))
    return _whole(UM_AT_1X / slide["mpp"][0]) if slide.get("mpp") else _UNKNOWN


def _overlap(settings: Json) -> int:
    stride_um = settings.get("stride_um")
    step_px = settings["tile_px"] if stride_um is None else stride_um / settings["mpp"]
    return max(0, settings["tile_px"] - round(step_px))


def _whole(value: float) -> int | float:
    """Return a number as an integer where it is one, up to the rounding of a division."""
    return round(value) if abs(value - round(value)) < 1e-6 else value
