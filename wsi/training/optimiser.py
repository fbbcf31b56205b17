"""AdamW and its learning rate over the whole schedule."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from wsi.specs import FitSpec

_FUSED = ("cpu", "cuda")  # where torch has such a call


class _OnHost(torch.optim.AdamW):
    """AdamW that does not ask for accelerators at every step.

    The question, whether a CUDA graph is being captured, looks for the driver anew each time and
    takes as long as half a step of a small bag. The names are torch's own, of now and before.
    """

    def _accelerator_graph_capture_health_check(self) -> None:
        pass

    def _cuda_graph_capture_health_check(self) -> None:
        pass


def adamw(parameters: Iterable[nn.Parameter], spec: FitSpec) -> torch.optim.AdamW:
    """Return AdamW at the peak rate and weight decay of `spec`, one call for all parameters."""
    held = list(parameters)
    fused = all(p.device.type in _FUSED for p in held)
    kind = _OnHost if all(p.device.type == "cpu" for p in held) else torch.optim.AdamW
    return kind(held, lr=spec.lr, weight_decay=spec.weight_decay, fused=fused)


def learning_rate(step: int, steps_per_epoch: int, spec: FitSpec) -> float:
    """Return the rate of step 0, 1, ...: linear warm-up, then half a cosine down to 0.

    The schedule spans all epochs, whether or not training stops early. The first step is already
    above 0, and the rate would reach 0 at the step after the last.
    """
    total = spec.epochs * steps_per_epoch
    warmup = min(spec.warmup_epochs * steps_per_epoch, total)
    if step < warmup:
        return spec.lr * min(1.0, (step + 1) / warmup)
    return spec.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1.0, total - warmup)))


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = rate
