"""Bags as CLAM's feature files: `h5_files/`, `pt_files/` and, where it can be said, `patches/`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from wsi.bags.bag import Bag, Json
from wsi.bags.foreign.exporting import Export, Exported, Stored, make_room, write_h5
from wsi.bags.foreign.safe_pt import read_tensor
from wsi.bags.sidecar import BagInfo
from wsi.errors import ForeignBagError, UnsafeFileError
from wsi.files import publish

_CHUNK_ROWS = 32


class ClamExport(Export):
    """Features as float32 in chunks of 32 rows, without attributes; tensors beside them."""

    def write(self, bag: Bag, info: BagInfo, name: str) -> Exported:
        """Write three files: features with corners, the tensor, and how the corners were laid."""
        features = bag.features.astype(np.float32)
        growing = Stored(features, (_CHUNK_ROWS, features.shape[1]), grows=True)
        corners = Stored(bag.xy0, (_CHUNK_ROWS, 2), grows=True)
        contents = {"features": growing, "coords": corners}
        written = write_h5(self.root / "h5_files" / f"{name}.h5", contents)
        said = _coords_attributes(bag, name)
        if said is not None:
            plan = Stored(bag.xy0.astype(np.int64), (_CHUNK_ROWS, 2), True, said)
            written |= write_h5(self.root / "patches" / f"{name}.h5", {"coords": plan})
        written |= _write_tensor(self.root / "pt_files" / f"{name}.pt", features)
        lacking = "" if said else "no patches/: its tiles are no whole number of level-0 pixels"
        return Exported(info.slide_id, name, "written" if written else "kept", lacking)


def _coords_attributes(bag: Bag, name: str) -> Json | None:
    """Return what CLAM stores with corners, or None where it could not be true.

    CLAM gives the edge of a patch in whole pixels of one level, the same for both axes.
    """
    made = bag.provenance
    edges = (made.tiling.get("resolved") or {}).get("size0") or (0.5, 0.5)
    size0 = made.slide.get("size0")
    if size0 is None or edges[0] != edges[1] or edges[0] != round(edges[0]):
        return None
    return {
        "patch_size": int(edges[0]),
        "patch_level": 0,
        "downsample": np.array([1.0, 1.0]),
        "downsampled_level_dim": np.array(size0),
        "level_dim": np.array(size0),
        "name": name,
        "save_path": "patches",
    }


def _write_tensor(path: Path, features: np.ndarray) -> bool:
    try:
        if path.is_file() and np.array_equal(read_tensor(path), features):
            return False
    except (ForeignBagError, UnsafeFileError):
        pass  # damaged, so it is written again
    import torch

    make_room(path, features.nbytes)
    with publish(path) as temporary, temporary.open("wb") as handle:
        torch.save(torch.from_numpy(features), handle)
    return True
