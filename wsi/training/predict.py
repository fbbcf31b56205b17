"""What a trained model says about bags; labels are out of its reach."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch

from wsi.aggregators.base import Output
from wsi.data import BagBatch, BagDataset, whole_bags
from wsi.errors import TrainingError
from wsi.training.model import Model


class Predicted(NamedTuple):
    """Predictions for n slides, in the order of the data set.

    Attributes:
        slide_ids: the n ids.
        probabilities: (n, C) float64, rows summing to 1.
        embeddings: (n, E) float32.
        attention: per slide (N, H) float32, or None when not asked for or not to be had.
    """

    slide_ids: tuple[str, ...]
    probabilities: np.ndarray
    embeddings: np.ndarray
    attention: tuple[np.ndarray, ...] | None = None


@torch.no_grad()
def predict(
    model: Model,
    dataset: BagDataset,
    device: torch.device | str = "cpu",
    *,
    attention: bool = False,
) -> Predicted:
    """Return the model's predictions for every slide, from all its tiles.

    Labels of `dataset` are dropped before the first bag is read.

    Raises:
        TrainingError: a probability is not finite, or there is no slide.
    """
    if len(dataset) == 0:
        raise TrainingError("there is no slide to predict — give at least one")
    model = model.to(device)
    probabilities, embeddings, weights = [], [], []
    for batch, output in evaluated(model, dataset.unlabelled(), device):
        p = model.probabilities(output).cpu().numpy()
        if not np.isfinite(p).all():
            raise TrainingError(
                f"{batch.slide_ids[0]}: a predicted probability is not a finite number — "
                "verify the bag and the checkpoint"
            )
        probabilities.append(p)
        embeddings.append(output.embedding.float().cpu().numpy())
        if attention and output.attention is not None:
            weights.append(output.attention.float().cpu().numpy())
    return Predicted(
        slide_ids=dataset.slide_ids,
        probabilities=np.concatenate(probabilities),
        embeddings=np.concatenate(embeddings),
        attention=tuple(weights) if weights else None,
    )


def evaluated(
    model: Model, dataset: BagDataset, device: torch.device | str, most_tiles: int = 0
) -> Iterator[tuple[BagBatch, Output]]:
    """Yield each bag with the model's output, in evaluation mode and without gradient.

    Args:
        most_tiles: see `wsi.data.whole_bags`.
    """
    was_training = model.training
    model.eval()
    try:
        for batch in whole_bags(dataset, most_tiles):
            batch = batch.to(device)
            with torch.no_grad():
                output = model(batch)
            yield batch, output
    finally:
        model.train(was_training)
