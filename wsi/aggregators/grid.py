"""Where tiles lie: the step of their grid, cells, neighbours, and position encodings.

Positions are counted in tile steps read from the coordinates themselves, so that slides of any
scanner and resolution speak the same unit. All of it runs on the host, in NumPy; only what is
multiplied with features is a tensor.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from wsi.aggregators.base import Packed
from wsi.errors import BagMismatchError

_NEAR = 0.25  # steps are whole pixels, rounded: 458 and 459 are one step
_RARE = 0.02  # share of distances
_CHUNK = 1 << 16  # numbers of a block of rows, which then stays in the cache of a core

Array = NDArray[np.float64]


def coordinates_of(batch: Packed, name: str) -> list[Array]:
    """Return the corners (N, 2) of each bag, in level-0 pixels.

    Raises:
        BagMismatchError: the batch has no coordinates.
    """
    if batch.xy0 is None:
        raise BagMismatchError(
            f"{batch.slide_ids[0]}: aggregator '{name}' encodes where tiles lie, and these have "
            f"no coordinates — give bags with xy0, or set position to 'none' in {name}'s settings"
        )
    return np.split(batch.xy0.cpu().numpy().astype(np.float64), np.cumsum(batch.sizes)[:-1])


def tile_step(xy0: Array) -> Array:
    """Return the step (2,) of the grid that corners (N, 2) stand on, in level-0 pixels.

    The smallest distance between neighbours in a row or column that is not rare: a tile in
    twenty, drawn at random, still tells it, and fragments with grids of their own do not disturb.
    Fractional steps, which corners round to whole pixels, come back as the mean of their
    neighbours. Of tiles of which no two share a row or column, the smallest difference in x or
    y; of a single tile, 1. Few and scattered tiles can only tell a coarser step than theirs.
    """
    gaps = [_gaps(xy0[:, axis], xy0[:, 1 - axis]) for axis in (0, 1)]
    together = np.sort(np.concatenate(gaps))
    if not len(together):
        loose = np.concatenate([np.diff(np.unique(column)) for column in xy0.T])
        return np.full(2, loose.min() if len(loose) else 1.0)
    alike = np.searchsorted(together, (1 + _NEAR) * together, "right") - np.searchsorted(
        together, (1 - _NEAR) * together
    )
    usual = together[alike >= _RARE * len(together)][0]
    near = [g[np.abs(g - usual) < _NEAR * usual] for g in gaps]
    return np.array([g.mean() if len(g) else usual for g in near])


def _gaps(along: Array, across: Array) -> Array:
    """Return the positive distances between neighbours of one line, lines being equal `across`."""
    order = np.lexsort((along, across))
    distance, line = np.diff(along[order]), np.diff(across[order])
    return distance[(line == 0) & (distance > 0)]


def tile_positions(xy0: Array) -> Array:
    """Return positions (N, 2) in tile steps, from the middle of the box around all tiles."""
    middle = (xy0.min(0) + xy0.max(0)) / 2
    return (xy0 - middle) / tile_step(xy0)


def tile_cells(xy0: Array) -> NDArray[np.int64]:
    """Return the cell (N, 2) of the grid that each tile stands on or nearest to, from 0."""
    return np.rint((xy0 - xy0.min(0)) / tile_step(xy0)).astype(np.int64)


def neighbours(cells: NDArray[np.int64], radius: int) -> NDArray[np.int64]:
    """Return (M, K) of distinct `cells` (M, 2): the row of each neighbour, M where there is none.

    Args:
        cells: occupied cells, none twice.
        radius: K = (2 radius + 1)^2 neighbours, dy by dy and dx within, as a kernel is laid out.
    """
    n, width = len(cells), int(cells[:, 0].max()) + 2 * radius + 1  # no offset wraps a line
    keys = cells[:, 1] * width + cells[:, 0]
    order = keys.argsort(kind="stable")
    ordered = keys[order]
    span = np.arange(-radius, radius + 1)
    found = np.empty((n, len(span) ** 2), np.int64)
    for column, offset in enumerate((span[:, None] * width + span).ravel()):
        at = np.searchsorted(ordered, keys + offset).clip(max=n - 1)
        found[:, column] = np.where(ordered[at] == keys + offset, order[at], n)
    return found


def curve_rank(cells: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the rank (N,) of cells along a Z-shaped curve, so that near ranks lie near."""
    key = np.zeros(len(cells), np.uint64)
    x, y = cells.T.astype(np.uint64)
    for bit in range(31):
        b = np.uint64(bit)
        key |= ((x >> b) & np.uint64(1)) << np.uint64(2 * bit)
        key |= ((y >> b) & np.uint64(1)) << np.uint64(2 * bit + 1)
    return key.argsort(kind="stable").argsort(kind="stable")


def sincos(positions: Sequence[Array], width: int) -> Tensor:
    """Return sines and cosines (sum N, width) of positions in tile steps.

    A quarter of the features each for sin x, cos x, sin y, cos y, of frequencies 10000^(-4j/width).
    Source: Vaswani et al. 2017, arXiv 1706.03762, sec. 3.5, in x and in y.
    """
    frequency = 10_000.0 ** (-4 * np.arange(width // 4) / width)
    angles = np.concatenate(positions)[:, :, None] * frequency
    waves = np.stack([np.sin(angles), np.cos(angles)], axis=2).reshape(len(angles), -1)
    return torch.from_numpy(waves.astype(np.float32))


class GridConvolution(nn.Module):
    """Depthwise convolutions of several sizes over the tiles of a grid, summed (M, E).

    Cells without a tile count as zeros, as padding does, and are never laid out, so memory grows
    with the tiles and not with the slide. All kernels are added into the largest before use,
    which is the same sum.

    Args:
        width: E.
        sizes: odd edge lengths of the kernels.
    """

    def __init__(self, width: int, sizes: Sequence[int]) -> None:
        super().__init__()
        self.radius = max(sizes) // 2
        self.kernels = nn.ParameterList([torch.empty(size * size, width) for size in sizes])
        self.bias = nn.Parameter(torch.zeros(width))
        for size, kernel in zip(sizes, self.kernels, strict=True):
            nn.init.uniform_(kernel, -1 / size, 1 / size)  # as torch's depthwise convolution

    def forward(self, x: Tensor, near: Tensor) -> Tensor:
        """Return the convolution (M, E) of x (M, E) with neighbours (M, K), M for none."""
        weight = self._kernel().to(x.dtype)
        return _Gathered.apply(x, weight, near) + self.bias.to(x.dtype)  # type: ignore[operator]

    def _kernel(self) -> Tensor:
        edge = 2 * self.radius + 1
        total = self.bias.new_zeros(edge, edge, len(self.bias))
        for kernel in self.kernels:
            size = int(len(kernel) ** 0.5 + 0.5)
            rim = self.radius - size // 2
            inside = kernel.view(size, size, -1)
            total = total + nn.functional.pad(inside, (0, 0, rim, rim, rim, rim))
        return total.flatten(0, 1)


class _Gathered(torch.autograd.Function):
    """sum_k w_k x[neighbour k]. By hand, since autograd would keep all K gathered copies of x."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, near: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, near)
        return _gathered(x, weight, near)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, near = ctx.saved_tensors
        grad = grads[0].contiguous()
        # i is the neighbour k of j where j is the opposite neighbour of i.
        grad_x = _gathered(grad, weight.flip(0), near)
        grad_weight = torch.zeros_like(weight, dtype=_wide(x))
        for rows, k, found in _found(x, near):
            grad_weight[k] += (found * grad[rows]).sum(0)
        return grad_x, grad_weight.to(weight.dtype), None


def _gathered(x: Tensor, weight: Tensor, near: Tensor) -> Tensor:
    out = torch.zeros_like(x, dtype=_wide(x))
    for rows, k, found in _found(x, near):
        out[rows].addcmul_(found, weight[k])
    return out.to(x.dtype)


def _found(x: Tensor, near: Tensor) -> Iterator[tuple[slice, int, Tensor]]:
    """Yield, for blocks of rows and each k, their k-th neighbours: valid until the next."""
    padded = torch.cat([x, x.new_zeros(1, x.shape[1])])  # the row of neighbours there are none of
    step = max(1, _CHUNK // x.shape[1])
    buffer = x.new_empty(min(step, len(near)), x.shape[1])  # new memory would cost most of the time
    for start in range(0, len(near), step):
        places = near[start : start + step].T.contiguous()
        rows, found = slice(start, start + step), buffer[: places.shape[1]]
        for k, place in enumerate(places):
            yield rows, k, torch.index_select(padded, 0, place, out=found)


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
