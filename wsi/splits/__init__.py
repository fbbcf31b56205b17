"""Splits: which slides train, validate and test, drawn by patient and written with a hash."""

from __future__ import annotations

from wsi.splits.draw import make_splits
from wsi.splits.folds import Fold, Splits
from wsi.splits.table import read_splits, write_splits

__all__ = ["Fold", "Splits", "make_splits", "read_splits", "write_splits"]
