"""What is run: models, their one recipe, folds, and the published figures to stand beside.

The recipe was chosen on validation parts of a few folds of MUSK1 and Tiger, drawn with a seed of
their own, and frozen before any test part was looked at.
"""

from __future__ import annotations

from benchmarks.evidence.sets import CLASSIC
from wsi.files import sha256_json

FOLDS, REPETITIONS = 10, 5
MODELS = {
    "gated": ("aggregator=abmil", "aggregator.gated=true"),
    "attention": ("aggregator=abmil", "aggregator.gated=false"),
}
RECIPE = (
    "aggregator.hidden=64",
    "aggregator.attention_dim=64",
    "fit.bags_per_step=16",
    "fit.epochs=20",
    "fit.patience=20",
    "fit.lr=3e-3",
    "fit.monitor=loss",
)
DIGIT_RECIPE = (
    "aggregator.hidden=64",
    "aggregator.attention_dim=64",
    "fit.bags_per_step=8",
    "fit.epochs=20",
    "fit.patience=20",
    "fit.lr=1e-2",
    "fit.monitor=auc",
)
DIGITS = "digit-bags-2"
DIGIT_SEEDS = 5
SHORT = ("fit.epochs=2", "fit.patience=2")

PUBLISHED = {
    "musk1": {"attention": 0.892, "gated": 0.900},
    "musk2": {"attention": 0.858, "gated": 0.863},
    "fox": {"attention": 0.615, "gated": 0.603},
    "tiger": {"attention": 0.839, "gated": 0.845},
    "elephant": {"attention": 0.868, "gated": 0.857},
}
"""Accuracies. Source: Ilse et al. 2018, table 1."""


def words_of(name: str, model: str, *, short: bool) -> tuple[str, ...]:
    """Return the settings of a model on a data set."""
    recipe = DIGIT_RECIPE if name == DIGITS else RECIPE
    return (*MODELS[model], *recipe, *(SHORT if short else ()))


def key_of(words: tuple[str, ...], splits_hash: str) -> str:
    """Return what tells a fit of other settings or folds apart."""
    return sha256_json({"words": list(words), "splits": splits_hash})[:16]


__all__ = ["CLASSIC", "DIGITS", "DIGIT_SEEDS", "FOLDS", "MODELS", "PUBLISHED", "REPETITIONS"]
