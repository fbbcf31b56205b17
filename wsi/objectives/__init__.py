"""Objectives: what training minimises, together with the decision rule that belongs to it."""

from __future__ import annotations

from wsi.registry import Registry

OBJECTIVES = Registry(
    "objective",
    {
        "ce": "wsi.objectives.cross_entropy:CrossEntropy",
        "pc_softmax": "wsi.objectives.pc_softmax:PCSoftmax",
        "ncmi": "wsi.objectives.ncmi:NCMI",
        "ncmi_softmax": "wsi.objectives.ncmi_softmax:NCMISoftmax",
        "cosine_pc": "wsi.objectives.cosine_pc:CosinePC",
    },
    group="wsi.objectives",
)
"""The objectives by name; other packages add theirs as entry points of `wsi.objectives`."""

__all__ = ["OBJECTIVES"]
