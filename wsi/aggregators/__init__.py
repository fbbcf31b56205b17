"""Aggregators: a bag of tile features to one embedding and class logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

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
        "transmil": "wsi.aggregators.transmil:TransMIL",
        "dtfd": "wsi.aggregators.dtfd:DTFD",
        "acmil": "wsi.aggregators.acmil:ACMIL",
        "ilra": "wsi.aggregators.ilra:ILRA",
        "transformer": "wsi.aggregators.transformer:Transformer",
    },
    group="wsi.aggregators",
)
"""The aggregators by name; other packages add theirs as entry points of `wsi.aggregators`."""


def check_aggregator(
    name: str, params: Mapping[str, Any], wants: Literal["logits", "embedding"]
) -> dict[str, Any]:
    """Return `params` converted to the types of the aggregator's settings.

    It is made once, to see that its settings agree with each other and with what the objective
    `wants` of it.

    Raises:
        UnknownNameError: no aggregator of that name.
        ConfigError: a setting is unknown, of the wrong type, impossible or against another, or
            the aggregator needs classes and the objective works on the embedding.
    """
    import torch

    checked = AGGREGATORS.check(name, params)
    with torch.random.fork_rng(devices=[]):
        AGGREGATORS.load(name)(_DIM, 2 if wants == "logits" else None, **checked)
    return checked


_DIM = 64  # features per tile of that one

__all__ = ["AGGREGATORS", "check_aggregator"]
