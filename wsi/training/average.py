"""A moving average of the weights of training, which is validated and saved in their place.

Source: Polyak and Juditsky 1992; the exponential form as in common use, with a decay that starts
small: min(decay, (1 + t) / (10 + t)) after t updates, so that an average over thousands of steps
does not hold the first weights for the length of a short fit.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch

from wsi.training.model import Model


class WeightAverage:
    """The average of a model's parameters.

    Attributes:
        model: a copy that has the average, and shares its buffers (class centroids, a feature
            centre, what standardises) with the model that is trained.
        updates: steps seen.

    Args:
        model: what is trained.
        decay: weight of the average as it was, in 0 to 1.
    """

    def __init__(self, model: Model, decay: float) -> None:
        shared = {id(buffer): buffer for buffer in model.buffers()}
        self.model = deepcopy(model, shared).requires_grad_(False)
        self.updates = 0
        self._decay = decay

    @torch.no_grad()
    def update(self, model: Model) -> None:
        """Take in the weights after one more step."""
        kept = min(self._decay, (1 + self.updates) / (10 + self.updates))
        for held, seen in zip(self.model.parameters(), model.parameters(), strict=True):
            held.lerp_(seen, 1 - kept)
        for mine, theirs in zip(self.model.modules(), model.modules(), strict=True):
            mine._buffers.update(theirs._buffers)  # some may have been replaced
        self.updates += 1

    def state_dict(self) -> dict[str, Any]:
        """Return all of it, to go on from."""
        return {"updates": self.updates, "weights": dict(self.model.named_parameters())}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self.updates = int(state["updates"])
        with torch.no_grad():
            for name, held in self.model.named_parameters():
                held.copy_(state["weights"][name])
