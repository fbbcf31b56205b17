"""Objectives: what training minimises, together with the decision rule that belongs to it."""

from __future__ import annotations

from wsi.registry import Registry

OBJECTIVES = Registry(
    "objective",
    {
        "ce": "wsi.objectives.cross_entropy:CrossEntropy",
        "ncmi": "wsi.objectives.ncmi:NCMI",
        "hybrid": "wsi.objectives.hybrid:Hybrid",
    },
    group="wsi.objectives",
)
"""The objectives by name; other packages add theirs as entry points of `wsi.objectives`."""

__all__ = ["OBJECTIVES"]
