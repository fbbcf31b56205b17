"""AtlasPatch: `patches/<slide>.h5` with one group of features for each encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import h5py

from wsi.bags.foreign.archive import (
    Entry,
    Given,
    Layout,
    Place,
    check_lengths,
    number,
    pair,
    real_type,
    visible,
)
from wsi.bags.foreign.safe_h5 import attributes, dataset, open_h5
from wsi.bags.foreign.trident import magnified
from wsi.errors import ConfigError, ForeignBagError
from wsi.registry import suggest

_FOLDER, _FEATURES = "patches", "features"


class AtlasPatchLayout(Layout):
    """Coordinates (N, 5) that begin with x and y, and features of one or more encoders beside."""

    name: ClassVar[str] = "atlaspatch"

    def __init__(self, root: Path, given: Given | None = None) -> None:
        self._folder = root if root.name == _FOLDER else root / _FOLDER
        super().__init__(self._folder.parent, given)
        if not self.files():
            raise ConfigError(f"{root}: no {_FOLDER}/*.h5 — give the folder that AtlasPatch wrote")

    def files(self) -> list[Path]:
        """Return one file per slide."""
        return visible(self._folder.glob("*.h5"))

    def entry(self, path: Path) -> Entry:
        """Return what the file of one slide says of itself, for one encoder."""
        with open_h5(path) as file:
            said = attributes(file)
            encoder = _chosen(path, file, self.given.encoder)
            features = dataset(file, f"{_FEATURES}/{encoder}", 2)
            coords = dataset(file, "coords", 2, "iu")
            n, dim = features.shape
            dtype = real_type(path, features.dtype.name)
            check_lengths(path, n, len(coords))
        return Entry(
            slide_id=self.slide_id(path, self._folder),
            layout=self.name,
            features=Place(path, f"{_FEATURES}/{encoder}"),
            coords=Place(path, "coords"),
            unit="px0",
            n=n,
            dim=dim,
            dtype=dtype,
            encoder=encoder,
            tiling=magnified(path, said),
            slide_size0=pair(said, ("level0_width", "level0_height")),
            mpp0=number(said, "mpp"),
        )


def _chosen(path: Path, file: h5py.File, wanted: str | None) -> str:
    group: Any = file.get(_FEATURES)
    names = sorted(group) if isinstance(group, h5py.Group) else []
    if not names:
        raise ForeignBagError(
            f"{path.name}: holds no features — embed the slide first", "no-dataset"
        )
    if wanted is None and len(names) > 1:
        raise ConfigError(f"{path.name}: features of {', '.join(names)} — choose by --encoder")
    if wanted is not None and wanted not in names:
        raise ForeignBagError(
            f"{path.name}: no features of '{wanted}'{suggest(wanted, names)}, it has "
            f"{', '.join(names)} — choose by --encoder",
            "no-dataset",
        )
    return wanted or names[0]
