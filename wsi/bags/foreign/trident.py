"""TRIDENT: `<mag>x_<px>px_<n>px_overlap/features_<encoder>/<slide>.h5`."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from wsi.bags.foreign.archive import (
    Entry,
    ForeignTiling,
    Given,
    Json,
    Layout,
    Place,
    check_lengths,
    check_planned,
    folder_of,
    number,
    pair,
    real_type,
    visible,
)
from wsi.bags.foreign.safe_h5 import attributes, dataset, open_h5
from wsi.errors import ForeignBagError

UM_AT_1X = 10.0
"""um per pixel at magnification 1, by the convention that 20x is 0.5."""


class TridentLayout(Layout):
    """Features and coordinates in one file, the tiling in the attributes of `coords`."""

    name: ClassVar[str] = "trident"

    def __init__(self, root: Path, given: Given | None = None) -> None:
        wanted = given.encoder if given else None
        self._folder = folder_of(root, "features_*", wanted, "TRIDENT")
        super().__init__(self._folder.parent, given)

    def files(self) -> list[Path]:
        """Return the files of one folder of features."""
        return visible(self._folder.glob("*.h5"))

    def entry(self, path: Path) -> Entry:
        """Return what the file of one slide says of itself."""
        with open_h5(path) as file:
            features, coords = dataset(file, "features", 2), dataset(file, "coords", 2, "iu")
            n, dim = features.shape
            dtype = real_type(path, features.dtype.name)
            check_lengths(path, n, len(coords))
            said, tiling = attributes(features), attributes(coords)
        plan = self.root / "patches" / f"{path.stem}_patches.h5"
        if plan.is_file():
            with open_h5(plan) as file:
                check_planned(path, n, len(dataset(file, "coords", 2, "iu")), plan)
        named = said.get("encoder")
        return Entry(
            slide_id=self.slide_id(path, self._folder),
            layout=self.name,
            features=Place(path, "features"),
            coords=Place(path, "coords"),
            unit="px0",
            n=n,
            dim=dim,
            dtype=dtype,
            encoder=str(named or self._folder.name.removeprefix("features_")),
            tiling=magnified(path, tiling),
            slide_size0=pair(tiling, ("level0_width", "level0_height")),
        )


def magnified(path: Path, values: Json) -> ForeignTiling:
    """Return the tiling of attributes that speak of magnifications.

    The declared resolution is 10 / magnification. What a tile really shows is its size in level-0
    pixels times the slide's own resolution, which these attributes do not have.

    Raises:
        ForeignBagError: the attributes are not there.
    """
    tile_px, size0 = number(values, "patch_size"), number(values, "patch_size_level0")
    magnification = number(values, "target_magnification")
    if tile_px is None or size0 is None or magnification is None:
        raise ForeignBagError(
            f"{path.name}: lacks patch_size, patch_size_level0 or target_magnification — make the "
            "file again",
            "no-tiling",
        )
    overlap = number(values, "overlap") or 0.0
    details = {"target_magnification": magnification}
    return ForeignTiling(int(tile_px), size0, UM_AT_1X / magnification, overlap, details)
