"""Every kind of pyramid, resolution and vendor: tiles lie where they say, and are as wide.

A level is drawn the way its vendor reduces: Philips as its header states, Aperio by a whole factor
with the remainder dropped, all others so that it covers the whole of level 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, product
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pytest

from wsi.errors import NeedsUpsamplingError
from wsi.slides import Slide, open_slide
from wsi.slides.dress import Dress, Rounding, level_sizes, write_slide
from wsi.slides.synthetic import position_level
from wsi.tiling import make_grid

DRESSES: tuple[Dress, ...] = ("generic", "aperio", "philips", "leica", "trestle", "ome")
ROUNDINGS = ("floor", "ceil", "exact")
FACTORS = (2.0, 4.0, 3.2, 1.0)  # 1: a single level
MPPS = (0.2265, 0.243, 0.25, 0.35, 0.5)
TARGETS = (0.25, 0.5, 1.0, 2.0)
CODINGS = ("lossless", "jpeg")

# Edges one short of the next multiple, where the remainder and so the rounding is largest; and
# edges that divide by 16 and by 3.2 squared.
SIZES = {"small": ((1535, 1151), (1536, 1280)), "large": ((3071, 2303), (3072, 2304))}
LEVELS = {2.0: 4, 4.0: 3, 3.2: 3, 1.0: 1}
SUFFIX = {"aperio": ".svs", "leica": ".scn", "ome": ".ome.tif"}


class Pyramid(NamedTuple):
    """A slide of known positions."""

    dress: Dress
    rounding: Literal["floor", "ceil", "exact"]
    factor: float
    coding: str
    edge: str = "small"

    @property
    def sizes(self) -> list[tuple[int, int]]:
        size0 = SIZES[self.edge][self.rounding == "exact"]
        how: Rounding = "floor" if self.rounding == "exact" else self.rounding
        return level_sizes(size0, LEVELS[self.factor], self.factor, how)

    @property
    def scales(self) -> list[tuple[float, float]]:
        """Level-0 pixels per level pixel as this vendor reduces."""
        (w0, h0), *_ = self.sizes
        dropped = self.dress == "aperio" and self.rounding == "floor" and self.factor % 1 == 0
        if self.dress == "philips" or dropped:
            return [(self.factor**k, self.factor**k) for k in range(len(self.sizes))]
        return [(w0 / w, h0 / h) for w, h in self.sizes]

    def write(self, folder: Path) -> Path:
        path = folder / f"position{SUFFIX.get(self.dress, '.tif')}"
        levels = [position_level(*known) for known in zip(self.sizes, self.scales, strict=True)]
        coding: dict[str, Any] = {"lossless": True}
        if self.coding == "jpeg":
            coding = {"quality": 95, "subsampling": "444"}
        write_slide(path, levels, mpp=0.25, dress=self.dress, downsamples=self.scales, **coding)
        return path


def _pairwise(*axes: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    """Return few cells in which each two values of different axes meet at least once."""
    cells = list(product(*axes))
    pairs = list(combinations(range(len(axes)), 2))

    def met(cell: tuple[Any, ...]) -> set[tuple[Any, ...]]:
        return {(i, cell[i], j, cell[j]) for i, j in pairs}

    missing = set().union(*map(met, cells))
    chosen = []
    while missing:
        chosen.append(max(cells, key=lambda cell: len(met(cell) & missing)))
        missing -= met(chosen[-1])
    return chosen


AXES = (DRESSES, ROUNDINGS, FACTORS, CODINGS, MPPS, TARGETS)
SAMPLE = [(Pyramid(*cell[:4]), *cell[4:]) for cell in _pairwise(*AXES)]
WHOLE = [
    Pyramid(*cell, "large" if cell[-1] == "lossless" else "small") for cell in product(*AXES[:4])
]


def _name(value: object) -> str:
    return "-".join(map(str, value)) if isinstance(value, Pyramid) else str(value)


@pytest.fixture(scope="module")
def drawn(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Pyramid, Path]]:
    path = request.param.write(tmp_path_factory.mktemp("pyramid"))
    yield request.param, path
    path.unlink()  # the whole matrix would fill a disk


def _checked(extent, pyramid: Pyramid, slide: Slide, target: float) -> None:
    """Check size and place of tiles all over a slide, and that upsampling is asked for."""
    mpp = slide.info.mpp[0]
    (w0, h0), *_ = pyramid.sizes
    tile_px = 224 if 224 * target / mpp < h0 else 112
    edge = tile_px * target / mpp
    needed = max(1.0, mpp / target)
    size = tile_px, tile_px
    if needed > 1.05:
        with pytest.raises(NeedsUpsamplingError):
            slide.read_at((0, 0), size, target)
    grid = make_grid(
        slide.info, _everywhere, tile_px=tile_px, mpp=target, max_upsampling=needed + 0.01
    )
    assert grid.upsampling == pytest.approx(needed)
    far = w0 - edge, h0 - edge
    for corner in [(0, 0), (far[0] // 3, far[1] // 1.5), (0.37 * far[0], 0), far]:
        tile = slide.read_at(corner, size, target, max_upsampling=needed + 0.01)
        position, span = extent(tile, (edge, edge))
        assert np.abs(np.subtract(span, edge)).max() < 1, (corner, span)
        assert np.abs(np.subtract(position, corner)).max() < 0.5, (corner, position)


def _everywhere(xy0: np.ndarray, size0: tuple[float, float]) -> np.ndarray:
    return np.ones(len(xy0), np.float32)


@pytest.mark.parametrize(("drawn", "mpp", "target"), SAMPLE, indirect=["drawn"], ids=_name)
def test_field_and_place_in_a_sample_of_all_pairs(extent, drawn, mpp: float, target: float) -> None:
    with open_slide(drawn[1], mpp=mpp) as slide:
        _checked(extent, drawn[0], slide, target)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("mpp", MPPS)
@pytest.mark.parametrize("drawn", WHOLE, indirect=True, ids=_name)
def test_field_and_place_in_the_whole_matrix(extent, drawn, mpp: float, target: float) -> None:
    with open_slide(drawn[1], mpp=mpp) as slide:
        _checked(extent, drawn[0], slide, target)


def test_the_sample_holds_every_pair() -> None:
    cells = [(*pyramid[:4], *rest) for pyramid, *rest in SAMPLE]
    for (i, one), (j, other) in combinations(enumerate(AXES), 2):
        assert {(cell[i], cell[j]) for cell in cells} == set(product(one, other))
