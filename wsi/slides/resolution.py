"""Where a slide's um per pixel comes from, and when what it says is not a measurement."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from wsi.specs import MPP_RANGE

State = Literal["ok", "no-mpp", "implausible-mpp"]

_TOLERANCE = 0.02

TABLE_WINS = "the table outranks the slide itself"
"""How a note begins where table and metadata contradict each other."""

_DESCRIPTION_LIMIT = 1 << 20  # a vendor's XML is a few KiB; more is not worth parsing
_UM_PER_UNIT = {"nm": 1e-3, "µm": 1.0, "um": 1.0, "mm": 1e3, "cm": 1e4}
# Vendors whose resolution is written by the scanner. In a generic TIFF it may be an editor's
# 72 dpi, which OpenSlide duly reports as 352.78 um per pixel.
_DPI_VENDORS = {"generic-tiff", "trestle", "image"}
REMEDY = (
    "give one in an mpp column of the slide table, or slides.no_mpp=assume slides.assume_mpp=<um>"
)


@dataclass(frozen=True)
class Resolution:
    """Um per level-0 pixel (x, y) with its source, or why there is none."""

    mpp: tuple[float, float] | None
    source: str
    state: State
    notes: tuple[str, ...] = ()


def resolve_mpp(
    properties: Mapping[str, str],
    *,
    table_mpp: float | None = None,
    use_magnification: bool = False,
    assume_mpp: float | None = None,
    scn_mpp: tuple[float, float] | None = None,
) -> Resolution:
    """Return the resolution by the first believable source.

    Order: the slide table, OpenSlide's `mpp-x/y`, Leica's XML, OME's XML, objective power
    (only if allowed), an assumed value (only fills the gap). A value outside 0.05-20 um/px from
    the table or a medical format is `implausible-mpp`; a dpi default or an untagged file is no
    measurement at all, so `no-mpp`.

    Args:
        properties: OpenSlide's properties.
        scn_mpp: um per pixel (x, y) that the XML of a Leica file states; OpenSlide reads TIFF tags
            only.
    """
    stated = (scn_mpp, "scn-xml") if scn_mpp else None
    found = _from_openslide(properties) or stated or _from_ome(properties)
    if table_mpp is not None:
        given = _judged((table_mpp, table_mpp), "table", properties)
        if given.state != "ok" or found is None:
            return given
        return replace(given, notes=given.notes + _contradiction(table_mpp, *found))
    if found is not None:
        # One value for all slides fills gaps; it never contradicts what a slide itself says.
        return _judged(*found, properties)
    if use_magnification and (power := _power(properties)):
        return _judged((10 / power, 10 / power), "objective-power", {})
    if assume_mpp:
        return Resolution((assume_mpp, assume_mpp), "assumed", "ok", ("resolution assumed",))
    return Resolution(None, "none", "no-mpp", (f"no resolution in its metadata — {REMEDY}",))


def agree(a: float, b: float) -> bool:
    """Return whether two resolutions are the same within 2 % of the smaller."""
    return abs(a - b) <= _TOLERANCE * min(a, b)


def _contradiction(table_mpp: float, own: tuple[float, float], source: str) -> tuple[str, ...]:
    """Return a note when the slide itself says something else than the table."""
    if all(agree(value, table_mpp) for value in own):
        return ()
    x, y = (f"{value:.4g}" for value in own)
    stated = x if x == y else f"{x} x {y}"
    return (f"{TABLE_WINS}: {table_mpp:.4g} um/px, where {source} says {stated}",)


def _judged(mpp: tuple[float, float], source: str, properties: Mapping[str, str]) -> Resolution:
    low, high = MPP_RANGE
    if not all(low <= value <= high for value in mpp):
        remedy = "give the right one in an mpp column of the slide table"
        if min(mpp) > high and source != "table":
            remedy = f"if that is right, it is too coarse for tiles: leave it out; else {remedy}"
        reason = f"{source} says {mpp[0]:.6g} um/px, outside {low:g}-{high:g} — {remedy}"
        return Resolution(None, source, "implausible-mpp", (reason,))
    notes = []
    if not agree(*mpp):
        notes.append(f"x and y differ: {mpp[0]:.4g} and {mpp[1]:.4g} um/px")
    power = _power(properties)
    if power and not 0.6 < mpp[0] * power / 10 < 1.67:
        notes.append(f"{mpp[0]:.4g} um/px is unusual for a {power:g}x objective")
    return Resolution(mpp, source, "ok", tuple(notes))


def _from_openslide(properties: Mapping[str, str]) -> tuple[tuple[float, float], str] | None:
    x, y = _number(properties, "openslide.mpp-x"), _number(properties, "openslide.mpp-y")
    if x is None or y is None:
        return None
    if properties.get("openslide.vendor") in _DPI_VENDORS:
        untagged = properties.get("tiff.ResolutionUnit", "inch") == "none"
        believable = all(MPP_RANGE[0] <= value <= MPP_RANGE[1] for value in (x, y))
        if untagged or not believable:
            return None
    return (x, y), "openslide"


def _from_ome(properties: Mapping[str, str]) -> tuple[tuple[float, float], str] | None:
    text = properties.get("tiff.ImageDescription") or properties.get("openslide.comment") or ""
    if "<" not in text or len(text) > _DESCRIPTION_LIMIT or "<!DOCTYPE" in text:
        return None
    try:
        root = ElementTree.fromstring(text.encode())
    except ElementTree.ParseError:
        return None
    for element in root.iter():
        name = re.sub(r"^\{.*\}", "", element.tag)
        if name == "Pixels" and (mpp := _physical_size(element)):
            return mpp, "ome-xml"
    return None


def _physical_size(pixels: ElementTree.Element) -> tuple[float, float] | None:
    values = []
    for axis in "XY":
        size = _number(pixels.attrib, f"PhysicalSize{axis}")
        unit = _UM_PER_UNIT.get(pixels.get(f"PhysicalSize{axis}Unit", "µm"))
        if size is None or unit is None:
            return None
        values.append(size * unit)
    return values[0], values[1]


def _power(properties: Mapping[str, str]) -> float | None:
    power = _number(properties, "openslide.objective-power")
    return power if power and power > 0 else None


def _number(properties: Mapping[str, str], key: str) -> float | None:
    try:
        value = float(properties.get(key, ""))
    except ValueError:
        return None
    return value if 0 < value < float("inf") else None
