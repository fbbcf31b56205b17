"""The tissue mask of a slide and how much of a box it covers."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from shapely import MultiPolygon, Polygon, box, union_all
from shapely.affinity import affine_transform


@dataclass(frozen=True)
class TissueMask:
    """Tissue as a small picture of the slide's bounds.

    Attributes:
        mask: bool (H, W), True on tissue.
        scale: level-0 pixels per mask pixel (x, y).
        origin0: level-0 position (x, y) of the mask's corner.
        method: name of the method, with `params`.
        flags: what a user should know: `relaxed`, `pen`, `empty`, ...
    """

    mask: NDArray[np.bool_]
    scale: tuple[float, float]
    origin0: tuple[int, int]
    method: str
    params: dict[str, Any] = field(default_factory=dict)
    flags: tuple[str, ...] = ()

    def fraction(self, xy0: NDArray[np.integer], size0: tuple[float, float]) -> NDArray[np.float32]:
        """Return the tissue share (N,) of boxes of `size0` (w, h) at `xy0` (N, 2), level-0 pixels.

        Exact also for boxes that cut mask pixels: the integral image of a piecewise constant
        function is bilinear between its nodes. Outside the mask there is no tissue.
        """
        xy = (np.asarray(xy0, np.float64) - self.origin0) / self.scale
        w, h = size0[0] / self.scale[0], size0[1] / self.scale[1]
        left, top = xy[:, 0], xy[:, 1]
        covered = (
            self._covered(left + w, top + h)
            - self._covered(left, top + h)
            - self._covered(left + w, top)
            + self._covered(left, top)
        )
        return np.clip(covered / (w * h), 0, 1).astype(np.float32)

    def under(
        self, xy0: tuple[float, float], size0: tuple[float, float], size_px: tuple[int, int]
    ) -> NDArray[np.bool_]:
        """Return which of a box's pixels, bool (h, w), have their centre on tissue.

        Args:
            xy0, size0: the box's corner (x, y) and size (w, h) in level-0 pixels.
            size_px: pixels (w, h) the box is shown in.
        """
        columns, rows = (
            (xy0[k] - self.origin0[k] + (np.arange(size_px[k]) + 0.5) * size0[k] / size_px[k])
            // self.scale[k]
            for k in (0, 1)
        )
        H, W = self.mask.shape
        known = ((rows >= 0) & (rows < H))[:, None] & (columns >= 0) & (columns < W)
        row, column = rows.clip(0, H - 1).astype(int), columns.clip(0, W - 1).astype(int)
        return self.mask[np.ix_(row, column)] & known

    @cached_property
    def _integral(self) -> NDArray[np.int32]:
        return np.asarray(cv2.integral(self.mask.view(np.uint8)), np.int32)

    def _covered(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return tissue pixels above and left of each point (x, y)."""
        H, W = self.mask.shape
        x, y = np.clip(x, 0, W), np.clip(y, 0, H)
        column, row = np.minimum(x.astype(int), W - 1), np.minimum(y.astype(int), H - 1)
        fx, fy = x - column, y - row
        table = self._integral
        return (
            table[row, column] * (1 - fx) * (1 - fy)
            + table[row, column + 1] * fx * (1 - fy)
            + table[row + 1, column] * (1 - fx) * fy
            + table[row + 1, column + 1] * fx * fy
        )

    def outlines(self) -> MultiPolygon:
        """Return the tissue as polygons with holes, in level-0 pixels: exactly the mask's area."""
        # Contours by OpenCV run through the centres of the edge pixels, half a pixel too far in.
        shape = union_all(_row_boxes(self.mask)).simplify(0)
        parts = [p for p in getattr(shape, "geoms", [shape]) if isinstance(p, Polygon) and p.area]
        matrix = [self.scale[0], 0, 0, self.scale[1], *self.origin0]
        return affine_transform(MultiPolygon(parts), matrix)


def _row_boxes(mask: NDArray[np.bool_]) -> NDArray[np.object_]:
    """Return a box around each run of True in a row, in mask pixels."""
    steps = np.diff(np.pad(mask.astype(np.int8), ((0, 0), (1, 1))), axis=1)
    rows, starts = np.nonzero(steps > 0)
    ends = np.nonzero(steps < 0)[1]
    return np.asarray(box(starts, rows, ends, rows + 1), object)
