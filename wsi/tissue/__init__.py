"""Tissue: where on a slide there is something to look at."""

from __future__ import annotations

from wsi.tissue.edited import EditKind, Edits, edit_path, read_edits, write_edit
from wsi.tissue.find import METHODS, find_tissue, recipe_of
from wsi.tissue.mask import TissueMask
from wsi.tissue.own import OwnTissue, check_setting, own_spec, setting_names

__all__ = [
    "METHODS",
    "EditKind",
    "Edits",
    "OwnTissue",
    "TissueMask",
    "check_setting",
    "edit_path",
    "find_tissue",
    "own_spec",
    "read_edits",
    "recipe_of",
    "setting_names",
    "write_edit",
]
