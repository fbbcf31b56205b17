"""Finding the bags a path means."""

from __future__ import annotations

from pathlib import Path

from wsi.bags.base import BagStore
from wsi.bags.sidecar import read_sidecar, sidecar_paths
from wsi.errors import BagCorruptError, BagMismatchError, BagMissingError, ConfigError
from wsi.registry import Registry

STORES = Registry(
    "store",
    {"h5": "wsi.bags.h5:H5Store", "zarr": "wsi.bags.zarr_zip:ZarrStore"},
    "wsi.stores",
)
FOREIGN = "foreign"
"""Format of bags left where another tool wrote them; none can be made, so none is on offer."""


def open_store(path: Path | str, fmt: str | None = None) -> BagStore:
    """Return the bags at `path`, their format read from the sidecars.

    Args:
        path: a recipe folder, or the folder of recipes while it holds exactly one.
        fmt: the format they must have; any when not given.

    Raises:
        BagMissingError: there are no valid bags.
        BagMismatchError: there are several recipes or formats, or another format than `fmt`.
    """
    root = _recipe_folder(Path(path))
    found = _formats(root)
    if not found:
        raise BagMissingError(
            f"{root}: no valid sidecar — run `wsi bags verify {root}`, or `wsi preprocess` anew"
        )
    if len(found) > 1 or fmt not in (None, *found):
        raise BagMismatchError(
            f"{root}: holds bags of format {' and '.join(sorted(found))}"
            f"{f', not {fmt}' if fmt else ''} — keep one format per folder, see `wsi bags convert`"
        )
    return _store_class(found.pop())(root)


def create_store(path: Path | str, fmt: str = "h5") -> BagStore:
    """Return the store of `fmt` at `path`, made if need be.

    Raises:
        UnknownNameError: there is no such format.
        BagMismatchError: bags of another format lie there.
    """
    root = Path(path)
    store = _store_class(fmt)(root)
    if root.exists() and not root.is_dir():
        raise ConfigError(f"{root}: is a file — give a folder for bags")
    others = _formats(root) - {fmt}
    if others:
        raise BagMismatchError(
            f"{root}: already holds {' and '.join(sorted(others))} bags — give another folder, "
            "or convert them with `wsi bags convert`"
        )
    root.mkdir(parents=True, exist_ok=True)
    return store


def _store_class(fmt: str) -> type[BagStore]:
    if fmt == FOREIGN:
        from wsi.bags.foreign.store import ForeignStore

        return ForeignStore
    return STORES.load(fmt)


def _recipe_folder(path: Path) -> Path:
    if not path.is_dir():
        raise BagMissingError(f"{path}: no such folder — run `wsi preprocess` first")
    if sidecar_paths(path):
        return path
    recipes = sorted(p for p in path.iterdir() if p.is_dir() and sidecar_paths(p))
    if not recipes:
        raise BagMissingError(f"{path}: no bags — run `wsi preprocess --slides DIR --out OUT`")
    if len(recipes) > 1:
        names = ", ".join(p.name for p in recipes)
        raise BagMismatchError(f"{path}: holds {len(recipes)} recipes — give one of {names}")
    return recipes[0]


def _formats(root: Path) -> set[str]:
    formats = set()
    for path in sidecar_paths(root):
        try:
            formats.add(read_sidecar(path).format)
        except (BagCorruptError, FileNotFoundError):
            continue  # named by `verify`; here only sound sidecars speak
    return formats
