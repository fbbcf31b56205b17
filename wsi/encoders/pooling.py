"""From the tokens or maps of a network to one vector per image."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from wsi.errors import EncoderError


def pool_tokens(
    tokens: Tensor,
    prefix: int | None,
    pooling: str,
    encoder: str,
    finish: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Return one vector per image (B, D or 2 D) of `tokens` (B, T, D).

    Args:
        prefix: how many tokens stand before those of patches: class token and registers.
        pooling: `cls`, `mean` (of patches) or `cls+mean`.
        finish: what the network does to a pooled vector.

    Raises:
        EncoderError: the network has no class token, or no tokens.
    """
    if tokens.ndim != 3 or prefix is None or (prefix == 0 and pooling != "mean"):
        raise EncoderError(
            f"encoder {encoder}: pooling '{pooling}' needs a model with "
            f"{'tokens' if pooling == 'mean' else 'a class token'} — use pooling=default"
        )
    parts = {
        "cls": lambda: tokens[:, 0],
        # In fp32: a sum of hundreds of tokens would lose the few digits that bf16 has.
        "mean": lambda: tokens[:, prefix:].float().mean(dim=1).to(tokens.dtype),
    }
    vectors = [parts[part]() for part in pooling.split("+")]
    return torch.cat([finish(vector) if finish else vector for vector in vectors], dim=1)
