"""Sums over all processes of a distributed run, so that a step is that of the joined batch.

Without `torch.distributed` they are sums of this process and cost nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed


def processes() -> int:
    """Return how many processes share a step; 1 without `torch.distributed`."""
    on = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if on else 1


@torch.no_grad()
def total(value: Tensor) -> Tensor:
    """Return the sum of `value` over processes, without gradient."""
    if processes() == 1:
        return value
    summed = value.detach().clone()
    distributed.all_reduce(summed)
    return summed


def shared_total(value: Tensor) -> Tensor:
    """Return the sum of `value` over processes, for a loss that all of them compute from it.

    The gradient is that of the sum of all processes' losses, so parameter gradients averaged over
    processes, as DistributedDataParallel does, are those of the one loss of the joined batch.
    """
    return value if processes() == 1 else _SharedTotal.apply(value)  # pyright: ignore[reportReturnType]


def mean_gradient(gradient: Tensor) -> Tensor:
    """Return `gradient` averaged over processes, as DistributedDataParallel does."""
    return total(gradient) / processes()


def mean_over_bags(values: Tensor, *, shared: bool) -> Tensor:
    """Return the mean of values (B,), over the bags of all processes where `shared`."""
    if not shared or processes() == 1:
        return values.mean()
    return shared_total(values.sum()) / total(torch.full_like(values[:1], len(values)))[0]


class _SharedTotal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return total(value)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        # All processes go on alike from the sum, so their gradients are equal.
        return gradients[0] * processes()
