"""Losses that compare the bags of one step."""

from __future__ import annotations

from abc import ABC
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from wsi.errors import TrainingError
from wsi.objectives.base import Objective


class Pairs(NamedTuple):
    """Which bags are compared: (B, B) bool each, a bag never with itself."""

    same: Tensor
    different: Tensor


class PairObjective(Objective, ABC):
    """An objective whose loss has a term over pairs of bags in a step.

    Training on one bag at a time is refused at the first step. Later a lone bag may come, the
    remainder of an epoch: it has no pair, and neither has a step that happens to lack the kind of
    pair that a term is a mean of. Such a term is then 0. In `eval` mode a lone bag is no error.
    """

    needs_pairs = True
    _has_seen_pairs = False

    def pairs(self, y: Tensor) -> Pairs:
        """Return the pairs among bags of classes y (B,).

        Raises:
            TrainingError: training begins with a step of one bag.
        """
        if self.training:
            if len(y) < 2 and not self._has_seen_pairs:
                raise TrainingError(
                    "this objective compares the bags of a step and was given one — "
                    "set fit.bags_per_step=8 or more, so that classes occur more than once"
                )
            self._has_seen_pairs |= len(y) > 1
        same = y[:, None] == y
        return Pairs(same & ~torch.eye(len(y), dtype=torch.bool, device=y.device), ~same)


def require_repeats(objective: str, class_counts: Sequence[int]) -> None:
    """Raise TrainingError when no class has two training bags: no pair has equal classes."""
    if max(class_counts) < 2:
        raise TrainingError(
            f"{objective} compares bags of the same class, and no class has two training bags — "
            "add bags or take an objective without pairs"
        )


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of `values` where `mask`, 0 where there is none."""
    return values.masked_fill(~mask, 0.0).sum() / mask.sum().clamp_min(1)
