"""Tissue: where on a slide there is something to look at."""

from __future__ import annotations

from wsi.tissue.find import METHODS, find_tissue
from wsi.tissue.mask import TissueMask

__all__ = ["METHODS", "TissueMask", "find_tissue"]
