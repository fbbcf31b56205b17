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
