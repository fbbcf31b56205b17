"""Supervised contrastive loss: bags of a class drawn together, without a classifier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from wsi.objectives.base import BagOutput
from wsi.objectives.checks import require_positive, require_within
from wsi.objectives.heads import cosines, project_embedding
from wsi.objectives.pairs import PairObjective, masked_mean, require_repeats
from wsi.objectives.rules import Predict, means_of_present

_MOMENTUM = 0.9  # of the class directions


class SupCon(PairObjective):
    """Supervised contrastive loss: bags of a class drawn together, no classifier (pairs).

    mean_i -1/|P(i)| sum_{p in P(i)} log [e^{z_i.z_p / T} / sum_{a != i} e^{z_i.z_a / T}].

    z is the unit-length projection of the bag embedding, by a network of one hidden layer, and P(i)
    the other bags of the class of i in the step. Bags without one are no anchors, and a step
    without any pair of equal classes has loss 0. The paper draws two views of each image. A bag has
    one, or with `views=2` two by dropout on its embedding.

    There is no head: by default the nearest class mean of embeddings decides. While training, the
    own rule stands in: softmax(z.v_c / T), v_c the running mean direction of class c.

    Args:
        n_classes: C.
        embedding_dim: E of the aggregator.
        class_counts: training bags per class.
        temperature: T.
        m: dimensions of the projection; 128 in the paper.
        views: 1, or 2 by dropout.
        dropout: share of the embedding dropped in each of two views.
        predict: which rule decides; see `wsi.objectives.rules`.

    Raises:
        TrainingError: no class has two training bags.

    Source: Khosla et al. 2020 (arXiv 2004.11362), eq. 2.
    """

    wants = "embedding"
    own_prior = None
    directions: Tensor

    def __init__(
        self,
        n_classes: int,
        embedding_dim: int,
        class_counts: Sequence[int],
        *,
        temperature: float = 0.1,
        m: int = 128,
        views: Literal[1, 2] = 1,
        dropout: float = 0.1,
        predict: Predict = "class_mean",
    ) -> None:
        super().__init__(n_classes, embedding_dim, class_counts, predict=predict)
        require_positive("supcon", temperature=temperature, m=m)
        require_within("supcon", 0, 0.9, dropout=dropout)
        require_repeats("supcon", class_counts)
        self._temperature, self._views = temperature, views
        self.projection = nn.Sequential(
            nn.Linear(embedding_dim, embedding_dim), nn.ReLU(), nn.Linear(embedding_dim, m)
        )
        self._dropout = nn.Dropout(dropout)
        self.register_buffer("directions", torch.zeros(n_classes, m))

    def forward(self, output: BagOutput, y: Tensor) -> Tensor:
        """Return the mean contrastive loss in nats."""
        self.pairs(y)  # refuses to begin with one bag
        z, labels = self._views_of(output, y)
        others = ~torch.eye(len(labels), dtype=torch.bool, device=y.device)
        positive = (labels[:, None] == labels) & others
        similarity = cosines(z, z) / self._temperature
        if len(labels) < 2:
            return 0 * z.sum()
        count = positive.sum(-1)
        rest = similarity.masked_fill(~others, float("-inf")).logsumexp(-1)
        pulled = (positive * similarity).sum(-1) / count.clamp_min(1)
        return masked_mean(rest - pulled, count > 0)

    def own_scores(self, output: BagOutput) -> Tensor:
        """Return z.v_c / T (B, C); 0 for a class that has not been seen."""
        z = project_embedding(self.projection, output.embedding)
        return cosines(z, self.directions) / self._temperature

    @torch.no_grad()
    def after_step(self, output: BagOutput, y: Tensor) -> None:
        """Turn the directions of the classes present towards their mean z."""
        z = functional.normalize(project_embedding(self.projection, output.embedding), dim=-1)
        mean, present = means_of_present(z, y, self.n_classes)
        # Scores take the direction alone, so that starting from 0 needs no correction.
        moved = self.directions.lerp(mean.to(self.directions), 1 - _MOMENTUM)
        self.directions.copy_(torch.where(present, moved, self.directions))

    def _views_of(self, output: BagOutput, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return projections (V B, m) and their classes (V B,)."""
        if self._views == 1 or not self.training:
            return project_embedding(self.projection, output.embedding), y
        twice = self._dropout(torch.cat([output.embedding, output.embedding]))
        return project_embedding(self.projection, twice), torch.cat([y, y])
