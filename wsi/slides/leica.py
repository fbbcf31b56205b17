"""Where the scans of a Leica SCN file lie, exactly.

OpenSlide sizes every level by the whole glass and rounds twice: its ratio between levels is that
of two rounded glass sizes, and a scan begins at a whole pixel of each level. The file's XML states
the sizes of the scan itself, from which both are known again.
"""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tifffile

_SCN = "{http://www.leica-microsystems.com/scn/2010/10/01}"
_BRIGHTFIELD = f"{_SCN}scanSettings/{_SCN}illuminationSettings/{_SCN}illuminationSource"


@dataclass(frozen=True)
class ScnArea:
    """One scanned rectangle of the glass.

    Attributes:
        sizes: pixels (w, h) of every level, finest first.
        origins: first pixel (x, y) on each level as OpenSlide places it, whole pixels of its level.
        ifds: TIFF directory of every level.
        mpp: um per level-0 pixel (x, y).
    """

    sizes: tuple[tuple[int, int], ...]
    origins: tuple[tuple[int, int], ...]
    ifds: tuple[int, ...]
    mpp: tuple[float, float]

    @property
    def downsamples(self) -> tuple[tuple[float, float], ...]:
        """Return level-0 pixels per level pixel (x, y) of every level, from the scan's own size."""
        (w0, h0), *_ = self.sizes
        return tuple((w0 / w, h0 / h) for w, h in self.sizes)

    def request(
        self, level: int, xy: tuple[int, int], stated: float
    ) -> tuple[tuple[int, int], tuple[float, float]]:
        """Return the level-0 position to ask OpenSlide for, and where its pixels really begin.

        Args:
            xy: where to begin, in pixels of `level` counted from the glass's corner.
            stated: OpenSlide's own downsample of `level`, by which it divides.
        """
        location, start = [], []
        for axis in (0, 1):
            scale = self.downsamples[level][axis]
            before = self.origins[0][axis] / scale  # level pixels left of the scan
            pixel = round(xy[axis] - before)
            location.append(_position(pixel, self.origins[level][axis], stated))
            start.append(pixel + before)
        return (location[0], location[1]), (start[0], start[1])

    def distance(self, level: int, box: tuple[int, int, int, int]) -> float:
        """Return how far the centre of a box (x, y, w, h) of `level` lies outside this area."""
        (x, y), (w, h) = self.origins[level], self.sizes[level]
        across, down = box[0] + box[2] / 2 - x, box[1] + box[3] / 2 - y
        return max(-across, across - w, 0.0) + max(-down, down - h, 0.0)


def scn_areas(path: Path) -> tuple[ScnArea, ...]:
    """Return the bright-field scans of a Leica file; none where its XML is not understood."""
    with tifffile.TiffFile(path) as tiff:
        text = tiff.pages.first.description
    try:
        root = ElementTree.fromstring(text) if "<!DOCTYPE" not in text else None
        collection = None if root is None else root.find(f"{_SCN}collection")
        return () if collection is None else _areas(collection)
    except (ElementTree.ParseError, KeyError, ValueError, ZeroDivisionError):
        return ()


def _areas(collection: ElementTree.Element) -> tuple[ScnArea, ...]:
    views = []
    for image in collection.findall(f"{_SCN}image"):
        view = image.find(f"{_SCN}view")
        main = view is not None and not _covers(view, collection)
        if view is not None and main and image.findtext(_BRIGHTFIELD) == "brightfield":
            views.append((view, _dimensions(image)))
    if not views or not views[0][1]:
        return ()
    # OpenSlide takes the finest density of all scans of a level, and x for both axes.
    per_pixel = [
        min(int(view.attrib["sizeX"]) / levels[k][0] for view, levels in views)
        for k in range(len(views[0][1]))
    ]
    return tuple(_area(view, levels, per_pixel) for view, levels in views)


def _covers(view: ElementTree.Element, collection: ElementTree.Element) -> bool:
    """Return whether a picture shows the whole glass: the macro image."""
    at_corner = view.attrib["offsetX"] == view.attrib["offsetY"] == "0"
    return at_corner and all(view.attrib[k] == collection.attrib[k] for k in ("sizeX", "sizeY"))


def _dimensions(image: ElementTree.Element) -> list[tuple[int, int, int]]:
    """Return (w, h, TIFF directory) of each level of the first focal plane, finest first."""
    found = [
        (int(d.attrib["sizeX"]), int(d.attrib["sizeY"]), int(d.attrib["ifd"]))
        for d in image.findall(f"{_SCN}pixels/{_SCN}dimension")
        if d.get("z", "0") == "0"
    ]
    return sorted(found, key=lambda level: -level[0])


def _area(
    view: ElementTree.Element, levels: list[tuple[int, int, int]], per_pixel: Sequence[float]
) -> ScnArea:
    offset = int(view.attrib["offsetX"]), int(view.attrib["offsetY"])
    return ScnArea(
        sizes=tuple((w, h) for w, h, _ in levels),
        origins=tuple((int(offset[0] / nm), int(offset[1] / nm)) for nm in per_pixel),
        ifds=tuple(ifd for _, _, ifd in levels),
        mpp=(_um(view, "sizeX") / levels[0][0], _um(view, "sizeY") / levels[0][1]),
    )


def _um(view: ElementTree.Element, edge: str) -> float:
    return int(view.attrib[edge]) / 1000  # SCN counts nanometres


def _position(pixel: int, origin: int, stated: float) -> int:
    """Return a level-0 position at which OpenSlide begins with `pixel` of a scan.

    It divides by `stated`, takes off `origin` and cuts what remains towards zero.
    """
    exact = pixel + origin
    if pixel >= 0:
        location = math.ceil(exact * stated)
        while location / stated < exact:  # a binary digit short of the whole number
            location += 1
        return location
    location = math.floor(exact * stated)
    while location / stated > exact:
        location -= 1
    return location
