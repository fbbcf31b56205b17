"""Bags of several slides laid together as one, such as all slides of a patient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class JoinedBag:
    """Features (N, D), xy0 (N, 2) int64, tissue and scores (N,), of all tiles in order of slides.

    `xy0` does not lie on any one slide, see `joined`.
    """

    features: np.ndarray
    xy0: np.ndarray | None
    tissue: np.ndarray | None
    quality: Mapping[str, np.ndarray] | None


def joined(bags: Sequence[Any]) -> JoinedBag:
    """Return one bag of the tiles of several.

    Each slide keeps its own coordinates in y, and in x is moved into a lane of its own, twice as
    wide as the widest slide: tiles of two slides are never nearer than that slide is wide, and
    neighbours on a slide stay neighbours. What only some bags have (coordinates, tissue, scores) is
    left out.

    Args:
        bags: each with features (N, D), and xy0, tissue, quality or None.
    """
    corners = [None if bag.xy0 is None else np.asarray(bag.xy0, np.int64) for bag in bags]
    known = [xy0 for xy0 in corners if xy0 is not None]
    return JoinedBag(
        np.concatenate([np.asarray(bag.features) for bag in bags]),
        np.concatenate(_in_lanes(known)) if len(known) == len(bags) else None,
        _of_all([bag.tissue for bag in bags]),
        _scores([bag.quality for bag in bags]),
    )


def _in_lanes(corners: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return corners (N, 2) of each slide, its leftmost tile at the start of its lane."""
    left = [int(xy0[:, 0].min()) for xy0 in corners]
    # A tile's edge is not known here; one more pixel keeps slides of one column of tiles apart,
    # and the lane's second half leaves room for the tile itself.
    widest = max(int(xy0[:, 0].max()) - start for xy0, start in zip(corners, left)) + 1
    tall = max(int(np.ptp(xy0[:, 1])) for xy0 in corners) + 1
    lane = 2 * max(widest, tall)
    return [
        xy0 + np.array([k * lane - start, 0]) for k, (xy0, start) in enumerate(zip(corners, left))
    ]


def _of_all(parts: Sequence[Any]) -> np.ndarray | None:
    if any(part is None for part in parts):
        return None
    return np.concatenate([np.asarray(part) for part in parts])


def _scores(parts: Sequence[Any]) -> dict[str, np.ndarray] | None:
    if any(part is None for part in parts):
        return None
    return {name: np.concatenate([np.asarray(part[name]) for part in parts]) for name in parts[0]}
