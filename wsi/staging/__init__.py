"""Staging: a bounded local copy of the slides that are read next."""

from __future__ import annotations

from wsi.staging.stage import Stage, StageCounts

__all__ = ["Stage", "StageCounts"]
