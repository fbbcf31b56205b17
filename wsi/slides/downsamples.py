"""Level-0 pixels per level pixel: what is true of each vendor's levels.

A level's width is a whole number, the ratio of its width to level 0's is not always its scale.
Aperio reduces by a whole factor and drops the pixels left over; Philips states the spacing of
every level; of others nothing is known, and a level is taken to show the whole of level 0. See
docs/explanation/coordinates.md for the measurements.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from wsi.slides.base import own_ratios

Scales = tuple[tuple[float, float], ...]
Size = tuple[int, int]

_SPACING = "philips.PIIM_PIXEL_DATA_REPRESENTATION_SEQUENCE[{}].DICOM_PIXEL_SPACING"
_ROUNDING = 1e-6
_WHOLE = 1e-2  # spacings are printed with six digits or fewer


def true_downsamples(
    vendor: str,
    sizes: Sequence[Size],
    reported: Sequence[float],
    properties: Mapping[str, str],
) -> Scales:
    """Return level-0 pixels per level pixel (x, y) of every level.

    Args:
        sizes: (w, h) of every level, finest first.
        reported: OpenSlide's single figure of each level, by rule the mean of both axes.
        properties: OpenSlide's properties.
    """
    own = own_ratios(sizes[0], sizes)
    if vendor == "aperio":
        return tuple(
            (factor, factor) if (factor := dropped_factor(sizes[0], size)) else ratio
            for size, ratio in zip(sizes, own, strict=True)
        )
    if vendor == "philips":
        return tuple(_philips(k, figure, properties) for k, figure in enumerate(reported))
    return tuple(
        # A figure that is not the mean of the axes is a statement of the format's own.
        ratio if math.isclose(sum(ratio) / 2, figure, rel_tol=1e-9) else (figure, figure)
        for ratio, figure in zip(own, reported, strict=True)
    )


def true_sizes(sizes: Sequence[Size], scales: Scales) -> tuple[Size, ...]:
    """Return the (w, h) of every level that its true scale leaves room for.

    OpenSlide derives Philips' level sizes from scales that it rounds to whole numbers.
    """
    (w0, h0), *_ = sizes
    return tuple(
        (min(w, max(1, int(w0 / x + _ROUNDING))), min(h, max(1, int(h0 / y + _ROUNDING))))
        for (w, h), (x, y) in zip(sizes, scales, strict=True)
    )


def dropped_factor(size0: Size, size: Size) -> int | None:
    """Return the whole factor that reduces `size0` to `size` when the remainder is dropped.

    None when no whole factor does, or when a level is so small that several would.

    >>> dropped_factor((4443, 3567), (2221, 1783))
    2
    >>> dropped_factor((4443, 3567), (2222, 1784)) is None
    True
    """
    first = max(edge0 // (edge + 1) + 1 for edge0, edge in zip(size0, size, strict=True))
    last = min(edge0 // edge for edge0, edge in zip(size0, size, strict=True))
    factors = range(first, last + 1)
    if len(factors) > 1:  # pyramids halve, or quarter, again and again
        factors = [factor for factor in factors if factor & (factor - 1) == 0]
    return factors[0] if len(factors) == 1 else None


def _philips(level: int, reported: float, properties: Mapping[str, str]) -> tuple[float, float]:
    """Return the stated scale of a level; OpenSlide rounds it to a whole number for both axes."""
    finest = _spacing(properties.get(_SPACING.format(0), ""))
    coarse = _spacing(properties.get(_SPACING.format(level), ""))
    if finest is None or coarse is None:
        return reported, reported
    ratios = coarse[0] / finest[0], coarse[1] / finest[1]
    near = all(abs(ratio - reported) < _WHOLE * reported for ratio in ratios)
    return (reported, reported) if near else ratios


def _spacing(text: str) -> tuple[float, float] | None:
    """Return DICOM's pixel spacing, row then column, as (x, y)."""
    found = re.findall(r"[0-9.]+(?:[eE][-+]?[0-9]+)?", text)
    try:
        row, column = (float(value) for value in found)
    except ValueError:
        return None
    return (column, row) if row > 0 and column > 0 else None
