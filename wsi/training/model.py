"""An aggregator and an objective, built from names and checked before work starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from wsi.aggregators import AGGREGATORS
from wsi.aggregators.base import Aggregator, Output, TileTerms
from wsi.data import BagBatch, BagDataset, unset
from wsi.errors import TrainingError
from wsi.objectives import OBJECTIVES, check_objective
from wsi.objectives.base import Objective
from wsi.specs import Config
from wsi.training.seeds import seeded

_CONSTANT = 1e-6  # a feature of smaller sd does not vary
_BLOCK = 1 << 17  # numbers standardised at a time: they stay in the processor's own cache


@dataclass(frozen=True)
class ModelCard:
    """All that is needed to build a model again, beside its weights."""

    dim: int
    classes: tuple[str, ...]
    class_counts: tuple[int, ...]
    aggregator: str
    objective: str
    aggregator_params: dict[str, Any] = field(default_factory=dict)
    objective_params: dict[str, Any] = field(default_factory=dict)


class Model(nn.Module):
    """A bag to an output by the aggregator, and to probabilities by the objective's rule.

    Features are shifted and scaled first, by nothing until `standardise` has seen training tiles.
    """

    feature_mean: Tensor
    feature_scale: Tensor

    def __init__(self, card: ModelCard, aggregator: Aggregator, objective: Objective) -> None:
        super().__init__()
        self.card = card
        self.aggregator = aggregator
        self.objective = objective
        self.register_buffer("feature_mean", torch.zeros(card.dim))
        self.register_buffer("feature_scale", torch.ones(card.dim))

    def forward(self, batch: BagBatch) -> Output:
        """Return the aggregator's output for a packed batch."""
        return self.aggregator(self._standardised(batch))

    def tile_terms(self, batch: BagBatch) -> TileTerms | None:
        """Return what each tile adds to the bag embedding; None where tiles do not add up to it."""
        packed: Any = self._standardised(batch)  # its sizes are cached, which a protocol cannot say
        return self.aggregator.tile_terms(packed)

    def scores_of(self, embedding: Tensor) -> Tensor:
        """Return the deciding scores (n, C) of bag embeddings (n, E), higher is likelier."""
        output = Output(embedding=embedding, logits=self.aggregator.classify(embedding))
        return self.objective.scores(output, self.objective.rule)

    def _standardised(self, batch: BagBatch) -> BagBatch:
        x = batch.x
        if x.device.type == "cpu" and not x.requires_grad:
            return replace(batch, x=self._in_blocks(x, _computed_type(self.feature_mean.dtype)))
        return replace(
            batch, x=(x.to(self.feature_mean.dtype) - self.feature_mean) / self.feature_scale
        )

    def _in_blocks(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Return x (N, D) shifted, scaled and then rounded to `dtype`.

        Not folded into weights of the first layer: rounding features before their mean is taken
        away would cost those that vary little about a large one all their digits.
        """
        given = unset(len(x), x.shape[1], dtype)
        rows = max(1, _BLOCK // x.shape[1])
        block = self.feature_mean.new_empty((min(rows, len(x)), x.shape[1]))
        for part, made in zip(x.split(rows), given.split(rows), strict=True):
            wide = made if dtype == block.dtype else block[: len(part)]
            wide.copy_(part).sub_(self.feature_mean).div_(self.feature_scale)
            if wide is not made:
                made.copy_(wide)
        return given

    def standardise(self, train: BagDataset) -> None:
        """Set shift and scale so that training tiles have zero mean and unit sd per feature.

        Without it, features that vary between scanners drown those that vary between tissues.
        A feature that never varies is only shifted.

        Raises:
            TrainingError: a feature is not a finite number.
        """
        n, total, squares = 0, 0.0, 0.0
        for index in range(len(train)):
            x = train.tiles(index)[0].astype(np.float64)
            if not np.isfinite(x).all():
                raise TrainingError(
                    f"{train.slide_ids[index]}: a feature is not a finite number — verify this bag"
                )
            n, total, squares = n + len(x), total + x.sum(axis=0), squares + (x**2).sum(axis=0)
        mean = total / n
        sd = np.sqrt(np.maximum(squares / n - mean**2, 0))
        self.feature_mean.copy_(torch.as_tensor(mean))
        self.feature_scale.copy_(torch.as_tensor(np.where(sd > _CONSTANT, sd, 1.0)))

    def probabilities(self, output: Output) -> Tensor:
        """Return class probabilities (B, C), float64."""
        return self.objective.probabilities(output)


def _computed_type(dtype: torch.dtype) -> torch.dtype:
    """Return the type in which the CPU multiplies matrices of `dtype` just now."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else dtype


def build(
    config: Config, dim: int, classes: Sequence[str], class_counts: Sequence[int], *, seed: int = 0
) -> Model:
    """Return a new model of the aggregator and objective named in `config`.

    Args:
        config: names and parameters, in `aggregator` and `objective`.
        dim: features per tile, D.
        classes: class names, in order.
        class_counts: training bags per class.
        seed: of the initial weights.

    Raises:
        UnknownNameError: no aggregator or objective of that name.
        ConfigError: a parameter is unknown, of the wrong type or impossible, or the objective
            compares bags of a step and a step has one.
        TrainingError: a class has no training bag.
    """
    absent = [name for name, count in zip(classes, class_counts, strict=True) if count < 1]
    if absent:
        raise TrainingError(
            f"class {', '.join(absent)} has no training bag — add slides of it or leave it out "
            "of data.classes"
        )
    card = ModelCard(
        dim=dim,
        classes=tuple(classes),
        class_counts=tuple(int(count) for count in class_counts),
        aggregator=config.aggregator.name,
        objective=config.objective.name,
        aggregator_params=AGGREGATORS.check(config.aggregator.name, config.aggregator.params),
        objective_params=check_objective(
            config.objective.name, config.objective.params, config.fit.bags_per_step
        ),
    )
    return from_card(card, seed=seed)


def from_card(card: ModelCard, *, seed: int = 0) -> Model:
    """Return the model a card describes, with new weights drawn from `seed`."""
    aggregator_params = AGGREGATORS.check(card.aggregator, card.aggregator_params)
    objective_params = OBJECTIVES.check(card.objective, card.objective_params)
    aggregator_class = AGGREGATORS.load(card.aggregator)
    objective_class = OBJECTIVES.load(card.objective)
    C = len(card.classes)
    head = C if objective_class.wants == "logits" else None
    with seeded(seed):
        aggregator = aggregator_class(card.dim, head, **aggregator_params)
        objective = objective_class(
            C, aggregator.embedding_dim, card.class_counts, **objective_params
        )
    return Model(card, aggregator, objective)
