"""What every objective takes, gives and may hook into."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from wsi.errors import TrainingError


class BagOutput(Protocol):
    """What an objective reads of an aggregator's output."""

    @property
    def embedding(self) -> Tensor: ...
    @property
    def logits(self) -> Tensor | None: ...


LabelledOutputs = Iterable[tuple[BagOutput, Tensor]]
"""Outputs of one or more bags with their class indices (B,), each seen once."""


class Objective(nn.Module, ABC):
    """A loss with its decision rule; all it learns is in its state_dict.

    Subclasses take `(n_classes, embedding_dim, class_counts, *, <settings>)`. With `wants` set to
    `embedding` the aggregator is built without a head and the objective owns what follows.

    Args:
        n_classes: C.
        embedding_dim: E of the aggregator.
        class_counts: training bags per class, all above 0.

    Raises:
        TrainingError: a class has no training bag.
    """

    wants: ClassVar[Literal["logits", "embedding"]] = "logits"
    class_counts: Tensor

    def __init__(self, n_classes: int, embedding_dim: int, class_counts: Sequence[int]) -> None:
        super().__init__()
        if n_classes < 2 or len(class_counts) != n_classes:
            raise TrainingError(
                f"{len(class_counts)} class counts were given for {n_classes} classes — "
                "give one count for each of at least 2 classes"
            )
        absent = [str(c) for c, count in enumerate(class_counts) if count < 1]
        if absent:
            raise TrainingError(
                f"class {', '.join(absent)} has no training bag — add bags or leave the class out "
                "of data.classes"
            )
        self.n_classes = n_classes
        self.embedding_dim = embedding_dim
        self.register_buffer("class_counts", torch.tensor(list(class_counts), dtype=torch.int64))

    @abstractmethod
    def forward(self, output: BagOutput, y: Tensor) -> Tensor:
        """Return the loss, a scalar, of B bags with classes y (B,) int64."""

    @abstractmethod
    def probabilities(self, output: BagOutput) -> Tensor:
        """Return (B, C) float64 by this objective's decision rule; rows sum to 1."""

    def before_fit(self, outputs: LabelledOutputs) -> None:
        """See every training bag once before the first step, without gradient."""

    def after_step(self, output: BagOutput, y: Tensor) -> None:
        """See the batch again after the optimiser's step."""

    def after_fit(
        self, train_outputs: LabelledOutputs, val_outputs: LabelledOutputs | None
    ) -> None:
        """Settle the decision rule from training and validation bags, without gradient."""

    def balanced_weights(self) -> Tensor:
        """Return 1 / (C pi_y) per class (C,), pi the training frequencies; 1 when balanced."""
        counts = self.class_counts.double()
        return (counts.sum() / (self.n_classes * counts)).float()


def class_logits(output: BagOutput) -> Tensor:
    """Return the logits (B, C), or raise TrainingError when the aggregator has no head."""
    if output.logits is None:
        raise TrainingError(
            "this objective needs class logits, the aggregator has no head — "
            "build the aggregator with n_classes"
        )
    return output.logits
