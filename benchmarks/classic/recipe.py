"""What is run: models, their recipes, folds, and the published figures to stand beside.

As in the paper, MUSK has one recipe and the Corel sets another. They were chosen on validation
parts of six folds of MUSK1 and of Tiger, drawn with a seed of their own, and frozen before any
test part was looked at.
"""

from __future__ import annotations

from benchmarks.evidence.sets import CLASSIC
from wsi.files import sha256_json

FOLDS, REPETITIONS = 10, 5
MODELS = {
    "gated": ("aggregator=abmil", "aggregator.gated=true"),
    "attention": ("aggregator=abmil", "aggregator.gated=false"),
    "gated, unselected": ("aggregator=abmil", "aggregator.gated=true"),
}
UNSELECTED = "gated, unselected"
"""Learns from the validation bags, too, and its last epoch stands: the protocol of the paper."""

_ALL = (
    "aggregator.hidden=64",
    "aggregator.attention_dim=64",
    "aggregator.dropout=.5",
    "fit.epochs=20",
    "fit.patience=20",
    "fit.lr=1e-2",
    "fit.monitor=auc",
)
_MUSK = (*_ALL, "fit.bags_per_step=16")
_COREL = (*_MUSK, "fit.weight_decay=5")
RECIPES = {
    "musk1": _MUSK,
    "musk2": _MUSK,
    "elephant": _COREL,
    "fox": _COREL,
    "tiger": _COREL,
    "digit-bags-2": (*_ALL, "fit.bags_per_step=16", "fit.weight_decay=1"),
}
DIGITS = "digit-bags-2"
DIGIT_SEEDS = 5
SHORT = ("fit.epochs=2", "fit.patience=2")

PUBLISHED = {
    "musk1": {"attention": 0.892, "gated": 0.900, UNSELECTED: 0.900},
    "musk2": {"attention": 0.858, "gated": 0.863, UNSELECTED: 0.863},
    "fox": {"attention": 0.615, "gated": 0.603, UNSELECTED: 0.603},
    "tiger": {"attention": 0.839, "gated": 0.845, UNSELECTED: 0.845},
    "elephant": {"attention": 0.868, "gated": 0.857, UNSELECTED: 0.857},
}
"""Accuracies. Source: Ilse et al. 2018, table 1."""


def words_of(name: str, model: str, *, short: bool) -> tuple[str, ...]:
    """Return the settings of a model on a data set."""
    return (*MODELS[model], *RECIPES[name], *(SHORT if short else ()))


def key_of(words: tuple[str, ...], splits_hash: str) -> str:
    """Return what tells a fit of other settings or folds apart."""
    return sha256_json({"words": list(words), "splits": splits_hash})[:16]


__all__ = [
    "CLASSIC",
    "DIGITS",
    "DIGIT_SEEDS",
    "FOLDS",
    "MODELS",
    "PUBLISHED",
    "REPETITIONS",
    "UNSELECTED",
]
