"""Which tool's archive a folder is."""

from __future__ import annotations

from pathlib import Path

from wsi.bags.foreign.archive import Given, Layout
from wsi.errors import ConfigError
from wsi.registry import Registry

LAYOUTS = Registry(
    "layout",
    {
        "clam": "wsi.bags.foreign.clam:ClamLayout",
        "trident": "wsi.bags.foreign.trident:TridentLayout",
        "stamp": "wsi.bags.foreign.stamp:StampLayout",
        "atlaspatch": "wsi.bags.foreign.atlaspatch:AtlasPatchLayout",
    },
    "wsi.layouts",
)

_HASH = "-" + 8 * "[0-9a-f]"
_MARKS = {
    "clam": ("h5_files", "pt_files"),
    "trident": ("features_*", "*/features_*"),
    "stamp": (f"*{_HASH}",),
    "atlaspatch": ("patches/*.h5",),
}


def open_archive(layout: str, root: Path | str, given: Given | None = None) -> Layout:
    """Return the archive at `root` as the tool named by `layout` writes it.

    Raises:
        UnknownNameError: there is no such layout.
        ConfigError: there is no such archive.
    """
    root = Path(root)
    if not root.is_dir():
        raise ConfigError(f"{root}: no such folder — give the folder that the tool wrote")
    return LAYOUTS.load(layout)(root, given)


def layout_at(root: Path) -> str:
    """Return whose archive a folder looks like, by the names of its folders.

    Raises:
        ConfigError: it looks like none, or like several.
    """
    found = [name for name, marks in _MARKS.items() if any(next(root.glob(m), None) for m in marks)]
    # CLAM and TRIDENT have a folder of that name too, of coordinates alone.
    found = found[:-1] if len(found) > 1 and found[-1] == "atlaspatch" else found
    if len(found) != 1:
        seen = " and ".join(found) or "no tool's archive"
        raise ConfigError(f"{root}: looks like {seen} — say whose it is by --from")
    return found[0]
