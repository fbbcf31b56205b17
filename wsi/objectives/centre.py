"""The feature centre: what is subtracted from an embedding before its direction is taken."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from wsi.errors import TrainingError
from wsi.objectives.totals import processes, total

CentreKind = Literal["none", "fixed", "ema"]


class Centre(nn.Module):
    """mu (m,): nothing, a constant, or a moving average of batch means.

    The moving average is bias-corrected: after t batches each counts by d^(t - s), s its number,
    as if there had been none before the first. With `first_copy` the first batch's mean counts
    in full and later ones by 1 - d, as in the authors' code.

    Args:
        m: dimensions.
        kind: `none`, `fixed` (the mean over one pass) or `ema`.
        momentum: d of the moving average.
        first_copy: copy the first mean, from however few rows.
    """

    value: Tensor
    mass: Tensor
    seen: Tensor

    def __init__(
        self, m: int, kind: CentreKind, *, momentum: float, first_copy: bool = False
    ) -> None:
        super().__init__()
        self.kind: CentreKind = kind
        self._momentum, self._first_copy = momentum, first_copy
        self._checked = kind != "fixed"
        self.register_buffer("value", torch.zeros(m))
        self.register_buffer("mass", torch.tensor(0.0, dtype=torch.float64))
        self.register_buffer("seen", torch.zeros(m))

    def forward(self) -> Tensor | None:
        """Return mu (m,), or None where nothing is subtracted.

        Raises:
            TrainingError: a fixed centre has not been set.
        """
        if not self._checked:
            if not self.mass > 0:
                raise TrainingError(
                    "ncmi: center=fixed has seen no training bag — call before_fit with the "
                    "outputs of the training bags before the first step"
                )
            self._checked = True
        return None if self.kind == "none" else self.value

    @torch.no_grad()
    def set(self, sums: Tensor, count: int) -> None:
        """Set mu to the mean of the bags of all processes: their sum (m,) and number."""
        both = total(torch.cat([sums.double(), sums.new_tensor([count]).double()]))
        self.value.copy_(both[:-1] / both[-1])
        self.mass.fill_(1.0)

    @torch.no_grad()
    def see(self, f: Tensor) -> None:
        """Move towards the mean of the batch f (B, m), of all processes together.

        One row is no mean: it would be compared with itself. Such a batch is passed over.
        """
        sums, count = f.double().sum(0), len(f)
        if processes() > 1:
            both = total(torch.cat([sums, sums.new_tensor([count])]))
            sums, count = both[:-1], int(both[-1])
        if count > 1 or self._first_copy:
            self.average(sums / count)

    @torch.no_grad()
    def average(self, mean: Tensor) -> None:
        """Take one more mean (m,) into the moving average."""
        share = 1 - self._momentum
        if self._first_copy:
            rate = torch.where(self.mass == 0, 1.0, share)
            self.mass.fill_(1.0)
        else:
            self.mass.mul_(self._momentum).add_(share)
            rate = share / self.mass
        self.value.add_((rate * (mean - self.value)).to(self.value.dtype))

    @torch.no_grad()
    def drift(self) -> float | None:
        """Return how far mu went since the last call, relative to its length.

        None for a centre that does not move, and on the first call, which has no earlier one.
        """
        if self.kind != "ema" or not self.mass > 0:
            return None
        first = not bool(self.seen.any())
        moved = float((self.value - self.seen).norm() / self.value.norm().clamp_min(1e-30))
        self.seen.copy_(self.value)
        return None if first else moved
