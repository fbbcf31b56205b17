"""What is logged of each epoch beside loss and monitor: the objective's own figures, accuracy."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wsi.aggregators.base import Output
from wsi.objectives.base import BagOutput, Objective


def epoch_figures(
    objective: Objective, outputs: Iterable[tuple[BagOutput, Tensor]]
) -> dict[str, Any]:
    """Return the objective's figures of the bags as JSON has them; undefined ones are None.

    An objective without figures does not draw the outputs, so what makes them does not run.
    """
    with torch.no_grad():
        return json_able(objective.figures(as_one(outputs)))


def as_one(outputs: Iterable[tuple[BagOutput, Tensor]]) -> Iterator[tuple[Output, Tensor]]:
    """Yield all outputs as one of n bags: embedding (n, E), logits (n, C) or None, y (n,)."""
    # Without attention and evidence, which are as large as the tiles.
    seen = [(output.embedding, output.logits, y) for output, y in outputs]
    if seen:
        embeddings, logits, labels = zip(*seen)
        joined = None if logits[0] is None else torch.cat(logits)
        yield Output(torch.cat(embeddings), joined), torch.cat(labels)


def prediction_figures(y: np.ndarray, p: np.ndarray) -> dict[str, Any]:
    """Return bags, accuracy, and bags and predictions of each class, of y (n,) and p (n, C)."""
    decided, C = p.argmax(1), p.shape[1]
    return {
        "bags": len(y),
        "accuracy": float((decided == y).mean()),
        "bags_by_class": np.bincount(y, minlength=C).tolist(),
        "predicted": np.bincount(decided, minlength=C).tolist(),
    }


def json_able(value: Any) -> Any:
    """Return figures as plain numbers, lists and dictionaries, NaN and infinity as None."""
    if isinstance(value, Tensor | np.ndarray | np.generic):
        return json_able(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): json_able(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [json_able(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
