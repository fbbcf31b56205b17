"""Objectives: what training minimises, together with the decision rule that belongs to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wsi.errors import ConfigError
from wsi.registry import Registry

OBJECTIVES = Registry(
    "objective",
    {
        "ce": "wsi.objectives.cross_entropy:CrossEntropy",
        "pc_softmax": "wsi.objectives.pc_softmax:PCSoftmax",
        "ncmi": "wsi.objectives.ncmi:NCMI",
        "hybrid": "wsi.objectives.hybrid:Hybrid",
        "ncmi_softmax": "wsi.objectives.ncmi_softmax:NCMISoftmax",
        "ncmi_harmonic": "wsi.objectives.ncmi_harmonic:NCMIHarmonic",
        "cosine_pc": "wsi.objectives.cosine_pc:CosinePC",
        "cosine_ce": "wsi.objectives.cosine_ce:CosineCE",
        "dot_regression": "wsi.objectives.dot_regression:DotRegression",
        "focal": "wsi.objectives.focal:Focal",
        "square": "wsi.objectives.square:Square",
        "squentropy": "wsi.objectives.squentropy:Squentropy",
        "center": "wsi.objectives.center:Center",
        "opl": "wsi.objectives.opl:OPL",
        "supcon": "wsi.objectives.supcon:SupCon",
        "cmic": "wsi.objectives.cmic:CMIC",
    },
    group="wsi.objectives",
)
"""The objectives by name; other packages add theirs as entry points of `wsi.objectives`."""


def check_objective(
    name: str, params: Mapping[str, Any], bags_per_step: int, n_classes: int | None = None
) -> dict[str, Any]:
    """Return `params` converted to the types of the objective's settings.

    Args:
        n_classes: C where it is known; the objective is then made once, to see that its settings
            agree with each other and with that many classes.

    Raises:
        UnknownNameError: no objective of that name.
        ConfigError: a setting is unknown, of the wrong type, impossible or against another, or the
            objective compares bags of a step and a step has one.
    """
    checked = OBJECTIVES.check(name, params)
    if bags_per_step < 2 and OBJECTIVES.load(name).compares_bags(checked):
        raise ConfigError(
            f"objective '{name}' compares the bags of a step, and fit.bags_per_step={bags_per_step}"
            " — set fit.bags_per_step=8 or more, so that classes occur more than once"
        )
    if n_classes is not None:
        import torch

        with torch.random.fork_rng(devices=[]):
            OBJECTIVES.load(name)(n_classes, _WIDE, [2] * n_classes, **checked)
    return checked


_WIDE = 1024  # an embedding as wide as any setting asks for

__all__ = ["OBJECTIVES", "check_objective"]
