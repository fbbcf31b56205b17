"""The tissue mask of a slide and how much of a box it covers."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from shapely import MultiPolygon, Polygon
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

    @cached_property
    def _integral(self) -> NDArray[np.float64]:
        return np.asarray(cv2.integral(self.mask.astype(np.uint8)), np.float64)

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
        """Return the tissue as polygons with holes, in level-0 pixels."""
        contours, tree = cv2.findContours(
            self.mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE
        )
        if not contours:
            return MultiPolygon()
        rings = [c[:, 0, :].astype(float) + 0.5 for c in contours]
        polygons = []
        for k, (_, _, _, parent) in enumerate(tree[0]):
            if parent < 0 and len(rings[k]) >= 3:
                holes = [
                    rings[j] for j in range(len(rings)) if tree[0][j][3] == k and len(rings[j]) >= 3
                ]
                polygons.append(Polygon(rings[k], holes).buffer(0))
        parts = [p for q in polygons for p in getattr(q, "geoms", [q]) if p.area > 0]
        matrix = [self.scale[0], 0, 0, self.scale[1], *self.origin0]
        return affine_transform(MultiPolygon(parts), matrix)
