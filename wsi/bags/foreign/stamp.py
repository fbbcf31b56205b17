"""STAMP: `<extractor>-<hash>/<path>.h5`, coordinates in micrometres."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from wsi.bags.foreign.archive import (
    Entry,
    ForeignTiling,
    Given,
    Layout,
    Place,
    check_lengths,
    number,
    real_type,
    visible,
)
from wsi.bags.foreign.safe_h5 import attributes, dataset, open_h5
from wsi.errors import ConfigError, ForeignBagError

_RECORDED = ("stamp_version", "code_hash")


class StampLayout(Layout):
    """One folder per extractor; pixels need the resolution of the slide, which is not stored."""

    name: ClassVar[str] = "stamp"

    def __init__(self, root: Path, given: Given | None = None) -> None:
        self._folder = _extractor_folder(root, given.encoder if given else None)
        super().__init__(self._folder, given)

    def files(self) -> list[Path]:
        """Return the files of one extractor, those in folders too."""
        return visible(self._folder.rglob("*.h5"))

    def entry(self, path: Path) -> Entry:
        """Return what the file of one slide says of itself."""
        with open_h5(path) as file:
            said = attributes(file)
            _check_kind(path, said)
            features, coords = dataset(file, "feats", 2), dataset(file, "coords", 2)
            n, dim = features.shape
            dtype = real_type(path, features.dtype.name)
            check_lengths(path, n, len(coords))
        edge_um, tile_px = number(said, "tile_size_um"), number(said, "tile_size_px")
        if edge_um is None or tile_px is None:
            raise ForeignBagError(
                f"{path.name}: lacks tile_size_um or tile_size_px — make the file again",
                "no-tiling",
            )
        return Entry(
            slide_id=self.slide_id(path, self._folder),
            layout=self.name,
            features=Place(path, "feats"),
            coords=Place(path, "coords"),
            unit="um",
            n=n,
            dim=dim,
            dtype=dtype,
            encoder=str(said.get("extractor", "")),
            tiling=ForeignTiling(int(tile_px), None, edge_um / tile_px),
            recorded={name: said[name] for name in _RECORDED if name in said},
        )


def _check_kind(path: Path, said: dict) -> None:
    if said.get("unit") != "um":
        raise ForeignBagError(
            f"{path.name}: coordinates in '{said.get('unit')}', not um — STAMP before version 2 is "
            "not read, extract the slide again",
            "wrong-unit",
        )
    if said.get("feat_type", "tile") != "tile" or not said.get("extractor"):
        raise ForeignBagError(
            f"{path.name}: features of {said.get('feat_type', 'no extractor')}, not of tiles — "
            "give the folder of tile features",
            "wrong-type",
        )


def _extractor_folder(root: Path, extractor: str | None) -> Path:
    """Return the folder of one extractor: `root` itself, or one in it."""
    if not root.is_dir():
        raise ConfigError(f"{root}: no such folder — give the folder that STAMP wrote")
    names = {p: name for p in sorted(root.iterdir()) if p.is_dir() and (name := _extractor(p))}
    if not names and next(root.rglob("*.h5"), None) is not None:
        return root
    found = [p for p, name in names.items() if extractor in (None, name, p.name)]
    if len(found) != 1:
        listed = ", ".join(p.name for p in names) or "no <extractor>-<hash> folder"
        raise ConfigError(f"{root}: holds {listed} — give the folder of one, or --encoder")
    return found[0]


def _extractor(folder: Path) -> str:
    """Return the extractor that a folder is named after, or nothing."""
    name, _, code = folder.name.rpartition("-")
    return name if len(code) == 8 and all(c in "0123456789abcdef" for c in code) else ""
