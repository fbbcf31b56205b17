"""Aggregators: a bag of tile features to one embedding and class logits."""

from __future__ import annotations

from wsi.registry import Registry

AGGREGATORS = Registry(
    "aggregator",
    {
        "abmil": "wsi.aggregators.abmil:ABMIL",
        "mean": "wsi.aggregators.pooling:MeanPooling",
        "max": "wsi.aggregators.pooling:MaxPooling",
        "lse": "wsi.aggregators.pooling:LSEPooling",
        "topk": "wsi.aggregators.topk:TopK",
        "abmil_mb": "wsi.aggregators.branches:MultiBranchABMIL",
        "additive": "wsi.aggregators.additive:AdditiveMIL",
        "clam_sb": "wsi.aggregators.clam:CLAMSB",
        "clam_mb": "wsi.aggregators.clam:CLAMMB",
        "dsmil": "wsi.aggregators.dsmil:DSMIL",
    },
    group="wsi.aggregators",
)
"""The aggregators by name; other packages add theirs as entry points of `wsi.aggregators`."""

__all__ = ["AGGREGATORS"]
