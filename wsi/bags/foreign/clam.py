"""CLAM: `h5_files/<slide>.h5` and `pt_files/<slide>.pt`, coordinates also in `patches/`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
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
    number,
    real_type,
    visible,
)
from wsi.bags.foreign.safe_h5 import attributes, dataset, open_h5
from wsi.bags.foreign.safe_pt import read_tensor
from wsi.errors import ConfigError, ForeignBagError

_H5, _PT, _COORDS = "h5_files", "pt_files", "patches"


@dataclass(frozen=True)
class _Coords:
    """What a file of `patches/` holds: the number of tiles, and how they were cut."""

    place: Place
    n: int
    attributes: Json


class ClamLayout(Layout):
    """Features without any attribute; only the file of coordinates says how they were tiled.

    The encoder must be given. A `.pt` file has no coordinates and is taken where `patches/` has as
    many for its slide; where both formats are there, the `.h5` is taken.
    """

    name: ClassVar[str] = "clam"

    def __init__(self, root: Path, given: Given | None = None) -> None:
        self._folder = root.parent if root.name in (_H5, _PT) else root
        super().__init__(self._folder, given)
        if not self.files():
            raise ConfigError(
                f"{root}: no {_H5}/*.h5 or {_PT}/*.pt — give the folder of features CLAM wrote"
            )

    def files(self) -> list[Path]:
        """Return the `.h5` of every slide that has one, else its `.pt`."""
        tensors = {path.stem: path for path in self._folder.glob(f"{_PT}/*.pt")}
        tables = {path.stem: path for path in self._folder.glob(f"{_H5}/*.h5")}
        return visible((tensors | tables).values())

    def passed_over(self) -> Iterator[str]:
        """Yield how many masks there are: pickles, which are never opened."""
        masks = [p for f in self._beside() for s in ("*", "masks/*") for p in f.glob(f"{s}.pkl")]
        if masks:
            yield f"{len(masks)} pickles (masks of CLAM) were not opened: they can run code"

    def entry(self, path: Path) -> Entry:
        """Return what the files of one slide, and the user, say of it."""
        coords = self._coords(path.stem)
        if path.suffix == ".pt":
            return self._of_tensor(path, coords)
        with open_h5(path) as file:
            features = dataset(file, "features", 2)
            n, dim = features.shape
            dtype = real_type(path, features.dtype.name)
            check_lengths(path, n, len(dataset(file, "coords", 2, "iu")))
        if coords is not None:
            check_planned(path, n, coords.n, coords.place.path)
        return self._entry(path, Place(path, "features"), Place(path, "coords"), (n, dim, dtype))

    def _of_tensor(self, path: Path, coords: _Coords | None) -> Entry:
        tensor = read_tensor(path)
        if coords is None:
            raise ForeignBagError(
                f"{path.name}: has no coordinates, and there is no {_COORDS}/{path.stem}.h5 — add "
                "it, or the .h5 of the slide",
                "no-coords",
            )
        n, dim = tensor.shape
        check_planned(path, n, coords.n, coords.place.path)
        dtype = real_type(path, tensor.dtype.name)
        return self._entry(path, Place(path), coords.place, (n, dim, dtype))

    def _entry(self, path: Path, features: Place, coords: Place, shape: tuple) -> Entry:
        n, dim, dtype = shape
        return Entry(
            slide_id=self.slide_id(path, path.parent),
            layout=self.name,
            features=features,
            coords=coords,
            unit="px0",
            n=n,
            dim=dim,
            dtype=dtype,
            encoder=self.given.encoder or "",
            tiling=self._tiling(path),
        )

    def _tiling(self, path: Path) -> ForeignTiling:
        coords, given = self._coords(path.stem), self.given
        patch = number(coords.attributes, "patch_size") if coords else None
        if coords is not None and patch is not None:
            downsample = _downsample(coords.attributes)
            level = coords.attributes.get("patch_level", 0)
            mpp = given.tile_mpp or (given.mpp * round(downsample) if given.mpp else None)
            return ForeignTiling(int(patch), patch * downsample, mpp, 0.0, {"patch_level": level})
        tile_mpp = given.tile_mpp or given.mpp
        if given.tile_px is None or tile_mpp is None:
            return ForeignTiling(None, None, None)
        size0 = given.tile_px * tile_mpp / given.mpp if given.mpp else None
        return ForeignTiling(given.tile_px, size0, tile_mpp)

    def _coords(self, stem: str) -> _Coords | None:
        for folder in self._beside():
            path = folder / _COORDS / f"{stem}.h5"
            if path.is_file():
                with open_h5(path) as file:
                    found = dataset(file, "coords", 2, "iu")
                    return _Coords(Place(path, "coords"), len(found), attributes(found))
        return None

    def _beside(self) -> tuple[Path, ...]:
        return self._folder, self._folder.parent


def _downsample(values: Json) -> float:
    pair = values.get("downsample", 1.0)
    first = pair[0] if isinstance(pair, list) else pair
    custom = number(values, "custom_downsample") or 1.0  # of older versions
    return float(first) * custom
