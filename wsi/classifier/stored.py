"""A classifier in one safetensors file: a checkpoint, with parameters and classes in its header."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from wsi.classifier.labels import as_array, storable
from wsi.training.checkpoint import Origin, described, load, save
from wsi.training.model import Model

_PART = "classifier"


def write(
    path: Path, model: Model, origin: Origin, params: Mapping[str, Any], classes: np.ndarray
) -> None:
    """Write a trained classifier; its labels keep their kind."""
    save(path, model, origin, {_PART: {"params": dict(params), "classes": storable(classes)}})


def read(path: Path) -> tuple[Model, Origin, dict[str, Any], np.ndarray]:
    """Return model, origin, parameters and classes of a checkpoint.

    One of `wsi train` has the parameters that its model tells, and text as classes.
    """
    model, origin = load(path)
    own = described(path).get(_PART)
    if own is not None:
        return model, origin, own["params"], as_array(own["classes"])
    card = model.card
    params = {
        "aggregator": card.aggregator,
        "objective": card.objective,
        "aggregator_params": card.aggregator_params or None,
        "objective_params": card.objective_params or None,
        "monitor": origin.monitor,
    }
    return model, origin, params, as_array(card.classes)
