"""Which tiles share a landmark or a pseudo-bag: settled by what they are, not by their order."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from wsi.aggregators.attention import Landmarks
from wsi.aggregators.base import Packed
from wsi.aggregators.grid import curve_rank, tile_cells


def content_ranks(batch: Packed) -> list[Tensor]:
    """Return the rank (N,) of each tile of its bag along a fixed direction of feature space.

    In float64 and row by row, so that neither the order of tiles nor the packing can change how
    two tiles compare; tiles that are equal may change places, which changes nothing.
    """
    direction = np.random.default_rng(0).standard_normal(batch.x.shape[1])
    along = torch.from_numpy(direction).to(batch.x.device)
    return [_rank((tiles.detach().double() * along).sum(1)) for tiles in batch.x.split(batch.sizes)]


def tile_landmarks(batch: Packed, most: int | None, *, class_token: bool) -> Landmarks | None:
    """Return landmarks of tiles that lie near one another, of equal numbers of tiles.

    Near on the slide where coordinates are known, else by content. A class token, which comes
    before the tiles of its bag, is a landmark of its own.

    Args:
        most: landmarks per bag beside the class token's, or None for no landmarks.
    """
    if most is None:
        return None
    of, counts, own = [], [], int(class_token)
    for rank in content_ranks(batch) if batch.xy0 is None else _place_ranks(batch, batch.xy0):
        count = min(most, len(rank))
        mark = rank * count // len(rank) + own
        of += [mark.new_zeros(own), mark]
        counts.append(count + own)
    return Landmarks(torch.cat(of), tuple(counts))


def _place_ranks(batch: Packed, xy0: Tensor) -> list[Tensor]:
    ranks = []
    for corners in xy0.split(batch.sizes):
        rank = curve_rank(tile_cells(corners.cpu().numpy().astype(np.float64)))
        ranks.append(torch.from_numpy(rank).to(batch.x.device))
    return ranks


def _rank(values: Tensor) -> Tensor:
    return values.argsort(stable=True).argsort()
