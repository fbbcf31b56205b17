"""How many slides of each site have which resolution, in bins that follow the values."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from wsi.slides.base import SlideInfo

T = TypeVar("T")

BIN_WIDTH = 0.02
"""A bin ends where a value is more than 2 % above its smallest."""

_OUTLYING_SHARE = 0.05
_ENOUGH = 10  # resolved slides of a site below which nothing can be called usual


@dataclass(frozen=True)
class MppBin:
    """Slides of one site with about the same resolution.

    Attributes:
        mpp: median um per level-0 pixel, x and y averaged; None for slides without.
        low, high: its smallest and largest value; None for slides without.
        slide_ids: in order.
        vendors: how many slides of which vendor.
        sources: how many slides have it from where: openslide, table, ...
        outlying: few of a site that has a usual resolution, so worth a look.
    """

    site: str
    mpp: float | None
    low: float | None
    high: float | None
    slide_ids: tuple[str, ...]
    vendors: Mapping[str, int]
    sources: Mapping[str, int]
    outlying: bool = False

    @property
    def text(self) -> str:
        """Return what people are shown of its values: `0.2425`, `0.499-0.5` or `none`."""
        return "none" if self.low is None or self.high is None else range_text(self.low, self.high)


def range_text(low: float, high: float) -> str:
    """Return the values of a bin in four digits, as a range where it holds different ones.

    >>> range_text(0.499, 0.5), range_text(0.2425, 0.2425)
    ('0.499-0.5', '0.2425')
    """
    first, last = f"{low:.4g}", f"{high:.4g}"
    return first if first == last else f"{first}-{last}"


def mpp_bins(slides: Iterable[tuple[str, SlideInfo]]) -> list[MppBin]:
    """Return the bins of every site, the finest resolution first and slides without one last.

    Args:
        slides: site and facts of each slide that could be opened.
    """
    by_site: dict[str, list[SlideInfo]] = defaultdict(list)
    for site, info in slides:
        by_site[site].append(info)
    return [found for site in sorted(by_site) for found in _bins_of(site, by_site[site])]


def grouped(items: Iterable[T], mpp: Callable[[T], float]) -> list[list[T]]:
    """Return items in the bins that their values make, which must come in rising order."""
    groups: list[list[T]] = []
    for item in items:
        if groups and mpp(item) <= mpp(groups[-1][0]) * (1 + BIN_WIDTH):
            groups[-1].append(item)
        else:
            groups.append([item])
    return groups


def _bins_of(site: str, infos: list[SlideInfo]) -> list[MppBin]:
    known = sorted((i for i in infos if i.mpp is not None), key=lambda i: (_mean(i), i.slide_id))
    groups = grouped(known, _mean)
    few = max(1, int(_OUTLYING_SHARE * len(known)))
    bins = [_bin(site, g, len(known) >= _ENOUGH and len(g) <= few) for g in groups]
    unknown = [i for i in infos if i.mpp is None]
    return [*bins, _bin(site, unknown, False)] if unknown else bins


def _bin(site: str, infos: list[SlideInfo], outlying: bool) -> MppBin:
    values = [_mean(info) for info in infos if info.mpp is not None]
    return MppBin(
        site,
        statistics.median(values) if values else None,
        min(values, default=None),
        max(values, default=None),
        tuple(sorted(info.slide_id for info in infos)),
        dict(Counter(info.vendor for info in infos).most_common()),
        dict(Counter(info.mpp_source for info in infos).most_common()),
        outlying,
    )


def _mean(info: SlideInfo) -> float:
    x, y = info.mpp or (0.0, 0.0)
    return (x + y) / 2
