"""The objectives compared, by tier."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from benchmarks.evidence import sets

Arm = dict[str, Any] | str

CORE: list[Arm] = ["ce", "balanced-ce", "pc_softmax", "cosine_pc", "ncmi", "ncmi_softmax"]

OTHERS: list[Arm] = [
    "ce",
    "balanced-ce",
    "pc_softmax",
    {"label": "label-smoothing", "name": "ce", "label_smoothing": 0.1},
    "focal",
    "square",
    "squentropy",
    "opl",
    "supcon",
    "cmic",
    "center",
    "cosine_ce",
    "cosine_pc",
    "dot_regression",
    "ncmi_harmonic",
    "hybrid",
]
"""Every other loss, beside the rivals and the control."""

VARIANTS: list[Arm] = [
    {"label": "ce-class-mean", "name": "ce", "predict": "class_mean"},
    {"label": "ce-auto", "name": "ce", "predict": "auto"},
    {"label": "cosine_pc-balanced", "name": "cosine_pc", "weight": "balanced"},
    {"label": "cosine_pc-auto", "name": "cosine_pc", "predict": "auto"},
    {"label": "ncmi-prototype", "name": "ncmi", "predict": "own"},
    {"label": "ncmi-auto", "name": "ncmi", "predict": "auto"},
    {"label": "ncmi-probe", "name": "ncmi", "predict": "probe"},
    {"label": "ncmi-ratio", "name": "ncmi", "form": "ratio"},
    {"label": "ncmi-T0.2", "name": "ncmi", "temperature": 0.2},
    {"label": "ncmi-unbalanced", "name": "ncmi", "balanced": False},
    {"label": "ncmi-class-mean-centroids", "name": "ncmi", "centroids": "class_mean"},
    {
        "label": "ncmi-learned",
        "name": "ncmi",
        "centroids": "learned",
        "centroid_lr": 1e-3,
    },
    {"label": "ncmi-official", "name": "ncmi", "official": True},
    {"label": "ncmi_softmax-balanced", "name": "ncmi_softmax", "weight": "balanced"},
    {"label": "ncmi_softmax-k10", "name": "ncmi_softmax", "kappa": 10},
    {"label": "ncmi_softmax-k40", "name": "ncmi_softmax", "kappa": 40},
    {"label": "ncmi_softmax-auto", "name": "ncmi_softmax", "predict": "auto"},
    {"label": "ncmi_softmax-class-mean", "name": "ncmi_softmax", "predict": "class_mean"},
    {"label": "hybrid-1", "name": "hybrid", "weight": 1.0},
]
"""NCMI as it might be: rules, forms, temperatures, centroids, heads."""


FROZEN: list[Arm] = [
    {"label": "ncmi-prototype", "name": "ncmi", "predict": "own"},
    {"label": "ncmi_softmax-auto", "name": "ncmi_softmax", "predict": "auto"},
    {"label": "cosine_pc-auto", "name": "cosine_pc", "predict": "auto"},
    {"label": "ce-class-mean", "name": "ce", "predict": "class_mean"},
]
"""What is confirmed beside the core: NCMI by its prototypes, for labels that are wrong; the softmax
of divergences by the rule chosen on validation, for few and uneven bags; and their controls, the
cosine and cross-entropy with the same freedom of rule. Frozen after the exploratory tier."""


@dataclass(frozen=True)
class Tier:
    """Arms, the seeds they are fitted with, the rates tried, and on which data.

    Attributes:
        rate_seeds: how many of the seeds tune the rate.
        fresh: data drawn anew, and what was kept back: new stains, the classic MIL sets.
        only: names of the data sets, by their beginnings; all when empty.
    """

    arms: list[Arm]
    seeds: tuple[int, ...]
    rates: tuple[float, ...] = (3e-3, 1e-2, 3e-2, 1e-1)
    rate_seeds: int = 2
    fresh: bool = False
    only: tuple[str, ...] = ()

    def takes(self, name: str) -> bool:
        """Return whether a data set belongs to the tier."""
        return not self.only or name.startswith(self.only)


TIERS = {
    "core": Tier(CORE, tuple(range(8))),
    "explore": Tier(
        [*OTHERS, *VARIANTS],
        (0, 1),
        rates=(1e-2, 3e-2),
        rate_seeds=1,
        only=("digit-bags-4", "digit-images-30", "cohort-across"),
    ),
    "confirm": Tier(
        [*CORE, *FROZEN],
        tuple(range(100, 108)),
        rate_seeds=1,
        fresh=True,
        only=("digit-images-30", "digit-bags-4", "cohort-across-sites"),
    ),
    "classic": Tier(
        CORE,
        tuple(range(100, 108)),
        rate_seeds=1,
        only=sets.CLASSIC,
    ),
}
"""What `confirm` and `classic` compare was frozen before they were run, once."""
