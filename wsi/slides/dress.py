"""Writing pyramidal TIFFs in the dress of several vendors, as OpenSlide recognises them.

For synthetic slides: demos, tutorials and tests that need a slide of known content.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import tifffile
from numpy.typing import NDArray

from wsi.files import publish

Dress = Literal["generic", "aperio", "philips", "leica", "trestle"]
Rounding = Literal["floor", "ceil"]

_TILE = 256
_LEICA_MARGIN_NM = 100_000


def pyramid(
    level0: NDArray[np.uint8], levels: int, factor: float = 2.0, rounding: Rounding = "floor"
) -> list[NDArray[np.uint8]]:
    """Return `level0` and its area-averaged reductions; each covers the whole of level 0."""
    h, w = level0.shape[:2]
    sizes = level_sizes((w, h), levels, factor, rounding)
    return [level0] + [
        np.asarray(cv2.resize(level0, size, interpolation=cv2.INTER_AREA), np.uint8)
        for size in sizes[1:]
    ]


def level_sizes(
    size0: tuple[int, int], levels: int, factor: float = 2.0, rounding: Rounding = "floor"
) -> list[tuple[int, int]]:
    """Return (w, h) of each level, rounded one way as scanners do."""
    turn: Callable[[float], int] = math.floor if rounding == "floor" else math.ceil
    return [
        (max(1, turn(size0[0] / factor**k)), max(1, turn(size0[1] / factor**k)))
        for k in range(levels)
    ]


def write_slide(
    path: Path,
    levels: Sequence[NDArray[np.uint8]],
    *,
    mpp: float | None,
    dress: Dress = "generic",
    magnification: float = 40,
    quality: int = 85,
    lossless: bool = False,
) -> None:
    """Write a tiled TIFF of `levels` (uint8 (h, w, 3), finest first) that OpenSlide opens.

    Args:
        mpp: um per level-0 pixel, stated the vendor's way; None states nothing.
        lossless: deflate in place of JPEG (generic dress only).
    """
    h, w = levels[0].shape[:2]
    describe = _DESCRIPTIONS[dress]
    options: dict[str, Any] = {"tile": (_TILE, _TILE), "photometric": "rgb", "metadata": None}
    options |= {"compression": "zlib"} if lossless else _jpeg(quality)
    with publish(path) as temporary, tifffile.TiffWriter(temporary) as tiff:
        for k, level in enumerate(levels):
            size = level.shape[1], level.shape[0]
            tiff.write(
                level,
                description=describe(
                    k, [(a.shape[1], a.shape[0]) for a in levels], mpp, magnification
                ),
                software=_SOFTWARE.get(dress, "wsi"),
                subfiletype=1 if k and dress in ("philips", "generic") else 0,
                **_resolution_tags(dress, mpp, (w / size[0], h / size[1])),
                **options,
            )


def _jpeg(quality: int) -> dict[str, Any]:
    return {"compression": "jpeg", "compressionargs": {"level": quality}}


def _resolution_tags(
    dress: Dress, mpp: float | None, downsample: tuple[float, float]
) -> dict[str, Any]:
    if mpp is None or dress not in ("generic", "leica"):
        return {}
    per_cm = [1e4 / (mpp * d) for d in downsample]
    return {"resolution": (per_cm[0], per_cm[1]), "resolutionunit": "CENTIMETER"}


Sizes = list[tuple[int, int]]


def _generic(level: int, sizes: Sizes, mpp: float | None, magnification: float) -> str | None:
    return None


def _aperio(level: int, sizes: Sizes, mpp: float | None, magnification: float) -> str:
    (w0, h0), (w, h) = sizes[0], sizes[level]
    shape = f"{w0}x{h0} [0,0 {w0}x{h0}] ({_TILE}x{_TILE})"
    if level:
        shape += f" -> {w}x{h}"
    stated = f"|MPP = {mpp}" if mpp else ""
    return f"Aperio Image Library v11.0.0\n{shape} JPEG/RGB Q=85|AppMag = {magnification:g}{stated}"


def _trestle(level: int, sizes: Sizes, mpp: float | None, magnification: float) -> str:
    overlaps = " ".join("0 0" for _ in sizes)
    return f"Objective Power={magnification:g};JPEG Quality=85;OverlapsXY={overlaps}"


def _leica(level: int, sizes: Sizes, mpp: float | None, magnification: float) -> str | None:
    if level:
        return None
    w, h = sizes[0]
    nm = round((mpp or 0.5) * 1000 * w), round((mpp or 0.5) * 1000 * h)
    # The glass must be larger than the scan, or the scan is taken for the macro image.
    glass = nm[0] + _LEICA_MARGIN_NM, nm[1] + _LEICA_MARGIN_NM
    dimensions = "".join(
        f'<dimension sizeX="{a}" sizeY="{b}" r="{k}" ifd="{k}"/>' for k, (a, b) in enumerate(sizes)
    )
    return (
        '<?xml version="1.0"?><scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01" '
        f'uuid="urn:uuid:1"><collection name="c" uuid="urn:uuid:2" sizeX="{glass[0]}" '
        f'sizeY="{glass[1]}"><image name="image_0000" uuid="urn:uuid:3">'
        "<creationDate>2000-01-01T00:00:00Z</creationDate>"
        '<device model="Leica SCN400" version="1"/>'
        f'<pixels sizeX="{w}" sizeY="{h}">{dimensions}</pixels>'
        f'<view sizeX="{nm[0]}" sizeY="{nm[1]}" offsetX="0" offsetY="0" spacingZ="0"/>'
        f"<scanSettings><objectiveSettings><objective>{magnification:g}</objective>"
        "</objectiveSettings><illuminationSettings><numericalAperture>0.4</numericalAperture>"
        "<illuminationSource>brightfield</illuminationSource></illuminationSettings>"
        "</scanSettings></image></collection></scn>"
    )


def _philips(level: int, sizes: Sizes, mpp: float | None, magnification: float) -> str | None:
    if level:
        return None

    def attribute(name: str, group: str, element: str, kind: str, value: str) -> str:
        return (
            f'<Attribute Name="{name}" Group="{group}" Element="{element}" PMSVR="{kind}">'
            f"{value}</Attribute>"
        )

    def spacing(k: int) -> str:
        mm = (mpp or 0.25) / 1000 * round(sizes[0][0] / sizes[k][0])
        quoted = f"&quot;{mm:.9f}&quot;"
        return attribute(
            "DICOM_PIXEL_SPACING", "0x0028", "0x0030", "IDoubleArray", f"{quoted} {quoted}"
        )

    representations = "".join(
        '<DataObject ObjectType="PixelDataRepresentation">'
        + spacing(k)
        + attribute("PIIM_PIXEL_DATA_REPRESENTATION_NUMBER", "0x1001", "0x8B01", "IUInt16", str(k))
        + "</DataObject>"
        for k in range(len(sizes))
    )
    image = (
        '<DataObject ObjectType="DPScannedImage">'
        + attribute("PIM_DP_IMAGE_TYPE", "0x301D", "0x1004", "IString", "WSI")
        + spacing(0)
        + attribute(
            "PIIM_PIXEL_DATA_REPRESENTATION_SEQUENCE",
            "0x1001",
            "0x8B00",
            "IDataObjectArray",
            f"<Array>{representations}</Array>",
        )
        + "</DataObject>"
    )
    return (
        '<?xml version="1.0" encoding="UTF-8" ?><DataObject ObjectType="DPUfsImport">'
        + attribute("DICOM_MANUFACTURER", "0x0008", "0x0070", "IString", "synthetic")
        + attribute(
            "PIM_DP_SCANNED_IMAGES",
            "0x301D",
            "0x1003",
            "IDataObjectArray",
            f"<Array>{image}</Array>",
        )
        + "</DataObject>"
    )


_DESCRIPTIONS: dict[Dress, Callable[[int, Sizes, float | None, float], str | None]] = {
    "generic": _generic,
    "aperio": _aperio,
    "philips": _philips,
    "leica": _leica,
    "trestle": _trestle,
}
_SOFTWARE: dict[Dress, str] = {"philips": "Philips DP v1.0", "trestle": "MedScan"}
