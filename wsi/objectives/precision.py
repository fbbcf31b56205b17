"""At least float32 for losses, whatever precision the network runs in.

Losses subtract numbers that are nearly equal and take exponentials of others: in half precision
the digits that training follows are lost.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wsi.objectives.base import BagOutput, class_logits


def full(x: Tensor) -> Tensor:
    """Return x in float32 where it is of half precision; float32 and float64 stay."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def full_logits(output: BagOutput) -> Tensor:
    """Return the logits (B, C) in at least float32, or raise TrainingError without a head."""
    return full(class_logits(output))


def no_autocast(x: Tensor) -> torch.autocast:
    """Return a context in which products of matrices on the device of x keep their precision."""
    return torch.autocast(x.device.type, enabled=False)
