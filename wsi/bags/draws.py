"""What a random draw of tiles from a bag may miss."""

from __future__ import annotations

import math


def chance_of_seeing(positive: int, tiles: int, drawn: int) -> float:
    """Return the chance that a draw without replacement holds one of a few tiles or more.

    The hypergeometric law: 1 - C(tiles - positive, drawn) / C(tiles, drawn).

    Args:
        positive: tiles that matter, of all in the bag.
        tiles: in the bag.
        drawn: of these; all where the bag has no more.

    Example:
        >>> round(chance_of_seeing(3, 10_000, 512), 2)
        0.15
    """
    positive, drawn = min(positive, tiles), min(drawn, tiles)
    missed = math.prod((tiles - drawn - k) / (tiles - k) for k in range(positive))
    return 1 - max(0.0, missed)
