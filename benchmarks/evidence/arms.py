"""The objectives compared, by tier."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

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
    {"label": "cosine_pc-auto", "name": "cosine_pc", "predict": "auto"},
    {"label": "ncmi-prototype", "name": "ncmi", "predict": "own"},
    {"label": "ncmi-auto", "name": "ncmi", "predict": "auto"},
    {"label": "ncmi-probe", "name": "ncmi", "predict": "probe"},
    {"label": "ncmi-ratio", "name": "ncmi", "form": "ratio"},
    {"label": "ncmi-T0.2", "name": "ncmi", "temperature": 0.2},
    {"label": "ncmi-class-mean-centroids", "name": "ncmi", "centroids": "class_mean"},
    {"label": "ncmi-learned-centroids", "name": "ncmi", "centroids": "learned"},
    {"label": "ncmi-official", "name": "ncmi", "official": True},
    {"label": "ncmi_softmax-k20", "name": "ncmi_softmax", "kappa": 20},
    {"label": "ncmi_softmax-k40", "name": "ncmi_softmax", "kappa": 40},
    {"label": "ncmi_softmax-auto", "name": "ncmi_softmax", "predict": "auto"},
    {"label": "ncmi_softmax-class-mean", "name": "ncmi_softmax", "predict": "class_mean"},
    {"label": "hybrid-1", "name": "hybrid", "weight": 1.0},
]
"""NCMI as it might be: rules, forms, temperatures, centroids, heads."""


@dataclass(frozen=True)
class Tier:
    """Arms and the seeds they are fitted with."""

    arms: list[Arm]
    seeds: tuple[int, ...]


TIERS = {
    "core": Tier(CORE, tuple(range(8))),
    "explore": Tier([*OTHERS, *VARIANTS], (0, 1)),
    "confirm": Tier(CORE, tuple(range(100, 108))),
}
"""What `confirm` compares is frozen before it is run; see docs/results/objectives.md."""
