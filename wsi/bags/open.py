"""Finding the bags a path means."""

from __future__ import annotations

import itertools
import os
from collections import defaultdict
from pathlib import Path

from wsi.bags.base import BagStore
from wsi.bags.sidecar import CORRUPT, PACKED, SUFFIX, read_sidecar, sidecar_paths
from wsi.errors import BagCorruptError, BagMismatchError, BagMissingError, ConfigError
from wsi.files import TEMPORARY_PREFIX
from wsi.registry import Registry

BAGS = "bags"
"""Folder of an output folder that holds the recipes."""

_NO_BAGS = ("thumbnails", "quarantine")  # beside it, with JSON of their own

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


def any_store(path: Path | str) -> BagStore:
    """Return the bags at `path` even where no sidecar is left that is sound: to look at damage.

    Raises:
        BagMissingError: there is neither a bag nor a sidecar.
        BagMismatchError: there are several recipes or formats.
    """
    try:
        return open_store(path)
    except BagMissingError:
        root = Path(path)
        folders = [root, *filter(_is_recipe, sorted(root.iterdir()))] if root.is_dir() else []
        for folder in folders:
            stores = [STORES.load(name)(folder) for name in STORES.names()]
            known = [s for s in stores if any(folder.glob(f"*{s.suffix}")) or s.stray()]
            if known or sidecar_paths(folder):
                return (known or stores)[0]
        raise


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
    if (path / BAGS).is_dir():  # an output folder, whose other parts hold JSON, too
        path = path / BAGS
    if sidecar_paths(path):
        _refuse_others(path)
        return path
    recipes = sorted(p for p in path.iterdir() if _is_recipe(p) and sidecar_paths(p))
    if not recipes:
        raise BagMissingError(f"{path}: no bags — run `wsi preprocess --slides DIR --out OUT`")
    if len(recipes) > 1:
        names = ", ".join(p.name for p in recipes)
        raise BagMismatchError(f"{path}: holds {len(recipes)} recipes — give one of {names}")
    return recipes[0]


def _refuse_others(path: Path) -> None:
    """Raise BagMissingError for a folder of a run's outputs whose JSON files are no sidecars."""
    if path.name in _NO_BAGS and (path.parent / "slides.csv").is_file():
        raise BagMissingError(
            f"{path}: holds no bags — give {path.parent / BAGS}, or a recipe in it"
        )


def _is_recipe(path: Path) -> bool:
    aside = path.name in (CORRUPT, PACKED) or path.name.startswith(TEMPORARY_PREFIX)
    return path.is_dir() and not aside


def _formats(root: Path) -> set[str]:
    """Return the formats of the bags in `root`.

    One sound sidecar speaks for all that have a file of its suffix beside them: reading those of
    a large archive takes longer than what most callers go on to do.
    """
    formats: set[str] = set()
    for suffix, paths in _by_suffix(root).items():
        found = (fmt for path in paths if (fmt := _format(path)))
        formats |= set(found) if suffix is None else set(itertools.islice(found, 1))
    return formats


def _by_suffix(root: Path) -> dict[str | None, list[Path]]:
    """Return the sidecars by the suffix of the file beside them, None where there is no file."""
    paths = {path.name.removesuffix(SUFFIX): path for path in sidecar_paths(root)}
    beside: dict[str, str] = {}
    for name in os.listdir(root) if paths else ():  # noqa: PTH208, as in sidecar_paths
        dots = (k for k, character in enumerate(name) if character == "." and name[k:] != SUFFIX)
        beside.update((name[:k], name[k:]) for k in dots if name[:k] in paths)
    by_suffix: dict[str | None, list[Path]] = defaultdict(list)
    for stem, path in paths.items():
        by_suffix[beside.get(stem)].append(path)
    return by_suffix


def _format(path: Path) -> str | None:
    try:
        return read_sidecar(path).format
    except (BagCorruptError, FileNotFoundError):
        return None  # named by `verify`; here only sound sidecars speak
